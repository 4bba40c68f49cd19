"""Faces are found where they are, followed as long as they are there, and meshed where the pixels say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.demo.face import photograph as portrait
from stages.engines.face_identity import FaceEncoder
from stages.engines.face_networks import Face, FaceDetector, FaceMesh, overlap
from stages.engines.face_tracks import FaceTracker, Tracks, with_crops
from stages.media.decoder import Frames, Look


@pytest.fixture(scope="module")
def photograph() -> Any:
    """A public-domain portrait, 320 x 320; the face is where a person sees it: x 128-180, y 44-116, roughly."""
    import cv2

    return cv2.resize(portrait("astronaut.png"), (320, 320), interpolation=cv2.INTER_AREA)


@pytest.fixture
def tracker() -> FaceTracker:
    return FaceTracker(FaceDetector(), FaceMesh(), detect_every_s=0.4, max_faces=3)


def run_of(images: list[Any], fps: int = 25) -> Iterator[Frames]:
    """The pictures as two runs of a decoder."""
    import cv2

    half = len(images) // 2
    for low, high in ((0, half), (half, len(images))):
        planes = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420) for image in images[low:high]])
        yield Frames(planes, np.arange(low, high), high, 1, fps, np.zeros(high - low, np.bool_))


def followed(tracker: FaceTracker, runs: Iterable[Frames], encoder: FaceEncoder | None = None) -> Tracks:
    for run in runs:
        tracker.see(run)
    return tracker.tracks(encoder=encoder)


def test_detector_finds_the_portrait_and_nothing_else(photograph: Any) -> None:
    detector = FaceDetector()
    (face,) = detector.detect(photograph)
    assert overlap(face.box, np.array([124, 38, 186, 120])) > 0.5
    eyes, mouth = face.points[:2].mean(0), face.points[3:].mean(0)
    assert eyes[1] < face.points[2, 1] < mouth[1]
    assert detector.detect(np.zeros_like(photograph)) == []


def test_detector_answers_the_same_after_another_picture_size(photograph: Any) -> None:
    detector = FaceDetector()
    before = detector.detect(photograph)[0].box
    detector.detect(np.zeros((200, 512, 3), np.uint8))
    np.testing.assert_allclose(detector.detect(photograph)[0].box, before, atol=0.5)


def test_mesh_agrees_with_the_detector_on_eyes_and_mouth(photograph: Any) -> None:
    (face,) = FaceDetector().detect(photograph)
    size = float(max(face.box[2:] - face.box[:2]))
    presence, points = FaceMesh().fit(photograph, (face.box[:2] + face.box[2:]) / 2, 1.5 * size, 0.0)
    assert presence > 0.9
    mouth = points[[61, 291], :2].mean(0)
    assert np.linalg.norm(mouth - face.points[3:].mean(0)) < 0.12 * size
    nowhere, _ = FaceMesh().fit(photograph, np.array([290.0, 290.0]), 40.0, 0.0)
    assert nowhere < 0.5


def test_track_follows_a_moving_face_and_ends_when_it_leaves(photograph: Any, tracker: FaceTracker) -> None:
    empty = np.full_like(photograph, 40)
    shifts = np.linspace(0, 60, 30).astype(int)
    pictures = [np.roll(photograph, shift, axis=1) for shift in shifts] + [empty] * 30
    seen = followed(tracker, run_of(pictures))
    (track,) = seen.faces
    assert track.times_s[0] == 0.0
    assert track.times_s[-1] == pytest.approx(29 / 25, abs=0.05)
    moved = track.boxes[-1, 0] - track.boxes[0, 0]
    assert moved == pytest.approx(60, abs=8)
    assert seen.end_s == pytest.approx(60 / 25)
    assert (seen.width_px, seen.height_px) == (320, 320)


def test_two_faces_are_two_tracks_and_crops_show_them(photograph: Any, tracker: FaceTracker) -> None:
    pair = np.concatenate([photograph, photograph[:, ::-1]], axis=1)
    seen = with_crops(followed(tracker, run_of([pair] * 12)), run_of([pair] * 12), 64)
    assert len(seen.faces) == 2
    centres = sorted(float(face.boxes[:, (0, 2)].mean()) for face in seen.faces)
    assert centres[0] < 320 < centres[1]
    for face in seen.faces:
        assert face.crops.shape == (12, 64, 64, 3)
        assert len(FaceDetector().detect(np.kron(face.crops[0], np.ones((3, 3, 1), np.uint8)))) == 1


class SeesDouble(FaceDetector):
    """Reports beside every face a second one, half a face lower, whose mesh will settle on the first."""

    def detect(self, image: Any) -> list[Face]:
        return [
            replace(face, box=face.box + shift)
            for face in super().detect(image)
            for shift in (0.0, np.array([0, 1, 0, 1]) * 0.55 * (face.box[3] - face.box[1]))
        ]


def test_a_face_followed_twice_counts_once(photograph: Any) -> None:
    tracker = FaceTracker(SeesDouble(), FaceMesh(), detect_every_s=10.0, max_faces=3)
    seen = followed(tracker, run_of([np.roll(photograph, n % 2, axis=1) for n in range(25)]))
    kept, given_up = (len(face.times_s) for face in seen.faces)
    assert kept == 25
    assert 0 < given_up < 20, "the second was followed until it had wandered onto the first"


def test_nobody_looks_where_the_picture_stands_still_or_is_flat(photograph: Any) -> None:
    class Counting(FaceMesh):
        num = 0

        def fit(self, *arguments: Any) -> Any:
            self.num += 1
            return super().fit(*arguments)

    mesh = Counting()
    tracker = FaceTracker(FaceDetector(), mesh, detect_every_s=0.4, max_faces=3)
    seen = followed(tracker, run_of([photograph] * 50 + [np.zeros_like(photograph)] * 10))
    (face,) = seen.faces
    assert len(face.times_s) == 50, "it is still there"
    assert mesh.num < 15


def test_a_cut_to_another_face_is_another_person(photograph: Any, tracker: FaceTracker) -> None:
    tall = np.ascontiguousarray(photograph[40:, 20:300][:240, :280])
    stranger = np.roll(255 - tall[:, ::-1], 3, axis=0)
    first = [np.roll(tall, n % 2, axis=1) for n in range(15)]
    followed(tracker, run_of([*first, *([stranger] * 3), *first]))
    before, after = tracker.tracks(0, 0.6), tracker.tracks(18 / 25, 33 / 25)
    assert [len(face.times_s) for face in before.faces] == [15]
    assert [face.times_s[0] for face in after.faces] == [pytest.approx(18 / 25)]


def test_with_an_encoder_a_track_knows_who_it_is(photograph: Any) -> None:
    tracker = FaceTracker(FaceDetector(), FaceMesh(), detect_every_s=0.2, max_faces=3)
    pair = np.concatenate([photograph, photograph[:, ::-1]], axis=1)
    one, other = (face.embedding for face in followed(tracker, run_of([pair] * 12), FaceEncoder.load()).faces)
    assert one is not None
    assert other is not None
    assert np.linalg.norm(one - other) < 0.45


def test_change_is_measured_between_frames(tracker: FaceTracker) -> None:
    still = np.full((120, 120, 3), 90, np.uint8)
    moved = still.copy()
    moved[:60] = 190
    seen = followed(tracker, run_of([still, still, moved, moved]))
    np.testing.assert_allclose(seen.change, [0, 0, 50, 0], atol=0.5)


@pytest.mark.slow
def test_faces_of_real_files(media_dir: Path, context: Any) -> None:
    """One face on every frame of a talking clip, two side by side, none in a film about a rabbit."""
    expected: dict[str, Callable[[Any], bool]] = {
        "talking/grid_lay_blue_at_x_four_now__man_glasses.mpg": lambda s: [len(f.times_s) for f in s.faces] == [25],
        "talking/split_screen_two_people_plus_offscreen_voice.mp4": lambda s: (
            [len(f.times_s) for f in s.faces] == [25] * 2
        ),
        "nonspeech/big_buck_bunny_5s_5.1_audio.mp4": lambda s: not s.faces,
    }
    for name, holds in expected.items():
        look = Look(long_side_px=640, max_fps=30, format="yuv420p")
        frames = context.media.iter_frames(media_dir / name, end=Fraction(1), **look)
        tracker = FaceTracker(FaceDetector(), FaceMesh(), detect_every_s=0.4, max_faces=3)
        assert holds(followed(tracker, frames)), name
    context.media.close()
