"""Checkpoints that are damaged, or cannot be written: training goes on from what is whole, and says what it met."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model.ranks import World, open_world
from model.training.config import TrainConfig
from model.training.metrics import read_samples
from model.training.start import train
from model.training.state import MAX_FAILURES, Checkpoints, complete
from model.training.train import Training
from schemas.errors import MachineError, ModelError
from tests.model.latent_shards import random_clip, recipe, write_latent_shards
from tests.model.rank_jobs import full_disk

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` of 24 clips and a `run` of six steps, every second one kept."""
    folder = tmp_path_factory.mktemp("trained")
    write_latent_shards(folder / "data", [random_clip(i) for i in range(24)])
    train(config_of(folder), folder / "run")
    return folder


def config_of(folder: Path, num_steps: int = 6, **output: Any) -> TrainConfig:
    every = {"checkpoint_every_steps": 2, **output}
    return recipe(folder / "data", num_steps=num_steps, plan={"num_packs": 1}, output=every)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """This process alone."""
    with open_world() as opened:
        yield opened


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def zero(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500] + b"\0" * 500)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "states flipped": ("__0_0.distcp", flip),
    "states cut": ("__0_0.distcp", cut),
    "states zeroed": ("__0_0.distcp", zero),
    "states gone": ("__0_0.distcp", Path.unlink),
    "metadata torn": (".metadata", cut),
    "metadata empty": (".metadata", lambda path: path.write_bytes(b"")),
    "notes torn": ("state.json", cut),
    "notes changed": ("state.json", lambda path: path.write_text(path.read_text().replace('"step": 6', '"step": 5'))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_taken(
    run: Path, world: World, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, how = DAMAGES[damage]
    folder = run / "checkpoints"
    how(folder / "step-00000006" / name)
    found = Checkpoints(folder, world).newest()
    assert found == folder / "step-00000004"
    (said,) = capsys.readouterr().out.splitlines()
    assert "step-00000006 is damaged: " in said
    assert name in said
    kept = ["damaged-step-00000006", "step-00000002", "step-00000004"]
    assert sorted(path.name for path in folder.iterdir() if path.name != "good") == kept


def test_nothing_whole_is_an_error_and_not_a_new_beginning(run: Path, world: World) -> None:
    for checkpoint in complete(run / "checkpoints"):
        flip(checkpoint / "__0_0.distcp")
    with pytest.raises(
        ModelError, match=r"no checkpoint in .* is whole; the last one tried: __0_0\.distcp has other bytes"
    ):
        Checkpoints(run / "checkpoints", world).newest()
    assert not complete(run / "checkpoints")


def test_samples_that_cannot_be_written_hold_back_the_checkpoint_and_come_with_the_next(
    trained: Path, tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with Training(config_of(trained), tmp_path, world) as training:
        for _ in range(2):
            step = training.next_step()
            training.report(step, training.learn(step))
        (tmp_path / "samples").write_text("in the way")
        training.save(step)
        assert training.checkpoints.finish()
        (tmp_path / "samples").unlink()
        training.save(step)
        assert not training.checkpoints.finish()
    assert set(read_samples(tmp_path)["step"].to_pylist()) == {1, 2}
    assert "could not be written" in capsys.readouterr().out


def test_states_that_can_never_be_written_end_training_with_a_sentence(
    trained: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.training.train.LAST_TRIES", (0.0, 0.0))
    with pytest.raises(MachineError, match=r"states after step 6 could not be written to .*Make room"), full_disk():
        train(config_of(trained), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
    checkpoints = Checkpoints(tmp_path / "checkpoints", world)
    for step in range(MAX_FAILURES):
        checkpoints.save(step, {}, None, "no space")
    with pytest.raises(MachineError, match=f"{MAX_FAILURES} checkpoints in a row"):
        checkpoints.save(MAX_FAILURES, {}, None, "no space")


def test_some_checkpoints_stay_for_good_and_so_does_the_last_sound_one(tmp_path: Path, world: World) -> None:
    checkpoints = Checkpoints(tmp_path, world, num_kept=1, keep_every_steps=4)
    for step in range(1, 9):
        if step <= 3:
            checkpoints.prove(step)
        checkpoints.save(step, {"model.a": torch.zeros(1)}, None)
        checkpoints.finish()
    assert [int(path.name[-1]) for path in sorted(complete(tmp_path))] == [2, 4, 8]
    assert (tmp_path / "good").resolve() == tmp_path / "step-00000002", "after it there was another sound step"
    assert Checkpoints(tmp_path, world).newest() == tmp_path / "step-00000008"
    flip(tmp_path / "step-00000002" / "__0_0.distcp")
    for step in (8, 4):
        shutil.rmtree(tmp_path / f"step-{step:08d}")
    with pytest.raises(ModelError, match="is whole"):
        checkpoints.newest()
    assert not (tmp_path / "good").is_symlink()
