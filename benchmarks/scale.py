"""What the record costs as it grows: driver, resume, questions, packing, trainer's index; CPU seconds and memory.

    python -m benchmarks.scale --json FILE [--clips 100000] [--sources 200 2000 6000] [--resume 100000] [--rows 1000000]

Every figure is taken in a process of its own, start-up included, and is user + system time of that process and the children
it waited for, with its peak resident memory. `driver` carries toy sources through real Ray and counts the driver alone, not
its workers: what a source costs at the second size, what of that at the first, and the growth of memory up to the third, as
a full commit waits from the second on. `cut` is the CPU of all that cuts and checks a clip of a source. `facts.build` makes
the cache that questions go to, `facts.reopen` takes it up: `own_cpu_s` is without start-up. Questions are asked with it, and
without it as `*.ledger`. `limit.*` stands beside: an empty interpreter, leases of empty units through Ray, and one leaf of the
same ledger read by Polars. A bound that is not met is printed as missed and the command still succeeds: it measures, it does
not judge.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import synthetic_ledger
from benchmarks.corpus import synthetic_index
from pipeline.ask.facts import Facts, columns
from pipeline.ask.queries import Run
from pipeline.config import Recipe, load_recipe, parse_recipe
from pipeline.execute.here import here
from pipeline.execute.on_ray import on_ray
from pipeline.pack.index import CUTS
from pipeline.pack.plan import drawn, plan_shards, wanted
from pipeline.run import read_sources, run
from pipeline.store import RunDir
from schemas.cut_file import cut_file
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
BOUNDS = {
    "driver.cpu_ms_per_source": 4.0,
    "driver.ratio": 1.3,
    "driver.rss_kb_per_source": 5.0,
    "cut.ratio": 1.3,
    "resume.cpu_s": 8.0,
    "index.bytes_per_row": 60.0,
}
"""What the record is held to, whatever the number of clips."""
BOUNDS_AT: dict[int, dict[str, tuple[float, float]]] = {
    100_000: {"stats": (2.5, 450), "what_if": (2, 450), "why": (2, 450), "status": (1.5, 450), "pack.plan": (2, 500)},
    1_000_000: {"stats": (9, 800), "what_if": (5, 800), "why": (3, 800), "status": (4, 800), "pack.plan": (15, 500)},
}
"""Clips -> what is asked -> CPU seconds and peak MB."""
MINUTES = (1, 10)
"""Lengths of the two sources whose clips are cut."""
LIMIT_S = 3000
"""Seconds after which a measurement is given up."""
Figures = dict[str, float]


def measured(arguments: list[str], cache: str | None = None) -> Figures:
    """CPU seconds, peak MB and what it printed as JSON, of a command run to its end; raises CalledProcessError if it fails."""
    environment = os.environ | ({"XDG_CACHE_HOME": cache} if cache else {})
    command = [sys.executable, "-c", LAUNCHER, sys.executable, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=LIMIT_S, env=environment)
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


def empty(num_sources: str) -> Figures:
    """The limit of the driver: as many units of nothing, in leases of 256 from two workers that yield them one by one."""
    from pipeline.execute.cluster import connected

    names = [f"toy-{number}" for number in range(int(num_sources))]

    class Worker:
        def carry(self, lease: list[str]) -> Iterator[str]:
            for name in lease:  # noqa: UP028 - Ray sends into what a task yields from
                yield name

    with connected(None, 2) as ray:
        workers = [ray.remote(num_cpus=1)(Worker).remote() for _ in range(2)]
        for at in range(0, len(names), 512):
            leases = (names[at : at + 256], names[at + 256 : at + 512])
            streams = [
                worker.carry.options(num_returns="streaming").remote(lease)
                for worker, lease in zip(workers, leases, strict=True)
            ]
            assert sum(len([ray.get(each) for each in stream]) for stream in streams) == sum(map(len, leases))
        return spent()


def cut(folder: str, minutes: str) -> Figures:
    """What the stage that cuts costs per clip of one source of this length, by the ledger of a run without Ray."""
    from pipeline.demo import ball_clip
    from tests.pipeline.light_run import curate

    media = Path(folder) / "media"
    media.mkdir(parents=True)
    ball_clip(media / "ball.mp4", duration_s=60.0 * float(minutes))
    curate(media, f"{folder}/run")
    (asset,) = Run(f"{folder}/run").ledger.rows(Level.ASSET)
    (cost,) = (each for each in asset["cost"] if each["stage"] == "cut")
    return {"cpu_s_per_clip": cost["cpu_s"] / cost["rows"], "clips": cost["rows"]}


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


def lay_cuts(folder: str) -> Figures:
    """Puts a file without content, of the size that it would have, into the place of every clip's media."""
    opened, directory = Run(folder), Path(folder, CUTS)
    for number in range(256):
        (directory / f"{number:02x}").mkdir(parents=True)
    clips = wanted(opened.ledger, opened.plan).select("clip_id", "cut_hash", "bytes")
    for clip_id, cut_hash, num_bytes in clips.iter_rows():
        with (directory / cut_file(clip_id, cut_hash)).open("wb") as file:
            file.truncate(num_bytes)
    return spent()


