"""The page of one clip as plain data: verdict, gates, lanes on one time axis, curves, what was said, what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.ask.find import Chain
from pipeline.ask.gates_of import ORDERED, GateOf, gates_of
from pipeline.plan import Plan, StageSpec
from pipeline.show.plain import told_of
from pipeline.show.screen import address
from schemas.cut_file import RESTATED
from schemas.fields import children_of, doc_of, is_private, resolve, roles_of, unit_of
from schemas.records import Clip, Level, Shot, Struct

Item = Mapping[str, Any]
TIMES, ASSET_TIMES = {"start_s", "end_s"}, {"asset_start_s", "asset_end_s"}
BOX = {"x", "y", "width", "height"}
FACE = {"track", *BOX}
MOST_ITEMS = 200
"""Of a lane."""
MOST_STACKED = 4
"""Rows of a lane; what overlaps with more lies over others."""
SLACK_S = 0.02
"""Overlap that is not seen."""
MOST_POINTS = 400
"""Of a curve."""
LATENT_MS = 40
"""NAVA's audio token: sound and picture that differ by less are together as far as it can tell."""
SPOKEN = "spans"


@dataclass(frozen=True)
class Lane:
    """Stretches of one kind, on the clock of the clip."""

    name: str
    kind: str
    """`speaker`, `face`, `reference` or `stretch`."""
    items: tuple[dict[str, Any], ...]
    """start_s, end_s, text, note, letter of the speaker, is_leak, and the row in which it overlaps with nothing."""
    num_rows: int = 1


@dataclass(frozen=True)
class Curve:
    """Numbers over numbers, with the bounds of gates and the values found on it."""

    title: str
    said: str
    """What was found, in words; why there is no curve, where there is none."""
    unit: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    marks: tuple[dict[str, Any], ...]
    """name, at, spread."""
    bounds: tuple[dict[str, Any], ...]
    """name, low, high: what a gate allows; null where it is open."""


def clip_view(chain: Chain, plan: Plan) -> dict[str, Any]:
    """Everything the page of a clip shows but media, marks and neighbours."""
    clip = chain.rows[-1]
    assert isinstance(clip, Clip)
    gates = gates_of(clip, plan)
    curves = curves_of(clip, plan, gates)
    return {
        "clip_id": clip.clip_id,
        "shot_id": clip.shot_id,
        "source_id": clip.asset.source_id,
        "asset_id": clip.asset.asset_id,
        "source": address(clip.asset.source.uri),
        "also": [address(uri) for uri in chain.also],
        "licence": clip.asset.source.licence,
        "duration_us": clip.duration_us,
        "start_s": float(clip.span.start),
        "end_s": float(clip.span.end),
        "num_frames": clip.own["num_frames"],
        "verdict": clip.verdict.row(),
        "source_verdict": clip.asset.verdict.row(),
        "gates": [
            {
                "gate": gate.check.name,
                "path": gate.check.path,
                "operator": gate.check.operator,
                "bound": gate.check.bound,
                "value": gate.value,
                "unit": gate.unit,
                "margin": gate.margin,
                "outcome": gate.outcome,
                "doc": doc_of(resolve(_schema(plan), gate.check.path)),
            }
            for gate in gates
        ],
        "spans": [_span(span) for span in clip.own[SPOKEN] or ()],
        "lanes": [vars(lane) for lane in lanes_of(chain, plan)],
        "boxes": list(_boxes(clip, plan)),
        "curves": [vars(curve) for curve in curves],
        "measured": _measured(clip, plan),
        "offset": _offset(curves),
        "repaired_ms": _repaired(clip, plan),
    }


def curves_of(clip: Clip, plan: Plan, gates: Sequence[GateOf]) -> list[Curve]:
    """Every curve there may be of a clip, with what was found on it and what gates allow; why not, where there is none."""
    return [_curve(spec, field, clip, gates) for spec, field in _shown(plan, "curve")]


def _repaired(clip: Clip, plan: Plan) -> float | None:
    """How far the sound was moved when the clip was cut; None where it was not."""
    cut = None if plan.cutter is None else clip.structs.get(plan.cutter.column)
    return (cut or {}).get("applied_shift_ms") or None


def _span(span: Item) -> dict[str, Any]:
    words = [{"text": w["text"], "start_s": w["start_s"], "end_s": w["end_s"]} for w in span["words"] or ()]
    kept = ("text", "speaker", "language", "start_s", "end_s", "is_overlap")
    return {name: span[name] for name in kept} | {"words": words}


def _schema(plan: Plan) -> pa.Schema:
    return pa.schema([pa.field(spec.column, spec.cls.adds) for level in Level for spec in plan.at_level(level)])


def _shown(plan: Plan, how: str) -> list[tuple[StageSpec, pa.Field]]:
    """(stage, field) of what is shown in this way on clips."""
    return [
        (spec, field)
        for spec in plan.at_level(Level.CLIP)
        for field in spec.cls.adds
        if roles_of(field).get("show") == how
    ]


