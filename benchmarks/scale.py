"""What the record costs as it grows: driver, resume, questions, packing's plan, trainer's index; CPU seconds and memory.

    python -m benchmarks.scale --json FILE [--clips 100000] [--sources 200 2000] [--resume 100000] [--rows 1000000]

Every figure is taken in a process of its own, start-up included, and is user + system time of that process and the children
it waited for, with its peak resident memory. `driver` carries toy sources through real Ray and counts the driver alone, not
its workers; its slope is between the two sizes. `facts.build` makes the cache that questions go to, `facts.reopen` takes it up:
`own_cpu_s` is without start-up. Questions are asked with it, and without it as `*.ledger`. `limit.*` stands beside: an empty
interpreter, and one leaf of the same ledger read by Polars. A bound that is not met is printed as missed and the command still
succeeds: it measures, it does not judge.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import synthetic_ledger
from benchmarks.corpus import synthetic_index
from pipeline.ask.facts import Facts, columns
from pipeline.ask.queries import Run
from pipeline.config import Recipe, load_recipe, parse_recipe
from pipeline.execute.here import here
from pipeline.execute.on_ray import on_ray
from pipeline.pack.plan import drawn, plan_shards, wanted
from pipeline.run import read_sources, run
from pipeline.store import RunDir
from schemas.ids import source_id
from schemas.records import Level, Source

TOYS = "tests.pipeline.toy_stages"
"""Stages that cost next to nothing, with the contract of real ones; named in the catalogue as any stage is."""
TOY_STAGES = {"download": "Download", "probe": "Probe", "shot_split": "ShotSplit", "clip": "Clip", "audio": "Audio"}
NO_CACHE = "/dev/null"
"""Where no cache can be kept."""
QUESTIONS = {
    "stats": ("stats", "{run}"),
    "what_if": ("stats", "{run}", "--set", "gates.sync.offset_ms.abs_max=100"),
    "why": ("why", "{clip}", "--run", "{run}"),
    "status": ("status", "{run}"),
}
LAUNCHER = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, used = os.wait4(process.pid, 0)
print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1e3}))
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Starts a command from a small process: a peak counts what the parent held when it forked."""
LIMIT_S = 3000
"""Seconds after which a measurement is given up."""
Figures = dict[str, float]


def measured(arguments: list[str], cache: str = NO_CACHE) -> Figures:
    """CPU seconds, peak MB and what it printed as JSON, of a command run to its end; raises CalledProcessError if it fails."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, sys.executable, *arguments],
        stdout=subprocess.PIPE, text=True, check=True, timeout=LIMIT_S, env=os.environ | {"XDG_CACHE_HOME": cache},
    )  # fmt: skip
    *said, cost = done.stdout.strip().splitlines()
    own: Figures = json.loads(said[-1]) if said and said[-1].startswith("{") else {}
    figures: Figures = json.loads(cost)
    return figures | own


def spent() -> Figures:
    """What this process alone has cost so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    told = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": int(told["VmHWM"].removesuffix("kB")) / 1e3}


def drive(folder: str, num_sources: str) -> Figures:
    """A whole run of toy sources, 10 clips each, on a private Ray runtime: the driver's share from the first lease on."""
    import stages

    stages.CATALOG.clear()
    stages.CATALOG.update({name: f"{TOYS}:{toy}" for name, toy in TOY_STAGES.items()})
    facts = json.dumps({"frames": 500, "shot": 100, "clip": 40})
    names = [f"toy-{number}" for number in range(int(num_sources))]
    sources = [Source(source_id=source_id(name), uri=name, metadata=facts) for name in names]
    recipe = parse_recipe({"name": "toy", "stages": {name: {} for name in TOY_STAGES}})
    run(recipe, sources, folder, partial(on_ray, num_cpus=2), quiet=True)
    return spent()


def resume(folder: str) -> Figures:
    """The same command on a settled run of synthetic sources; `commits` is 0 if nothing was carried again."""
    opened = Run(folder)
    before = opened.ledger.table.version()
    run(opened.plan.recipe, read_sources(RunDir(folder)), folder, here, quiet=True)
    return spent() | {"commits": Run(folder).ledger.table.version() - before}


def without_cut() -> Recipe:
    """The quickstart recipe that packs nothing: synthetic clips have no media."""
    recipe = load_recipe("quickstart")
    return recipe.model_copy(update={"stages": {name: own for name, own in recipe.stages.items() if name != "cut"}})


def pack_plan(folder: str) -> Figures:
    """Which shards a run has, ledger scan included; `touched` are shards that one source less would change."""
    opened = Run(folder)
    plan_shards(opened.ledger, opened.plan, RunDir(folder))
    cost = spent()
    clips = wanted(opened.ledger, opened.plan)
    bits = max(0, len(clips).bit_length() - 8)
    without = clips.filter(clips["source_id"] != clips["source_id"][0])
    names = [set(drawn(part, opened.plan, bits)[1]["name"]) for part in (clips, without)]
    return cost | {
        "num_clips": len(clips),
        "num_shards": len(names[0]),
        "shards_touched": len(names[0] - names[1]),
        "clips_of_that_source": len(clips) - len(without),
    }


