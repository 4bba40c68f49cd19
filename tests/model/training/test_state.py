"""Checkpoints: what is saved while training goes on, how it is read elsewhere, and what a kill leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from model.ranks import open_world
from model.training.config import TrainConfig
from model.training.start import train
from model.training.state import Checkpoints, complete, load_tensors, read_notes
from model.training.train import Training
from schemas.errors import ModelError
from tests.model.latent_shards import SHALLOW, random_clip, recipe, run_ranks, write_latent_shards
from tests.model.rank_jobs import in_turn, load_states, save_states, train_until

pytestmark = pytest.mark.xdist_group("ranks")  # whoever has the process that ranks are forked off

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latent shards of 24 random clips."""
    folder = tmp_path_factory.mktemp("data") / "run"
    write_latent_shards(folder, [random_clip(i) for i in range(24)])
    return folder


@pytest.fixture(scope="module")
def ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one, two and three ranks did: `parts` is trained by one, two and one; `run` is saved by two and read by three."""
    folder = tmp_path_factory.mktemp("ranks")
    in_parts, saved = config_in_parts(data), config_saved(data)
    train_until(0, in_parts, folder / "parts", 2, folder / "first.pt")
    jobs = [
        (save_states, (saved, folder / "run", folder / "expected.pt")),
        (train_until, (in_parts, folder / "parts", 4, folder / "second.pt")),
    ]
    run_ranks(in_turn, 2, folder, jobs)
    run_ranks(load_states, 3, folder, saved, folder / "run", folder / "three.pt")
    train_until(0, in_parts, folder / "parts", 6, folder / "third.pt")
    return folder


def config_saved(data: Path) -> TrainConfig:
    return recipe(data, plan={"num_packs": 6}, parallel={"precision": "float64"})


def config_in_parts(data: Path) -> TrainConfig:
    return recipe(data, num_steps=6, parallel={"precision": "float64"}, output={"checkpoint_every_steps": 100})


@pytest.mark.slow
def test_a_save_in_the_background_is_bitwise_what_it_was_and_reads_at_any_number_of_ranks(
    data: Path, ranks: Path
) -> None:
    expected = torch.load(ranks / "expected.pt")
    assert {name.partition(".")[0] for name in expected} == {"model", "optimizer", "ema"}
    load_states(0, config_saved(data), ranks / "run", ranks / "one.pt")
    for name in ("one.pt", "three.pt"):
        found = torch.load(ranks / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    notes = read_notes(complete(ranks / "run" / "checkpoints")[0])
    assert notes["step"] == 2
    assert set(notes["position"]["teams"]) == set("012345")


@pytest.mark.slow
def test_one_two_one_ranks_equal_an_uninterrupted_run(data: Path, ranks: Path, tmp_path: Path) -> None:
    train_until(0, config_in_parts(data), tmp_path / "whole", 6, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt-0")
    pieces = [torch.load(ranks / name) for name in ("first.pt-0", "second.pt-0", "second.pt-1", "third.pt-0")]
    assert sorted(entry for piece in pieces for entry in piece["seen"]) == sorted(whole["seen"])
    states = torch.load(ranks / "third.pt-0")["states"]
    for name, value in whole["states"].items():
        torch.testing.assert_close(states[name], value, rtol=1e-12, atol=1e-12 * float(value.abs().max()))


@pytest.mark.slow
def test_resume_at_one_rank_is_bitwise_equal_and_takes_up_the_position_in_milliseconds(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(data, num_steps=4, plan={"num_packs": 2})
    train_until(0, config, tmp_path / "whole", 4, tmp_path / "whole.pt")
    train_until(0, config, tmp_path / "parts", 2, tmp_path / "first.pt")
    train_until(0, config, tmp_path / "parts", 4, tmp_path / "second.pt")
    whole, second = torch.load(tmp_path / "whole.pt-0"), torch.load(tmp_path / "second.pt-0")
    assert all(torch.equal(second["states"][name], value) for name, value in whole["states"].items())
    assert second["seen"] == [entry for entry in whole["seen"] if entry[0] > 2]
    said = capsys.readouterr().out
    assert "resumed after step 2" in said
    position_ms = float(said.split("plan position taken up in ")[1].split(" ms")[0])
    assert position_ms < 5000, "a position is restored, not replayed"


@pytest.mark.slow
def test_a_kill_while_writing_leaves_the_previous_checkpoint_and_the_next_start_finds_it(
    data: Path, tmp_path: Path
) -> None:
    large = {"preset": "nava_tiny", "changes": {"dim": 192, "ffn_dim": 4096, "num_heads": 2, **SHALLOW}}
    one = {"num_packs": 1}
    config = recipe(data, num_steps=10_000, network=large, plan=one, output={"checkpoint_every_steps": 1})
    (tmp_path / "recipe.json").write_text(config.model_dump_json())
    program = (
        "import sys; from pathlib import Path; from model.training.start import train; "
        "from model.training.config import TrainConfig; "
        "train(TrainConfig.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))"
    )
    folder = tmp_path / "run" / "checkpoints"
    command = [sys.executable, "-c", program, str(tmp_path / "recipe.json"), str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            if len(complete(folder)) >= 2 and any(path.stat().st_size for path in folder.glob(".partial-*/*.distcp")):
                break
            time.sleep(0.004)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
    finally:
        if process.poll() is None:
            process.kill()
    (left_behind,) = folder.glob(".partial-*")
    before = sorted(path.name for path in complete(folder))
    assert left_behind.name.removeprefix(".partial-") > before[-1].removeprefix("step-")
    with open_world() as world, Training(config, tmp_path / "run", world) as training:
        assert training.step == int(before[-1].removeprefix("step-"))
        assert not list(folder.glob(".partial-*"))
        step = training.next_step()
        training.report(step, training.learn(step))
        training.save(step)
    assert max(complete(folder)).name == f"step-{training.step:08d}"


@pytest.mark.slow
def test_the_newest_are_kept_and_misfits_are_named(data: Path, tmp_path: Path) -> None:
    output = {"checkpoint_every_steps": 1, "num_checkpoints_kept": 2}
    config = recipe(data, num_steps=5, plan={"num_packs": 1}, output=output)
    assert train(config, tmp_path) == 5
    kept = sorted(path.name for path in complete(tmp_path / "checkpoints"))
    assert kept[-2:] == ["step-00000004", "step-00000005"]
    assert kept[:-2] in ([], [(tmp_path / "checkpoints" / "good").resolve().name])
    (tmp_path / "checkpoints" / "step-00000009").mkdir()
    with open_world() as world:
        checkpoints = Checkpoints(tmp_path / "checkpoints", world)
        newest = checkpoints.newest()
        assert newest is not None
        assert newest.name == "step-00000005", "one without metadata is not complete"
        with pytest.raises(ModelError, match=r"1 of 1 tensors.*first is model\.other"):
            load_tensors(newest, {"model.other": torch.zeros(1)}, world)
    other = TrainConfig.model_validate({**config.model_dump(), "plan": {**config.plan.model_dump(), "seed": 7}})
    with pytest.raises(Exception, match="belongs to another plan"):
        train(TrainConfig.model_validate({**other.model_dump(), "num_steps": 9}), tmp_path)
