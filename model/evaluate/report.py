"""Reports as files: report.json with figures and how they came about, items.parquet with every score; and as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from model.evaluate.combined import COMBINED, combined_pair
from model.evaluate.intervals import Paired, paired
from model.evaluate.records import Figure, Provenance, Report, Score
from schemas.errors import RecipeError
from schemas.files import whole_path, write_whole

REPORT, ITEMS = "report.json", "items.parquet"
DIGITS = 4


def write_report(report: Report, scores: Sequence[Score], out: Path) -> None:
    """Writes both files into `out`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"value": pa.float64(), "weight": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in Score.__dataclass_fields__])
    with whole_path(out / ITEMS) as path:
        pq.write_table(pa.Table.from_pylist([asdict(each) for each in scores], schema=schema), path)
    write_whole(out / REPORT, (json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n").encode())


def read_report(out: Path) -> tuple[Report, list[Score]]:
    """What `write_report` wrote. Raises RecipeError where there is no report."""
    import pyarrow.parquet as pq

    if not (out / REPORT).is_file():
        raise RecipeError(f"{out} holds no report.", remedy="Give the folder that nava-train evaluate wrote.")
    told = json.loads((out / REPORT).read_text(encoding="utf-8"))
    figures = tuple(Figure(**each | {"provenance": Provenance(**each["provenance"])}) for each in told["figures"])
    tuples = {name: tuple(told.get(name, ())) for name in ("missing", "notes", "settings")}
    scores = [Score(**row) for row in pq.read_table(out / ITEMS).to_pylist()]
    return Report(**told | tuples | {"figures": figures}), scores


def number(value: float | None) -> str:
    """A figure as text."""
    return "-" if value is None else f"{value:.{DIGITS}g}"


def report_text(report: Report) -> str:
    """The figures as a table, and what they are not of."""
    rows: list[tuple[str, ...]] = [("metric", "value", "95 % interval", "items", "missing", "failed", "none", "better")]
    for each in report.figures:
        interval = f"{number(each.low)} .. {number(each.high)}" if each.low is not None else "-"
        counts = (each.num_items, each.num_missing, each.num_failed, each.num_unmeasured)
        value = f"{number(each.value)} {each.unit}".rstrip() if each.value is not None else "-"
        rows.append((each.metric, value, interval, *map(str, counts), each.better))
    lines = [f"{report.set_name} ({report.set_form}), protocol {report.protocol}, samples of {report.generated}", ""]
    lines += columns(rows)
    lines += ["", *(f"note: {each}" for each in report.notes), *(f"measured with {each}" for each in report.settings)]
    lines += [f"missing: {', '.join(report.missing)}"] if report.missing else []
    lines += [f"failed: {name}: {why}" for name, why in report.failed.items()]
    lines += [f"ambiguous: {name}: {why}" for name, why in report.ambiguous.items()]
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of two reports."""

    metric: str
    better: str
    first: float
    second: float
    """Of the items that both have measured."""
    found: Paired | None
    num_first_only: int
    num_second_only: int
    """Items that only one of them has measured: a system that leaves out what is hard is not better."""
    differs_in: str
    """What keeps the two from being comparable; empty where nothing does."""

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        if self.differs_in:
            return f"not comparable: {self.differs_in}"
        if self.found is None:
            return "too few items"
        if not self.found.is_sure:
            return "no difference is sure"
        if self.better == "neither":
            return "differs"
        return "better" if (self.found.difference > 0) == (self.better == "higher") else "worse"


def compare(one: Path, other: Path) -> list[Compared]:
    """The metrics of two reports, `other` against `one`, over the items that both have measured, paired by item.

    Raises RecipeError where they are of different sets or protocols, whose figures have nothing to do with each other.
    """
    (first, first_scores), (second, second_scores) = read_report(one), read_report(other)
    for name in ("set_name", "set_form", "protocol"):
        if getattr(first, name) != getattr(second, name):
            raise RecipeError(
                f"{one} is of {name} {getattr(first, name)}, {other} of {getattr(second, name)}.",
                remedy="Evaluate both on the same set by the same protocol.",
            )
    provenance = {each.metric: each.provenance for each in second.figures}
    combined = {each.name: each for each in COMBINED.get(first.protocol, ())}
    found = []
    for figure in first.figures:
        if figure.metric not in provenance:
            continue
        how = ", ".join(
            name
            for name in Provenance.__dataclass_fields__
            if getattr(figure.provenance, name) != getattr(provenance[figure.metric], name)
        )
        if (metric := combined.get(figure.metric)) is not None:
            if (told := combined_pair(metric, first_scores, second_scores)) is not None:
                alone = (told.num_first_only, told.num_second_only)
                found.append(Compared(metric.name, metric.better, told.first, told.second, told.found, *alone, how))
        elif len(pairs := _pairs(figure.metric, first_scores, second_scores)):
            first_mean, second_mean = (float(np.average(pairs[:, at], weights=pairs[:, 2])) for at in (0, 1))
            held = paired(pairs[:, 0], pairs[:, 1], pairs[:, 2])
            first_only, second_only = (
                _num_measured(figure.metric, scores) - len(pairs) for scores in (first_scores, second_scores)
            )
            found.append(
                Compared(figure.metric, figure.better, first_mean, second_mean, held, first_only, second_only, how)
            )
    return found


def _num_measured(metric: str, scores: Sequence[Score]) -> int:
    return sum(each.metric == metric and each.value is not None for each in scores)


def _pairs(
    metric: str, one: Sequence[Score], other: Sequence[Score]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(value, other value, weight) of the items that both have measured."""
    held: Mapping[tuple[str, str], Score] = {
        (each.subset, each.item_id): each for each in one if each.metric == metric and each.value is not None
    }
    rows = [
        (held[key].value, each.value, each.weight)
        for each in other
        if each.metric == metric and each.value is not None and (key := (each.subset, each.item_id)) in held
    ]
    return np.array(rows, float).reshape(-1, 3)


def compared_text(found: Sequence[Compared]) -> str:
    """The comparison as a table."""
    rows = [
        (
            "metric",
            "first",
            "second",
            "difference",
            "95 % interval",
            "in both",
            "first only",
            "second only",
            "second is",
        )
    ]
    for each in found:
        held = each.found
        interval = f"{number(held.low)} .. {number(held.high)}" if held else "-"
        difference, num = (number(held.difference), str(held.num_items)) if held else ("-", "1")
        counts = (num, str(each.num_first_only), str(each.num_second_only))
        rows.append((each.metric, number(each.first), number(each.second), difference, interval, *counts, each.verdict))
    return "\n".join(columns(rows))
