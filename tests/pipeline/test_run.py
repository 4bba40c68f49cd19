"""Whole runs on real Ray: the demo from raw files to shards, kills and restarts, two nodes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.data.index import ShardIndex
from model.data.reader import SampleReader, open_shards
from model.encoding.config import EncodeConfig
from model.encoding.encode_shards import encode_shards
from model.encoding.latents import read_latents
from model.encoding.tiny_codec import write_tiny_codecs
from model.network.config import NavaConfig
from model.network.nava import Nava
from model.network.tokens import Sample
from model.ranks import open_world
from model.training.train import Training
from pipeline.ask.queries import Run, balance
from pipeline.ask.stats import stats
from pipeline.ask.verify import problems
from pipeline.config import load_recipe
from pipeline.demo import ball_clip
from pipeline.execute.here import here
from pipeline.run import run
from schemas.errors import PlanError
from stages.download.sources import expand_sources
from tests.model.latent_shards import SHALLOW, TINY, by_euler, recipe, write_latent_shards
from tests.ray_runs import SAID, curate, finish, starts_ray

NO_WEIGHTS = "stage diarize cannot start. No pyannote pipeline at '/nowhere'"
LIGHT = """
name: light
description: No lips to read; on media without speech this is all about the machinery.
stages:
  download: {}
  probe: {}
  shot_split: {engine: content}
  transcribe: {}
  diarize: {}
  clip: {}
  picture: {}
  audio: {}
  cut: {}
gates:
  probe: {has_video: {equals: true}, has_audio: {equals: true}}
  picture: {brightness: {min: 0}}