def _timed(plan: Plan, level: Level) -> Iterator[tuple[StageSpec, pa.Field, set[str]]]:
    """(stage, field, names inside) of every list of stretches on rows of a level that may be shown."""
    for spec in plan.at_level(level):
        for field in spec.cls.adds:
            inside = {each.name for each in children_of(field.type)} if pa.types.is_list(field.type) else set()
            if inside and not is_private(field) and (inside >= TIMES or inside >= ASSET_TIMES):
                yield spec, field, inside


def lanes_of(chain: Chain, plan: Plan) -> list[Lane]:
    """Who speaks, and every other stretch that was measured on the clip or over it, clip clock."""
    clip = chain.rows[-1]
    assert isinstance(clip, Clip)
    start, end = float(clip.span.start), float(clip.span.end)
    remarks = _remarks(clip, plan)
    lanes = [_shot(row, start, end) for row in chain.rows if isinstance(row, Shot)] + _speakers(clip, remarks)
    for spec, field, inside in _timed(plan, Level.CLIP):
        items: Sequence[Item] = (clip.structs.get(spec.column) or {}).get(field.name) or ()
        if field.name == SPOKEN:
            continue
        if inside >= ASSET_TIMES:
            moved = [{**item, **_moved(item, start)} for item in items if item["asset_start_s"] is not None]
            near = [item for item in moved if item["end_s"] > 0 and item["start_s"] < end - start]
            lanes.append(_lane(f"{spec.name} {field.name}", "reference", near, end - start))
        elif inside >= FACE:
            lanes += [_lane(f"face {item['track']}", "face", [item], end - start) for item in items]
        else:
            lanes.append(_lane(f"{spec.name} {field.name}", "stretch", items, end - start))
    for spec, field, inside in _timed(plan, Level.ASSET):
        items = (clip.asset.structs.get(spec.column) or {}).get(field.name) or ()
        if "text" not in inside:
            near = [
                {**item, "start_s": item["start_s"] - start, "end_s": item["end_s"] - start}
                for item in items
                if item["end_s"] > start and item["start_s"] < end
            ]
            lanes.append(_lane(f"{spec.name} {field.name}", "stretch", near, end - start))
    return [lane for lane in lanes if lane.items]


def _shot(shot: Shot, start: float, end: float) -> Lane:
    """The shot that the clip lies in, with how far away its ends are and what they are."""
    before, after = start - float(shot.span.start), float(shot.span.end) - end
    told = f"begins {before:.2f} s before ({shot.own['start_kind']}), ends {after:.2f} s after ({shot.own['end_kind']})"
    return _lane(Level.SHOT, "stretch", [{"start_s": -before, "end_s": end - start + after, "told": told}], end - start)


def _moved(item: Item, start: float) -> dict[str, float]:
    return {"start_s": item["asset_start_s"] - start, "end_s": item["asset_end_s"] - start}


def _remarks(clip: Clip, plan: Plan) -> dict[int, list[str]]:
    """Speech span -> what stages say of it, in words."""
    remarks: dict[int, list[str]] = defaultdict(list)
    for spec, field in _shown(plan, "span"):
        for item in (clip.structs.get(spec.column) or {}).get(field.name) or ():
            remarks[item["span_index"]].append(_words(item, {"span_index"}))
    return remarks


def _speakers(clip: Clip, remarks: Mapping[int, Sequence[str]]) -> list[Lane]:
    by_speaker: dict[str, list[dict[str, Any]]] = {}
    for at, span in enumerate(clip.own[SPOKEN] or ()):
        name = span["speaker"] or "?"
        note = " ".join([*remarks.get(at, ()), *(["overlap"] if span["is_overlap"] else [])])
        item = {
            "start_s": span["start_s"],
            "end_s": span["end_s"],
            "text": span["text"],
            "note": note,
            "is_leak": False,
        }
        by_speaker.setdefault(name, []).append({**item, "letter": name[0], "language": span["language"]})
    return [_stacked(f"speaker {name}", "speaker", items) for name, items in sorted(by_speaker.items())]


def _lane(name: str, kind: str, items: Sequence[Item], length_s: float) -> Lane:
    told = []
    for item in items[:MOST_ITEMS]:
        letter = str(item.get("speaker") or "")[:1]
        told.append(
            {
                "start_s": max(0.0, item["start_s"]),
                "end_s": min(length_s, item["end_s"]),
                "text": _words(item, {"speaker", *({"track"} if kind == "face" else ())}),
                "note": "",
                "letter": letter,
                "is_leak": bool(item.get("is_same_span")),
            }
        )
    return _stacked(name.replace("_", " "), kind, told)


