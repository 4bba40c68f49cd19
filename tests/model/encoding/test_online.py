"""The plan of clips that are encoded online: reckoned for the whole index, equal to reckoning clip by clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.data.batching import EpochPlan
from model.data.index import ShardIndex
from model.data.plan_config import PlanConfig
from model.encoding.config import EncodeConfig
from model.encoding.encode import bucket_of, windows_of
from model.encoding.online import planned_index
from schemas.budget import FRAME_RATE_HZ, NAVA_6B, RESOLUTIONS, audio_tokens, paired_audio_tokens, video_tokens


def index_of(clips: list[dict[str, Any]]) -> ShardIndex:
    numbers = ("text_tokens", "sample_offset", "sample_bytes", "crc32")
    rows = [
        {
            "clip_id": f"clip{number:04d}",
            "shard": f"{number // 7:05d}.tar",
            "source": "s",
            "video_tokens": 1,
            "audio_tokens": 1,
            **dict.fromkeys(numbers, number),
            **clip,
        }
        for number, clip in enumerate(clips)
    ]
    sizes = [("height_px", pa.int32()), ("width_px", pa.int32())]
    flags = [("has_video", pa.bool_()), ("has_audio", pa.bool_())]
    counts = [(name, pa.int32()) for name in ("video_tokens", "audio_tokens", "text_tokens")]
    names = [(name, pa.string()) for name in ("clip_id", "shard", "source")]
    places = [(name, pa.int64()) for name in numbers[1:]]
    schema = pa.schema([*names, ("duration_s", pa.float64()), *sizes, *flags, *counts, *places])
    return ShardIndex.from_table(pa.Table.from_pylist(rows, schema=schema))


def planned_by_clip(index: ShardIndex, config: EncodeConfig) -> list[dict[str, Any]]:
    """Rows of the planned index, one clip after the other: the definition that the fast form is held against."""
    planned = []
    for row in range(len(index)):
        facts = index.values(row)
        windows = windows_of(facts["duration_s"], facts["has_video"], config)
        if not windows:
            continue
        num_frames = windows[0].num_frames
        video = video_tokens(num_frames, *bucket_of(facts, config)) if facts["has_video"] else 0
        paired = paired_audio_tokens(num_frames) if facts["has_video"] else audio_tokens(num_frames / FRAME_RATE_HZ)
        planned.append(facts | {"video_tokens": video, "audio_tokens": paired if facts["has_audio"] else 0})
    return planned


frame_edges = st.builds(
    lambda frames, off: max(0.0, (frames + off) / FRAME_RATE_HZ),
    st.integers(0, 300),
    st.sampled_from([0.0, -5e-7, 5e-7, -4.999e-7, -5.001e-7, -1e-6, -1e-9, 1e-9, 0.5]),
)
clips = st.fixed_dictionaries(
    {
        "duration_s": st.one_of(st.floats(0, 3000), frame_edges),
        "has_video": st.booleans(),
        "has_audio": st.booleans(),
        "height_px": st.integers(1, 5000),
        "width_px": st.integers(1, 5000),
    }
)
configs = st.builds(
    EncodeConfig,
    codecs=st.just(Path("codecs")),
    max_frames=st.integers(1, 500),
    min_frames=st.integers(1, 60),
    max_windows=st.integers(1, 3),
    resolution=st.sampled_from([None, *RESOLUTIONS]),
)


@settings(max_examples=150)
@given(st.lists(clips, min_size=1, max_size=40), configs)
@example(
    [{"duration_s": 0.1, "has_video": True, "has_audio": True, "height_px": 9, "width_px": 9}],
    EncodeConfig(codecs=Path("c")),
)
@pytest.mark.slow
def test_the_plan_is_that_of_reckoning_clip_by_clip(found: list[dict[str, Any]], config: EncodeConfig) -> None:
    index = index_of(found)
    planned, expected = planned_index(index, config), planned_by_clip(index, config)
    assert planned.table.to_pylist() == expected
    assert [planned.values(row) for row in range(len(planned))] == expected
    assert planned.video_tokens.tolist() == [row["video_tokens"] for row in expected]
    assert planned.audio_tokens.tolist() == [row["audio_tokens"] for row in expected]
    assert planned.text_tokens.tolist() == [row["text_tokens"] for row in expected]
    assert planned.has_video.tolist() == [row["has_video"] for row in expected]
    assert [planned.location(row).shard for row in range(len(planned))] == [row["shard"] for row in expected]
    assert planned.digest != index.digest
    assert planned_index(index, config).digest == planned.digest


@pytest.mark.slow
def test_settings_that_change_the_plan_change_its_identity() -> None:
    rng = np.random.default_rng(0)
    index = index_of(
        [
            {"duration_s": float(s), "has_video": True, "has_audio": True, "height_px": 720, "width_px": 1280}
            for s in rng.uniform(1, 8, 60)
        ]
    )
    base = EncodeConfig(codecs=Path("codecs"))
    digests = {
        planned_index(index, config).digest
        for config in (
            base,
            *(base.model_copy(update=u) for u in ({"max_frames": 81}, {"min_frames": 61}, {"resolution": 256})),
        )
    }
    assert len(digests) == 4
    other = base.model_copy(update={"codecs": Path("elsewhere"), "device": "cuda"})
    assert planned_index(index, other).digest in digests, "where networks lie and run changes no plan"
    plan = EpochPlan(planned_index(index, base), PlanConfig(num_packs=2, token_budget=60_000), NAVA_6B)
    assert next(plan.stream())[0].items
