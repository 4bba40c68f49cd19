"""What a run says of itself to other terminals, and what `status` makes of it."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.ask.queries import Run
from pipeline.ask.status import status
from pipeline.config import parse_recipe
from pipeline.execute.heartbeat import AT_WORK, FRESH_S, beating, heartbeat
from pipeline.execute.here import here
from pipeline.execute.lease import Lease
from pipeline.execute.monitor import AtWork, Snapshot, StageTally
from pipeline.plan import make_plan
from pipeline.show.text import status_text
from pipeline.show.watch import watched
from pipeline.store import RunDir
from pipeline.unit import Part
from tests.pipeline.toy_run import make_run, toy_source

AT = AtWork("film.mp4", "sync", 12.0, 60_000_000, Part(1, 4))
SNAPSHOT = Snapshot({"sync": StageTally(rows=3, wall_s=6.0)}, [AT])


@pytest.fixture
def run(tmp_path: Path, toy_recipe: dict[str, Any]) -> Run:
    return make_run(toy_recipe, [toy_source("good.mp4")], tmp_path / "run")


def test_a_run_tells_what_it_is_at_and_nothing_once_it_is_over(tmp_path: Path) -> None:
    directory = RunDir(tmp_path)
    with suppress(KeyboardInterrupt), beating(directory, lambda: "3/9 sources") as beat:
        beat(SNAPSHOT)
        beat(Snapshot())
        found = heartbeat(directory)
        assert found is not None
        assert (found.headline, found.snapshot) == ("3/9 sources", SNAPSHOT), "the second came too soon"
        raise KeyboardInterrupt
    assert heartbeat(directory) is None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["", "[]", '{"written": 1}', "old"])
def test_what_cannot_be_read_or_is_old_says_nothing(tmp_path: Path, damage: str) -> None:
    directory = RunDir(tmp_path)
    with beating(directory, str) as beat:
        beat(SNAPSHOT)
        told = json.loads(directory.read(AT_WORK))
        text = json.dumps({**told, "written": told["written"] - 2 * FRESH_S}) if damage == "old" else damage
        directory.write(AT_WORK, text.encode())
        assert heartbeat(directory) is None


def test_a_run_without_ray_tells_what_it_is_at(tmp_path: Path, toy_recipe: dict[str, Any]) -> None:
    source, seen = toy_source("film.mp4", faults={"probe": "sleep0.8"}), list[AtWork]()
    with here(make_plan(parse_recipe(toy_recipe)), RunDir(tmp_path)) as executor:
        with executor.watched(lambda snapshot: seen.extend(snapshot.at_work)):
            assert len(list(executor.carry(Lease(0, (source,))))) == 1
        seen_while_it_ran = {(at.stage, at.unit) for at in seen}
        seen.clear()
        with executor.watched(lambda snapshot: seen.extend(snapshot.at_work)):
            pass
    assert ("probe", "film.mp4") in seen_while_it_ran
    assert not seen


def test_status_says_what_is_being_worked_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with beating(run.dir, lambda: "1/2 sources in 30 s, about 40 s left") as beat:
        beat(SNAPSHOT)
        text = status_text(status(run))
    assert "about 40 s left" in text
    assert "sync 12 s on film.mp4, part 2 of 4" in text
    assert [line.split() for line in text.splitlines() if line.startswith("sync")] == [["sync", "3", "0", "0", "2.00"]]
    assert max(map(len, text.splitlines())) <= 80
    assert "sync" not in status_text(status(run))


def test_watching_draws_in_place_and_ends_when_the_run_is_packed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.show.watch.EVERY_S", 0.0)
    going = status(run)
    answers = iter([going, going, replace(going, packed=(8, 1))])
    out = io.StringIO()
    watched(lambda: next(answers), Console(file=out, force_terminal=True, width=80))
    assert "packed: 8 clips in 1 shard" in out.getvalue()
    assert "\x1b[1A" in out.getvalue(), "goes up again"
    assert next(answers, None) is None