def _stacked(name: str, kind: str, items: Sequence[dict[str, Any]]) -> Lane:
    """A lane whose stretches lie below each other where they overlap."""
    ends: list[float] = []
    for item in sorted(items, key=lambda each: float(each["start_s"])):
        free = [row for row, end in enumerate(ends) if end <= item["start_s"] + SLACK_S]
        item["row"] = free[0] if free else min(len(ends), MOST_STACKED - 1)
        if item["row"] == len(ends):
            ends.append(0.0)
        ends[item["row"]] = max(ends[item["row"]], item["end_s"])
    return Lane(name, kind, tuple(items), max(1, len(ends)))


def _words(item: Item, without: set[str]) -> str:
    """The names and numbers of a stretch in words; times, flags and what was not measured are left out."""
    told = []
    for name, value in item.items():
        if name in without or name.endswith("_s") or name in BOX or value is None or isinstance(value, list | bool):
            continue
        stem, _, unit = name.rpartition("_")
        is_unit = unit in ("ms", "db", "px", "hz")
        if isinstance(value, float):
            told.append(f"{stem} {value:+.0f} {unit}" if is_unit else f"{name} {value:.2f}")
        else:
            told.append(str(value) if isinstance(value, str) else f"{name} {value}")
    return " \u00b7 ".join(told)


def _boxes(clip: Clip, plan: Plan) -> Iterator[dict[str, float]]:
    """Where faces are, as shares of the picture that is shown, and when: of the written one, where it was cropped."""
    cut = (clip.structs.get(plan.cutter.column) if plan.cutter else None) or {}
    (after,) = cut.get(RESTATED) or [{}]
    for spec, field, inside in _timed(plan, Level.CLIP):
        if inside >= FACE:
            told = after.get(spec.column) or clip.structs.get(spec.column) or {}
            for item in told.get(field.name) or ():
                yield {name: item[name] for name in (*sorted(TIMES), *sorted(FACE))}


def _curve(spec: StageSpec, field: pa.Field, clip: Clip, gates: Sequence[GateOf]) -> Curve:
    over = resolve(spec.cls.adds, roles_of(field)["over"])
    unit, title = unit_of(over), f"{spec.name}: {doc_of(field)}"
    told: Struct | None = clip.structs.get(spec.column)
    bounds = tuple(_bounds(gate) for gate in gates if gate.check.stage == spec.name and gate.unit == unit)
    if told is None:
        where = f" at {clip.verdict.stage}" if clip.verdict.stage else ""
        return Curve(
            title, f"Not reached: the clip was settled{where} before {spec.name} looked.", unit, (), (), (), ()
        )
    said, marks = [], []
    for other in spec.cls.adds:
        value, how = told[other.name], roles_of(other).get("show")
        is_word = pa.types.is_string(other.type) and not is_private(other)
        if value is None or not (how in ("histogram", "label") or is_word):
            continue
        if how == "histogram" and unit_of(other) == unit:
            spread = told.get(other.name.replace(f"_{unit}", f"_std_{unit}"))
            marks.append({"name": other.name, "at": value, "spread": spread})
            said.append(
                f"{other.name.removesuffix(f'_{unit}')} {value:+.0f}"
                + (f" \u00b1 {spread:.0f}" if spread else "")
                + f" {unit}"
            )
        else:
            said.append(f"{other.name} {value:.3g}" if isinstance(value, float) else f"{other.name} {value}")
    xs, ys = told[over.name] or (), told[field.name] or ()
    step = max(1, -(-len(xs) // MOST_POINTS))
    words = ", ".join(said) or "not measured"
    if not xs:
        words = f"No curve: {words}."
    return Curve(title, words, unit, tuple(xs[::step]), tuple(ys[::step]), tuple(marks), bounds)


def _bounds(gate: GateOf) -> dict[str, Any]:
    bound = gate.check.bound
    low = {"min": bound, "abs_max": -bound if gate.check.operator in ORDERED else None}.get(gate.check.operator)
    high = bound if gate.check.operator in ("max", "abs_max") else None
    return {"name": gate.check.name, "low": low, "high": high}


def _offset(curves: Sequence[Curve]) -> dict[str, Any] | None:
    """The first value in milliseconds that was found on a curve: what the nudge of the sound is held against."""
    for curve in curves:
        for mark in curve.marks:
            if curve.unit == "ms":
                return {"name": mark["name"], "ms": mark["at"]}
    return None


def _measured(clip: Clip, plan: Plan) -> list[dict[str, Any]]:
    """Stage by stage, every scalar that was measured, with unit and meaning; lists by their length."""
    found = []
    for row in (clip.asset, clip):
        kinds = {spec.column: spec.cls.adds for level in Level for spec in plan.at_level(level)}
        for column, told in told_of(row, plan).items():
            fields = [
                {
                    "name": field.name,
                    "value": f"{len(told[field.name])} items"
                    if isinstance(told[field.name], list)
                    else told[field.name],
                    "unit": unit_of(field),
                    "doc": doc_of(field),
                }
                for field in kinds[column]
                if field.name in told and told[field.name] is not None and not isinstance(told[field.name], dict)
            ]
            found.append({"column": column, "fields": fields})
    return found
