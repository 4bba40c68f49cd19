"""What a pool holds, as text: hours in all, and by each field that was to be in balance."""

from __future__ import annotations

from pipeline.pools.choose import Selection
from pipeline.show.screen import bar, hms, plural, table
from schemas.records import Level

SHOWN_VALUES = 12
BAR_CHARS = 16


def pool_text(found: Selection, out: str) -> str:
    """The table that `select` prints."""
    rules = found.rules
    asked = "" if rules.hours is None else f" of {rules.hours:g} h asked for"
    lines = [
        f"{rules.name}: {plural(len(found.clips), Level.CLIP)}, {hms(found.us)}{asked}; "
        f"{hms(found.found_us)} of the run fulfil its conditions"
    ]
    if found.num_near:
        lines.append(f"{plural(found.num_near, Level.CLIP)} near an evaluation set left out")
    for field in found.fields:
        lines += ["", *_by(found, field)]
    return "\n".join([*lines, "", f"shards stay where they are; {out} holds rules and ids"])


def _by(found: Selection, field: str) -> list[str]:
    import polars as pl

    sums = found.clips.group_by(field).agg(us=pl.col("us").sum(), num=pl.len())
    rows = []
    for value, us, num in sums.sort("us", field, descending=[True, False]).head(SHOWN_VALUES).iter_rows():
        share, of_all = us / max(found.us, 1), us / max(found.all_us[field, value], 1)
        rows.append((str(value), f"{num:,}", hms(us), f"{share:.1%}", f"{of_all:.0%}", bar(share, BAR_CHARS)))
    lines = table((field, "num", "hours", "share", "of the run's", ""), rows, right=(1, 2, 3, 4))
    left = len(sums) - len(rows)
    return [*lines, f"and {left:,} more"] if left > 0 else lines
