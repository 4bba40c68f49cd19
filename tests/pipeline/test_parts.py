"""Long sources in parts: the same rows as in one piece, what is finished survives, and short sources do not wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.ask.queries import balance
from pipeline.config import parse_recipe
from pipeline.execute import parts
from pipeline.execute.here import Here
from pipeline.execute.lease import Lease, Settled
from pipeline.execute.parts import divides_at
from pipeline.ledger import Ledger
from pipeline.ledger_writer import LedgerWriter
from pipeline.plan import make_plan
from schemas.records import Level, Source
from tests.pipeline import toy_stages
from tests.pipeline.toy_run import settled, toy_source

FILM = {"frames": 25 * 2000, "shot": 25 * 60, "clip": 25 * 25}
"""2,000 s in shots of a minute with two clips each: four parts of ten minutes, the last one shorter."""


def sources() -> list[Source]:
    """Two films, one of them with a clip that cannot be measured, and two short sources."""
    faults = {"faults": {"sync:1": "unmeasured", "late:0": "bug"}}
    return [toy_source("film", **FILM), toy_source("short"), toy_source("odd", **FILM, **faults), toy_source("brief")]


def rows_of(ledger: Ledger) -> dict[str, list[dict[str, Any]]]:
    """All rows; of what they cost, how many rows each stage took."""
    found = {str(level): ledger.rows(level) for level in Level}
    for rows in found.values():
        for row in rows:
            cost = row.pop("cost") or []
            row["rows"] = {each["stage"]: each["rows"] for each in cost}
    return found


@pytest.fixture
def in_one_piece(
    toy_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[dict[str, Any]]]:
    """The rows of a run that divides nothing."""
    with monkeypatch.context() as patched:
        patched.setattr(parts, "PART_S", 1e9)
        with settled(toy_recipe, sources(), tmp_path / "whole") as ledger:
            return rows_of(ledger)


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[Settled]:
    """What the workers say, as the run takes it in."""
    said: list[Settled] = []
    carry = Here.carry

    def listened(self: Here, lease: Lease) -> Iterator[Settled]:
        for each in carry(self, lease):
            said.append(each)
            yield each

    monkeypatch.setattr(Here, "carry", listened)
    return said


@pytest.mark.slow
def test_parts_leave_the_same_rows_as_one_piece(
    toy_recipe: dict[str, Any], in_one_piece: Any, carried: list[Settled], tmp_path: Path
) -> None:
    with settled(toy_recipe, sources(), tmp_path / "parts") as ledger:
        assert rows_of(ledger) == in_one_piece
    heads = [each for each in carried if each.is_head]
    assert len(heads) == 2, "one per film, as only the first pass measures anything above the clips"
    done = [each for each in carried if not each.is_head]
    film = toy_source("film").source_id
    assert sum(each.duration_us for each in done if each.source_id == film) == 2 * 2000 * 1_000_000
    assert [each.is_done for each in done if each.source_id == film] == [False, False, False, True] * 2


@pytest.mark.parametrize("killed_at", [1, 20, 45, 70])
@pytest.mark.slow
def test_finished_parts_survive_a_kill(
    toy_recipe: dict[str, Any], in_one_piece: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Nothing is flushed by the process that dies, and only what it had not flushed is measured again."""
    asked = toy_stages.Sync.process
    measured: list[Any] = []
    again: list[Any] = []

    def fatal(self: Any, batch: Any) -> Any:
        if len(measured) == killed_at:
            raise KeyboardInterrupt
        measured.append(batch)
        return asked(self, batch)

    monkeypatch.setattr("pipeline.ledger_writer.FLUSH_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(toy_stages.Sync, "process", fatal)
        patched.setattr(LedgerWriter, "__exit__", lambda *_: None)
        with pytest.raises(KeyboardInterrupt), settled(toy_recipe, sources(), tmp_path / "killed"):
            pass
        sheet = balance(Ledger(str(tmp_path / "killed" / "ledger")))
        assert sheet.difference_us == 0
        assert sum(sheet.errors_us.values()) >= 2000 * 1_000_000, "a film that is in parts counts as unfinished"

    def counted(self: Any, batch: Any) -> Any:
        again.extend(batch)
        return asked(self, batch)

    monkeypatch.setattr(toy_stages.Sync, "process", counted)
    with settled(toy_recipe, sources(), tmp_path / "killed") as ledger:
        found = rows_of(ledger)
    for rows in (found, in_one_piece):
        for row in rows["asset"]:
            del row["rows"]
    assert found == in_one_piece
    in_a_part, all_clips = 20, len(found["clip"])
    assert len(again) <= all_clips - killed_at + in_a_part


def test_where_units_are_divided(toy_recipe: dict[str, Any]) -> None:
    plan = make_plan(parse_recipe(toy_recipe))
    groups = plan.passes[0].groups
    group, stage = divides_at(plan, 0) or (0, 0)
    assert groups[group].stages[stage].name == "audio", "the first stage of clips"
    assert divides_at(plan, 1) == (0, 0), "where all stages are of clips, before the first"
    only_assets = {"name": "r", "stages": {"download": {}, "probe": {}, "shot_split": {}}}
    assert divides_at(make_plan(parse_recipe(only_assets)), 0) is None
