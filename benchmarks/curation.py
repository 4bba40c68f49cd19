"""What curating costs: CPU seconds per minute of video by stage and in all, beside one decode, peers and another checkout.

    python -m benchmarks.curation --json FILE [--against CHECKOUT] [--rounds 2] [--without-run] [MEDIA ...]

MEDIA are files and folders; without any, those of the demo. Every process counts (`pipeline.execute.processes`). A round takes,
one after another and each in processes of its own:

    limit     one decode of picture and sound by PyAV on one thread, imports left out: who looks at all of it pays this
    stages    all stages before cutting, without Ray and without set-up, the recogniser counted apart (`benchmarks.curation_side`)
    run       the whole command with Ray, recogniser, cutting and packing, of the media and of short clips that load all models;
              the difference is what the media cost, the short one what is there before any
    scenes    PySceneDetect's detect-adaptive as its own command, imports included: another program that decodes once

With --against, stages and run are taken of this checkout and of the other in turn, and their ratios are given as least, middle
and largest of all rounds. The other's own `stats --json` is all that is asked of it after a run; how often it decodes a frame is
not known where it does not count. A bound that is not met is printed as missed and the command still succeeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.decode import SUFFIXES
from pipeline.demo import talking_clip, write_demo
from pipeline.execute.processes import Family

THIS, OTHER = "this", "against"
ROOT = Path(__file__).resolve().parents[1]
SIDE = Path(__file__).with_name("curation_side.py")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYANNOTE_METRICS_ENABLED": "0",
}
LOOKED_EVERY_S = 0.2
"""How often the processes of a command are looked at: what an orphan does between the last look and its end is lost."""
LIMIT_S = 3600 * 6
WARM_UP_S = 4.0
BOUNDS = {
    "decodes_per_frame.before_cutting": 1.1,
    "decodes_per_frame.with_cutting": 2.3,
    "rest_per_decode": 1.6,
    "ratio.stages": 0.45,
    "ratio.run": 0.6,
}
"""What curation is held to; ratios are to the other checkout, and their middle counts."""
Figures = dict[str, Any]


def spent(
    command: Sequence[str], environment: Mapping[str, str], cwd: Path, *, may_fail: bool = False
) -> tuple[float, float, str]:
    """CPU seconds of a command and all its processes, wall seconds, and what it printed. Raises CalledProcessError."""
    family, began = Family(), time.monotonic()
    family.look()
    before_s = family.cpu_s()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        process = subprocess.Popen(
            command, stdout=said, stderr=complained, env=os.environ | dict(environment), cwd=cwd, start_new_session=True
        )
        done = 0
        while not done:
            done, status, used = os.wait4(process.pid, os.WNOHANG)
            family.look()
            if not done:
                time.sleep(LOOKED_EVERY_S)
        process.returncode = os.waitstatus_to_exitcode(status)
        family.ended(process.pid, used.ru_utime + used.ru_stime)
        for stream in (said, complained):
            stream.seek(0)
        text, complaints = said.read(), complained.read()
    if process.returncode and not may_fail:
        print(text[-2000:], complaints[-4000:], sep="\n", file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return family.cpu_s() - before_s, time.monotonic() - began, text


def decode(path: str) -> Figures:
    """The limit: all frames and all samples of a file, once, on one thread, as far as they can be decoded."""
    import av

    before_s, counts = time.process_time(), {"video": 0, "audio": 0}
    with suppress(av.FFmpegError), av.open(path) as container:
        streams = [stream for kind in counts for stream in getattr(container.streams, kind)[:1]]
        for stream in streams:
            stream.thread_count = 1
        for packet in container.demux(streams):
            with suppress(av.FFmpegError):
                counts[packet.stream.type] += len(packet.decode())
    return {"cpu_s": time.process_time() - before_s, "frames": counts["video"]}


def limit(media: Sequence[Path]) -> float:
    """CPU seconds of one decode of all media."""
    found = 0.0
    for path in media:
        _, _, text = spent(
            [sys.executable, "-m", "benchmarks.curation", "--part", "decode", str(path)], ONE_THREAD, ROOT
        )
        found += json.loads(text)["cpu_s"]
    return found


def scenes(media: Sequence[Path]) -> float:
    """CPU seconds of PySceneDetect on all media; of those that it cannot read, until it says so."""
    words = ["detect-adaptive", "list-scenes", "--no-output-file", "--quiet"]
    commands = ([sys.executable, "-m", "scenedetect", "--input", str(path), *words] for path in media)
    return sum(spent(command, ONE_THREAD, ROOT, may_fail=True)[0] for command in commands)


def stages(checkout: Path, media: Sequence[Path], warm_up: Path) -> Figures:
    """All stages before cutting, as a checkout has them."""
    command = [sys.executable, "-P", str(SIDE), str(warm_up), *map(str, media)]
    _, _, text = spent(command, ONE_THREAD | {"PYTHONPATH": str(checkout)}, checkout)
    files = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    minutes = sum((each["duration_us"] or 0) / 60e6 for each in files)
    sums = {name: sum(each[name] for each in files) for name in ("cpu_s", "networks_s", "recogniser_s")}
    by_stage: dict[str, float] = {}
    for each in files:
        for stage, cpu_s in each["stages"].items():
            by_stage[stage] = by_stage.get(stage, 0.0) + cpu_s
    counts = [(each["frames_decoded"], each["frames_shown"]) for each in files if each["frames_shown"]]
    is_counted = bool(counts) and all(decoded is not None for decoded, _ in counts)
    own_s = sums["cpu_s"] - sums["recogniser_s"]
    return {
        "minutes": minutes,
        "setup_s": files[0]["setup_s"],
        "cpu_s": own_s,
        "recogniser_s": sums["recogniser_s"],
        "networks_s": sums["networks_s"],
        "rest_s": own_s - sums["networks_s"],
        "by_stage": by_stage,
        "decodes_per_frame": sum(a for a, _ in counts) / sum(b for _, b in counts) if is_counted else None,
        "files": files,
    }


def whole(checkout: Path, media: Sequence[Path], warm_ups: Sequence[Path]) -> Figures:
    """The command from end to end, as a checkout has it."""
    with tempfile.TemporaryDirectory(prefix="nava-curation-") as folder:
        (start_s, _, first), (all_s, wall_s, answer) = (
            _run(checkout, given, f"{folder}/{at}") for at, given in enumerate((warm_ups, [*warm_ups, *media]))
        )
    minutes = 60 * (answer["hours"]["in"] - first["hours"]["in"])
    in_stages = {name: told["cpu_s"] for name, told in answer["cost"].items()}
    return {
        "minutes": minutes,
        "cpu_s": all_s - start_s,
        "start_s": start_s,
        "wall_s": wall_s,
        "in_stages_s": sum(in_stages.values()),
        "by_stage": in_stages,
        "told_s": answer.get("cpu_s"),
        "seen_s": all_s,
        "overhead": answer.get("overhead"),
        "decodes_per_frame": answer.get("decodes_per_frame"),
        "utilisation": (answer.get("invocations") or [{}])[-1].get("utilisation_started"),
    }


def _run(checkout: Path, media: Sequence[Path], out: str) -> tuple[float, float, Figures]:
    """(CPU seconds of all processes, wall seconds, what `stats --json` says) of a run."""
    given = [word for path in media for word in ("--input", str(path))]
    where = {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "pipeline.cli", "run", "quickstart", *given, "--out", out, "--quiet"]
    cpu_s, wall_s, _ = spent(command, where, checkout)
    _, _, text = spent([sys.executable, "-m", "pipeline.cli", "stats", out, "--json"], where, checkout)
    return cpu_s, wall_s, json.loads(text)


def rounds(
    checkouts: Mapping[str, Path], media: Sequence[Path], warm_ups: Sequence[Path], number: int, *, has_run: bool
) -> Iterator[Figures]:
    """The figures of one round after another."""
    for _ in range(number):
        found: Figures = {"limit_s": limit(media)}
        found["stages"] = {name: stages(checkout, media, warm_ups[0]) for name, checkout in checkouts.items()}
        if has_run:
            found["run"] = {name: whole(checkout, media, warm_ups) for name, checkout in checkouts.items()}
        found["scenes_s"] = scenes(media)
        yield found


def metrics(taken: Figures, whose: str) -> dict[str, float]:
    """What a round says of one checkout: CPU seconds per minute of video unless a name says otherwise."""
    own, run = taken["stages"][whose], taken.get("run", {}).get(whose)
    amounts = {"stages": own["cpu_s"], **{name: own[f"{name}_s"] for name in ("networks", "rest")}}
    amounts |= {f"stages/{name}": cpu_s for name, cpu_s in own["by_stage"].items()} | {
        "recogniser": own["recogniser_s"]
    }
    found = {name: amount / own["minutes"] for name, amount in amounts.items()} | {"setup_s": own["setup_s"]}
    found |= {
        f"{name}_per_decode": own[f"{key}_s"] / taken["limit_s"] for name, key in (("stages", "cpu"), ("rest", "rest"))
    }
    if own["decodes_per_frame"] is not None:
        found["decodes_per_frame.before_cutting"] = own["decodes_per_frame"]
    if run is not None:
        found |= {"run": run["cpu_s"] / run["minutes"], "run.start_s": run["start_s"], "run.wall_s": run["wall_s"]}
        known = {
            "run.told_share": run["told_s"] and run["told_s"] / run["seen_s"],
            "run.utilisation": run["utilisation"],
        }
        known["decodes_per_frame.with_cutting"] = (run["decodes_per_frame"] or {}).get("with_cutting")
        found |= {name: value for name, value in known.items() if value is not None}
    return found


def spread(values: Iterable[float]) -> list[float]:
    """Least, middle and largest."""
    known = sorted(values)
    return [known[0], median(known), known[-1]]


def summary(taken: Sequence[Figures]) -> dict[str, dict[str, list[float]]]:
    """Name -> whose, or `ratio` of this checkout to the other -> least, middle and largest of all rounds."""
    told = [{whose: metrics(each, whose) for whose in each["stages"]} for each in taken]
    found: dict[str, dict[str, list[float]]] = {}
    for name in told[0][THIS]:
        by = {whose: [each[whose][name] for each in told] for whose in told[0] if name in told[0][whose]}
        found[name] = {whose: spread(values) for whose, values in by.items()}
        if OTHER in by and min(by[OTHER]) > 0:
            found[name]["ratio"] = spread(a / b for a, b in zip(by[THIS], by[OTHER], strict=True))
    for name in ("limit", "scenes"):
        found[name] = {THIS: spread(each[f"{name}_s"] / each["stages"][THIS]["minutes"] for each in taken)}
    return found


def held(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """A line per bound: the figure in the middle, the bound, and whether it was met or missed."""
    lines = []
    for key, bound in BOUNDS.items():
        name, whose = (key.removeprefix("ratio."), "ratio") if key.startswith("ratio.") else (key, THIS)
        if whose in found.get(name, {}):
            middle = found[name][whose][1]
            lines.append(f"{key:<34}{middle:>8.2f}  <= {bound:g}  {'met' if middle <= bound else 'MISSED'}")
    return lines


def as_text(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A line per figure: least, middle and largest of this checkout, of the other, and of their ratio."""
    heads = "".join(f"{head:>24}" for head in (THIS, OTHER, "ratio"))
    lines = [f"{'CPU s per minute of video':<34}{heads}"]
    for name, by in found.items():
        cells = (
            " ".join(f"{value:7.2f}" for value in by[whose]) if whose in by else "" for whose in (THIS, OTHER, "ratio")
        )
        lines.append((f"{name:<34}" + "".join(f"{cell:>24}" for cell in cells)).rstrip())
    return "\n".join(lines)


