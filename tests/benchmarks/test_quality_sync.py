"""Figures of sync where there is nothing to be measured: they are missing, and JSON can hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from benchmarks.quality_sync import Judge, Staged, score_events, score_faces, score_talk
from stages.engines.face_tracks import Tracks
from stages.media.waveform import Waveform
from stages.sync.film import Speech
from stages.sync.mouth import MouthEngine, MouthModel


class ShippedJudge(Judge):
    """Judges by the shipped model: none is fitted."""

    def engine(self, people: frozenset[str]) -> MouthEngine:
        return MouthEngine(self.config.max_offset_s, MouthModel.load(), self.phones)


def faceless(name: str) -> Staged:
    """Four seconds of a still picture with nobody in it, and of silence."""
    times_s = np.arange(100) / 25
    seen = Tracks([], times_s, 4.0, 64, 48, np.zeros(100, np.float32))
    heard = Speech(sound=Waveform(np.zeros(64_000, np.float32), 16_000, Fraction(0)))
    item = {"path": name, "ground_truth": {"speaker_turns": [{"speaker": name}]}}
    return Staged(name=name, seen=seen, heard=heard, item=item)


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning"
)  # errors that are infinite have no spread
@pytest.mark.parametrize("score", [score_talk, score_events])
@pytest.mark.slow
def test_figures_of_clips_that_cannot_be_measured_are_missing(score: Callable[..., dict[str, Any]]) -> None:
    figures = score(ShippedJudge([]), [faceless("a"), faceless("b")])
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert {clip["clip"] for clip in figures["clips"]} == {"a", "b"}
    assert {clip["confidence"] for clip in figures["clips"]} == {None}
    errors = figures.get("original", figures)
    assert (errors["median_ms"], errors["median_ms_interval"], errors["within_80_ms"]) == (None, [None, None], 0.0)


@pytest.mark.slow
def test_no_clips_have_no_figures() -> None:
    figures = score_talk(ShippedJudge([]), [])
    json.dumps(figures, allow_nan=False)
    assert (figures["coverage"], figures["within_two_std"], figures["auc"], figures["roc"]) == (None, None, None, [])
    assert score_talk(ShippedJudge([]), [faceless("a")])["coverage"] == 0.0


def test_faces_that_the_split_does_not_compare_are_not_missed() -> None:
    assert score_faces([], bound=0.45)["same"]["missed"] == 0
    assert score_faces([], bound=None)["same"]["missed"] is None