def pack_plan(folder: str) -> Figures:
    """Which shards a run has, ledger scan included; `touched` are shards that one source less would change."""
    opened = Run(folder)
    packing = plan_shards(opened.ledger, opened.plan, RunDir(folder))
    cost, num_lost = spent(), len(packing.lost)
    clips = wanted(opened.ledger, opened.plan)
    bits = max(0, len(clips).bit_length() - 8)
    without = clips.filter(clips["source_id"] != clips["source_id"][0])
    names = [set(drawn(part, opened.plan, bits)[1]["name"]) for part in (clips, without)]
    return cost | {
        "num_clips": len(clips),
        "num_lost": num_lost,
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
    each.__name__: each for each in (drive, empty, cut, resume, lay_cuts, pack_plan, facts, leaf, index)
}


def part(name: str, *arguments: str, cache: str | None = None) -> Figures:
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
        found |= {name: measured(filled, cache), f"{name}.ledger": measured(filled, NO_CACHE)}
    part("lay_cuts", folder)
    return found | {"pack.plan": part("pack_plan", folder)}


def driven(folder: str, sizes: Sequence[int]) -> dict[str, Figures]:
    """What the driver costs per source at the second of three sizes, and how that grows."""
    one, few, many, most = (part("drive", f"{folder}/toys-{num}", str(num)) for num in (1, *sizes))
    at_few, at_many = ((each["cpu_s"] - one["cpu_s"]) / num for each, num in zip((few, many), sizes, strict=False))
    none, empties = (part("empty", str(num))["cpu_s"] for num in (1, sizes[1]))
    driver = {
        "cpu_ms_per_source": 1e3 * at_many,
        "ratio": at_many / at_few,
        "rss_kb_per_source": 1e3 * (most["peak_mb"] - many["peak_mb"]) / (sizes[2] - sizes[1]),
        "peak_mb": most["peak_mb"],
    }
    return {"driver": driver, "limit.ray": {"cpu_ms_per_source": 1e3 * (empties - none) / sizes[1]}}


def cuts(folder: str) -> Figures:
    """What cutting costs per clip of a short and of a long source."""
    short, long = (part("cut", f"{folder}/cut-{minutes}", str(minutes))["cpu_s_per_clip"] for minutes in MINUTES)
    return {f"cpu_s_per_clip_of_{minutes}_min": cost for minutes, cost in zip(MINUTES, (short, long), strict=True)} | {
        "ratio": long / short
    }


def held(found: Mapping[str, Figures], num_clips: int) -> list[str]:
    """A line per bound: the figure, the bound, and whether it was met or missed."""
    bounds, at_size = dict(BOUNDS), BOUNDS_AT.get(num_clips, {})
    for name, (cpu_s, peak_mb) in at_size.items():
        bounds |= {f"{name}.cpu_s": cpu_s, f"{name}.peak_mb": peak_mb}
    lines = []
    for key, bound in bounds.items():
        name, _, figure = key.rpartition(".")
        if figure in found.get(name, {}):
            value = found[name][figure]
            lines.append(f"{key:<28} {value:>10,.2f}  <= {bound:g}  {'met' if value <= bound else 'MISSED'}")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Takes every figure and prints and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--clips", type=int, default=100_000, help="clips of the ledger that is asked")
    parser.add_argument("--sources", type=int, nargs=3, default=(200, 2000, 6000), help="toy sources of runs on Ray")
    parser.add_argument("--resume", type=int, default=100_000, help="sources of the settled run, one clip each")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the trainer's index")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        print(json.dumps(PARTS[given.part[0]](*given.part[1:])))
        return
    found: dict[str, Figures] = {"limit.interpreter": measured(["-c", "pass"])}
    with tempfile.TemporaryDirectory(prefix="nava-scale-") as folder:
        found |= driven(folder, given.sources)
        found["cut"] = cuts(folder)
        found |= asked(f"{folder}/asked", given.clips, f"{folder}/cache")
        settled = f"{folder}/settled"
        synthetic_ledger.write(settled, synthetic_ledger.Size(given.resume, 1, 1, share_of_copies=0.0), without_cut())
        found["resume"] = part("resume", settled)
    found["index"] = part("index", str(given.rows))
    for name, figures in found.items():
        print(f"{name:<18}", "  ".join(f"{key} {value:,.2f}" for key, value in figures.items()))
    print("", *held(found, given.clips), sep="\n")
    if given.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "when": time.strftime("%Y-%m-%d")}
        given.json.write_text(
            json.dumps({"machine": machine, "setting": vars(given) | {"json": None}, **found}, indent=1)
        )


if __name__ == "__main__":
    main()
