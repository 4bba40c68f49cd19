"""The page of measures as plain data: histograms, what other bounds keep, and the recipe that has those bounds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import yaml

from pipeline.ask.measures import Bounds, Measures, Moved
from pipeline.ask.queries import Run
from pipeline.inspector.pages import Answer, head
from pipeline.inspector.session import RunView, Session
from pipeline.show.screen import address
from schemas.errors import LedgerError
from schemas.fields import doc_of, unit_of
from schemas.records import Level
from schemas.verdict import Gate

GATE = "gate."
OFF = "off"


def bounds_of(given: Mapping[str, str]) -> Bounds:
    """The bounds in an address: `gate.sync.offset_ms.abs_max=80`, or `=off`. Raises LedgerError."""
    found: dict[str, float | None] = {}
    for name, value in given.items():
        if name.startswith(GATE):
            try:
                found[name.removeprefix(GATE)] = None if value == OFF else float(value)
            except ValueError:
                raise LedgerError(f"{name}={value}: expected a number, or '{OFF}'.") from None
    return found


def measures(session: Session, view: RunView, given: Mapping[str, str]) -> Answer:
    """Histograms of every measure, and what other bounds would keep of the hours."""
    table, bounds = view.measures, bounds_of(given)
    dragged = given.get("dragged", "").removeprefix(GATE)
    moved = table.dragged(dragged, bounds) if dragged else table.answer(bounds)
    answer = {**head(session, view), **moved_plain(moved, table), "given": dict(given)}
    if not dragged:
        answer |= {
            "axes": [_axis(view, table, axis.path, axis.unit, axis.edges.tolist()) for axis in table.axes],
            "yaml": gates_yaml(view.run, bounds),
            "command": command(view.run, bounds),
        }
    return answer


def moved_plain(moved: Moved, table: Measures) -> Answer:
    """Numbers of an answer; times in whole microseconds, histograms of what is kept then, those not measured last."""
    return {
        "kept_now": {"us": moved.now_us, "clips": moved.now_clips},
        "kept": {
            "low_us": moved.low_us,
            "high_us": moved.high_us,
            "low_clips": moved.low_clips,
            "high_clips": moved.high_clips,
        },
        "is_exact": moved.is_exact,
        "estimate_us": moved.estimate_us,
        "sampled": moved.sampled,
        "gates": [asdict(gate) for gate in moved.gates],
        "histograms": {path: each.tolist() for path, each in moved.kept_us.items()},
        "labels": {path: {name: list(us) for name, us in by.items()} for path, by in moved.labels.items()},
        "clips": len(table.us),
    }


def _axis(view: RunView, table: Measures, path: str, unit: str, edges: Sequence[float]) -> Answer:
    """One measure: its bins, all hours in them, and the gates that look at it."""
    fields = dict(view.run.plan.fields(Level.CLIP))
    totals = view.once("bins", lambda: {name: _hours_by_bin(table, name) for name in table.codes})
    return {
        "path": path,
        "unit": unit_of(fields[path]) or unit,
        "doc": doc_of(fields[path]),
        "edges": edges,
        "all_us": totals[path],
        "gates": [
            {"name": check.name, "operator": check.operator, "bound": check.bound}
            for check in table.checks
            if check.path == path
        ],
    }


def _hours_by_bin(table: Measures, path: str) -> list[int]:
    codes = table.codes[path]
    return [int(us) for us in np.bincount(codes, table.us, len(table.axes[0].edges))]


def gates_yaml(run: Run, bounds: Bounds) -> str:
    """The `gates` of the recipe with these bounds, as its YAML."""
    return str(yaml.safe_dump({"gates": changed_gates(run, bounds)}, sort_keys=False, allow_unicode=True))


def recipe_yaml(run: Run, bounds: Bounds) -> str:
    """The whole recipe with these bounds."""
    raw = {**run.raw_recipe, "gates": changed_gates(run, bounds)}
    return str(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))


def changed_gates(run: Run, bounds: Bounds) -> Answer:
    """Stage -> field -> gate as the recipe has them, with these bounds; what is dropped is left out."""
    gates = {
        stage: {field: _said(raw) for field, raw in fields.items()}
        for stage, fields in run.raw_recipe.get("gates", {}).items()
    }
    for name, bound in bounds.items():
        path, _, operator = name.rpartition(".")
        stage, _, field = path.partition(".")
        gate = gates.get(stage, {}).get(field)
        if gate is None or operator not in gate:
            raise LedgerError(f"the recipe has no gate '{name}'.")
        if bound is None:
            del gate[operator]
            if not set(gate) - {"when", "missing"}:
                del gates[stage][field]
        else:
            gate[operator] = _round(bound)
    return {stage: fields for stage, fields in gates.items() if fields}


def _said(gate: Mapping[str, Any]) -> Answer:
    """A gate as a person would write it: without what is left open, and what it means anyway."""
    default = Gate.model_fields["missing"].default
    return {
        name: value for name, value in gate.items() if value not in (None, {}) and (name, value) != ("missing", default)
    }


def _round(bound: float) -> float | int:
    return int(bound) if bound.is_integer() else bound


def command(run: Run, bounds: Bounds) -> str:
    """The same question in a terminal."""
    words = ["nava-curate", "stats", shlex.quote(address(run.dir.uri))]
    gates = changed_gates(run, bounds)
    for stage in dict.fromkeys(name.partition(".")[0] for name, bound in bounds.items() if bound is None):
        told = yaml.safe_dump(gates.get(stage, {}), default_flow_style=True, width=10_000, sort_keys=False).strip()
        words += ["--set", shlex.quote(f"gates.{stage}={told}")]
        bounds = {name: bound for name, bound in bounds.items() if name.partition(".")[0] != stage}
    for name, bound in bounds.items():
        assert bound is not None
        words += ["--set", f"gates.{name}={_round(bound)}"]
    return " ".join(words)