pack: {target_shard_mb: 1}
"""


def facts(out: Path) -> dict[str, Any]:
    """Everything two equal runs agree in: ledger rows without their cost, and the bytes of shards and indexes."""
    ledger = Run(str(out)).ledger
    rows = {
        kind: [{key: value for key, value in row.items() if key != "cost"} for row in ledger.rows(kind)]
        for kind in ("asset", "shot", "clip")
    }
    files = {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("shards", "index")
        for path in sorted((out / folder).iterdir())
    }
    return {"rows": json.loads(json.dumps(rows, default=str)), "files": files}


@starts_ray
def test_the_demo_keeps_rejects_and_errs_for_stated_reasons(demo_run: Path) -> None:
    assert "adds up exactly" in (demo_run.parent / SAID).read_text()
    run = Run(str(demo_run))
    sheet = balance(run.ledger)
    assert sheet.clips["keep"] > 0
    assert sheet.clips["reject"] > 0
    assert sheet.assets["error"] > 0
    assert sum(sheet.assets.values()) == run.num_sources
    assert sheet.difference_us == 0
    assert not list(problems(Run(str(demo_run))))


@starts_ray
def test_the_demo_accounts_for_every_cpu_second_it_took(demo_run: Path) -> None:
    answer = stats(Run(str(demo_run)))
    (done,) = answer.invocations
    assert done.is_whole
    assert done.cpu.total == pytest.approx(answer.cpu_s, rel=1e-3), "nothing was lost or measured twice"
    assert set(answer.cost) == set(done.cpu.stages)
    assert min(done.cpu.packing, done.cpu.workers, done.cpu.driver, done.cpu.ray or 0.0) > 0.5
    assert 0 < done.utilisation < 1.1
    assert answer.decodes.before_cutting is not None
    assert answer.decodes.with_cutting is not None
    assert 1 <= answer.decodes.before_cutting < answer.decodes.with_cutting


def test_demo_shards_open_with_webdataset_and_play(demo_run: Path) -> None:
    import io

    import av
    import soundfile
    import webdataset

    urls = [str(path) for path in sorted((demo_run / "shards").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == balance(Run(str(demo_run)).ledger).clips["keep"]
    for sample in samples:
        note = json.loads(sample["json"])
        assert note["clip_id"] == sample["__key__"]
        with av.open(io.BytesIO(sample["mp4"])) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert frames == note["clip"]["num_frames"]
        sound, rate = soundfile.read(io.BytesIO(sample["flac"]))
        assert abs(len(sound) - note["clip"]["duration_us"] * rate / 1e6) <= 1
        vectors = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)
        assert vectors.shape[0] == len(note["clip"]["spans"])
        for span in note["clip"]["spans"]:
            assert 0 <= span["start_s"] <= span["end_s"] <= note["clip"]["duration_us"] / 1e6 + 1e-6


def test_damage_to_a_shard_is_found(demo_run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(demo_run, copy)
    shard = sorted((copy / "shards").glob("*.tar"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    found = " ".join(problems(Run(str(copy))))
    assert "sha256 differs" in found
    assert "crc32 differs" in found


def test_export_gives_the_official_trainers_form(demo_run: Path, tmp_path: Path) -> None:
    from pipeline.export import export_nava

    done = export_nava(Run(str(demo_run)), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    assert done.num_records == len(records) > 0
    for record in records:
        (video,), (text,) = record["video_info"], record["text_list"]
        assert Path(video["data_path"]).is_file()
        marks = text["text"].count("<S>")
        assert marks == text["text"].count("<E>") == len(text["speech_start"]) == len(text["speech_end"])
        assert all(end <= video["duration"] + 1e-6 for end in text["speech_end"])
    index, key, path = (tmp_path / "data.list").read_text().strip().split("\t")
    assert (index, Path(path).is_file()) == ("0", True)
    assert (tmp_path / "data.weight").read_text().split("\t") == [key, "1.0", "text_to_av\n"]


def test_a_tiny_network_learns_eight_clips_of_the_demo(demo_run: Path, tmp_path: Path) -> None:
    """From the demo's shards to a tenth of the loss; the sound depends on the voice it is given, and on no other.

    Of each picture a corner is learnt, and all of the sound.
    """
    network = {"max_text_tokens": 512, "dim": 64, "num_heads": 4, "ffn_dim": 160, **SHALLOW}
    config = NavaConfig.preset("nava_tiny", **network)
    write_tiny_codecs(tmp_path / "codecs", TINY, seed=5)
    short = {"codecs": tmp_path / "codecs", "resolution": 256, "max_frames": 13, "min_frames": 13}
    encode_shards(str(demo_run), tmp_path / "all", EncodeConfig.model_validate(short), config)
    reader = SampleReader(ShardIndex.open(tmp_path / "all" / "index"), open_shards(tmp_path / "all" / "shards"))
    clips = [read_latents(reader.read(row)) for row in range(len(reader.index))]
    clips = sorted((clip for clip in clips if clip.speakers), key=lambda clip: clip.speakers[0] is None)[:8]
    assert len(clips) == 8
    clips = [replace(clip, video=clip.video[..., :4, :8].contiguous()) for clip in clips if clip.video is not None]
    write_latent_shards(tmp_path / "eight", clips, num_shards=1)
    never = dict.fromkeys(
        ("clean_first_frame_prob", "cross_modal_mask_prob", "text_dropout_prob", "timbre_dropout_prob"), 0.0
    )
    stage = recipe(
        tmp_path / "eight",
        num_steps=110,
        network={"preset": "nava_tiny", "changes": network},
        plan={"num_packs": 1, "token_budget": 1024},
        flow=never,
        optim={"learning_rate": 1e-2, "warmup_steps": 18, "final_fraction": 0.02, "ema_decay": 0.0},
        output={"checkpoint_every_steps": 10_000},
    )
    with open_world() as world, Training(stage, tmp_path / "train", world) as training:
        while training.has_more:
            step = training.next_step()
            training.report(step, training.learn(step))
        weights = {name: p.full_tensor().detach() for name, p in training.model.named_parameters()}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "train" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-20:]) < 0.1 * losses[0], losses

    model = Nava(config)
    model.load_state_dict(weights)
    own = clips[0]
    voiced = [clip for clip in clips[1:] if clip.speakers[0] is not None]
    other = min(voiced, key=lambda clip: torch.cosine_similarity(clip.speakers[0], own.speakers[0], dim=0).item())
    (told, beside), (swapped, still_beside) = (
        sounds_from_noise(model, [replace(own, speakers=voices), other]) for voices in (own.speakers, other.speakers)
    )
    assert torch.equal(beside, still_beside), "a voice bound to another clip of the pack is not heard"
    assert (told - own.audio).square().mean() < 0.25 * own.audio.var(), "what it says is what it learnt"
    assert not torch.equal(told, swapped), "its own voice is heard"


def sounds_from_noise(model: Nava, samples: list[Sample]) -> list[torch.Tensor]:
    """Audio latents of each sample after ten Euler steps from the same noise."""
    generator = torch.Generator().manual_seed(3)
    state = [
        replace(
            sample,
            video=torch.randn(sample.video.shape, generator=generator),
            audio=torch.randn(sample.audio.shape, generator=generator),
        )
        for sample in samples
        if sample.video is not None and sample.audio is not None
    ]
    done = by_euler(model, state, np.linspace(1, 0, 11).tolist())
    return [sample.audio for sample in done if sample.audio is not None]


def write_balls(folder: Path, count: int) -> None:
    folder.mkdir()
    for seed in range(count):
        ball_clip(folder / f"{seed}.mp4", duration_s=3.0, seed=seed)


def curate_here(recipe: Path, media: Path, out: Path, **options: Any) -> None:
    """A run of all media without Ray."""
    run(load_recipe(str(recipe)), expand_sources([str(media)]), str(out), here, quiet=True, **options)


@pytest.fixture
def light(tmp_path: Path) -> Path:
    """The recipe LIGHT as a file."""
    path = tmp_path / "light.yaml"
    path.write_text(LIGHT)
    return path


def num_commits(out: Path) -> int:
    """Commits of a run's ledger, the one that makes the table included."""
    return len(list((out / "ledger" / "_delta_log").glob("*.json")))


