"""What a person reads while a run goes on: media time, a time left that never climbs, names as they are."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pipeline.execute.lease import Settled
from pipeline.execute.monitor import AtWork, Monitor, Snapshot, StageTally
from pipeline.show.progress import ERRORS_PER_REASON, Forecast, Progress
from pipeline.unit import Part
from schemas.records import UNFINISHED, Verdict


def done(duration_s: float, verdict: Verdict = Verdict("keep"), **how: Any) -> Settled:
    """What a worker says of a source, or of a part of one."""
    return Settled(how.pop("source_id", "s"), verdict, None, int(duration_s * 1e6), {}, **how)


ODD_NAME = "https://host/[/weird]/[bold]a[/bold].mp4"


def test_time_left_never_climbs_and_ends_near_the_truth() -> None:
    """40 sources, a few of them long, that cost a fifth of their length, one after the other."""
    lengths = [random.Random(seed).choice([10, 20, 30, 300]) for seed in range(40)]
    forecast = Forecast(len(lengths), 0)
    now, told = 50.0, []
    for at, length in enumerate(lengths):
        forecast.in_hand = {str(at): length * 1_000_000}
        for _ in range(5):
            now += length / 25
            told.append(forecast.left_s(now))
        forecast.in_hand = {}
        forecast.settled(done(length), now)
        told.append(forecast.left_s(now))
    known = [left for left in told if left is not None]
    assert told[0] is None, "models load before the first: there is nothing to go by"
    assert known == sorted(known, reverse=True)
    assert told[-1] is None, "nothing is left"
    assert known[-1] == pytest.approx(0, abs=max(lengths) / 5)
    assert forecast.rate(now) == pytest.approx(5.0, rel=0.01), "start-up does not count"


def test_sources_without_length_are_foretold_by_their_number() -> None:
    forecast = Forecast(10, 0)
    for at in range(5):
        forecast.settled(done(0), 100.0 + 4 * at)
    assert forecast.left_s(116.0) == pytest.approx(5 * 4.0)
    assert forecast.rate(116.0) is None


def test_parts_of_one_film_are_told_as_they_come() -> None:
    """Two hours in parts of ten minutes, a minute of work each, behind a head."""
    forecast = Forecast(1, 0)
    forecast.settled(done(7200, UNFINISHED, part=Part(0, 12), is_head=True, is_done=False), 10.0)
    assert forecast.known_us == 7200_000_000
    assert forecast.done_us == 0
    told = []
    for at in range(12):
        now = 70.0 + 60 * at
        forecast.settled(done(600, part=Part(at, 12), is_done=at == 11), now)
        assert forecast.known_us == 7200_000_000
        told.append(forecast.left_s(now))
    assert told[0] is None
    assert told[1:-1] == pytest.approx([60.0 * (10 - at) for at in range(10)])
    assert told[-1] is None


def test_media_time_counts_once_whatever_passes_follow() -> None:
    progress = Progress(1, 0, quiet=True)
    progress.unit_done(done(9))
    progress.show(Snapshot({"cut": StageTally(rows=1)}, [AtWork("s", "cut", 1.0, 9_000_000)], {"node": 1}))
    assert "9 s of 9 s media known so far" in progress.headline()


def test_names_and_messages_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, 0) as progress:
        progress.unit_done(done(0, Verdict("error", "not_decodable", f"{ODD_NAME}: no picture in [here].")))
        at = AtWork(ODD_NAME, "sync", 12.0, 9_000_000)
        progress.show(Snapshot({"sync": StageTally(rows=1)}, [at], {"node": 1}))
        progress._last_line = -1e9
        progress.show(Snapshot({"sync": StageTally(rows=1)}, [at], {"node": 1}))
    said = capsys.readouterr().err
    assert f"error {ODD_NAME}: no picture in [here]." in said
    assert f"sync 12 s on {ODD_NAME}" in said
    assert "0 s of 9 s media known so far" in said


def test_errors_of_one_reason_are_not_repeated_without_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(60, 0) as progress:
        for number in range(50):
            progress.unit_done(done(0, Verdict("error", "download_failed", f"v{number} is away.")))
        progress.unit_done(done(0, Verdict("error", "timeout", "v50 hangs.")))
    said = capsys.readouterr().err
    assert said.count("is away.") == ERRORS_PER_REASON
    assert said.count("more sources end as download_failed") == 1
    assert "error v50 hangs." in said
    assert "51 error" in said


def test_before_the_first_row_workers_are_said_to_start() -> None:
    progress = Progress(5, 0, quiet=True)
    assert "starting workers: loading models" in progress.headline()
    progress.show(Snapshot({"probe": StageTally(rows=1)}, [], {"node": 1}))
    assert "starting" not in progress.headline()


def test_what_workers_report_adds_up_and_those_that_are_gone_are_forgotten() -> None:
    monitor = Monitor()
    monitor.report("w1", AtWork("a", "sync", 5.0, 7), {"probe": StageTally(rows=2, wall_s=1.0)})
    monitor.report("w2", AtWork("b", "audio", 0.0), {"probe": StageTally(rows=3, wall_s=0.5)})
    monitor.report("w2", None, {})
    found = monitor.snapshot()
    assert found.stages == {"probe": StageTally(rows=5, wall_s=1.5)}
    (at,) = found.at_work
    assert (at.unit, at.stage, at.duration_us) == ("a", "sync", 7)
    assert 5.0 <= at.for_s < 6.0
