"""Shots tile the timeline exactly, cuts are found to the frame, and what is no cut is left alone."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.records import SHOT
from schemas.timing import microseconds
from stages.asset_pass import Seen
from stages.base import Context
from stages.shot_split.content import Boundary, ContentDetector, blends, combine, lasting, survey, wipes
from stages.shot_split.evidence import Evidence, examine
from stages.shot_split.stage import ShotSplit, ShotSplitConfig, make_detector, partition
from stages.shot_split.transnet import HybridDetector, Looks, TransNet, fused, is_doubtful, shared_spans
from tests.rows import asset_row

FPS = 25.0


def scene(seed: int, num: int, *, drift_px: float = 0.3) -> np.ndarray:
    """`num` thumbnails of a made-up scene under a slow pan, with sensor noise: uint8 [num, 27, 48, 3]."""
    import cv2

    rng = np.random.default_rng(seed)
    width = 48 * 3
    canvas = np.full((27 * 3, width, 3), rng.uniform(40, 215, 3), np.float32)
    for _ in range(14):
        x, y = rng.integers(0, width), rng.integers(0, 81)
        cv2.rectangle(
            canvas,
            (int(x), int(y)),
            (int(x + rng.integers(10, 60)), int(y + rng.integers(8, 40))),
            rng.uniform(0, 255, 3).tolist(),
            -1,
        )
    canvas = cv2.GaussianBlur(canvas, (0, 0), 1.5)
    frames = []
    for t in range(num):
        at = min(width - 49.0, 2 + drift_px * t)
        view = cv2.warpAffine(canvas, np.array([[1, 0, -at], [0, 1, -20]], np.float32), (48, 27))
        frames.append(view + rng.normal(0, 2, view.shape))
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def blend(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A dissolve as long as `a` and `b`."""
    share = (np.arange(1, len(a) + 1) / (len(a) + 1))[:, None, None, None]
    return (a * (1 - share) + b * share).astype(np.uint8)


def hard(found: list[Boundary]) -> list[int]:
    return [b.start for b in found if b.kind == "hard"]


@pytest.mark.parametrize("fps", [12.0, 25.0, 60.0])
def test_content_finds_cuts_to_the_frame_and_nothing_else(fps: float) -> None:
    lengths = [40, 7, 31, 55, 23]
    film = np.concatenate([scene(seed, n) for seed, n in enumerate(lengths)])
    found = ContentDetector().detect(film, fps)
    assert hard(found) == np.cumsum(lengths)[:-1].tolist()
    assert len(found) == 4
    assert all(0.5 <= b.confidence <= 1 for b in found)


@pytest.mark.parametrize("length", [8, 20, 40])
def test_content_finds_dissolves_and_fades_within_their_range(length: int) -> None:
    a, b, c = scene(1, 80), scene(2, 80), scene(3, 80)
    black = np.zeros((6, 27, 48, 3), np.uint8)
    dissolve = blend(a[-length:], b[:length])
    out, fade_in = blend(b[-length:], np.zeros_like(b[-length:])), blend(np.zeros_like(c[:length]), c[:length])
    film = np.concatenate(
        [a[:-length], dissolve, b[length:-length] if length < 40 else b[:0], out, black, fade_in, c[length:]]
    )
    found = ContentDetector().detect(film, FPS)
    soft = [x for x in found if x.kind == "gradual"]
    assert hard(found) == []
    if length < 40:
        assert len(soft) == 2
        assert abs(soft[0].start - (80 - length)) <= 3
        assert abs(soft[0].end - 80) <= 3
        end = len(film) - (80 - length)
        assert abs(soft[1].end - end) <= 4
        assert abs(soft[1].start - (end - 2 * length - 6)) <= 4
    else:
        assert soft
        assert soft[0].start <= 45


def test_flashes_lights_captions_and_pans_are_no_cuts() -> None:
    film = scene(5, 200, drift_px=0.4).astype(np.float32)
    film[30:33] += 140  # a flash of three frames
    film[60:] *= 0.75  # a light goes out
    film[90:, 21:26, 4:20] = 250  # a caption appears
    found = ContentDetector().detect(film.clip(0, 255).astype(np.uint8), FPS)
    assert found == []


def test_repeated_frames_do_not_make_motion_look_like_cuts() -> None:
    film = np.repeat(scene(6, 50, drift_px=1.6), 2, axis=0)
    assert ContentDetector().detect(film, 50.0) == []


