"""What a run is worth that things happen to: processes killed at random instants, and what the same command then makes of it.

    python -m benchmarks.chaos --json FILE [--kills 50] [--seed 0] [--minutes 60] [--kinds driver worker]

A small real run is made undisturbed, on a private Ray runtime of two CPUs and without Ray. Then it is made again and again into a
new folder, and each time one process is killed with SIGKILL: the kinds in turn, instant and process drawn by the seed. The same
command is given until it ends well, three more times at most. Then ledger rows (cost aside), shards and indexes are compared,
and what is left of processes, shared memory and temporary folders is counted. `here`, `commit` and `compaction` hit the one
process of a run without Ray, at any instant or in the middle of one of the two; all other kinds are on Ray. A kill that was meant
for such a moment and fell beside it counts as `here`, and one that came too late as missed.
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
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.chaos_kills import KINDS, Campaign, Trial, dumped


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
    """The campaign; what is known so far is in `path` after every kill."""
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
                "machine": {
                    "cpus": os.cpu_count(),
                    "python": platform.python_version(),
                    "when": time.strftime("%Y-%m-%d"),
                },
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


def main(arguments: list[str] | None = None) -> None:
    """Kills, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures are written, anew after every kill")
    parser.add_argument("--kills", type=int, default=50, help="processes to kill")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other instants")
    parser.add_argument("--minutes", type=float, default=60.0, help="no kill begins later than this")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what is killed, in turn")
    given = parser.parse_args(arguments)
    found = kill(given.json, given.kinds, given.kills, given.seed, given.minutes)
    if not found:
        parser.error("no kill fell within --minutes; give it more")
    for kind, figures in [*found["kinds"].items(), ("all", found["all"])]:
        print(f"{kind:<12}", "  ".join(f"{key} {value:g}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
