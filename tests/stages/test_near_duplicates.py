"""Copies are found however they were made, and strangers, dubs and other parts of one scene are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.spans import SPEECH_RATE_HZ
from stages.near_duplicates.prints import apart, picture_hashes, sound_prints, without_bars
from stages.near_duplicates.search import LEAST_PICTURES, ClipPrints, Resemblance, candidates, likeness, sounds_alike
from stages.near_duplicates.stage import PRINTS, NearDuplicates, NearDuplicatesConfig

Change = Callable[[np.ndarray], np.ndarray]


@cache
def scene(seed: int, num: int = 24, drift_px: int = 9) -> np.ndarray:
    """Grey pictures [num, 144, 256], four a second: blobs of which each wanders its own way."""
    rng = np.random.default_rng(seed)
    y, x = np.arange(144), np.arange(256)
    found = np.zeros((num, 144, 256))
    for _ in range(14):
        centre, pace = rng.uniform((0, 0), (144, 256)), rng.normal(0, drift_px, 2)
        size, level = rng.uniform(8, 40), rng.uniform(-110, 110)
        for at in range(num):
            down, right = centre + at * pace
            rows, columns = (np.exp(-(away**2) / (2 * size**2)) for away in (y - down, x - right))
            found[at] += np.outer(level * rows, columns)
    made = (found + 128).clip(0, 255).astype(np.uint8)
    made.flags.writeable = False
    return made


@cache
def noise(seed: int, duration_s: float = 6.0) -> np.ndarray:
    """Sound [n] whose spectrum keeps changing."""
    rng = np.random.default_rng(seed)
    at = np.arange(int(duration_s * SPEECH_RATE_HZ)) / SPEECH_RATE_HZ
    found = rng.normal(0, 0.005, len(at))
    for pitch_hz, rate_hz in zip(rng.uniform(300, 1900, 8), rng.uniform(0.5, 4, 8), strict=True):
        found += 0.05 * np.sin(2 * np.pi * pitch_hz * at + 20 * np.sin(rate_hz * at)) * (1 + np.sin(3 * rate_hz * at))
    made = found.astype(np.float32)
    made.flags.writeable = False
    return made


def prints(pictures: np.ndarray, sound: np.ndarray | None = None, step_s: float = 0.25) -> ClipPrints:
    hashes = [picture_hashes(picture) for picture in pictures]
    kept = [(step_s * at, each) for at, each in enumerate(hashes) if each is not None]
    heard = sound_prints(np.zeros(0, np.float32) if sound is None else sound, SPEECH_RATE_HZ)
    return ClipPrints(
        np.array([at for at, _ in kept]), np.array([each for _, each in kept], np.uint64).reshape(-1, 6), heard
    )


def cropped(share: float) -> Change:
    top, left = round(144 * share / 2), round(256 * share / 2)
    return lambda picture: picture[top : 144 - top, left : 256 - left]


CHANGES: dict[str, Change] = {
    "mirrored": lambda picture: picture[:, ::-1].copy(),
    "cropped": cropped(0.1),
    "cropped and mirrored": lambda picture: cropped(0.15)(picture)[:, ::-1].copy(),
    "brighter": lambda picture: (255 * (picture / 255) ** 0.7).astype(np.uint8),
    "letterboxed": lambda picture: np.pad(picture, ((40, 40), (0, 0))),
    "small": lambda picture: picture[::3, ::3].copy(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_meets_its_original(change: str) -> None:
    for picture in scene(1)[::6]:
        original, copy = picture_hashes(picture), picture_hashes(CHANGES[change](picture))
        assert original is not None
        assert copy is not None
        assert min(apart(original, copy[0]).min(), apart(original[0], copy).min()) <= 8
    strangers = picture_hashes(scene(2)[0])
    assert strangers is not None
    assert apart(original[0], strangers[0]) > 16


def test_bars_are_left_out_and_a_flat_picture_says_nothing() -> None:
    picture = scene(3)[0]
    np.testing.assert_array_equal(without_bars(np.pad(picture, ((20, 30), (9, 0)))), picture)
    dark = np.zeros((144, 256), np.uint8)
    dark[:10, :10] = 255
    assert without_bars(dark).shape == dark.shape, "bars over most of it are none"
    assert picture_hashes(np.full((144, 256), 99, np.uint8)) is None


def test_sound_is_known_quieter_noisier_and_from_a_later_beginning() -> None:
    sound = noise(1)
    rng = np.random.default_rng(0)
    copy = 0.5 * sound[7777:] + rng.normal(0, 0.0005, len(sound) - 7777).astype(np.float32)
    assert sounds_alike(sound_prints(sound, SPEECH_RATE_HZ), sound_prints(copy, SPEECH_RATE_HZ))
    assert not sounds_alike(sound_prints(sound, SPEECH_RATE_HZ), sound_prints(noise(2), SPEECH_RATE_HZ))
    assert not sound_prints(np.zeros(48_000, np.float32), SPEECH_RATE_HZ).any()
    assert not len(sound_prints(sound[:4000], SPEECH_RATE_HZ))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_clip_is_a_copy_with_its_sound_or_in_silence(change: str) -> None:
    pictures = scene(4)
    copies = np.stack([CHANGES[change](picture) for picture in pictures[5:]])
    for sound, heard in ((noise(3), noise(3)[20_000:]), (None, None)):
        found = likeness(prints(pictures, sound), prints(copies, heard))
        assert (found.picture, found.sound) == (True, sound is not None)


def test_another_speed_is_a_copy_where_something_moves() -> None:
    whole = scene(5, 40, drift_px=6)
    assert likeness(prints(whole, noise(1)), prints(whole, noise(2), step_s=0.16)).picture
    still = np.repeat(whole[:1], 30, axis=0)
    assert not likeness(prints(still, noise(1)), prints(still, noise(2), step_s=0.2)).picture


def sped_up(sound: np.ndarray, speed: float) -> np.ndarray:
    return np.interp(np.arange(0, len(sound), speed), np.arange(len(sound)), sound).astype(np.float32)


@pytest.mark.parametrize("speed", [0.8, 1.1, 1.6])
def test_where_nothing_moves_the_sound_tells_a_copy_at_another_speed(speed: float) -> None:
    """None of these speeds is one of those that are tried."""
    still = np.repeat(scene(5)[:1], 32, axis=0)
    original = prints(still, noise(1, 8.0))
    copy = prints(still[: int(32 / speed)], sped_up(noise(1, 8.0), speed))
    assert likeness(original, copy) == likeness(copy, original) == Resemblance(picture=True, sound=True)
    assert not likeness(original, prints(still, sped_up(noise(2, 8.0), speed))).picture, "another take"
    assert not likeness(original, prints(scene(6), sped_up(noise(1, 8.0), speed))).picture


def test_a_dub_another_take_and_another_scene_are_no_copies() -> None:
    pictures = scene(6)
    still = np.repeat(pictures[:1], 24, axis=0)
    assert not likeness(prints(pictures, noise(1)), prints(pictures, noise(2))).picture, "a dub"
    assert not likeness(prints(still, noise(1)), prints(still, noise(2))).picture, "another take before one background"
    other = likeness(prints(pictures, noise(1)), prints(scene(7), noise(1)))
    assert (other.picture, other.sound) == (False, True), "other pictures to one sound"
    assert not likeness(prints(scene(8)), prints(scene(9))).picture


def table(clips: dict[str, tuple[str, ClipPrints, int, int]]) -> pl.LazyFrame:
    """Rows of a Collect: clip id -> source id, prints, width in pixels, length in frames."""
    columns = {
        "row_id": list(clips),
        "source_id": [each[0] for each in clips.values()],
        PRINTS[0]: [each[1].at_s.tolist() for each in clips.values()],
        PRINTS[1]: [each[1].pictures.ravel().view(np.int64).tolist() for each in clips.values()],
        PRINTS[2]: [each[1].sound.view(np.int32).tolist() for each in clips.values()],
        "probe.width_px": [each[2] for each in clips.values()],
        "probe.height_px": [144 for _ in clips],
        "clip.start_pts": [0 for _ in clips],
        "clip.end_pts": [each[3] for each in clips.values()],
        "clip.tb_num": [1 for _ in clips],
        "clip.tb_den": [25 for _ in clips],
    }
    types = {PRINTS[0]: pl.List(pl.Float32), PRINTS[1]: pl.List(pl.Int64), PRINTS[2]: pl.List(pl.Int32)}
    return pl.LazyFrame(columns, schema_overrides=types)


def collected(clips: dict[str, tuple[str, ClipPrints, int, int]]) -> dict[str, tuple[str, int, bool, str]]:
    found = NearDuplicates(NearDuplicatesConfig()).collect(table(clips)).collect()
    return {row[0]: row[1:] for row in found.iter_rows()}


def test_the_largest_then_the_longest_clip_stands_for_its_copies() -> None:
    pictures, sound = scene(10), noise(5)
    copy = np.stack([CHANGES["cropped and mirrored"](picture) for picture in pictures])
    clips = {
        "c1": ("a", prints(pictures, sound), 256, 150),
        "c2": ("b", prints(copy, sound), 512, 140),
        "c3": ("c", prints(pictures[6:], sound[24_000:]), 512, 110),
        "c4": ("d", prints(scene(11), sound), 900, 150),
        "c5": ("e", prints(scene(12), noise(6)), 900, 150),
        "c6": ("e", prints(scene(12), noise(6)), 100, 150),
    }
    found = collected(clips)
    assert {name: row[:3] for name, row in found.items()} == {
        "c1": ("c2", 3, False),
        "c2": ("c2", 3, True),
        "c3": ("c2", 3, False),
        "c4": ("c4", 1, True),
        "c5": ("c5", 1, True),
        "c6": ("c6", 1, True),
    }, "clips of one source are not held against each other"
    assert [row[3] for row in found.values()] == ["c1", "c1", "c1", "c1", "c5", "c6"]
    assert collected(dict(reversed(clips.items()))) == found


def test_a_clip_whose_bytes_were_given_twice_is_one() -> None:
    """Both sources have its row, and a Collect answers once for each id."""
    clips = {"c1": ("a", prints(scene(13), noise(7)), 256, 150), "c2": ("b", prints(scene(14), noise(8)), 256, 150)}
    again = table({"c1": ("z", *clips["c1"][1:])})
    found = NearDuplicates(NearDuplicatesConfig()).collect(pl.concat([again, table(clips)])).collect()
    assert found.sort("row_id").rows() == [("c1", "c1", 1, True, "c1"), ("c2", "c2", 1, True, "c2")]


def test_no_clips_and_clips_without_prints_are_no_trouble() -> None:
    assert collected({}) == {}
    nothing = ClipPrints(np.zeros(0), np.zeros((0, 6), np.uint64), np.zeros(0, np.uint32))
    assert collected({"c1": ("a", nothing, 1, 1), "c2": ("b", nothing, 1, 1)}) == {
        name: (name, 1, True, name) for name in ("c1", "c2")
    }


HASHES = np.random.default_rng(4).integers(1, 1 << 62, 12).tolist()


def usual_halves(hashes: list[int]) -> set[tuple[int, ...]]:
    """Any two of the four interleaved quarters of the bits that half of the hashes or more have."""
    usual = [2 * sum(each >> bit & 1 for each in hashes) >= len(hashes) for bit in range(63)]
    quarters = [tuple(usual[first::4]) for first in range(4)]
    return {(a, b, *quarters[a], *quarters[b]) for a in range(4) for b in range(a)}


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.sampled_from(HASHES), min_size=1, max_size=6)), max_size=7)
)
def test_the_search_finds_what_all_pairs_would(clips: list[tuple[str, list[int]]]) -> None:
    """A picture has one hash in all views here."""
    rows = pl.DataFrame(
        {
            "clip": list(range(len(clips))),
            "source_id": [source for source, _ in clips],
            "pictures": [[each for each in hashes for _ in range(6)] for _, hashes in clips],
            "sound": [[] for _ in clips],
        },
        schema={"clip": pl.UInt32, "source_id": pl.String, "pictures": pl.List(pl.Int64), "sound": pl.List(pl.Int32)},
    )
    expected = [
        (a, b)
        for a, (one, mine) in enumerate(clips)
        for b, (other, its) in enumerate(clips)
        if a < b and one != other
        if len(set(mine) & set(its)) >= LEAST_PICTURES or usual_halves(mine) & usual_halves(its)
    ]
    assert candidates(rows.lazy()).rows() == expected