def test_evidence_tells_a_cut_from_a_change_of_light() -> None:
    a, b = scene(7, 20), scene(8, 20)
    cut = examine(np.concatenate([a, b]), 20, FPS)
    light = examine(np.concatenate([a, (scene(7, 40)[20:] * 0.6).astype(np.uint8)]), 20, FPS)
    lit = scene(7, 40).astype(np.int16)
    lit[20:23] += 100
    flash = examine(lit.clip(0, 255).astype(np.uint8), 20, FPS)
    assert cut.log_odds > 3
    assert light.log_odds < -3
    assert flash.log_odds < -3
    assert cut.staying > 0.8
    assert flash.change < 0.5 * cut.change


def test_a_cut_under_a_strobe_is_found_and_the_strobe_is_not() -> None:
    film = np.concatenate([scene(51, 41), scene(53, 46)])
    film = (film * np.where(np.arange(len(film)) // 2 % 2, 0.4, 1.0)[:, None, None, None]).astype(np.uint8)
    assert hard(ContentDetector().detect(film, FPS)) == [41]


def test_black_bars_do_not_make_a_cut_look_like_a_title() -> None:
    film = np.concatenate([scene(7, 20), scene(8, 20)])
    boxed = np.zeros_like(film)
    boxed[:, :, 18:30] = film[:, :, 18:30]
    assert examine(boxed, 20, FPS).log_odds > 3
    assert hard(ContentDetector().detect(boxed, FPS)) == [20]


def test_neither_content_nor_network_has_a_veto() -> None:
    titled, cut = Evidence(0.75, 0.01, 0.96, 2.0), Evidence(0.9, 0.1, 0.9, 8.0)
    assert is_doubtful(titled)
    assert fused(titled, 0.02) < 0 < fused(titled, 0.9)
    assert fused(cut, 0.2) > 0
    assert [fused(cut, p) for p in (0.0, 0.3, 0.6, 1.0)] == sorted(fused(cut, p) for p in (0.0, 0.3, 0.6, 1.0))
    assert not is_doubtful(Evidence(1.5, 0.05, 0.98, 30.0))
    assert not is_doubtful(Evidence(0.2, 0.2, 0.3, 1.0))


def test_a_dissolve_is_a_blend_and_a_pan_is_not() -> None:
    a, b = scene(9, 60), scene(10, 60)
    film = np.concatenate([a[:45], blend(a[45:], b[:15]), b[15:]])
    (found,) = blends(film, survey(film, FPS).mixture, FPS)
    assert found.is_sure
    assert 45 <= found.first < found.end <= 60
    pan = scene(9, 100, drift_px=0.8)
    assert blends(pan, survey(pan, FPS).mixture, FPS) == wipes(pan, survey(pan, FPS).mosaic, FPS) == []


def test_a_wipe_is_a_blend_and_a_lamp_turned_up_is_none() -> None:
    a, b = scene(9, 60), scene(12, 60)
    new = (np.arange(48) < np.linspace(0, 48, 15)[:, None])[:, None, :, None]
    wipe = np.concatenate([a[:45], np.where(new, b[:15], a[45:]), b[15:]])
    (found,) = wipes(wipe, survey(wipe, FPS).mosaic, FPS)
    assert 42 <= found.first < found.end <= 63
    lamp = (scene(9, 90) * np.interp(np.arange(90), [40, 52], [0.4, 1.0])[:, None, None, None]).astype(np.uint8)
    assert blends(lamp, survey(lamp, FPS).mixture, FPS) == []
    assert ContentDetector().detect(lamp, FPS) == []


def test_runs_close_small_gaps_and_drop_short_stretches() -> None:
    mask = np.array([0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 0], bool)
    assert lasting(mask, 2) == [(1, 6)]


def test_combine_prefers_a_cut_over_the_range_around_it_and_joins_fades_through_black() -> None:
    film = scene(11, 100)
    film[40:50] = 0
    found = combine(
        [Boundary(20, 20, "hard", 0.9)],
        [Boundary(18, 23, "gradual", 0.8), Boundary(30, 40, "gradual", 0.7), Boundary(50, 60, "gradual", 0.9)],
        film,
    )
    assert found == [Boundary(20, 20, "hard", 0.9), Boundary(30, 60, "gradual", 0.9)]
    out, cut = Boundary(30, 40, "gradual", 0.7), Boundary(40, 40, "hard", 0.9)
    assert combine([cut, Boundary(30, 30, "hard", 0.6)], [out], film) == [out, cut]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Seen, list[Boundary]]:
    """Frame times and ordered, disjoint boundaries."""
    steps = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=80))
    pts = draw(st.integers(-5000, 5000)) + np.concatenate([[0], np.cumsum(steps)])
    clock = Seen({}, pts[:-1].astype(np.int64), int(pts[-1]), 1, draw(st.sampled_from([25, 1000, 90000])))
    edges = sorted(draw(st.sets(st.integers(0, len(steps)), max_size=12)))
    found, at = [], 0
    while at < len(edges):
        if draw(st.booleans()) and at + 1 < len(edges):
            found.append(Boundary(edges[at], edges[at + 1], "gradual", 0.8))
            at += 2
        elif 0 < edges[at] < len(steps):
            found.append(Boundary(edges[at], edges[at], "hard", 0.9))
            at += 1
        else:
            at += 1
    return clock, found