KILLED_WHEN: dict[str, Callable[[Path], bool]] = {
    "the ledger is there and Ray starts": lambda out: num_commits(out) >= 1,
    "a clip is cut": lambda out: any((out / "cuts").rglob("*.cut")),
    "rows are committed": lambda out: num_commits(out) >= 2,
    "a shard is published": lambda out: any((out / "shards").glob("*.tar")),
}
KILLED_HERE = {"rows are committed", "a shard is published"}
"""Phases in which a run without Ray is killed: the driver commits and packs, which is the same either way."""


@starts_ray
def test_killed_and_restarted_runs_end_as_if_undisturbed(tmp_path: Path, light: Path) -> None:
    """Killed in every phase, on Ray and without. The undisturbed run is one without Ray: both ways give the same run."""
    media, calm, killed = (tmp_path / name for name in ("media", "calm", "killed"))
    write_balls(media, 4)
    (media / "broken.mp4").write_text("not a video")
    curate_here(light, media, calm)
    expected = facts(calm)
    assert len(expected["files"]) > 1
    again = ["run", str(light), "--input", str(media), "--quiet", "--out", str(killed)]
    for phase, is_reached in KILLED_WHEN.items():
        process = curate(*again, *(["--here"] if phase in KILLED_HERE else []))
        while not is_reached(killed):
            assert process.poll() is None, f"ended before {phase}: {process.communicate()[0]}"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finish(curate(*again))
    assert facts(killed) == expected
    before = sorted((path, path.stat().st_mtime_ns) for path in killed.rglob("*.tar"))
    curate_here(light, media, killed)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in killed.rglob("*.tar"))


@pytest.mark.slow
def test_errors_are_taken_up_again_when_asked(tmp_path: Path, light: Path) -> None:
    media, out = tmp_path / "media", tmp_path / "run"
    write_balls(media, 2)
    whole = (media / "1.mp4").read_bytes()
    (media / "1.mp4").write_text("the disk was away")

    def in_error() -> int:
        return balance(Run(str(out)).ledger).assets.get("error", 0)

    curate_here(light, media, out)
    assert in_error() == 1
    (media / "1.mp4").write_bytes(whole)
    curate_here(light, media, out)
    assert in_error() == 1, "an error is settled until somebody asks"
    curate_here(light, media, out, retry_errors=True)
    assert in_error() == 0
    assert balance(Run(str(out)).ledger).assets["keep"] == 2
    assert not list(problems(Run(str(out))))


@pytest.mark.slow
def test_missing_weights_end_the_run_with_the_remedy(tmp_path: Path) -> None:
    ball_clip(tmp_path / "ball.mp4", duration_s=3.0)
    setting = ["--set", "stages.diarize.engine=pyannote", "--set", "stages.diarize.weights=/nowhere"]
    given = ["--input", str(tmp_path / "ball.mp4"), "--out", str(tmp_path / "run")]
    process = curate("run", "quickstart", "--here", *given, *setting)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert NO_WEIGHTS in output
    assert "Traceback" not in output
    assert not len(Run(str(tmp_path / "run")).ledger.passed())


@starts_ray
def test_the_same_recipe_runs_on_a_separately_started_cluster(tmp_path: Path, light: Path) -> None:
    """And where weights are missing there, the worker's own words come back to who started the run."""
    from ray.cluster_utils import Cluster

    from pipeline.execute.on_ray import on_ray

    write_balls(tmp_path / "media", 6)
    sources = expand_sources([str(tmp_path / "media")])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        opener = partial(on_ray, address=cluster.address)
        done = run(load_recipe(str(light)), sources, str(tmp_path / "run"), opener, quiet=True)
        blind = load_recipe(str(light), ["stages.diarize.engine=pyannote", "stages.diarize.weights=/nowhere"])
        with pytest.raises(PlanError, match=NO_WEIGHTS):
            run(blind, sources[:1], str(tmp_path / "blind"), opener, quiet=True)
    finally:
        cluster.shutdown()
    assert len(done.nodes) == 2, "work was done on both nodes"
    assert not list(problems(Run(str(tmp_path / "run"))))
