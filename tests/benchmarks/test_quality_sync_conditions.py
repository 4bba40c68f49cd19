"""Films made harder stay as true as they were."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality_sync_conditions import drifting, parts, quiet, repeated, write_small
from pipeline.demo import talking_clip
from stages.engines.face_tracks import FaceTrack, Tracks
from stages.media.decoder import Look
from stages.media.waveform import Waveform
from stages.sync.film import Film, Speech

RATE_HZ = 16_000


def film() -> Film:
    """Ten seconds at 25 pictures a second with one face, missing on the first ten; its first point counts the pictures."""
    times_s = 2.0 + np.arange(250) / 25
    points = np.zeros((240, 69, 3), np.float32)
    points[:, 0, 0] = np.arange(10, 250)
    face = FaceTrack(times_s[10:], points, np.zeros((240, 4), np.float32), 1.0)
    seen = Tracks([face], times_s, 12.0, 64, 48, np.arange(250, dtype=np.float32))
    clicks = np.zeros(10 * RATE_HZ, np.float32)
    clicks[[RATE_HZ, 5 * RATE_HZ, 9 * RATE_HZ]] = 0.5
    return Film(name="a", seen=seen, heard=Speech(sound=Waveform(clicks, RATE_HZ, Fraction(2))))


def test_repeated_pictures_show_what_was_shown_last() -> None:
    seen = repeated(film().seen, 30.0)
    assert len(seen.times_s) == 300
    (face,) = seen.faces
    shown = face.points[:, 0, 0]
    np.testing.assert_array_equal(shown, np.floor((face.times_s - 2.0) * 25 + 1e-6))
    assert (np.diff(shown) == 0).sum() == pytest.approx(len(shown) / 6, abs=1)


@pytest.mark.parametrize("slope", [-0.008, 0.003])
def test_drifting_sound_is_as_late_as_was_asked(slope: float) -> None:
    sound = drifting(film(), slope).heard.sound
    found_s = 2.0 + np.flatnonzero(sound.samples > 0.1) / RATE_HZ
    late_s = [found_s[np.argmin(abs(found_s - at_s))] - at_s for at_s in (3.0, 7.0, 11.0)]
    np.testing.assert_allclose(late_s, [slope * -4, 0.0, slope * 4], atol=5e-4)


def test_quiet_sound_is_a_hundredth_in_whole_steps() -> None:
    sound = quiet(film().heard.sound)
    assert np.abs(sound.samples).max() == pytest.approx(0.005, rel=0.01)
    np.testing.assert_allclose(sound.samples * 32767, np.round(sound.samples * 32767), atol=1e-3)


def test_parts_lie_one_behind_the_other() -> None:
    found = list(parts(film(), 3.0))
    assert [(part.start_s, part.end_s) for part in found] == [(2.0, 5.0), (5.0, 8.0), (8.0, 11.0)]
    assert [len(part.heard.sound.samples) for part in found] == [3 * RATE_HZ] * 3


@pytest.mark.slow
def test_small_pictures_are_mirrored_and_keep_their_times(tmp_path: Path, context: Any) -> None:
    made = talking_clip(tmp_path / "made.mp4", duration_s=3.0)
    write_small(made.path, tmp_path / "small.mp4", 80.0)

    def pictures(path: Path) -> tuple[Any, Any]:
        runs = list(context.media.iter_frames(path, **Look(long_side_px=80, format="gray")))
        return np.concatenate([run.images.copy() for run in runs]), np.concatenate([run.times_s for run in runs])

    (before, before_s), (after, after_s) = pictures(Path(made.path)), pictures(tmp_path / "small.mp4")
    context.media.close()
    np.testing.assert_allclose(after_s, before_s, atol=1e-4)
    one, other = before[10].astype(float), after[10].astype(float)
    assert np.abs(one[:, ::-1] - other).mean() < 6 < np.abs(one - other).mean()