@settings(max_examples=200)
@given(cases())
def test_shots_tile_the_timeline(case: Any) -> None:
    clock, found = case
    start, end = int(clock.pts[0]) - 7, clock.end_pts + 3
    shots = partition(clock, found, "a1", (start, end))
    assert shots[0]["start_pts"] == start
    assert shots[-1]["end_pts"] == end
    for one, other in pairwise(shots):
        assert one["end_pts"] == other["start_pts"]
        assert one["end_kind"] == other["start_kind"]
    assert [s["index"] for s in shots] == list(range(len(shots)))
    assert sum(s["num_frames"] for s in shots) == len(clock.pts)
    assert all(s["num_frames"] > 0 for s in shots)
    base = Fraction(clock.num, clock.den)
    assert sum(s["duration_us"] for s in shots) == microseconds(end * base) - microseconds(start * base)
    assert sum(s["is_transition"] for s in shots) == sum(
        b.kind == "gradual" and b.start < len(clock.pts) for b in found
    )
    assert len({s["shot_id"] for s in shots}) == len(shots)
    assert set(shots[0]) == {field.name for field in SHOT}


def film_file(path: Path, frames: np.ndarray) -> None:
    """`frames` [n, 27, 48, 3] enlarged and written as MPEG-4 at 25 fps with B-frames."""
    import av
    import cv2

    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.bit_rate = 192, 108, 2_000_000
        stream.codec_context.max_b_frames = 2
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(cv2.resize(image, (192, 108)), format="rgb24")))
        out.mux(stream.encode())


@pytest.mark.parametrize("engine", ["content", "hybrid", "scenedetect_content", "scenedetect_adaptive"])
def test_stage_finds_the_cuts_of_a_coded_file(tmp_path: Path, context: Context, engine: str) -> None:
    path = tmp_path / "film.mp4"
    film_file(path, np.concatenate([scene(20, 40), scene(21, 50), scene(22, 30)]))
    probe = context.media.probe(path)
    stage = ShotSplit(ShotSplitConfig.model_validate({"engine": engine}))
    stage.setup(context)
    row = asset_row(path, probe=probe)
    shots = stage.split(row)
    assert [s["num_frames"] for s in shots] == [40, 50, 30]
    assert [s["start_kind"] for s in shots] == ["start", "hard", "hard"]
    assert shots[0]["start_pts"] == probe["video_start_pts"]
    assert shots[-1]["end_pts"] == probe["video_end_pts"]
    assert stage.split({**row, "probe": {**probe, "has_video": False}}) == []


