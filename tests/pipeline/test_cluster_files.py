"""The manifests of docs/cluster.md, each against its own validator or parser."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from model.training.config import load_recipe
from pipeline.execute.cluster import RAY_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
NOTICED = {name for name in RAY_ENVIRONMENT if re.match(r"RAY_(grpc|health)", name)}
"""What makes a lost node known within seconds."""


def check_command(words: list[str]) -> None:
    """Fails unless `nava-curate`, or `nava-train`, parses the words after its name."""
    import typer

    from model.cli import app as training
    from pipeline.cli import app as curation

    group: Any = typer.main.get_command({"nava-curate": curation, "nava-train": training}[words[0]])
    group.commands[words[1]].make_context(words[1], words[2:]).close()


@pytest.mark.slow
def test_the_launchers_configuration_passes_its_own_validator() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (ROOT / "ray_cluster.yaml").read_text()
    config = yaml.safe_load(text)
    validate_config(prepare_config(config))
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        started = " ".join(config[key])
        assert {name for name in NOTICED if f"{name}={RAY_ENVIRONMENT[name]}" in started} == NOTICED
        assert "RAY_AUTH_MODE=token" in started
    (run,) = re.findall(r"ray exec ray_cluster.yaml '(.*)'", text)
    check_command(shlex.split(run))


@pytest.mark.parametrize("name", ["kuberay.yaml", "kuberay_train.yaml"])
def test_the_kuberay_job_fits_its_schema(name: str) -> None:
    schema = json.loads((Path(__file__).parent / "rayjob_schema.json").read_text())
    job: dict[str, Any] = yaml.safe_load((ROOT / "docs" / name).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(job, schema)
    check_command(shlex.split(job["spec"]["entrypoint"]))
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        told = {each["name"]: each["value"] for each in container["env"]}
        assert {name: told[name] for name in NOTICED} == {name: RAY_ENVIRONMENT[name] for name in NOTICED}
        check_ray_start(group["rayStartParams"])
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(job, schema)


def test_the_kuberay_job_that_trains_has_a_gpu_for_every_rank_and_a_recipe_that_takes_its_settings() -> None:
    spec: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "kuberay_train.yaml").read_text())["spec"]
    words = shlex.split(spec["entrypoint"])
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    gpus = group["minReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert int(words[words.index("--workers") + 1]) == gpus
    settings = [after for word, after in pairwise(words) if word == "--set"]
    config = load_recipe(words[2], settings)
    assert config.plan.num_packs % gpus == 0
    assert config.output.checkpoints == "s3://BUCKET/runs/stage2"
    out = words[words.index("--out") + 1]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(out.startswith(f"{mount}/") for mount in mounts)


def check_ray_start(params: dict[str, str]) -> None:
    """Fails unless `ray start` knows the options."""
    from ray.scripts.scripts import start

    start.make_context("start", [f"--{name}={value}" for name, value in params.items()]).close()


def test_the_slurm_script_parses_and_so_do_its_commands() -> None:
    path = ROOT / "docs" / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    for name in NOTICED:
        assert f"{name}={RAY_ENVIRONMENT[name]}" in text
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == "1", "one Ray node per machine"
    values = {"SLURM_JOB_NUM_NODES": options["nodes"], "SLURM_CPUS_PER_TASK": options["cpus-per-task"], "HEAD": "node1"}
    values |= dict(re.findall(r"^([A-Z]+)=(?:\$\{[A-Z]+:-)?([^}\s$()]+)\}?$", text, re.MULTILINE))
    (line,) = re.findall(r"^srun ((?:.*\\\n)*.*)", text, re.MULTILINE)
    line = re.sub(r"\$(\w+)", lambda found: values[found[1]], line.replace("\\\n", " "))
    words = shlex.split(line)
    at, dashes = words.index("ray"), words.index("--")
    assert all(word.startswith("--") for word in words[:at])
    check_symmetric_run(words[at + 1 : dashes])
    check_command(words[dashes + 1 :])


def check_symmetric_run(words: list[str]) -> None:
    """Fails unless `ray symmetric-run` takes the words, and `ray start` what it hands on."""
    from ray.scripts.scripts import cli, start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    assert words[0] in cli.commands
    start.make_context("start", curate_and_validate_ray_start_args(words[1:])).close()
