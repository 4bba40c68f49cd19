"""Verdicts: an error never looks like a score, a missing measurement never means keep."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.verdict import Gate, checks_of, evaluate, settle

GATES = {
    "audio": {"snr_db": Gate(min=10.0)},
    "sync": {
        "offset_ms": Gate(abs_max=80.0, missing="reject"),
        "confidence": Gate(min=3.0, when={"clip.has_speech": True}),
    },
}
TYPES = {
    "clip": pa.struct([("has_speech", pa.bool_())]),
    "audio": pa.struct([("snr_db", pa.float64())]),
    "sync": pa.struct([("offset_ms", pa.float64()), ("confidence", pa.float64())]),
}


def judged(row: dict[str, object]) -> tuple[str, str | None]:
    table = pa.table({name: pa.array([row.get(name)], type=kind) for name, kind in TYPES.items()})
    statuses, deciders = settle(evaluate(table, checks_of(GATES)))
    return statuses[0], deciders[0].name if deciders[0] else None


SPEECH = {"has_speech": True}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"clip": SPEECH, "audio": {"snr_db": 20.0}, "sync": {"offset_ms": 80.0, "confidence": 3.0}}, ("keep", None)),
        (
            {"clip": SPEECH, "audio": {"snr_db": 9.0}, "sync": {"offset_ms": 500.0, "confidence": 0.0}},
            ("reject", "audio.snr_db.min"),
        ),
        (
            {"clip": SPEECH, "audio": {"snr_db": None}, "sync": {"offset_ms": 0.0, "confidence": 9.0}},
            ("error", "audio.snr_db.min"),
        ),
        (
            {"clip": SPEECH, "audio": {"snr_db": 20.0}, "sync": {"offset_ms": None, "confidence": 9.0}},
            ("reject", "sync.offset_ms.abs_max"),
        ),
        (
            {"clip": {"has_speech": False}, "audio": {"snr_db": 20.0}, "sync": {"offset_ms": 0.0, "confidence": None}},
            ("keep", None),
        ),
        ({"clip": SPEECH, "audio": {"snr_db": 20.0}, "sync": None}, ("open", None)),
        ({"clip": SPEECH, "audio": {"snr_db": float("nan")}, "sync": None}, ("reject", "audio.snr_db.min")),
    ],
)
def test_one_row(row: dict[str, object], expected: tuple[str, str | None]) -> None:
    assert judged(row) == expected


@given(
    snr=st.none() | st.floats(-50, 50),
    offset=st.none() | st.floats(-500, 500),
    confidence=st.none() | st.floats(0, 20),
    has_speech=st.booleans(),
    reached=st.booleans(),
)
def test_keep_needs_every_measurement(
    snr: float | None, offset: float | None, confidence: float | None, has_speech: bool, reached: bool
) -> None:
    sync = {"offset_ms": offset, "confidence": confidence} if reached else None
    status, _ = judged({"clip": {"has_speech": has_speech}, "audio": {"snr_db": snr}, "sync": sync})
    if status == "keep":
        assert reached
        assert snr is not None
        assert snr >= 10
        assert offset is not None
        assert abs(offset) <= 80
        assert not has_speech or (confidence is not None and confidence >= 3)


def test_a_condition_on_a_stage_that_was_not_reached_decides_nothing() -> None:
    """Otherwise a clip that was never measured would look as if the gate did not concern it."""
    gates = {"sync": {"offset_ms": Gate(abs_max=80, when={"sync.kind": "speech"})}}
    kind = pa.struct([("kind", pa.string()), ("offset_ms", pa.float64())])
    rows = [None, {"kind": "event", "offset_ms": None}, {"kind": "speech", "offset_ms": 10.0}]
    statuses, _ = settle(evaluate(pa.table({"sync": pa.array(rows, type=kind)}), checks_of(gates)))
    assert statuses == ["open", "keep", "keep"]


def test_a_gate_must_bound_something() -> None:
    with pytest.raises(ValidationError, match="a gate needs one of"):
        Gate(missing="reject")