@pytest.mark.slow
def test_network_answers_as_its_authors_code_does() -> None:
    import torch

    state = torch.random.get_rng_state()
    net = TransNet()
    assert torch.equal(state, torch.random.get_rng_state()), "loading must not reseed the process"
    film = np.concatenate([scene(30, 45), scene(31, 38)])
    middle, inside = net.probabilities(film)
    with torch.inference_mode():
        theirs = net._model.predict_frames(torch.from_numpy(film), quiet=True)
    np.testing.assert_allclose(middle, theirs[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(inside, theirs[1].numpy(), atol=1e-5)
    assert int(np.argmax(middle)) == 44


@pytest.mark.slow
def test_hybrid_asks_the_network_only_in_doubt() -> None:
    asked: list[int] = []
    detector = HybridDetector()
    look = detector.net.look
    detector.net.look = lambda thumbs, first: (asked.append(first), look(thumbs, first))[1]  # type: ignore[method-assign,func-returns-value]
    film = np.concatenate([scene(40, 60), scene(41, 60)])
    assert hard(detector.detect(film, FPS)) == [60]
    assert asked == []
    dissolve = np.concatenate([film[:45], blend(film[45:60], film[60:75]), film[75:]])
    (soft,) = detector.detect(dissolve, FPS)
    assert len(asked) == len(set(asked)) > 0
    assert soft.kind == "gradual"
    assert abs(soft.start - 45) <= 3
    assert abs(soft.end - 60) <= 3


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(-2, 400), st.integers(1, 130)), max_size=8))
def test_a_window_shows_enough_around_every_frame_it_answers_for(places: list[tuple[int, int]]) -> None:
    asked: list[int] = []

    class Echo:
        """Answers with the number of every frame of the window."""

        def look(self, thumbs: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
            asked.append(first)
            return np.arange(first, first + 100.0), -np.arange(first, first + 100.0)

    runs = [(first, first + length) for first, length in places]
    looks = Looks(Echo(), np.zeros((1, 27, 48, 3), np.uint8), runs)
    for first, end in runs:
        middle, inside = looks.at(first, end)
        assert middle.tolist() == list(range(first, end))
        assert (-inside).tolist() == list(range(first, end))
    assert len(asked) == len(set(asked)) <= sum(-(-length // 50) for _, length in places)
    for start, stop in shared_spans(runs):
        window = (start + stop + 1 - 100) // 2
        assert window in asked
        assert window + 25 <= start < stop <= window + 75


def test_neighbouring_places_share_a_window() -> None:
    assert shared_spans([(65, 68), (70, 73), (114, 117), (430, 433)]) == [(65, 73), (114, 117), (430, 433)]
    assert shared_spans([(100, 165)]) == [(100, 150), (150, 165)]


def test_hybrid_trusts_content_alone_at_a_few_frames_per_second() -> None:
    film = np.concatenate([scene(seed, 9, drift_px=2.5) for seed in (50, 51, 52)])
    hybrid = make_detector(ShotSplitConfig(engine="hybrid"))
    assert hybrid.detect(film, 5.0) == ContentDetector().detect(film, 5.0)
    assert hard(hybrid.detect(film, 5.0)) == [9, 18]


def test_single_frame_and_constant_pictures_are_one_shot() -> None:
    for engine in ("content", "scenedetect_adaptive", "scenedetect_content"):
        detector = make_detector(ShotSplitConfig.model_validate({"engine": engine}))
        width, height = detector.frame_size
        assert detector.detect(np.zeros((1, height, width, 3), np.uint8), FPS) == []
        assert detector.detect(np.full((90, height, width, 3), 128, np.uint8), FPS) == []


def test_unknown_engine_is_refused() -> None:
    with pytest.raises(ValidationError, match="hybrid"):
        ShotSplitConfig.model_validate({"engine": "magic"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cuts", "ranges"),
    [
        ("multishot/dialog_shot_reverse_shot_5people.mp4", [52, 103, 155, 203, 255], []),
        ("multishot/talking_dissolve_fade_and_cut.mp4", [278], [(90, 105), (180, 210)]),
    ],
)
def test_real_dialog_and_transitions(
    media_dir: Path, context: Context, name: str, cuts: list[int], ranges: Any
) -> None:
    stage = ShotSplit(ShotSplitConfig())
    stage.setup(context)
    path = media_dir / name
    shots = stage.split(
        {"download": {"asset_id": "a1", "path": str(path)}, "probe": context.media.probe(path, decode=False)}
    )
    first = np.cumsum([0] + [s["num_frames"] for s in shots])
    starts = [int(f) for f, s in zip(first, shots, strict=False) if s["start_kind"] == "hard"]
    assert all(any(abs(cut - s) <= 1 for s in starts) for cut in cuts)
    assert len(starts) == len(cuts)
    found = [(int(f), int(f) + s["num_frames"]) for f, s in zip(first, shots, strict=False) if s["is_transition"]]
    assert len(found) == len(ranges)
    for (a, b), (c, d) in zip(found, ranges, strict=True):
        assert abs(a - c) <= 5
        assert abs(b - d) <= 5