def _media(given: Sequence[Path]) -> list[Path]:
    found = [path for place in given for path in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return [path.resolve() for path in found if path.suffix.lower() in SUFFIXES]


def main(arguments: list[str] | None = None) -> None:
    """Takes every figure and prints and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, nargs="*", metavar="MEDIA")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--without-run", action="store_true", help="only the stages, not the whole command")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        print(json.dumps(decode(given.part[1])))
        return
    checkouts = {THIS: ROOT} | ({OTHER: given.against.resolve()} if given.against else {})
    with tempfile.TemporaryDirectory(prefix="nava-curation-") as folder:
        warm_ups = [Path(folder, f"warm-{number}.mp4") for number in range(os.cpu_count() or 1)]
        for number, path in enumerate(warm_ups):
            talking_clip(path, duration_s=WARM_UP_S, seed=number)
        if not given.media:
            write_demo(Path(folder, "demo"))
        media = _media(given.media or [Path(folder, "demo")])
        taken = list(rounds(checkouts, media, warm_ups, given.rounds, has_run=not given.without_run))
    found = summary(taken)
    print(as_text(found), "", *held(found), sep="\n")
    if given.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "when": time.strftime("%Y-%m-%d")}
        setting = {"media": [path.name for path in media], "against": given.against and str(given.against)}
        told = {"machine": machine, "setting": setting, "figures": found, "rounds": taken}
        given.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
