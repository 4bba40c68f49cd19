"""The ledger's answers as text for a terminal: hours first, counts second, every axis with its unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.ask.queries import US_PER_HOUR, Balance
from pipeline.plan import Plan
from pipeline.show.plain import name_of, told_of
from pipeline.show.screen import bar, columns, cut, hms, plural, table, wrapped
from schemas.records import Asset, Clip, Level, Struct
from schemas.spans import SpeechSpan

if TYPE_CHECKING:
    from pipeline.ask.find import Chain
    from pipeline.ask.grouped import Grouped
    from pipeline.ask.stats import GateHours, Histogram, Stats
    from pipeline.ask.status import RunStatus
    from pipeline.ask.what_if import WhatIf
    from pipeline.replay import Replayed

BARS = " ▁▂▃▄▅▆▇█"
BAR_WIDTH = 36
FIGURES_WIDTH = 23
"""Characters of a length, a share and the space before a bar."""
MOST_REASONS = 5
LONGEST_VALUE = 60
NOT_A_STAGE = {
    "packing": "cut media into shards",
    "workers": "beside their stages: start, models, passing on",
    "driver": "the command itself",
    "ray": "its own processes, monitor, idle workers",
    "again": "in stages, on what was lost or measured again",
    "all": "CPU seconds of every process",
}
"""Rows of the cost table that are no stage -> what they are."""
STALL_S = 120.0
"""A run that committed nothing for this long is called out; most sources take seconds to minutes."""


def stats_screen(answer: Stats) -> str:
    """One screen: balance sheet with the largest reasons, counts, and the gates whose loss would win most."""
    lines = [*balance_lines(answer.sheet, MOST_REASONS), *_count_lines(answer)]
    turning = sorted(
        (gate for gate in answer.gates if gate.gross_hours), key=lambda gate: (-gate.marginal_hours, -gate.gross_hours)
    )
    lines += _gate_lines(turning[:MOST_REASONS])
    if len(turning) > MOST_REASONS:
        lines.append(f"and {plural(len(turning) - MOST_REASONS, 'more gate')}")
    lines += ["", *wrapped("more: --full for labels, histograms and cost, --by FIELD as --by language")]
    lines += wrapped(f"next: nava-curate clips {answer.run} --reason REASON")
    return "\n".join(lines)


def _gate_lines(gates: Sequence[GateHours]) -> list[str]:
    if not gates:
        return []
    head = ("clip gate", "bound", "fails", "only this")
    rows = [(gate.gate, _plain(gate.bound), _hms(gate.gross_hours), _hms(gate.marginal_hours)) for gate in gates]
    note = "(hours; 'only this' = what dropping the gate would win)"
    return ["", *table(head, rows, {1, 2, 3}, uncut={1, 2, 3}), note]


def stats_text(answer: Stats) -> str:
    """Balance sheet, counts, gates, labels, small histograms, cost per stage."""
    lines = [*balance_lines(answer.sheet), *_count_lines(answer), *_gate_lines(answer.gates)]
    for path, shares in answer.labels.items():
        rows = [(name, _hms(hours.kept), _hms(hours.kept + hours.other)) for name, hours in shares.items()]
        lines += ["", *table((path, "kept", "of"), rows, {1, 2}, uncut={1, 2})]
    if answer.histograms:
        names = {path: _measure(path, shown.unit) for path, shown in answer.histograms.items()}
        width = max(map(len, names.values()))
        lines += ["", f"{'measure':<{width}}{'low':>10}  {'distribution':<20}{'high':>10}"]
        gated: dict[str, list[str]] = {}
        for gate in answer.gates:
            path, _, operator = gate.gate.rpartition(".")
            gated.setdefault(path, []).append(f"{operator} {_plain(gate.bound)}")
        for path, shown in answer.histograms.items():
            lines += _histogram_lines(names[path], width, _scale(path), shown, ", ".join(gated.get(path, ())))
    return "\n".join(cut(line, columns()) for line in [*lines, *_cost_lines(answer)])


def grouped_text(found: Grouped, most: int | None) -> str:
    """Clips and hours by the values of a field."""
    groups = found.groups[:most]
    rows = [
        (
            PurePosixPath(group.value).name if found.path == "source" else group.value,
            f"{group.num_kept:,}",
            f"{group.num_clips:,}",
            hms(group.kept_us),
            hms(group.us),
            f"{group.kept_us / group.us:.0%}" if group.us else "–",
        )
        for group in groups
    ]
    lines = table((found.path, "clips kept", "of", "time kept", "of", "share"), rows, range(1, 6), uncut=range(1, 6))
    if len(groups) < len(found.groups):
        lines.append(f"{plural(len(found.groups) - len(groups), 'more value')}: --full shows all")
    return "\n".join(lines)


def _cost_lines(answer: Stats) -> list[str]:
    """Stages, then what else was spent, then the sum: all CPU seconds there were, as far as invocations were recorded."""
    if not answer.cost:
        return []
    head = f"{'stage':<15}{'rows':>7}{'wall s':>9}{'cpu s':>9}{'wall s/min':>12}{'cpu s/min':>11}  of video"
    lines = ["", head]
    for stage, total in answer.cost.items():
        lines.append(
            f"{stage:<15}{total.rows:>7}{total.wall_s:>9.1f}{total.cpu_s:>9.1f}"
            f"{total.wall_s_per_minute:>12.2f}{total.cpu_s_per_minute:>11.2f}"
        )
    known, minutes = answer.overhead, answer.minutes
    amounts = {"packing": known.packing, "workers": known.workers, "driver": known.driver, "ray": known.ray}
    amounts |= {"again": known.again, "all": answer.cpu_s}
    for name, cpu_s in amounts.items() if answer.invocations else ():
        if cpu_s is not None and (cpu_s or name != "again"):
            per_minute = cpu_s / minutes if minutes else 0.0
            lines.append(f"{name:<15}{'':>16}{cpu_s:>9.1f}{'':>12}{per_minute:>11.2f}  {NOT_A_STAGE[name]}".rstrip())
    return [*lines, *_use_lines(answer)]


def _use_lines(answer: Stats) -> list[str]:
    """How often frames were decoded, and how busy the last invocation was."""
    lines, told = [], answer.decodes
    if told.before_cutting is not None:
        cut = "" if told.with_cutting is None else f", {told.with_cutting:.2f} with cutting and verification"
        lines = ["", f"decodes per frame: {told.before_cutting:.2f} before cutting{cut}"]
    if answer.invocations:
        last = answer.invocations[-1]
        busy = last.utilisation_started
        after = "" if busy is None else f", {busy:.0%} once a worker was there"
        lines += [
            "",
            f"invocation {len(answer.invocations)}: {last.wall_s:.1f} s, {last.cpu.total:.1f} CPU s, "
            f"{last.utilisation:.0%} of {last.cores:g} cores{after}",
        ]
    return lines


def _count_lines(answer: Stats) -> list[str]:
    sheet, lines = answer.sheet, []
    for kind, counts in (("assets", sheet.assets), ("shots", sheet.shots), ("clips", sheet.clips)):
        number = sum(counts.values())
        of = f" of {answer.num_sources:,}" if kind == "assets" and number != answer.num_sources else ""
        lines.append(
            f"{kind:<7}{number:>9,}{of} settled: {counts.get('keep', 0):,} kept, {counts.get('reject', 0):,} rejected, "
            f"{plural(counts.get('error', 0), 'error')}"
        )
    if answer.num_provisional:
        lines += wrapped(provisional_line(answer.num_provisional))
    return lines


def provisional_line(number: int) -> str:
    """What to think of sources that are settled for now."""
    return f"{number} of them for now: the recipe and stages of now are not through with them; the same command goes on"


def outdated_line(number: int) -> str:
    """What to think of sources that are settled, but not by this recipe and this software."""
    return (
        f"{number} of them by another recipe or other versions of stages: the same command measures anew what changed"
    )


def balance_lines(sheet: Balance, most: int | None = None) -> list[str]:
    """The balance sheet of hours as bars that sum to what went in; at `most` so many reasons, the rest in one line."""
    total = sheet.in_us
    rows = [("in", total), ("kept", sheet.kept_us), ("cut away", sheet.cut_away_us)]
    for kind, amounts in (("rejected", sheet.rejected_us), ("error", sheet.errors_us)):
        reasons = _largest(amounts)
        shown = reasons if most is None or len(reasons) <= most + 1 else reasons[:most]
        rows += [(f"{kind:<10}{reason}", amount) for reason, amount in shown]
        rest = reasons[len(shown) :]
        if rest:
            rows.append((f"{kind:<10}by {len(rest)} more reasons", sum(amount for _, amount in rest)))
    width = min(max(len(name) for name, _ in rows), columns() - FIGURES_WIDTH)
    bar_width = min(BAR_WIDTH, columns() - width - FIGURES_WIDTH)
    lines = [f"{'hours':<{width}}{'h:mm:ss.mmm':>13}{'share':>8}"]
    for name, amount in rows:
        share = amount / total if total else 0.0
        drawn = bar(share, bar_width)
        lines.append(f"{cut(name, width):<{width}}{hms(amount, millis=True):>13}{share:>8.1%}  {drawn}".rstrip())
    difference = sheet.difference_us
    lines.append("adds up exactly" if difference == 0 else f"DOES NOT ADD UP: {difference / 1e6:.6f} s unaccounted for")
    return [*lines, ""]


def status_text(found: RunStatus) -> str:
    """How far a run is: sources, rate, time left, what is being worked on, and what is kept so far."""
    counts = ", ".join(f"{number:,} {name}" for name, number in found.assets.items())
    settled = f"{found.num_settled:,} of {plural(found.num_sources, 'source')} settled"
    lines = [f"{found.uri}: {settled}" + (f" ({counts})" if counts else "")]
    if found.num_outdated:
        lines.append(outdated_line(found.num_outdated))
    if found.num_provisional > found.num_outdated:
        lines.append(provisional_line(found.num_provisional - found.num_outdated))
    if found.now is not None and found.packed is None:
        lines.append(f"running: {found.now.headline}")
    elif found.num_left and found.units_per_s and not found.num_outdated:
        left = found.num_left / found.units_per_s
        lines.append(f"{found.units_per_s * 60:.1f} sources a minute, about {hms(left * 1e6)} left")
    if found.num_left and found.quiet_s is not None and found.quiet_s > STALL_S and not found.num_outdated:
        why = "is busy with a long source" if found.now else "has stopped, or is busy with a long source"
        lines.append(f"nothing was committed for {hms(found.quiet_s * 1e6)}: the run {why}")
    if found.packed is not None:
        lines.append(f"packed: {plural(found.packed[0], Level.CLIP)} in {plural(found.packed[1], 'shard')}")
    if found.num_settled:
        clips = ", ".join(f"{number:,} {name}" for name, number in found.clips.items()) or "none"
        lines.append(
            f"kept {hms(found.kept_us, millis=True)} of {hms(found.in_us, millis=True)} so far; clips: {clips}"
        )
    elif found.now is None:
        lines.append("nothing is settled yet; the first source takes as long as models take to load")
    return "\n".join([line for each in lines for line in wrapped(each, "  ")] + _work_lines(found))


def _work_lines(found: RunStatus) -> list[str]:
    """What workers are at, and what stages have done since the run began; nothing where it does not run."""
    if found.now is None or found.packed is not None:
        return []
    from pipeline.show.progress import AT_WORK_SHOWN, at_work_line

    longest = sorted(found.now.snapshot.at_work, key=lambda at: -at.for_s)[:AT_WORK_SHOWN]
    lines = [cut(f"  {at_work_line(at)}", columns()) for at in longest]
    rows = [
        (name, f"{tally.rows:,}", f"{tally.rejects:,}", f"{tally.errors:,}", f"{tally.wall_s / max(tally.rows, 1):.2f}")
        for name, tally in found.now.snapshot.stages.items()
    ]
    return lines + (["", *table(("stage", "rows", "rejected", "errors", "s/row"), rows, range(1, 5))] if rows else [])


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


def what_if_text(answer: WhatIf) -> str:
    """Kept hours and clips now and under other gates; which gates turn clips away then, and who changes sides."""
    now, low, high = answer.now_us, answer.low_us, answer.high_us
    lines = wrapped("what if " + ", ".join(answer.overrides), " " * 8)
    lines.append(f"kept now   {hms(now, millis=True)}  {plural(answer.now_clips, Level.CLIP)}")
    if answer.is_exact:
        lines.append(f"kept then  {hms(low, millis=True)}  {plural(answer.low_clips, Level.CLIP)}")
        lines.append(
            f"change     {hms(low - now, millis=True, is_signed=True)} (exact: every clip concerned was measured)"
        )
    else:
        clips = f"{answer.low_clips:,} to {plural(answer.high_clips, Level.CLIP)}"
        lines.append(f"kept then  between {hms(low, millis=True)} and {hms(high, millis=True)}  {clips}")
        lines.append("           (clips settled early were not measured to the end)")
        if answer.estimate_us is not None:
            lines.append(f"estimate   {hms(answer.estimate_us, millis=True)} from the audit lane")
    moved = [
        (path, name, hms(was), hms(then), hms(then - was, is_signed=True))
        for path, values in answer.labels.items()
        for name, (was, then) in values.items()
    ]
    if moved:
        lines += ["", *table(("by", "value", "now", "then", "change"), moved, {2, 3, 4}, uncut={2, 3, 4})]
    for title, ids in (("go", answer.lost), ("come", answer.gained)):
        if ids:
            lines += ["", *wrapped(f"clips that {title}, the longest: {' '.join(ids)}", "  ")]
    turning = [gate for gate in answer.gates if gate.gross_hours]
    return "\n".join([*lines, *_gate_lines(turning)])


def why_text(chain: Chain, plan: Plan) -> str:
    """The chain from source to verdict with what every stage measured, private fields aside."""
    lines: list[str] = []
    for row in chain.rows:
        (kind, row_id), verdict = name_of(row), row.verdict
        outcome = verdict.status + (f" ({verdict.reason}: {verdict.message})" if verdict.reason else "")
        length = "length unknown" if row.duration_us is None else f"{row.duration_us / 1e6:.3f} s"
        lines.append(f"{kind} {row_id}  {length}  {outcome}")
        if isinstance(row, Asset):
            lines += [f"  source    {row.source.uri}", f"  licence   {row.source.licence or 'not stated'}"]
            lines += [f"  also as   {uri}" for uri in chain.also]
        if len(verdict.failed_gates) > 1:
            lines.append(f"  also fails {', '.join(verdict.failed_gates[1:])}")
        for name, told in told_of(row, plan).items():
            lines.append(f"  {name:<12}" + "  ".join(_facts(told)))
        for span in SpeechSpan.all_of(row.own["spans"]) if isinstance(row, Clip) else ():
            flag = " overlap" if span.is_overlap else ""
            lines.append(f"    {span.start_s:6.2f}-{span.end_s:6.2f} s  {span.speaker or '?'}{flag}: {span.text}")
    return "\n".join(lines)


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


def _histogram_lines(name: str, width: int, scale: float, shown: Histogram, gate: str) -> list[str]:
    top = max([*shown.kept, *shown.other]) or 1.0
    low, high = shown.edges[0] * scale, shown.edges[-1] * scale
    return [
        f"{name:<{width}}{low:>10.4g}  {_bars(shown.kept, top)}{high:>10.4g} kept",
        f"{f'  gate: {gate}' if gate else '':<{width}}{'':>10}  {_bars(shown.other, top)}{'':>10} not",
    ]


def _bars(amounts: Sequence[float], top: float) -> str:
    return "".join(BARS[min(8, max(amount > 0, round(amount / top * 8)))] for amount in amounts)


def _largest(amounts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(amounts.items(), key=lambda item: (-item[1], item[0]))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _hms(hours: float) -> str:
    return hms(hours * US_PER_HOUR)
