"""Encoding ahead of the trainer instead of storing latents: frozen networks in processes of their own.

Loader threads hand clips to the processes and wait; the loader's bounded prefetch is the queue. The plan is made from
what encoding will yield, reckoned from the curated index with the arithmetic that encoding itself uses.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.index import ShardIndex, open_curated, open_latents
from model.data.reader import RawSample
from model.encoding.config import DataConfig, EncodeConfig
from model.encoding.encode import ClipEncoder, bucket_of, windows_of
from model.encoding.latents import read_latents, write_latents
from model.network.config import NavaConfig
from model.network.tokens import Sample
from schemas.budget import FRAME_RATE_HZ, audio_tokens, latent_frames, paired_audio_tokens, video_tokens
from schemas.errors import DamagedSampleError, ItemError, ModelError
from schemas.shard import LATENT_MEMBER

_open_networks: Callable[[], ClipEncoder] | None = None
"""How an encoder process opens the frozen networks; nothing outside such a process sets it."""


def open_index(data: DataConfig) -> ShardIndex:
    """The index a stage is planned from: that of its latent shards, or the curated one as encoding will shape it.

    Raises ShardError when the shards follow another contract.
    """
    if data.online is None:
        return open_latents(data.index_path, split=data.split)
    return planned_index(open_curated(data.index_path, split=data.split), data.online)


def planned_index(index: ShardIndex, config: EncodeConfig) -> ShardIndex:
    """Rows whose first window can be trained on, with the tokens of that window.

    Windows and buckets are reckoned once for every number of frames and every size there is. Cost: 0.15 us
    a row, and 0.1 ms a file.
    """
    facts = index.numbers("duration_s", "height_px", "width_px")
    frames = np.clip(_whole_frames(facts["duration_s"]), 0, config.max_frames)
    length_FV = _first_windows(int(frames.max(initial=0)), config)
    num_frames = length_FV[frames, index.has_video.astype(np.int8)]
    rows = np.flatnonzero(num_frames)
    num_frames, has_video = num_frames[rows], index.has_video[rows]
    lengths = range(1, int(num_frames.max(initial=0)) + 1)
    latents, paired, alone = (
        np.array([0, *map(count, lengths)])
        for count in (latent_frames, paired_audio_tokens, lambda n: audio_tokens(n / FRAME_RATE_HZ))
    )
    per_latent = np.zeros(len(rows), np.int64)
    per_latent[has_video] = _tokens_per_latent(
        facts["height_px"][rows][has_video], facts["width_px"][rows][has_video], config
    )
    audio = np.where(has_video, paired[num_frames], alone[num_frames]) * index.has_audio[rows]
    return index.planned_as(rows, (per_latent * latents[num_frames]).astype(np.int32), audio.astype(np.int32))


def _whole_frames(duration_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Frames that fit each duration, the last one counting when it lacks less than half a millionth.

    So does `windows_of` by rounding to six digits. The distance to the next whole number is exact in float64 and never
    equals 5e-7, so both agree on every duration.
    """
    exact = duration_s.astype(np.float64) * FRAME_RATE_HZ
    whole = np.floor(exact)
    return (whole + (whole + 1 - exact < 5e-7)).astype(np.int64)


def _first_windows(most_frames: int, config: EncodeConfig) -> NDArray[np.int64]:
    """[most_frames + 1, 2] frames of the first window of a clip of so many frames, without and with a picture; 0: none."""
    windows = (
        windows_of(n / FRAME_RATE_HZ, has_video, config) for n in range(most_frames + 1) for has_video in (False, True)
    )
    return np.array([found[0].num_frames if found else 0 for found in windows], np.int64).reshape(-1, 2)


def _tokens_per_latent(
    height_px: NDArray[np.int32], width_px: NDArray[np.int32], config: EncodeConfig
) -> NDArray[np.int64]:
    """Video tokens of one latent time step of each clip, brought to its bucket."""
    sizes, size_of_row = np.unique(height_px.astype(np.int64) << 32 | width_px, return_inverse=True)
    tokens = [
        video_tokens(1, *bucket_of({"has_video": True, "height_px": size >> 32, "width_px": size & 0xFFFFFFFF}, config))
        for size in sizes.tolist()
    ]
    return np.array(tokens, np.int64)[size_of_row]


class OnlineEncoder:
    """Turns a curated shard's sample into latents, in one of `num_processes` processes. Call it from loader threads.

    Raises ModelError at once when the frozen networks cannot be opened, or do not fit the network or the clips.
    """

    def __init__(self, config: EncodeConfig, network: NavaConfig, index: ShardIndex, num_processes: int) -> None:
        self._index = index
        kinds = {"has_video": bool(index.has_video.any()), "has_audio": bool(index.has_audio.any())}
        open_networks = partial(ClipEncoder, config.model_copy(update={"max_windows": 1}), network, **kinds)
        self._pool = ProcessPoolExecutor(
            num_processes, multiprocessing.get_context("spawn"), initializer=_start, initargs=(open_networks,)
        )
        opening = self._pool.submit(_check)
        if opening.exception() is not None:
            self.close()
        opening.result()

    def __call__(self, raw: RawSample) -> Sample:
        """The first window of the clip. Raises DamagedSampleError for a clip that cannot be encoded."""
        members = {name: bytes(view) for name, view in raw.members.items()}
        data, reason = self._pool.submit(_encode, raw.clip_id, raw.row, members, self._index.values(raw.row)).result()
        if data is None:
            raise DamagedSampleError(f"{raw.clip_id}: {reason}")
        return read_latents(RawSample(raw.clip_id, raw.row, {LATENT_MEMBER: memoryview(data)}))

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


def _start(open_networks: Callable[[], ClipEncoder]) -> None:
    import torch

    global _open_networks  # noqa: PLW0603 (the process exists to hold it)
    torch.set_num_threads(1)
    _open_networks = cache(open_networks)


def _check() -> None:
    """Raises ModelError where the networks of this process cannot be opened: in its initializer nobody would read it."""
    assert _open_networks is not None, "the pool's initializer ran"
    _open_networks()


def _encode(clip_id: str, row: int, members: dict[str, bytes], facts: dict[str, Any]) -> tuple[bytes | None, str]:
    assert _open_networks is not None, "the pool's initializer ran"
    raw = RawSample(clip_id, row, {name: memoryview(data) for name, data in members.items()})
    encoder = _open_networks()
    try:
        return write_latents(next(encoder.encode(raw, facts)).sample), ""
    except (ItemError, ModelError) as error:
        return None, str(error)
