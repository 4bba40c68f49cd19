"""Marks: what a person thought of a clip, kept beside the run, and what they say of its gates.

A file of JSON lines, one per mark, the last of a clip being the one that counts. Precision of a gate is the share of bad
clips among the marked ones it turns away, recall the share of the marked bad ones that it turns away.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.ask.facts import FAILED_GATES
from pipeline.ask.queries import Run
from pipeline.ask.stats import clip_checks
from schemas.errors import LedgerError
from schemas.ids import digest
from schemas.records import Level

Opinion = Literal["good", "bad", "unsure"]
OPINIONS: tuple[Opinion, ...] = get_args(Opinion)
LEAST = 30
"""Marks from which on figures are told: with fewer, an interval says nothing."""
Z = 1.959964
"""Of an interval that holds the truth 95 times of 100."""
LONGEST_NOTE = 500
"""Characters of a note."""


@dataclass(frozen=True)
class Mark:
    """One opinion on one clip."""

    clip_id: str
    opinion: Opinion
    note: str = ""
    marked_s: float = 0.0
    """When, as a Unix time."""


@dataclass(frozen=True)
class Proportion:
    """A share with the interval (Wilson's) in which it lies 95 times of 100."""

    share: float
    low: float
    high: float
    num: int
    """Of how many clips."""


@dataclass(frozen=True)
class GateMarks:
    """What marks say of one gate; None where no mark tells."""

    gate: str
    precision: Proportion | None
    recall: Proportion | None


@dataclass(frozen=True)
class Broken:
    """A mark that the verdicts of a run contradict."""

    clip_id: str
    what: str


@dataclass(frozen=True)
class Suggestion:
    """A bound on one measure that tells marked good clips from bad ones best."""

    path: str
    operator: Literal["min", "max", "abs_max"]
    bound: float
    bad_away: int
    num_bad: int
    good_away: int
    num_good: int

    @property
    def gain(self) -> float:
        """Proportion of bad clips it turns away less the share of good ones: 1 is perfect, 0 is chance."""
        return self.bad_away / self.num_bad - self.good_away / self.num_good


def wilson(hits: int, num: int) -> Proportion | None:
    """The share of `hits` among `num`; None of nothing."""
    if not num:
        return None
    share, spread = hits / num, Z**2 / num
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / num + spread / (4 * num)) / (1 + spread)
    return Proportion(share, max(0.0, centre - half), min(1.0, centre + half), num)


def marks_file_of(run_uri: str, cache: Path) -> Path:
    """Where the marks of a run lie unless a command says otherwise."""
    return cache / "marks" / f"{digest('marks', run_uri)}.jsonl"


def pictures_of(run_uri: str, cache: Path) -> Path:
    """The folder in which media and pictures of a run are kept that a page has shown."""
    return cache / "inspector" / digest("inspector", run_uri)


