"""What docs/ say to start training with, torchrun in it, run as it stands there: SLURM's commands are stood in for."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from model.training.metrics import read_samples
from model.training.start import train
from tests.model.latent_shards import random_clip, recipe, write_latent_shards

ROOT = Path(__file__).resolve().parents[3]
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" & other=$!
"$@" && wait $other
"""
"""Two machines in one."""
SCONTROL = "#!/bin/bash\necho localhost\n"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.slow
def test_the_slurm_script_starts_machines_that_meet_and_train_on_the_samples_of_one_process(tmp_path: Path) -> None:
    write_latent_shards(tmp_path / "data", [random_clip(i) for i in range(24)])
    config = recipe(tmp_path / "data", num_steps=2)
    (tmp_path / "recipe.yaml").write_text(config.model_dump_json())
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"}
    given = {"ENGINE": str(ROOT), "RECIPE": str(tmp_path / "recipe.yaml"), "DATA": str(tmp_path / "data"),
             "OUT": str(tmp_path / "two"), "RANKS_PER_NODE": "1", "PORT": str(free_port()), "OMP_NUM_THREADS": "1",
             "PYTHONFAULTHANDLER": "1"}  # fmt: skip
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "docs/slurm_train.sh"], check=False, cwd=ROOT, capture_output=True, text=True, timeout=280,
        env=os.environ | slurm | given | path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-10_000:]
    assert "step 2/2" in done.stdout
    train(config, tmp_path / "one")
    columns = ["step", "clip_id", "timestep"]
    two, one = (read_samples(tmp_path / name).select(columns) for name in ("two", "one"))
    assert two.equals(one)