def facts(folder: str) -> Figures:
    """The cache of a run, made or taken up: what that costs beyond start-up, and the size of what it says of clips."""
    opened = Run(folder)
    plan, before = opened.plan, spent()["cpu_s"]
    kept = Facts(opened.ledger, plan, opened.cache, least_rows=0)
    sizes = {level: path.stat().st_size for level in Level if (path := kept.path(level)) is not None}
    us = kept.scan(Level.CLIP).select("duration_us").collect(engine="streaming")
    cost = spent()
    num_columns, num_bytes = len(columns(plan, Level.CLIP)), sizes[Level.CLIP]
    return cost | {
        "own_cpu_s": cost["cpu_s"] - before,
        "columns": num_columns,
        "mb": sum(sizes.values()) / 1e6,
        "mb_of_clips": num_bytes / 1e6,
        "mb_of_40_columns_of_a_million": 40 * num_bytes / num_columns / len(us),
    }


def leaf(folder: str) -> Figures:
    """The limit of a question: one leaf of all clips, summed."""
    Run(folder).ledger.scan(Level.CLIP).select("duration_us").sum().collect(engine="streaming")
    return spent()


def index(num_rows: str) -> Figures:
    """Bytes a row that the trainer's index keeps in arrays."""
    found, _ = synthetic_index(int(num_rows), "S1")
    arrays = [found.video_tokens, found.audio_tokens, found.text_tokens, found.has_video, found.has_audio]
    held = sum(array.nbytes for array in [*arrays, found.shards[1]])
    return {"rows": len(found), "bytes_per_row": held / len(found)}


PARTS: dict[str, Callable[..., Figures]] = {
    each.__name__: each for each in (drive, resume, pack_plan, facts, leaf, index)
}


def part(name: str, *arguments: str, cache: str = NO_CACHE) -> Figures:
    """One measurement in a process of its own."""
    return measured(["-m", "benchmarks.scale", "--part", name, *arguments], cache)


def asked(folder: str, num_clips: int, cache: str) -> dict[str, Figures]:
    """What questions to a ledger cost, and what they stand on."""
    synthetic_ledger.write(folder, synthetic_ledger.Size(num_clips))
    clip = Run(folder).ledger.scan(Level.CLIP).select("row_id").limit(1).collect().item()
    found = {"limit.leaf": part("leaf", folder)}
    found |= {f"facts.{name}": part("facts", folder, cache=cache) for name in ("build", "reopen")}
    for name, words in QUESTIONS.items():
        filled = ["-m", "pipeline.cli", *(word.format(run=folder, clip=clip) for word in words)]
        found |= {name: measured(filled, cache), f"{name}.ledger": measured(filled)}
    return found | {"pack.plan": part("pack_plan", folder)}


def main(arguments: list[str] | None = None) -> None:
    """Takes every figure and prints and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--clips", type=int, default=100_000, help="clips of the ledger that is asked")
    parser.add_argument("--sources", type=int, nargs=2, default=(200, 2000), help="toy sources of the two runs on Ray")
    parser.add_argument("--resume", type=int, default=100_000, help="sources of the settled run, one clip each")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the trainer's index")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        print(json.dumps(PARTS[given.part[0]](*given.part[1:])))
        return
    found: dict[str, Figures] = {"limit.interpreter": measured(["-c", "pass"])}
    with tempfile.TemporaryDirectory(prefix="nava-scale-") as folder:
        few, many = (part("drive", f"{folder}/toys-{num}", str(num)) for num in given.sources)
        more = given.sources[1] - given.sources[0]
        found["driver"] = {
            "cpu_ms_per_source": 1e3 * (many["cpu_s"] - few["cpu_s"]) / more,
            "rss_kb_per_source": 1e3 * (many["peak_mb"] - few["peak_mb"]) / more,
            "cpu_s_few": few["cpu_s"],
            "cpu_s_many": many["cpu_s"],
        }
        found |= asked(f"{folder}/asked", given.clips, f"{folder}/cache")
        settled = f"{folder}/settled"
        synthetic_ledger.write(settled, synthetic_ledger.Size(given.resume, 1, 1, share_of_copies=0.0), without_cut())
        found["resume"] = part("resume", settled)
    found["index"] = part("index", str(given.rows))
    for name, figures in found.items():
        print(f"{name:<18}", "  ".join(f"{key} {value:,.2f}" for key, value in figures.items()))
    if given.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "when": time.strftime("%Y-%m-%d")}
        given.json.write_text(
            json.dumps({"machine": machine, "setting": vars(given) | {"json": None}, **found}, indent=1)
        )


if __name__ == "__main__":
    main()
