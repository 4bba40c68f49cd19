"""A clip is left for the shards as it was planned, with the sound of its references, and of the very bytes that were measured."""

from __future__ import annotations

import errno
import io
import os
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from pipeline.config import load_recipe
from pipeline.demo import Encoding, ball_clip
from pipeline.plan import make_plan
from schemas.cut_file import CutMedia, cut_file
from schemas.errors import DamagedSampleError, MediaError, PlanError, RecipeError
from schemas.files import sha256_of
from schemas.records import span_fields
from schemas.spans import SPEECH_RATE_HZ, Reference
from schemas.timing import Span
from stages.base import Context
from stages.timbre import reference_fields
from tests.stages.cut_rows import cut_stage, whole_clip
from tests.tiny_disk import tiny_disk


@pytest.fixture
def ball(tmp_path: Path) -> Path:
    ball_clip(tmp_path / "ball.mp4", duration_s=3.0, seed=1)
    return tmp_path / "ball.mp4"


def left(folder: Path, found: dict[str, Any]) -> dict[str, bytes]:
    """The members of the clip that was left."""
    return CutMedia.of(found).members((folder / "cuts" / cut_file("c0123", "made")).read_bytes())


def test_what_is_left_is_what_the_struct_says(tmp_path: Path, ball: Path, make_row: Any, context: Context) -> None:
    row = whole_clip(ball, make_row)
    found = cut_stage(context, tmp_path).measure(row)
    members = left(tmp_path, found)
    assert list(members) == ["mp4", "flac", "refs.flac"]
    with av.open(io.BytesIO(members["mp4"])) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == found["num_frames"] == row["clip"]["num_frames"]
    assert (frames[0].width, frames[0].height) == (found["width_px"], found["height_px"])
    sound, rate_hz = soundfile.read(io.BytesIO(members["flac"]), always_2d=True)
    assert (len(sound), rate_hz, sound.shape[1]) == (round(row["clip"]["duration_us"] * 0.048), 48_000, 2)
    assert (found["start_error_us"], found["sound_error_samples"], found["duration_error_us"]) == (0, 0, 0)
    assert not list(context.scratch_dir.glob("*.mp4")), "scratch is left clean"
    path = tmp_path / "cuts" / cut_file("c0123", "made")
    data = path.read_bytes()
    with pytest.raises(DamagedSampleError):
        CutMedia.of(found).members(data[:-1] + bytes([data[-1] ^ 1]))
    context.media.close()


@pytest.mark.parametrize("size_kb", [8, 600])
@pytest.mark.slow
def test_a_full_disk_is_no_fault_of_the_clip_and_room_mends_it(
    tmp_path: Path, ball: Path, make_row: Any, context: Context, size_kb: int
) -> None:
    """The run's `cuts` are full, or the scratch folder in the middle of writing; both are left as they were."""
    row = whole_clip(ball, make_row)
    with tiny_disk(tmp_path / "disk", size_kb) as disk:
        if size_kb > 8:
            context.media.scratch_dir = context.scratch_dir = disk.path
        stage = cut_stage(context, tmp_path if size_kb > 8 else disk.path)
        with pytest.raises(OSError, match="No space left") as caught:
            stage.measure(row)
        assert caught.value.errno == errno.ENOSPC
        assert [path for path in (*disk.path.rglob("*"), *(tmp_path / "cuts").rglob("*")) if path.is_file()] == []
        disk.grow(20_000)
        assert stage.measure(row)["num_frames"] == row["clip"]["num_frames"]
    context.media.close()


