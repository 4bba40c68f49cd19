"""What a run of two ranks survives, each beside one that nobody disturbs: damage, a full disk, a busy server, a kill.

All of it happens in one pair of processes, and one that dies before. A step that is not finite is in test_health.py, other
numbers of ranks are in test_state.py.
"""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from model.data.index import ShardIndex
from model.ranks import open_world
from model.training.config import TrainConfig
from model.training.metrics import read_samples
from model.training.state import Checkpoints, complete, step_of
from tests.model.data.test_retry import Handler, Server
from tests.model.latent_shards import random_clip, recipe, run_ranks, write_latent_shards
from tests.model.rank_jobs import die_while_saving, in_turn, train_to_end

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]  # whoever has the process that ranks are forked off

DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "states flipped": ("__1_0.distcp", lambda old: old[:-300] + bytes([old[-300] ^ 4]) + old[-299:]),
    "states cut": ("__0_0.distcp", lambda old: old[:-100]),
    "states zeroed": ("__1_0.distcp", lambda old: old[:-500] + b"\0" * 500),
    "states emptied": ("__0_0.distcp", lambda _: b""),
    "metadata torn": (".metadata", lambda old: old[:-100]),
    "notes torn": ("state.json", lambda old: old[:-100]),
}
CLIPS = {"cheapest": "clip000", "dearest": "clip005"}
KILLED_AT = 3
CONTINUED = "states flipped"
"""The damage after which training goes on here; from a checkpoint found, going on is the same for all."""


def config_of(data: Path, every_steps: int = 2, *, is_asynchronous: bool = False, **place: Any) -> TrainConfig:
    """One pass over the clips, four steps, by a network of two blocks."""
    plan = {"num_packs": 2, "num_epochs": 1}
    output = {"checkpoint_every_steps": every_steps, "is_asynchronous": is_asynchronous}
    optim = {"ema_decay": 0.0}
    return recipe(data, num_steps=100, plan=plan, data=place, output=output, optim=optim)


