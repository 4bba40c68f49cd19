"""Where numbers go while training: JSON lines always, TensorBoard and Weights & Biases where the recipe says so.

A tracker that cannot write says so once and never ends training: lines that did not reach the disk come with the next.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from model.training.config import TrainConfig, WandbConfig
from schemas.errors import RecipeError
from schemas.files import write_whole


class Tracker(Protocol):
    """Takes lines of numbers by kind (`metrics`, `validation`), each with its `step`."""

    def log(self, kind: str, line: Mapping[str, Any]) -> None:
        """Take in one line."""
        ...

    def close(self) -> None:
        """Let go of files and threads."""
        ...


def open_trackers(folder: Path, config: TrainConfig, resumed_step: int) -> list[Tracker]:
    """What the recipe asks for. Raises RecipeError when a library is not installed."""
    forget_after(folder, resumed_step)
    trackers: list[Tracker] = [JsonLines(folder)]
    if config.output.has_tensorboard:
        trackers.append(TensorBoard(folder / "tensorboard", resumed_step))
    if config.output.wandb is not None:
        trackers.append(WeightsAndBiases(folder, config, config.output.wandb))
    return trackers


class JsonLines:
    """`KIND.jsonl` in a folder, one object a line, always valid JSON: numbers that are not finite are null."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unwritten: dict[str, bytes] = {}

    def log(self, kind: str, line: Mapping[str, Any]) -> None:
        """See `Tracker.log`."""
        text = json.dumps(finite(line), allow_nan=False) + "\n"
        waiting = self._unwritten.pop(kind, b"") + text.encode()
        path = self._folder / f"{kind}.jsonl"
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(waiting)
        except OSError as error:
            self._unwritten[kind] = waiting
            if path.exists():
                os.truncate(path, size)  # no half line
            print(
                f"{path} cannot be written ({error.strerror}); its lines are kept and written with the next", flush=True
            )

    def close(self) -> None:
        """See `Tracker.close`."""


class TensorBoard:
    """The same numbers as curves."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        from tensorboardX import SummaryWriter

        # a queue without a bound: should its writing thread end on a full disk, nobody waits for it
        self._writer: Any = SummaryWriter(str(folder), purge_step=resumed_step + 1, max_queue=0)

    def log(self, kind: str, line: Mapping[str, Any]) -> None:
        """See `Tracker.log`."""
        if self._writer is None:
            return
        try:
            for name, value in flat(line):
                if name != "step" and math.isfinite(value):
                    self._writer.add_scalar(name if kind == "metrics" else f"{kind}/{name}", value, line["step"])
            self._writer.flush()
        except OSError as error:
            self._writer = None
            print(f"TensorBoard's files cannot be written ({error.strerror}); it gets nothing more", flush=True)

    def close(self) -> None:
        """See `Tracker.close`."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """The same numbers in a run of wandb, which goes on when training does; `mode: offline` needs no network."""

    def __init__(self, folder: Path, config: TrainConfig, settings: WandbConfig) -> None:
        try:
            wandb = import_module("wandb")
        except ImportError as error:
            raise RecipeError(
                "output.wandb is set, but wandb is not installed.", remedy="Install it, or remove output.wandb."
            ) from error
        name_file = folder / "wandb_run.txt"
        run_id = name_file.read_text() if name_file.exists() else wandb.util.generate_id()
        name_file.write_text(run_id)
        self._run: Any = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            name=config.name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            config=config.model_dump(mode="json"),
        )

    def log(self, kind: str, line: Mapping[str, Any]) -> None:
        """See `Tracker.log`."""
        named = {name if kind == "metrics" else f"{kind}/{name}": value for name, value in flat(line)}
        self._run.log(named, step=line["step"])

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()


def finite(value: Any) -> Any:
    """The same with None in place of every number that is not finite, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat(line: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Scalars of a line by tag; what is None, or no number, is left out."""
    found: list[tuple[str, float]] = []
    for name, value in line.items():
        if isinstance(value, dict):
            found += flat(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            found += [(f"{prefix}{name}/{i / len(value):.1f}", v) for i, v in enumerate(value) if v is not None]
        elif isinstance(value, int | float):
            found.append((prefix + name, value))
    return found


def forget_after(folder: Path, step: int) -> None:
    """Remove what a killed run wrote beyond the checkpoint it is resumed from; it will be trained again, identically."""
    for path in folder.glob("*.jsonl"):
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        write_whole(path, "".join(line + "\n" for line in kept).encode())
    for path in (folder / "samples").glob("*.parquet"):
        if int(path.name.split("-")[1]) > step:
            path.unlink()


def _step_of(line: str) -> float:
    """The step of a line; infinity for half a line, as a kill leaves it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return math.inf