def test_the_sound_of_references_is_that_of_the_source(
    tmp_path: Path, ball: Path, make_row: Any, context: Context
) -> None:
    """Also of those that lie outside the clip."""
    row = whole_clip(ball, make_row)
    base = Span(0, row["clip"]["end_pts"] // 2, row["clip"]["tb_num"], row["clip"]["tb_den"])
    places = [(1, 0.25, 0.75), (0, 2.0, 2.9)]
    references = [
        Reference(
            span_index=index,
            speaker="A",
            origin="same_asset",
            asset_start_s=start,
            asset_end_s=end,
            similarity=None,
            cleanliness=1.0,
            embedding=[1.0],
        )
        for index, start, end in places
    ]
    row = {**row, "clip": {**row["clip"], **span_fields(base)}, "timbre": reference_fields(references, 2)}
    found = cut_stage(context, tmp_path).measure(row)
    sound, rate_hz = soundfile.read(io.BytesIO(left(tmp_path, found)["refs.flac"]))
    whole = context.media.audio(ball, rate_hz=SPEECH_RATE_HZ)
    assert (rate_hz, sound.ndim) == (SPEECH_RATE_HZ, 1)
    first = 0
    for place, (index, start, end) in zip(found["references"], places, strict=True):
        count = round((end - start) * SPEECH_RATE_HZ)
        assert place == {"span_index": index, "first_sample": first, "num_samples": count}
        begin = round((start - float(whole.start)) * SPEECH_RATE_HZ)
        np.testing.assert_allclose(sound[first : first + count], whole.samples[begin : begin + count], atol=2 / 2**15)
        first += count
    assert len(sound) == first
    context.media.close()


@pytest.mark.slow
def test_a_source_is_hashed_only_if_it_was_written_to(
    tmp_path: Path, ball: Path, make_row: Any, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, stage = whole_clip(ball, make_row), cut_stage(context, tmp_path)
    hashed: list[Path] = []

    def watched(path: Path) -> tuple[str, int]:
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr("stages.cut.sha256_of", watched)
    first = stage.measure(row)
    assert hashed == []
    os.utime(ball, ns=(1, 1))
    assert stage.measure(row) == first == stage.measure(row)
    assert hashed == [ball], "once for all clips of an asset"
    data = bytearray(ball.read_bytes())
    data[len(data) // 2] ^= 1
    ball.write_bytes(bytes(data))
    with pytest.raises(MediaError, match="has changed since it was measured") as caught:
        stage.measure(row)
    assert caught.value.reason == "source_changed"
    ball.unlink()
    with pytest.raises(MediaError) as caught:
        stage.measure(row)
    assert caught.value.reason == "file_missing"
    context.media.close()


def test_settings_that_moved_here_are_named() -> None:
    for old, new in {
        "sync_repair.enabled=true": "sync_repair",
        "pack.crf=20": "crf",
        "pack.allow_copy=false": "allow",
    }.items():
        with pytest.raises(RecipeError, match=rf"is now a setting of the stage that cuts\. Call it stages\.cut\.{new}"):
            load_recipe("quickstart", [old])


def test_repair_needs_the_stage_that_measures_sync() -> None:
    recipe = load_recipe("quickstart", ["stages.cut.sync_repair.enabled=true"])
    stages = {name: config for name, config in recipe.stages.items() if name not in ("sync", "caption")}
    blind = recipe.model_copy(update={"stages": stages, "gates": {}})
    with pytest.raises(PlanError, match="stage 'cut' reads sync, which no earlier stage adds"):
        make_plan(blind)
    still = blind.model_copy(update={"stages": {**stages, "cut": {}}})
    assert make_plan(still).cutter is not None


def test_what_a_cut_hangs_on_decides_whether_it_is_made_again() -> None:
    """Without repair a caption changes nothing about the media; with it, the caption is part of what is stated anew."""

    def hash_of(*overrides: str) -> str:
        cutter = make_plan(load_recipe("quickstart", overrides)).cutter
        assert cutter is not None
        return cutter.hash

    darker, repair = "stages.caption.dark_below=0.3", "stages.cut.sync_repair.enabled=true"
    assert hash_of(darker) == hash_of()
    assert len({hash_of(), hash_of(repair), hash_of(repair, darker), hash_of("stages.cut.crf=20")}) == 4
    assert hash_of("stages.timbre.max_s=9") != hash_of()


@pytest.mark.slow
def test_a_clip_of_a_long_source_costs_what_one_of_a_short_source_costs(
    tmp_path: Path, make_row: Any, context: Context
) -> None:
    """Clips of an asset come together; its sound is decoded once for all of them."""
    cost_s = {}
    for length_s in (10, 40):
        ball_clip(tmp_path / f"{length_s}.mp4", duration_s=length_s, encoding=Encoding(160, 96), seed=3)
        row, stage = whole_clip(tmp_path / f"{length_s}.mp4", make_row), cut_stage(context, tmp_path)
        ticks = row["clip"]["tb_den"] // row["clip"]["tb_num"] * 2
        begin_s, begin_cpu_s = time.process_time(), context.media.cpu_s
        for number in range(length_s // 2):
            span = Span(number * ticks, (number + 1) * ticks, row["clip"]["tb_num"], row["clip"]["tb_den"])
            stage.measure({**row, "clip": {**row["clip"], **span_fields(span), "clip_id": f"c{number:04d}"}})
        spent_s = time.process_time() - begin_s + context.media.cpu_s - begin_cpu_s
        cost_s[length_s] = spent_s / (length_s // 2)
    assert cost_s[40] < 1.3 * cost_s[10], cost_s
    context.media.close()