def flip_sample(data: Path, clip: str) -> None:
    """One byte of one clip's latents, where they lie in their shard."""
    index = ShardIndex.open(data / "index")
    place = next(index.location(row) for row in range(24) if index.clip_id(row) == clip)
    shard = data / "shards" / place.shard
    content = bytearray(shard.read_bytes())
    content[place.offset + 700] ^= 0xFF
    shard.write_bytes(content)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` is undisturbed; a folder, its ranks' words (.0.txt) and last weights (.pt) for everything else that happened."""
    home = tmp_path_factory.mktemp("two")
    write_latent_shards(home / "data", [random_clip(i) for i in range(24)])
    config, at_once = config_of(home / "data"), config_of(home / "data", 1, is_asynchronous=True)
    with pytest.raises(ProcessExitedException):
        run_ranks(die_while_saving, 2, home, at_once, home / "killed", KILLED_AT)
    shutil.copytree(home / "data", home / "data-flipped")
    for clip in CLIPS.values():
        flip_sample(home / "data-flipped", clip)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.folder = home / "data" / "shards"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = config_of(home / "data", 100, shards=server.url, index=str(home / "data" / "index"), num_workers=1)
        jobs: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
            (train_to_end, (config, home / "plain")),
            (train_to_end, (config_of(home / "data", is_asynchronous=True), home / "full", 2)),
            (train_to_end, (config, home / "killed")),
            (damage_copies, (home,)),
            (train_to_end, (config, home / CONTINUED)),
            (train_to_end, (config_of(home / "data-flipped", 100), home / "flipped")),
            (train_to_end, (remote, home / "remote")),
        ]
        run_ranks(in_turn, 2, home, jobs)
        server.shutdown()
        (home / "requests").write_text(str(server.num_requests))
    return home


def damage_copies(rank: int, home: Path) -> None:
    """Copies of the undisturbed run, each with its newest checkpoint damaged in another way, and what is gone on from then.

    One of them is left to be trained on.
    """
    for damage, (name, change) in DAMAGES.items() if rank == 0 else ():
        shutil.copytree(home / "plain", home / damage, symlinks=True)
        victim = complete(home / damage / "checkpoints")[-1] / name
        victim.write_bytes(change(victim.read_bytes()))
    torch.distributed.barrier()
    with open_world() as world:
        for damage in [each for each in DAMAGES if each != CONTINUED]:
            words = io.StringIO()
            with redirect_stdout(words):
                found = Checkpoints(home / damage / "checkpoints", world).newest()
            assert found is not None
            (home / f"{damage}.{rank}.txt").write_text(f"{words.getvalue()}resumed after step {step_of(found)}")


def said(home: Path, name: str) -> list[str]:
    """Lines that either rank printed."""
    return [line for rank in (0, 1) for line in (home / f"{name}.{rank}.txt").read_text().splitlines()]


def losses(home: Path, name: str) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


def is_as_undisturbed(home: Path, name: str) -> bool:
    """Same samples in the same steps, same losses and norms in the log, same weights at the end, to the bit."""
    columns = ["step", "clip_id", "timestep", "video_mse", "audio_mse"]
    trained, undisturbed = (read_samples(home / which).select(columns) for which in (name, "plain"))
    weights, plain = (torch.load(home / f"{which}.pt") for which in (name, "plain"))
    assert trained.equals(undisturbed)
    assert losses(home, name) == losses(home, "plain")
    return all(torch.equal(weights[key], value) for key, value in plain.items())


def test_the_undisturbed_run_trains_on_every_clip_once(home: Path) -> None:
    assert sorted(read_samples(home / "plain")["clip_id"].to_pylist()) == [f"clip{i:03d}" for i in range(24)]
    assert len(losses(home, "plain")) > KILLED_AT


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(home: Path, damage: str) -> None:
    last = len(losses(home, "plain"))
    (told,) = [line for line in said(home, damage) if " is damaged: " in line]
    assert f"step-{last:08d} is damaged" in told
    assert DAMAGES[damage][0] in told
    assert f"resumed after step {last - 2}" in "".join(said(home, damage))
    assert (home / damage / "checkpoints" / f"damaged-step-{last:08d}").is_dir()
    assert damage != CONTINUED or is_as_undisturbed(home, damage)


@pytest.mark.parametrize("which", CLIPS)
def test_a_flipped_byte_in_a_clip_costs_that_clip(home: Path, which: str) -> None:
    clip = CLIPS[which]
    assert clip not in read_samples(home / "flipped")["clip_id"].to_pylist()
    assert f"{clip} is damaged, trained on " in "".join(said(home, "flipped"))
    notes = json.loads((complete(home / "flipped" / "checkpoints")[-1] / "state.json").read_text())
    assert "CRC-32" in notes["damaged"][clip]
    undisturbed = read_samples(home / "plain").to_pandas()
    met = int(undisturbed[undisturbed["clip_id"].isin(CLIPS.values())]["step"].min())
    assert losses(home, "flipped")[: met - 1] == losses(home, "plain")[: met - 1]
    assert len(losses(home, "flipped")) == len(losses(home, "plain"))


def test_a_full_disk_costs_a_checkpoint_and_nothing_that_is_learnt(home: Path) -> None:
    assert is_as_undisturbed(home, "full")
    (told,) = [line for line in said(home, "full") if "could not be written" in line]
    assert "the checkpoint of step 2 could not be written" in told
    assert "File too large" in told
    assert "GB are free there" in told
    assert not list((home / "full" / "checkpoints").glob(".partial-*"))


def test_a_busy_shard_server_costs_time(home: Path) -> None:
    assert is_as_undisturbed(home, "remote")
    assert int((home / "requests").read_text()) >= 24 * 3 / 2, "every third answer was 503"


def test_a_kill_costs_the_steps_since_the_last_checkpoint(home: Path) -> None:
    assert is_as_undisturbed(home, "killed")
    assert f"resumed after step {KILLED_AT - 1}" in "".join(said(home, "killed"))
