"""What the inspector's pages cost on a large run, held against their budgets; CPU seconds, bytes and memory.

    python -m benchmarks.inspector --json FILE [--clips 1000000] [--folder DIR]

The run is synthetic and in the real schema (`benchmarks.synthetic_ledger`); `--folder` keeps it for the next time. Pages are
asked without a socket, in a process of their own, each as often as `REPEATS`; the first answer of a kind, which reads the
run, stands apart (`first_ms`), the others give the 95th percentile. Memory is that of the command itself, asked by sockets.
Media are those of a generated clip of 10 s at 720p. A budget that is not met is printed as missed and the command still
succeeds: it measures, it does not judge.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import pipeline.inspector
from benchmarks import synthetic_ledger
from benchmarks.scale import measured, spent
from pipeline.inspector.session import POLARS_MALLOC

REPEATS = 40
CLIENTS = 20
PORT = 8470
BASE = f"http://127.0.0.1:{PORT}"
GATE = "sync.offset_ms.abs_max"
BUDGETS = {
    "start.cpu_s": 1.5,
    "overview.p95_ms": 150.0,
    "measures.p95_ms": 150.0,
    "clips.p95_ms": 150.0,
    "clips_filtered.p95_ms": 150.0,
    "clips_nearest.p95_ms": 150.0,
    "dragged.p95_ms": 10.0,
    "released.p95_ms": 80.0,
    "dragged.bytes": 12_000,
    "clip.bytes": 120_000,
    "peaks.p95_ms": 20.0,
    "peaks.bytes": 4_000,
    "cut.wall_s": 2.0,
    "scripts.gzip_bytes": 400_000,
    "scripts_of_a_clip.gzip_bytes": 60_000,
    "report.bytes": 2_500_000,
    "memory.peak_mb": 600.0,
}
"""What is held to, for a million clips."""
Figures = dict[str, Any]


def percentile(seconds: list[float], share: float = 95.0) -> float:
    """In milliseconds."""
    return round(1000 * float(np.percentile(seconds, share)), 2)


@contextmanager
def served(run: str, cache: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`nava-curate inspect` as it listens, facts being there, and its address; without what Polars sets in this process."""
    command = [sys.executable, "-m", "pipeline.cli", "inspect", run, "--port", "0", "--cache", cache]
    own = {name: value for name, value in os.environ.items() if name != POLARS_MALLOC[0]}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "is shown at" in line, line
        yield process, line.split()[-1].rstrip("/")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def start(run: str, cache: str) -> Figures:
    """CPU seconds of `nava-curate inspect` until it listens."""
    with served(run, cache) as (process, _):
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return {"cpu_s": (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")}


def pages(run: str, cache: str) -> Figures:
    """CPU milliseconds of each page, the first and the 95th percentile of the others, and their bytes."""
    from starlette.testclient import TestClient

    from pipeline.inspector.app import Inspector
    from pipeline.inspector.guard import Access
    from pipeline.inspector.session import Session

    session = Session(run, cache=Path(cache))
    rng, figures = np.random.default_rng(0), {}
    with TestClient(Inspector(session, Access("127.0.0.1", PORT)).app(), BASE) as client:

        def timed(name: str, path: Callable[[], str]) -> None:
            seconds, size = [], 0
            for _ in range(REPEATS + 1):
                asked, began = path(), time.process_time()
                answer = client.get(asked)
                seconds.append(time.process_time() - began)
                assert answer.status_code == 200, (asked, answer.text[:300])
                size = max(size, len(answer.content))
            figures[name] = {"first_ms": percentile(seconds[:1]), "p95_ms": percentile(seconds[1:]), "bytes": size}

        def moved() -> str:
            return f"/measures.json?gate.{GATE}={rng.uniform(0, 400):.1f}&gate.picture.brightness.min=0.2"

        timed("overview", lambda: "/")
        timed("clips", lambda: "/clips")
        timed("clips_filtered", lambda: f"/clips?status=reject&where=sync.confidence<{rng.uniform(7, 9):.3f}")
        timed("clips_nearest", lambda: "/clips?sort=margin:sync.offset_ms")
        timed("sources", lambda: "/sources?sort=lost")
        timed("measures", lambda: "/measures")
        timed("released", moved)
        client.get(f"/measures.json?gate.{GATE}=1&gate.picture.brightness.min=0.2&dragged={GATE}")
        timed("dragged", lambda: f"{moved()}&dragged={GATE}")
        rows = client.get("/clips.json").json()["rows"]
        timed("clip", lambda: f"/clips/{rows[int(rng.integers(len(rows)))]['clip_id']}")
    return figures


def memory(run: str, cache: str) -> Figures:
    """The peak memory of `nava-curate inspect` that was asked for a page of each kind, and then by `CLIENTS` at once."""
    with served(run, cache) as (process, address):

        def get(path: str) -> bytes:
            with urllib.request.urlopen(f"{address}{path}", timeout=300) as answer:
                return bytes(answer.read())

        moved = f"/measures.json?gate.{GATE}=7&gate.picture.brightness.min=0.2"
        lists = ["/", "/clips", "/measures", moved, "/sources", "/clips?sort=-sync.confidence"]
        narrowed = "/clips?status=reject&where=sync.confidence%3C8"
        for path in (*lists, "/clips?sort=margin:sync.offset_ms", narrowed, f"{moved}&dragged={GATE}"):
            get(path)
        for row in json.loads(get("/clips.json"))["rows"]:
            get(f"/clips/{row['clip_id']}")
        threads = [threading.Thread(target=lambda: [get(path) for path in lists]) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        return {"memory": {"peak_mb": int(told["VmHWM"].removesuffix("kB")) / 1e3}}


def media(folder: str) -> Figures:
    """A clip of 10 s at 720p: wall seconds until a cut one can be played, CPU milliseconds of its peaks, bytes of them."""
    from pipeline.ask.queries import Run
    from pipeline.config import load_recipe
    from pipeline.demo import ball_clip
    from pipeline.demo.write import Encoding
    from pipeline.execute.here import here
    from pipeline.inspector.media import PICTURE, SOUND, MediaShelf, peaks_of
    from pipeline.inspector.session import RunView
    from pipeline.run import run
    from stages.download.sources import expand_sources

    place = Path(folder)
    ball_clip(place / "ball.mp4", duration_s=10.0, encoding=Encoding(1280, 720))
    recipe = load_recipe("quickstart", ["gates.clip.duration_us={max: 1}", "stages.clip.max_s=10"])
    run(recipe, expand_sources([str(place / "ball.mp4")]), str(place / "run"), here, quiet=True)
    view = RunView(Run(str(place / "run")))
    (row,) = view.run.ledger.rows("clip")
    clip, shelf = view.clip(row["row_id"]), MediaShelf(place / "media")
    began = time.perf_counter()
    shelf.cut(clip, PICTURE, view).result()
    wall_s = time.perf_counter() - began
    heard = shelf.cut(clip, SOUND, view).result().read_bytes()
    seconds, told = [], {}
    for _ in range(REPEATS):
        begun = time.process_time()
        told = peaks_of(heard)
        seconds.append(time.process_time() - begun)
    shelf.close()
    return {
        "cut": {"wall_s": round(wall_s, 3)},
        "peaks": {"p95_ms": percentile(seconds), "bytes": len(json.dumps(told))},
    }


def report(run: str, cache: str, out: str) -> Figures:
    """The static report of the same run."""
    from pipeline.inspector.report import write_report
    from pipeline.inspector.session import Session

    (path,) = write_report(Session(run, cache=Path(cache)), Path(out))
    return {"report": {"bytes": path.stat().st_size, **spent()}}


def scripts() -> Figures:
    """What a browser loads, compressed."""
    static = Path(pipeline.inspector.__file__).parent / "static"
    sizes = {
        each.name: len(gzip.compress(each.read_bytes())) for each in static.rglob("*") if each.suffix in (".js", ".css")
    }
    of_a_clip = ("style.css", "app.js", "clip.js", "wavesurfer.js")
    return {
        "scripts": {"gzip_bytes": sum(sizes.values())},
        "scripts_of_a_clip": {"gzip_bytes": sum(sizes[name] for name in of_a_clip)},
    }


PARTS: dict[str, Callable[..., Figures]] = {"pages": pages, "memory": memory, "media": media, "report": report}


def all_figures(folder: Path, num_clips: int) -> Figures:
    """Every part in a process of its own."""
    run, cache = folder / "run", folder / "cache"
    if not run.exists():
        synthetic_ledger.write(str(run), synthetic_ledger.Size(num_clips))
    build = measured(["-m", "pipeline.cli", "stats", str(run), "--json", "--cache", str(cache)])
    with tempfile.TemporaryDirectory() as scratch:
        own = ["-m", "benchmarks.inspector", "--part"]
        found: Figures = {"first_question": build, "start": start(str(run), str(cache))}
        for part in (
            ["pages", str(run), str(cache)],
            ["memory", str(run), str(cache)],
            ["media", scratch],
            ["report", str(run), str(cache), f"{scratch}/report.html"],
        ):
            told: Figures = dict(measured([*own, *part]))
            found |= {name: value for name, value in told.items() if isinstance(value, dict)}
    return found | scripts()


def verdicts(figures: Figures) -> dict[str, tuple[float, float, bool]]:
    """Budget -> (figure, bound, whether it is met)."""
    found = {}
    for name, bound in BUDGETS.items():
        part, _, key = name.partition(".")
        value = float(figures[part][key])
        found[name] = (value, bound, value <= bound)
    return found


def main() -> None:
    """Measures, prints a table, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part[0]](*given.part[1:])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = all_figures(given.folder or Path(scratch), given.clips)
    for name, (value, bound, is_met) in verdicts(figures).items():
        print(f"{name:<32}{value:>14,.2f}{bound:>14,.0f}  {'met' if is_met else 'missed'}")
    if given.json:
        about = {"clips": given.clips, "python": platform.python_version(), "cpus": os.cpu_count()}
        given.json.write_text(json.dumps({"machine": about, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
