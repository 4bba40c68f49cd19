"""What a run is worth that things happen to: processes killed at random instants, and media damaged at random.

    python -m benchmarks.chaos --json FILE [--kills 50] [--mutants 10000] [--through-runs 1000] [--seed 0] [--minutes 60]
                               [--kinds driver worker]

**Kills.** A small real run is made undisturbed, on a private Ray runtime of two CPUs and without Ray. Then it is made again and
again into a new folder, and each time one process is killed with SIGKILL: the kinds in turn, instant and process drawn by the
seed. The same command is given until it ends well, three more times at most. Then ledger rows (cost aside), shards and indexes
are compared, and what is left of processes, shared memory and temporary folders is counted. `here`, `commit` and `compaction`
hit the one process of a run without Ray, at any instant or in the middle of one of the two; all other kinds are on Ray. A kill
that was meant for such a moment and fell beside it counts as `here`, and one that came too late as missed.

**Mutants.** So many damaged files are probed, watched and listened to, as stages do, and others, a tenth as many unless said
otherwise, go through whole runs. See `benchmarks.chaos_mutants`, which also makes each of them again by its number.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.chaos_kills import KINDS, Campaign, Trial, dumped
from benchmarks.chaos_mutants import Tried, mutants, through_decoder, through_runs, write_seeds

IN_RUNS = 10
"""Unless said otherwise, for so many mutants through the decoder one more goes through a whole run."""


def tally(trials: list[Trial]) -> dict[str, float]:
    """Counts over trials of one kind."""
    lost = [trial.lost_s for trial in trials]
    return {
        "tried": len(trials),
        "equal": sum(not trial.differences for trial in trials),
        "differing": sum(bool(trial.differences) for trial in trials),
        "unclear": sum(bool(trial.unclear) for trial in trials),
        "ray_lines": sum(trial.num_ray_lines for trial in trials),
        "went_on": sum(len(trial.endings) == 1 for trial in trials),
        "processes_left": sum(len(trial.processes) for trial in trials),
        "segments_left": sum(len(trial.segments) for trial in trials),
        "folders_left": sum(len(trial.folders) for trial in trials),
        "lost_s_median": round(statistics.median(lost), 1),
        "lost_s_most": round(max(lost), 1),
    }


def kill(path: Path, kinds: Sequence[str], num_kills: int, seed: int, minutes: float) -> dict[str, Any]:
    """The kills; what is known so far is in `path` after every one."""
    until, found = time.monotonic() + 60 * minutes, dict[str, Any]()
    by_kind: dict[str, list[Trial]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        campaign = Campaign(Path(folder), seed)
        turns, num_missed = cycle(kinds), 0
        while (num_done := sum(map(len, by_kind.values()))) < num_kills and time.monotonic() < until:
            trial = campaign.trial(next(turns))
            if trial is None:
                num_missed += 1
                continue
            by_kind[trial.kind].append(trial)
            found = {
                "machine": machine(),
                "setting": {"kills": num_kills, "seed": seed, "minutes": minutes, "kinds": list(kinds)},
                "undisturbed_s": {name: round(each.took_s, 1) for name, each in campaign.undisturbed.items()},
                "missed": num_missed,
                "all": tally([each for trials in by_kind.values() for each in trials]),
                "kinds": {kind: tally(by_kind[kind]) for kind in KINDS if by_kind[kind]},
                "trials": [dumped(each) for trials in by_kind.values() for each in trials],
            }
            path.write_text(json.dumps(found, indent=1) + "\n")
            word = "equal" if not trial.differences else "DIFFERS"
            print(f"{num_done + 1:>4} {trial.kind:<10} {trial.at_s:6.1f} s  {trial.endings} {word}", flush=True)
    return found


def machine() -> dict[str, Any]:
    """Where and when."""
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "when": time.strftime("%Y-%m-%d")}


def mutate(path: Path, num_mutants: int, num_runs: int, seed: int, minutes: float) -> dict[str, Any]:
    """`num_mutants` through the decoder, then `num_runs` others through whole runs."""
    until = time.monotonic() + 60 * minutes
    found: dict[str, Any] = {
        "machine": machine(),
        "setting": {"mutants": num_mutants, "through_runs": num_runs, "seed": seed, "minutes": minutes},
    }
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        seeds = write_seeds(folder / "seeds")
        parts: dict[str, tuple[Callable[..., Tried], int, int]] = {
            "decoder": (through_decoder, num_mutants, 0),
            "runs": (through_runs, num_runs, num_mutants),
        }
        for part, (through, num, first) in parts.items():
            found[part] = through(mutants(seeds, seed, first), num, folder, until).figures()
            path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Kills, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", type=Path, required=True, help="where the figures are written; of mutants beside, FILE-mutants"
    )
    parser.add_argument("--kills", type=int, default=0, help="processes to kill")
    parser.add_argument(
        "--mutants", type=int, default=0, help="damaged files for the decoder; a tenth as many go through runs"
    )
    parser.add_argument("--through-runs", type=int, help="damaged files for whole runs, if not a tenth of --mutants")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other instants and other damage")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="nothing begins later than this, for kills and mutants each"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what is killed, in turn")
    given = parser.parse_args(arguments)
    num_runs = given.mutants // IN_RUNS if given.through_runs is None else given.through_runs
    if not given.kills and not given.mutants and not num_runs:
        parser.error("give --kills, --mutants, --through-runs or several of them")
    if given.mutants or num_runs:
        found = mutate(_beside(given.json, given.kills), given.mutants, num_runs, given.seed, given.minutes)
        for part in ("decoder", "runs"):
            told = {key: value for key, value in found[part].items() if key not in ("bad", "outcomes")}
            print(f"{part:<12}", "  ".join(f"{key} {value}" for key, value in told.items()))
    if given.kills:
        found = kill(given.json, given.kinds, given.kills, given.seed, given.minutes)
        if not found:
            parser.error("no kill fell within --minutes; give it more")
        for kind, figures in [*found["kinds"].items(), ("all", found["all"])]:
            print(f"{kind:<12}", "  ".join(f"{key} {value:g}" for key, value in figures.items()))


def _beside(path: Path, num_kills: int) -> Path:
    """Where the figures of mutants go: the file itself, if kills do not need it."""
    return path.with_stem(f"{path.stem}-mutants") if num_kills else path


if __name__ == "__main__":
    main()
