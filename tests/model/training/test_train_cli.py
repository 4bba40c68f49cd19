"""The commands: encode, plan and train from curated shards, under Ray, and refusals people can act on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.cli import app
from model.training.config import load_recipe
from model.training.metrics import read_samples
from schemas.errors import ModelError
from tests.model.curated_shards import KnownClip, write_run
from tests.ray_runs import starts_ray

pytestmark = pytest.mark.xdist_group("codecs")  # whoever has imported their libraries once
ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_from_curated_shards_to_a_falling_loss(tmp_path: Path) -> None:
    speech = (("good morning", 0.2, 0.9),)
    clips = [KnownClip(f"clip{i}", 1.5, spans=speech if i % 2 else ()) for i in range(4)]
    write_run(tmp_path / "run", [clips, [KnownClip("last", 1.6), KnownClip("short", 0.4)]])
    run("tiny-codecs", str(tmp_path / "codecs"))
    encode = ["encode", str(tmp_path / "run"), "--out", str(tmp_path / "latents"), "--codecs", str(tmp_path / "codecs")]
    said = run(
        *encode, "--recipe", "tiny", "--set", "resolution=256", "--set", "max_frames=17", "--set", "min_frames=17"
    )
    assert "6 clips -> 5 samples" in said
    assert "left out: 1 too_short" in said
    here = ["--set", f"data.shards={tmp_path / 'latents' / 'shards'}"]
    page = run("plan", "tiny", *here, "--out", str(tmp_path / "train"))
    assert "imbalance" in page
    facts = json.loads((tmp_path / "train" / "plan.json").read_text())
    assert facts["num_rows"] == 5
    assert [row["num_gpus"] for row in facts["memory"]] == [8, 64, 128]
    run(
        "train",
        "tiny",
        *here,
        "--set",
        "num_steps=10",
        "--set",
        "output.log_every_steps=2",
        "--set",
        "plan.token_budget=700",
        "--set",
        "plan.batch_samples=3",
        "--out",
        str(tmp_path / "train"),
    )
    losses = [json.loads(line)["loss"] for line in (tmp_path / "train" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]
    assert (tmp_path / "train" / "recipe.yaml").is_file()
    assert load_recipe(str(tmp_path / "train" / "recipe.yaml")).num_steps == 10


def test_nothing_encoded_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [[KnownClip("short", 0.4)]])
    run("tiny-codecs", str(tmp_path / "codecs"))
    encode = ["encode", str(tmp_path / "run"), "--out", str(tmp_path / "l"), "--codecs", str(tmp_path / "codecs")]
    with pytest.raises(ModelError, match="video_vae channels is 6, the network expects 48"):
        run(*encode)
    with pytest.raises(ModelError, match="none of 1 clips could be encoded; short: too_short"):
        run(*encode, "--recipe", "tiny")


@starts_ray
def test_ray_encodes_shards_and_trains_on_two_workers(tmp_path: Path) -> None:
    import ray

    write_run(
        tmp_path / "run", [[KnownClip("a", 0.5), KnownClip("b", 0.5)], [KnownClip("c", 0.5), KnownClip("d", 0.6)]]
    )
    run("tiny-codecs", str(tmp_path / "codecs"))
    os.environ["PYTHONPATH"] = str(ROOT)
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    try:
        encode = ["encode", str(tmp_path / "run"), "--codecs", str(tmp_path / "codecs"), "--recipe", "tiny"]
        tiny = ["--set", "resolution=256", "--set", "max_frames=9", "--set", "min_frames=9"]
        run(*encode, *tiny, "--out", str(tmp_path / "ray"), "--ray", "--actors", "2")
        run(*encode, *tiny, "--out", str(tmp_path / "plain"))
        for path in sorted((tmp_path / "plain").rglob("*.tar")) + sorted((tmp_path / "plain").rglob("*.arrow")):
            assert (tmp_path / "ray" / path.relative_to(tmp_path / "plain")).read_bytes() == path.read_bytes()
        here = [
            "--set",
            f"data.shards={tmp_path / 'ray' / 'shards'}",
            "--set",
            "num_steps=2",
            "--set",
            "plan.token_budget=420",
            "--set",
            "plan.batch_samples=3",
        ]
        run("train", "tiny", *here, "--out", str(tmp_path / "by-ray"), "--ray", "--workers", "2")
    finally:
        ray.shutdown()
    run("train", "tiny", *here, "--out", str(tmp_path / "by-hand"))
    columns = ["step", "clip_id", "timestep"]
    by_ray, by_hand = (read_samples(tmp_path / name).select(columns) for name in ("by-ray", "by-hand"))
    assert by_ray.num_rows > 0
    assert by_ray.equals(by_hand)
