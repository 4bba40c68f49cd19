"""Stages one after the other: each from the weights of the one before, held up by gates, taken up where they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from model.cli import app
from model.ranks import open_world
from model.training.config import load_stages
from model.training.stages import from_weights, run_stages
from model.training.state import complete
from model.training.train import Training
from schemas.errors import ModelError, RecipeError
from tests.model.latent_shards import random_clip, recipe, write_latent_shards
from tests.model.rank_jobs import whole


def write_chain(folder: Path, bound: float) -> Path:
    """A chain of two short stages with other mixtures, whose first must end below `bound`."""
    sound = {"name": "sound", "weight": 3, "use": "audio"}
    joint = {"name": "joint", "weight": 1, "modality": "audio_video"}
    stages = [
        {
            "recipe": str(folder / "recipe.yaml"),
            "settings": {"name": "first", "plan.mixture": [sound, joint]},
            "gates": {"metrics.loss": {"max": bound}},
        },
        {"recipe": str(folder / "recipe.yaml"), "settings": {"name": "second", "num_steps": 1}},
    ]
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump({"name": "chain", "stages": stages}))
    return path


@pytest.mark.slow
def test_a_stage_begins_from_the_weights_before_it_once_its_gate_is_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_latent_shards(tmp_path / "data", [random_clip(i) for i in range(24)])
    config = recipe(tmp_path / "data", num_steps=2, plan={"num_packs": 2})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    out = tmp_path / "out"
    with pytest.raises(ModelError, match=r"1-first ended with metrics\.loss .*, its gate asks for max 0\.0001"):
        run_stages(load_stages(str(write_chain(tmp_path, 1e-4))), out)
    assert not (out / "2-second").exists()
    chain = load_stages(str(write_chain(tmp_path, 100.0)))
    assert run_stages(chain, out)
    assert "1-first: finished at step 2" in capsys.readouterr().out
    (first,) = complete(out / "1-first" / "checkpoints")
    assert "1-first" in (out / "2-second" / "recipe.yaml").read_text()
    with open_world() as world:
        with Training(chain[0].train, out / "1-first", world) as before:
            ended = {name: whole(p) for name, p in before.model.named_parameters()}
        with Training(from_weights(chain[1].train, first), tmp_path / "anew", world) as after:
            assert all(torch.equal(whole(p), ended[name]) for name, p in after.model.named_parameters())
    assert run_stages(chain, out)
    assert "2-second: finished at step 1" in capsys.readouterr().out


def test_what_a_chain_cannot_do_is_said_before_it_trains(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["stages", "three_stages", "--out", "runs", "--show"])
    assert shown.exit_code == 0
    assert "3-stage3_finetune" in shown.output
    assert "sound 3 : joint 1" in shown.output
    path = tmp_path / "chain.yaml"
    path.write_text("name: a\nstages: [{recipe: tiny, gates: {validation.loss: {max: 1}}}]")
    with pytest.raises(RecipeError, match=r"stage 1 has a gate on the held-out loss and validates nothing"):
        load_stages(str(path))
    path.write_text("name: a\nstages: [{recipe: tiny, gates: {loss: {max: 1}}}]")
    with pytest.raises(RecipeError, match=r"must begin with metrics\. or validation\."):
        load_stages(str(path))
