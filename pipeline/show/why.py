"""Why a clip was kept or not, in a few lines: verdict, every gate with value, bound and margin, words, people, findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.ask.gates_of import GateOf, gates_of
from pipeline.show.plain import name_of
from pipeline.show.screen import columns, cut, hms, plural, signed, table, value, wrapped
from schemas.fields import is_private, roles_of
from schemas.plain_arrow import without_pandas
from schemas.records import Asset, Clip, Level, Shot
from schemas.spans import SpeechSpan

if TYPE_CHECKING:
    from pipeline.ask.find import Chain
    from pipeline.plan import Plan
    from schemas.records import Verdict

SIGNS = {"min": "≥ ", "max": "≤ ", "abs_max": "≤ ±", "equals": "= ", "one_of": "in "}
SAID = {"keep": "kept", "reject": "rejected", "error": "error", "open": "not decided"}
MAKERS = ("engine", "model")
"""Fields that tell what measured, not what was found."""
LONGEST_WORD = 20
MOST_SPANS = 3
WITHOUT_VALUE = ("not asked", "not reached")
"""Outcomes of gates that looked at nothing."""
LABEL = 8
"""Characters of the words at the beginning of lines."""


def answer_text(chain: Chain, plan: Plan) -> str:
    """The answer about one clip; of a source or shot, its shots and clips as an outline in the order of time."""
    clip = chain.rows[-1]
    if not isinstance(clip, Clip) or len(chain.rows) > len(Level):
        return "\n".join(_outline(chain))
    without_pandas()
    lines = [*wrapped(f"clip {clip.clip_id}  {_outcome(clip.verdict)}", " " * LABEL), *_origin(chain, clip)]
    lines += _gate_lines(gates_of(clip, plan))
    lines += _spoken(clip)
    lines += _found(clip, plan)
    engines = [f"{spec.name} {spec.config.engine}" for spec in plan.stages if hasattr(spec.config, "engine")]
    lines += _labelled("made by", f"recipe {plan.recipe.name}: {', '.join(engines)}")
    return "\n".join([*lines, "--all tells everything that was measured, --figure clip.png draws it"])


def _outcome(verdict: Verdict) -> str:
    if not verdict.reason:
        return SAID[verdict.status]
    return f"{SAID[verdict.status]} by {verdict.reason}" + (f": {verdict.message}" if verdict.message else "")


def _labelled(label: str, text: str) -> list[str]:
    return wrapped(f"{label:<{LABEL}}{text}", " " * LABEL)


def _origin(chain: Chain, clip: Clip) -> Iterator[str]:
    source, span = clip.asset.source, clip.span
    name = PurePosixPath(source.uri).name or source.uri
    times = "–".join(hms(float(each) * 1e6, millis=True) for each in (span.start, span.end))
    yield from _labelled(
        "from", f"{name} {times} ({clip.duration_us / 1e6:.2f} s), licence {source.licence or 'not stated'}"
    )
    if chain.also:
        yield from _labelled("also as", ", ".join(PurePosixPath(uri).name for uri in chain.also))
    if clip.asset.verdict.status != "keep":
        yield from _labelled("source", _outcome(clip.asset.verdict))


def _gate_lines(gates: Sequence[GateOf]) -> list[str]:
    """A table in running order; gates that nobody came to, and those that do not ask about such a clip, in one line each."""
    rows = []
    for gate in gates:
        if gate.outcome not in WITHOUT_VALUE:
            unit = f" {gate.unit}" if gate.unit not in ("", "ratio") and gate.value is not None else ""
            bound = f"{SIGNS[gate.check.operator]}{value(gate.check.bound)}"
            rows.append((gate.check.path, f"{value(gate.value)}{unit}", bound, signed(gate.margin), _told(gate)))
    lines = table(("gate", "value", "bound", "margin", ""), rows, {1, 3}, uncut={1, 3}) if rows else []
    for outcome in WITHOUT_VALUE:
        names = [gate.check.name for gate in gates if gate.outcome == outcome]
        lines += wrapped(f"{outcome}: {', '.join(names)}", " " * LABEL) if names else []
    return lines


def _told(gate: GateOf) -> str:
    return {"passed": "", "failed": "FAILS"}.get(gate.outcome, gate.outcome)


def _spoken(clip: Clip) -> Iterator[str]:
    spans = SpeechSpan.all_of(clip.own["spans"])
    speakers = sorted({span.speaker for span in spans if span.speaker})
    for at, span in enumerate(spans[:MOST_SPANS]):
        flag = " (overlap)" if span.is_overlap else ""
        told = f"{span.start_s:.2f}–{span.end_s:.2f} s {span.speaker or '?'}{flag}: {span.text}"
        yield cut(f"{'words' if not at else '':<{LABEL}}{told}", columns())
    more = f", {plural(len(spans) - MOST_SPANS, 'more stretch')}" if len(spans) > MOST_SPANS else ""
    if spans:
        yield f"{'people':<{LABEL}}{plural(len(speakers), 'speaker')}: {', '.join(speakers) or 'not told apart'}{more}"


def _found(clip: Clip, plan: Plan) -> Iterator[str]:
    """What stages say in a word: labels, and texts that name what was found."""
    told = []
    for spec in plan.at_level(Level.CLIP):
        struct = clip.structs.get(spec.column)
        if struct is None or spec.column == Level.CLIP:
            continue
        for field in spec.cls.adds:
            found, roles = struct[field.name], roles_of(field)
            is_word = pa.types.is_string(field.type) and field.name not in MAKERS and "means" not in roles
            if found is not None and not is_private(field) and (is_word or roles.get("show") == "label"):
                told += [f"{spec.column}.{field.name} {value(found)}"] if len(str(found)) <= LONGEST_WORD else []
    if told:
        yield from _labelled("found", ", ".join(told))


def _outline(chain: Chain) -> Iterator[str]:
    """A line for each row, clips below their shots, in the order of time."""
    clips: dict[str, list[Clip]] = {}
    for row in chain.rows:
        if isinstance(row, Clip):
            clips.setdefault(row.shot_id, []).append(row)
    for row in chain.rows:
        if isinstance(row, Asset):
            length = "length unknown" if row.duration_us is None else hms(row.duration_us, millis=True)
            yield from wrapped(f"source {row.source_id}  {length}  {_outcome(row.verdict)}", "  ")
            yield from wrapped(f"  {row.source.uri}, licence {row.source.licence or 'not stated'}", "    ")
            yield from (f"  also as {uri}" for uri in chain.also)
        elif isinstance(row, Shot):
            yield _line(row, "  ")
            yield from (_line(clip, "    ") for clip in clips.get(row.shot_id, ()))
    yield "nava-curate why CLIP answers for one of them, --all tells everything"


def _line(row: Shot | Clip, indent: str) -> str:
    kind, row_id = name_of(row)
    times = "–".join(hms(float(each) * 1e6, millis=True) for each in (row.span.start, row.span.end))
    return cut(f"{indent}{kind} {row_id}  {times}  {_outcome(row.verdict)}", columns())
