"""An asset is decoded once before all who want to see it; who fails there fails alone."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from pipeline.demo.clips import ball_clip, flash_and_click, frame_number, variable_rate
from pipeline.demo.write import Encoding
from schemas.errors import MediaError
from stages.base import Context
from stages.media.decoder import Frames, Look

NUM = 75


class Eye:
    """Keeps what it was shown."""

    def __init__(self, context: Context, long_side_px: int, max_fps: float | None = None) -> None:
        self.look = Look(long_side_px=long_side_px, max_fps=max_fps)
        self.images: list[np.ndarray] = []
        self.pts: list[int] = []

    def see(self, run: Frames) -> None:
        self.images += [image.copy() for image in run.images]
        self.pts += run.pts.tolist()


class Blind(Eye):
    """Cannot bear the sight of frame 40."""

    def see(self, run: Frames) -> None:
        super().see(run)
        if len(self.pts) > 40:
            raise ArithmeticError("frame 40")


class FullDisk(Eye):
    """Has nowhere to note anything."""

    def see(self, run: Frames) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of numbered pictures of uneven length."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    flash_and_click(path, 3.0, variable_rate(3.0, 2, Encoding(width_px=192, height_px=96)), seed=3)
    return path


def test_all_that_is_expected_looks_on_at_one_decode(film: Path, context: Context) -> None:
    context.asset_pass.expect = lambda: [(Eye, 96), (Eye, 192, 10.0)]
    large = context.asset_pass.look(film, Eye, 192)
    small, rare = context.asset_pass.look(film, Eye, 96), context.asset_pass.look(film, Eye, 192, 10.0)
    seen = context.asset_pass.seen(film)
    assert context.media.frames_decoded == len(seen.pts) == len(large.pts)
    assert seen.pts.tolist() == large.pts == small.pts
    assert [frame_number(image) for image in large.images] == list(range(len(large.pts)))
    assert small.images[0].shape == (48, 96, 3)
    apart = np.diff(np.array(rare.pts) * seen.num / seen.den)
    assert len(rare.pts) == 30
    assert apart.min() > 0.02
    number = [large.pts.index(pts) for pts in rare.pts]
    assert [frame_number(image) for image in rare.images] == number, "each is drawn from its own frame"
    assert set(context.asset_pass.spent) == {(Eye, 192), (Eye, 96), (Eye, 192, 10.0)}
    context.media.close()


def test_whoever_else_looks_on_nobody_sees_other_pictures(tmp_path: Path, context: Context) -> None:
    """Small pictures are drawn from planes twice their size if there are some, whatever larger ones are drawn besides."""
    path = tmp_path / "ball.mp4"
    ball_clip(path, duration_s=0.4, encoding=Encoding(width_px=640, height_px=360), seed=1)
    planes, thumbs = Look(long_side_px=320, format="yuv420p"), Look(long_side_px=96)
    shown = []
    for others in ([], [Look(max_fps=10.0, format="gray")]):
        pairs = list(context.media.watch(path, [thumbs, planes, *others]))
        shown.append(np.concatenate([drawn[0].images for _, drawn in pairs]))
    assert np.array_equal(*shown)
    context.media.close()


def test_grey_pictures_are_alike_whether_or_not_planes_are_wanted_of_each(tmp_path: Path, context: Context) -> None:
    """Those drawn in two steps do not alternate with others: a picture shown twice would pass for two."""
    path = tmp_path / "ball.mp4"
    ball_clip(path, duration_s=0.8, encoding=Encoding(width_px=640, height_px=360), seed=1)
    grey, shown = Look(long_side_px=96, format="gray"), []
    for others in (
        [],
        [Look(long_side_px=160, format="yuv420p")],
        [Look(long_side_px=160, format="yuv420p", max_fps=8.0)],
    ):
        pairs = list(context.media.watch(path, [grey, *others]))
        shown.append(np.concatenate([drawn[0].images for _, drawn in pairs]).astype(np.int16))
    alone, of_all, of_some = shown
    assert np.array_equal(of_all, of_some)
    assert 0 < np.abs(alone - of_all).mean() < 1
    context.media.close()


def test_what_the_picture_holds_is_what_probe_would_say(film: Path, context: Context) -> None:
    media = context.media
    assert media.probe(film, picture=context.asset_pass.seen(film).picture) == media.probe(film)
    media.close()


def test_who_comes_unexpected_has_it_decoded_again_and_the_others_keep_what_they_saw(
    film: Path, context: Context
) -> None:
    first = context.asset_pass.look(film, Eye, 96)
    num = context.media.frames_decoded
    context.asset_pass.look(film, Eye, 64)
    assert context.asset_pass.look(film, Eye, 96) is first
    assert len(first.pts) == num
    assert context.media.frames_decoded == 2 * num
    context.media.close()


def test_a_file_that_was_written_to_is_another(film: Path, tmp_path: Path, context: Context) -> None:
    path = tmp_path / "changing.mkv"
    path.write_bytes(film.read_bytes())
    before = context.asset_pass.look(path, Eye, 96)
    flash_and_click(path, 1.0, Encoding(width_px=192, height_px=96), seed=4)
    after = context.asset_pass.look(path, Eye, 96)
    assert len(after.pts) < len(before.pts)
    context.media.close()


def test_what_one_raises_reaches_who_asks_for_it_alone(film: Path, context: Context) -> None:
    context.asset_pass.expect = lambda: [(Blind, 96), (Eye, 96)]
    whole = context.asset_pass.look(film, Eye, 96)
    assert len(whole.pts) == len(context.asset_pass.seen(film).pts)
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="frame 40"):
            context.asset_pass.look(film, Blind, 96)
    context.media.close()


def test_trouble_of_the_machine_is_nobodys_fault(film: Path, context: Context) -> None:
    context.asset_pass.expect = lambda: [(FullDisk, 96)]
    with pytest.raises(OSError, match="No space left"):
        context.asset_pass.look(film, Eye, 96)
    context.media.close()


def test_what_cannot_be_opened_is_refused_each_time(tmp_path: Path, context: Context) -> None:
    page = tmp_path / "page.mp4"
    page.write_text("<!doctype html><p>not here")
    for _ in range(2):
        with pytest.raises(MediaError) as caught:
            context.asset_pass.look(page, Eye, 96)
        assert caught.value.reason == "web_page"
    context.media.close()


def test_sound_alone_shows_nothing(tmp_path: Path, context: Context) -> None:
    import soundfile

    path = tmp_path / "tone.wav"
    soundfile.write(path, np.zeros(8000, np.float32), 8000)
    assert context.asset_pass.look(path, Eye, 96).pts == []
    seen = context.asset_pass.seen(path)
    assert (len(seen.pts), seen.picture["fields"]["has_video"]) == (0, False)
    context.media.close()
