"""Encoding ahead of the trainer instead of storing latents: frozen networks in processes of their own.

Loader threads hand clips to the processes and wait; the loader's bounded prefetch is the queue. The plan is made from
what encoding will yield, reckoned from the curated index with the arithmetic that encoding itself uses.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from model.data.index import ShardIndex
from model.data.reader import RawSample
from model.encoding.config import DataConfig, EncodeConfig
from model.encoding.encode import ClipEncoder, bucket_of, windows_of
from model.encoding.latents import read_latents, write_latents
from model.network.config import NavaConfig
from model.network.tokens import Sample
from schemas.budget import FRAME_RATE_HZ, audio_tokens, paired_audio_tokens, video_tokens
from schemas.errors import DamagedSampleError, ItemError, ModelError

_encoder: ClipEncoder | None = None
"""The frozen networks of an encoder process; nothing outside such a process sets it."""


def open_index(data: DataConfig) -> ShardIndex:
    """The index a stage is planned from: that of its latent shards, or the curated one as encoding will shape it."""
    index = ShardIndex.open(data.index_path, split=data.split)
    return index if data.online is None else planned_index(index, data.online)


def planned_index(index: ShardIndex, config: EncodeConfig) -> ShardIndex:
    """Rows whose first window can be trained on, with the tokens of that window. Cost: 20 us a row."""
    rows, video, audio = [], [], []
    for row in range(len(index)):
        facts = index.values(row)
        windows = windows_of(facts["duration_s"], facts["has_video"], config)
        if not windows:
            continue
        rows.append(row)
        num_frames = windows[0].num_frames
        video.append(video_tokens(num_frames, *bucket_of(facts, config)) if facts["has_video"] else 0)
        paired = paired_audio_tokens(num_frames) if facts["has_video"] else audio_tokens(num_frames / FRAME_RATE_HZ)
        audio.append(paired if facts["has_audio"] else 0)
    table = index.table.take(pa.array(rows, pa.int64()))
    for name, counts in (("video_tokens", video), ("audio_tokens", audio)):
        column = pa.array(np.array(counts, np.int32))
        table = table.set_column(table.column_names.index(name), name, column)
    return ShardIndex.from_table(table)


class OnlineEncoder:
    """Turns a curated shard's sample into latents, in one of `num_processes` processes. Call it from loader threads."""

    def __init__(self, config: EncodeConfig, network: NavaConfig, index: ShardIndex, num_processes: int) -> None:
        self._index = index
        self._config = config.model_copy(update={"max_windows": 1})
        self._pool = ProcessPoolExecutor(
            num_processes, multiprocessing.get_context("spawn"), initializer=_open, initargs=(self._config, network)
        )

    def __call__(self, raw: RawSample) -> Sample:
        """The first window of the clip. Raises DamagedSampleError for a clip that cannot be encoded."""
        members = {name: bytes(view) for name, view in raw.members.items()}
        data, reason = self._pool.submit(_encode, raw.clip_id, raw.row, members, self._index.values(raw.row)).result()
        if data is None:
            raise DamagedSampleError(f"{raw.clip_id}: {reason}")
        return read_latents(RawSample(raw.clip_id, raw.row, {"safetensors": memoryview(data)}))

    def close(self) -> None:
        """End the processes; clips in work are finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def open_decoder(
    data: DataConfig, network: NavaConfig, index: ShardIndex
) -> tuple[Callable[[RawSample], Sample], Callable[[], None]]:
    """(what turns a shard's sample into latents, what to call when done): reading them, or encoding in processes."""
    if data.online is None:
        return read_latents, lambda: None
    encoder = OnlineEncoder(data.online, network, index, data.num_encoders)
    return encoder, encoder.close


def _open(config: EncodeConfig, network: NavaConfig) -> None:
    import torch

    global _encoder  # noqa: PLW0603 (the process exists to hold it)
    torch.set_num_threads(1)
    _encoder = ClipEncoder(config, network)


def _encode(clip_id: str, row: int, members: dict[str, bytes], facts: dict[str, Any]) -> tuple[bytes | None, str]:
    assert _encoder is not None, "the pool's initializer ran"
    raw = RawSample(clip_id, row, {name: memoryview(data) for name, data in members.items()})
    try:
        return write_latents(next(_encoder.encode(raw, facts)).sample), ""
    except (ItemError, ModelError) as error:
        return None, str(error)