class MarkFile:
    """The marks in one file; a file that is not there holds none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> dict[str, Mark]:
        """Clip id -> its last mark. Raises LedgerError for a line that is none."""
        found: dict[str, Mark] = {}
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        for number, line in enumerate(lines, 1):
            try:
                mark = Mark(**json.loads(line))
                if mark.opinion not in OPINIONS:
                    raise ValueError(f"'{mark.opinion}' is none of {', '.join(OPINIONS)}")
            except (ValueError, TypeError) as error:
                raise LedgerError(f"{self.path}:{number} is no mark ({error}).", remedy="Mend or remove it.") from error
            found[mark.clip_id] = mark
        return found

    def add(self, clip_id: str, opinion: str, note: str = "") -> Mark:
        """Writes a mark at the end of the file. Raises LedgerError for an opinion that is none."""
        for known in OPINIONS:
            if known == opinion:
                mark = Mark(clip_id, known, note[:LONGEST_NOTE], round(time.time(), 3))
                line = json.dumps(asdict(mark), ensure_ascii=False) + "\n"
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                try:
                    os.write(handle, line.encode())
                finally:
                    os.close(handle)
                return mark
        raise LedgerError(f"'{opinion}' is no opinion.", remedy=f"Give one of {', '.join(OPINIONS)}.")


def gate_marks(run: Run, marks: Mapping[str, Mark]) -> list[GateMarks]:
    """What the marks say of every gate on clips; nothing below `LEAST` marks that are good or bad."""
    import polars as pl

    opinions = {name: mark.opinion for name, mark in marks.items() if mark.opinion != "unsure"}
    failed = run.facts.scan(Level.CLIP).filter(pl.col("row_id").is_in(list(opinions))).select("row_id", FAILED_GATES)
    rows = [(opinions[name], set((gates or "").split())) for name, gates in failed.collect().iter_rows()]
    if len(rows) < LEAST:
        return []
    found = []
    for check in clip_checks(run.plan):
        turned_away = [opinion for opinion, gates in rows if check.name in gates]
        bad = [check.name in gates for opinion, gates in rows if opinion == "bad"]
        found.append(
            GateMarks(check.name, wilson(turned_away.count("bad"), len(turned_away)), wilson(sum(bad), len(bad)))
        )
    return found


def suggested(run: Run, marks: Mapping[str, Mark]) -> list[Suggestion]:
    """For every measured number of clips the bound that tells the marks apart best, best first; none is certain.

    Bounds lie half-way between the clips they part. Empty without a good and a bad clip.
    """
    import numpy as np
    import polars as pl

    opinions = {name: mark.opinion for name, mark in marks.items() if mark.opinion != "unsure"}
    facts = run.facts.scan(Level.CLIP)
    known = facts.collect_schema()
    paths = [path for path, _ in run.plan.fields(Level.CLIP) if path in known and known[path].is_float()]
    rows = facts.filter(pl.col("row_id").is_in(list(opinions))).select("row_id", *paths).collect()
    is_bad = np.array([opinions[name] == "bad" for name in rows["row_id"]], bool)
    found = []
    for path in paths:
        values = rows[path].to_numpy()
        looked = np.isfinite(values)
        for operator, scale in (("max", values), ("min", -values), ("abs_max", np.abs(values))):
            if looked.any() and (operator != "abs_max" or (values[looked] < 0).any()):
                best = _parted(scale[looked], is_bad[looked])
                if best is not None:
                    bound, bad_away, good_away = best
                    signed = -bound if operator == "min" else bound
                    num_bad = int(is_bad[looked].sum())
                    counts = (bad_away, num_bad, good_away, int(looked.sum()) - num_bad)
                    found.append(Suggestion(path, operator, signed, *counts))  # type: ignore[arg-type]
    return sorted(found, key=lambda each: (-each.gain, each.path))


def _parted(values: Any, is_bad: Any) -> tuple[float, int, int] | None:
    """The bound of float64 [n] above which most bad and fewest good values lie, and how many of each do."""
    import numpy as np

    num_bad, num_good = int(is_bad.sum()), int((~is_bad).sum())
    order = np.argsort(values)
    values, is_bad = values[order], is_bad[order]
    edges = np.flatnonzero(np.diff(values) > 0)
    if not num_bad or not num_good or not len(edges):
        return None
    bad_away = num_bad - np.cumsum(is_bad)[edges]
    good_away = num_good - np.cumsum(~is_bad)[edges]
    best = int(np.argmax(bad_away / num_bad - good_away / num_good))
    at = edges[best]
    return float((values[at] + values[at + 1]) / 2), int(bad_away[best]), int(good_away[best])


def exported(run: Run, marks: Iterable[Mark]) -> list[dict[str, Any]]:
    """Marked clips with where they lie and what gates looked at, for a recipe's regression test or a fit of its bounds."""
    import polars as pl

    by_id = {mark.clip_id: mark for mark in marks}
    paths = list(dict.fromkeys(check.path for check in clip_checks(run.plan)))
    span = [f"{Level.CLIP}.asset_start_s", f"{Level.CLIP}.asset_end_s"]
    clips = run.facts.scan(Level.CLIP).filter(pl.col("row_id").is_in(list(by_id)))
    clips = clips.select("row_id", "source_id", "verdict.status", "verdict.reason", *span, *paths)
    uris = run.facts.scan(Level.ASSET).select("source_id", "source.uri")
    found = clips.join(uris, on="source_id", how="left").sort("row_id").collect()
    return [
        {
            "clip_id": row["row_id"],
            "opinion": by_id[row["row_id"]].opinion,
            "note": by_id[row["row_id"]].note,
            "source": row["source.uri"],
            "start_s": row[span[0]],
            "end_s": row[span[1]],
            "status": row["verdict.status"],
            "reason": row["verdict.reason"],
            "measured": {path: row[path] for path in paths},
        }
        for row in found.iter_rows(named=True)
    ]


def broken(run: Run, marks: Sequence[Mark]) -> list[Broken]:
    """Marks that a run contradicts: good clips it turns away, bad ones it keeps, and clips that it no longer has."""
    status = {row["clip_id"]: (row["status"], row["reason"]) for row in exported(run, marks)}
    found = []
    for mark in marks:
        if mark.opinion == "unsure":
            continue
        now, reason = status.get(mark.clip_id, (None, None))
        if now is None:
            found.append(Broken(mark.clip_id, "is not in this run: it was cut otherwise, or its source was not given"))
        elif mark.opinion == "good" and now != "keep":
            found.append(Broken(mark.clip_id, f"was marked good and is turned away by {reason}"))
        elif mark.opinion == "bad" and now == "keep":
            found.append(Broken(mark.clip_id, "was marked bad and is kept"))
    return found
