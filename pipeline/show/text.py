"""The ledger's answers as text for a terminal: hours first, counts second, every axis with its unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.ask.queries import hours_of
from pipeline.ask.status import RunStatus
from pipeline.ledger import PACK, PACK_COLUMN, PACK_KIND
from pipeline.plan import Plan
from pipeline.replay import Replayed
from schemas.fields import is_private, pruned
from schemas.records import Level, Row, Struct

BARS = " ▁▂▃▄▅▆▇█"
BAR_WIDTH = 36
LONGEST_VALUE = 60
STALL_S = 120.0
"""A run that committed nothing for this long is called out; most sources take seconds to minutes."""


def stats_text(answer: Mapping[str, Any]) -> str:
    """One screen: balance sheet, counts, gates, small histograms, cost per stage."""
    lines = balance_lines(answer["hours"])
    for kind in ("assets", "shots", "clips"):
        counts = answer[kind]
        settled = f" of {counts['total']}" if kind == "assets" and counts["settled"] != counts["total"] else ""
        lines.append(
            f"{kind:<7}{counts.get('settled', counts['total']):>7}{settled} settled: "
            f"{counts['kept']} kept, {counts['rejected']} rejected, {counts['error']} errors"
        )
    if answer["gates"]:
        lines += [
            "",
            f"{'clip gate':<34}{'fails':>10}{'only this':>11}   (hours; 'only this' = what dropping the gate wins)",
        ]
        for gate in answer["gates"]:
            label = f"{gate['gate']} {_plain(gate['bound'])}"
            lines.append(f"{label:<34}{_hms(gate['gross_hours']):>10}{_hms(gate['marginal_hours']):>11}")
    for path, shares in answer["labels"].items():
        parts = [f"{name} {_hms(hours['kept'])} kept of {_hms(sum(hours.values()))}" for name, hours in shares.items()]
        lines += ["", f"{path}: " + "; ".join(parts)]
    if answer["histograms"]:
        names = {path: _measure(path, shown["unit"]) for path, shown in answer["histograms"].items()}
        width = max(map(len, names.values()))
        lines += ["", f"{'measure':<{width}}{'low':>11}  hours kept (above) and not{'high':>5}"]
        for path, shown in answer["histograms"].items():
            lines += _histogram_lines(names[path], width, _scale(path), shown)
    if answer["cost"]:
        lines += [
            "",
            f"{'stage':<12}{'rows':>7}{'wall s':>9}{'cpu s':>9}{'wall s/min':>12}{'cpu s/min':>11}   (per minute of video in)",
        ]
        for stage, total in answer["cost"].items():
            lines.append(
                f"{stage:<12}{total['rows']:>7.0f}{total['wall_s']:>9.1f}{total['cpu_s']:>9.1f}"
                f"{total['wall_s_per_minute']:>12.2f}{total['cpu_s_per_minute']:>11.2f}"
            )
    return "\n".join(lines)


def balance_lines(hours: Mapping[str, Any]) -> list[str]:
    """The balance sheet of hours as bars that sum to what went in."""
    total = hours["in"]
    rows = [("in", total), ("kept", hours["kept"]), ("cut away", hours["cut_away"])]
    rows += [(f"rejected  {reason}", amount) for reason, amount in _largest(hours["rejected"])]
    rows += [(f"error     {reason}", amount) for reason, amount in _largest(hours["errors"])]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'hours':<{width}}{'h:mm:ss.mmm':>13}{'share':>8}"]
    for name, amount in rows:
        share = amount / total if total else 0.0
        bar = "█" * round(share * BAR_WIDTH)
        lines.append(f"{name:<{width}}{_hms(amount, millis=True):>13}{share:>8.1%}  {bar}".rstrip())
    difference = hours["exact_us"]["difference"]
    lines.append("adds up exactly" if difference == 0 else f"DOES NOT ADD UP: {difference / 1e6:.6f} s unaccounted for")
    return [*lines, ""]


def status_text(found: RunStatus) -> str:
    """How far a run is: sources, rate, time left, and the balance so far."""
    counts = ", ".join(f"{number} {name}" for name, number in found.sheet.assets.items())
    lines = [f"{found.uri}: {found.num_settled} of {found.num_sources} sources settled ({counts})"]
    left = found.num_sources - found.num_settled
    if left and found.units_per_s:
        lines.append(
            f"{found.units_per_s * 60:.1f} units a minute, about {left / found.units_per_s / 60:.1f} minutes left"
        )
    if left and found.quiet_s is not None and found.quiet_s > STALL_S:
        lines.append(
            f"nothing was committed for {found.quiet_s:.0f} s: the run has stopped, or is busy with a long source"
        )
    if found.packed is not None:
        lines.append(f"packed: {found.packed[0]} clips in {found.packed[1]} shards")
    return "\n".join([*lines, "", *balance_lines(hours_of(found.sheet))])


def replay_text(stage: str, found: Replayed) -> str:
    """What measuring again changed, a line per value."""
    lines = [f"{stage} measured {found.num_rows} rows again: {len(found.differences)} values differ"]
    lines += [
        f"  {each.row_id}  {each.path}: {_short(each.before)} -> {_short(each.now)}" for each in found.differences
    ]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def what_if_text(answer: Mapping[str, Any]) -> str:
    """Kept hours now and under other gates."""
    kept = answer["kept"]
    lines = ["what if " + ", ".join(answer["set"]), f"kept now   {_hms(answer['kept_now'], millis=True)}"]
    if answer["is_exact"]:
        lines.append(f"kept then  {_hms(kept['low'], millis=True)} (exact: every clip concerned was measured)")
    else:
        lines.append(f"kept then  between {_hms(kept['low'], millis=True)} and {_hms(kept['high'], millis=True)}")
        lines.append("           (clips settled early were not measured to the end)")
        if answer["estimate"] is not None:
            lines.append(f"estimate   {_hms(answer['estimate'], millis=True)} from the audit lane")
    return "\n".join(lines)


def why_text(chain: Sequence[Row], plan: Plan) -> str:
    """The chain from source to verdict with what every stage measured, private fields aside."""
    lines: list[str] = []
    for row in chain:
        verdict = row["verdict"]
        outcome = verdict["status"] + (f" ({verdict['reason']}: {verdict['message']})" if verdict["reason"] else "")
        length = "length unknown" if row["duration_us"] is None else f"{row['duration_us'] / 1e6:.3f} s"
        lines.append(f"{row['kind']} {row['row_id']}  {length}  {outcome}")
        if row["kind"] == Level.ASSET:
            lines += [f"  source    {row['source']['uri']}", f"  licence   {row['source']['licence'] or 'not stated'}"]
        if len(verdict["failed_gates"] or ()) > 1:
            lines.append(f"  also fails {', '.join(verdict['failed_gates'][1:])}")
        for name, told in told_of(row, plan).items():
            lines.append(f"  {name:<12}" + "  ".join(_facts(told)))
        for span in (row.get(Level.CLIP) or {}).get("spans") or []:
            flag = " overlap" if span["is_overlap"] else ""
            lines.append(
                f"    {span['start_s']:6.2f}-{span['end_s']:6.2f} s  {span['speaker'] or '?'}{flag}: {span['text']}"
            )
    return "\n".join(lines)


def told_of(row: Row, plan: Plan) -> dict[str, Struct]:
    """Column -> what was measured on a ledger row, in running order, without what never leaves the ledger."""
    own = {PACK_COLUMN.name: PACK} if row["kind"] == PACK_KIND else {}
    own |= {spec.column: spec.cls.adds for spec in plan.at_level(row["kind"])}
    return {
        name: pruned(row[name], kind, lambda field: not is_private(field))
        for name, kind in own.items()
        if row.get(name) is not None
    }


def _facts(struct: Struct) -> list[str]:
    shown = []
    for name, value in struct.items():
        if isinstance(value, list):
            shown.append(f"{name}=[{len(value)}]")
        elif isinstance(value, float):
            shown.append(f"{name}={value:.4g}")
        elif isinstance(value, str) and len(value) > LONGEST_VALUE:
            shown.append(f"{name}={value[: LONGEST_VALUE - 3]!r}...")
        elif value is not None:
            shown.append(f"{name}={value}")
    return shown


def _scale(path: str) -> float:
    return 1e-6 if path.endswith("_us") else 1.0


def _measure(path: str, unit: str) -> str:
    unit = "s" if _scale(path) != 1 else unit
    return path.removesuffix("_us") + (f" [{unit}]" if unit else "")


def _histogram_lines(name: str, width: int, scale: float, shown: Mapping[str, Any]) -> list[str]:
    top = max([*shown["kept"], *shown["other"]]) or 1.0
    low, high = shown["edges"][0] * scale, shown["edges"][-1] * scale
    return [
        f"{name:<{width}}{low:>11.4g}  {_bars(shown['kept'], top)}{high:>11.4g}",
        f"{'':<{width}}{'':>11}  {_bars(shown['other'], top)}".rstrip(),
    ]


def _bars(amounts: Sequence[float], top: float) -> str:
    return "".join(BARS[min(8, max(amount > 0, round(amount / top * 8)))] for amount in amounts)


def _largest(amounts: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(amounts.items(), key=lambda item: (-item[1], item[0]))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _hms(hours: float, *, millis: bool = False) -> str:
    total_ms = round(hours * 3_600_000)
    seconds, ms = divmod(total_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    whole, minutes = divmod(minutes, 60)
    return f"{whole}:{minutes:02d}:{seconds:02d}" + (f".{ms:03d}" if millis else "")
