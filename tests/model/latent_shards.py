"""Latent shards of random samples, a recipe that trains on them, and a way to run a function on several gloo ranks."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.multiprocessing as mp

from model.encoding.latents import num_tokens, write_latents
from model.network.config import NavaConfig
from model.network.flow import NUM_STEPS
from model.network.nava import Nava, pack
from model.network.tokens import Sample
from model.training.config import TrainConfig
from schemas.arrow_file import table_bytes, with_facts
from schemas.shard import CONTRACT_VERSION, LATENT_MEMBER
from schemas.shard_file import ShardWriter

TINY = NavaConfig.preset("nava_tiny")
SHALLOW = {"num_align_layers": 1, "num_fusion_layers": 1}
SMALL = TINY.model_copy(update=SHALLOW)
"""One block of each kind: what most tests train."""


def random_clip(number: int) -> Sample:
    """Every third clip is sound alone; sizes differ; every other one has a voice."""
    generator = torch.Generator().manual_seed(number)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    has_voice = number % 2 == 0
    return Sample(
        f"clip{number:03d}",
        text=draw(3 + number % 5, TINY.text_dim),
        video=None if number % 3 == 0 else draw(TINY.video_channels, 1 + number % 3, 4, 4 + 2 * (number % 2)),
        audio=draw(3 + number % 7, TINY.audio_channels),
        speakers=[draw(TINY.speaker_dim)] if has_voice else [],
        placeholders=[1] if has_voice else [],
    )


def write_latent_shards(
    folder: Path, samples: list[Sample], num_shards: int = 2, held_out: int = 0, *, has_sizes: bool = False
) -> None:
    """`shards/` and `index/` as the encoder leaves them; the last `held_out` samples are for validation.

    Without `has_sizes` every picture is called 64 px wide: plans, whose order depends on the index, stay as tests know them.
    """
    validation = {sample.clip_id for sample in samples[len(samples) - held_out :]}
    (folder / "shards").mkdir(parents=True)
    (folder / "index").mkdir()
    for shard in range(num_shards):
        rows = []
        path = folder / "shards" / f"{shard:05d}.tar"
        with path.open("wb") as file, ShardWriter(file, path.name, (LATENT_MEMBER,)) as out:
            for sample in samples[shard::num_shards]:
                place = out.add(sample.clip_id, {LATENT_MEMBER: write_latents(sample)})
                video, audio, text = num_tokens(sample, (2, 2))
                rows.append(
                    {
                        "clip_id": sample.clip_id,
                        "shard": path.name,
                        "split": "validation" if sample.clip_id in validation else "train",
                        "source": "random",
                        "has_video": sample.video is not None,
                        "has_audio": sample.audio is not None,
                        "duration_s": audio / 25,
                        "width_px": 16 * sample.video.shape[3] if has_sizes and sample.video is not None else 64,
                        "height_px": 64,
                        "video_tokens": video,
                        "audio_tokens": audio,
                        "text_tokens": text,
                        **place.columns(),
                    }
                )
        table = pa.Table.from_pylist(rows)
        table = table.cast(with_facts(table.schema, {"contract_version": str(CONTRACT_VERSION)}))
        (folder / "index" / f"{shard:05d}.arrow").write_bytes(table_bytes(table))


def recipe(folder: Path, /, **changes: Any) -> TrainConfig:
    """A tiny stage that trains SMALL on the shards under `folder`; `changes` replace keys of sections: optim={...}."""
    content: dict[str, Any] = {
        "name": "test",
        "num_steps": 6,
        "network": {"preset": "nava_tiny", "changes": SHALLOW},
        "data": {"shards": str(folder / "shards"), "num_workers": 2},
        "plan": {"num_packs": 4, "token_budget": 60},
        "optim": {"learning_rate": 1e-3, "warmup_steps": 3},
        "parallel": {"precision": "float32", "compile": False, "recompute": "none"},
        "output": {"log_every_steps": 1, "checkpoint_every_steps": 3, "has_tensorboard": False},
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) and key in content else value
    return TrainConfig.model_validate(content)


@torch.no_grad()
def by_euler(model: Nava, state: Sequence[Sample], sigmas: Sequence[float]) -> list[Sample]:
    """What the noise in `state` (samples with picture and sound) becomes, by Euler steps along the falling `sigmas`."""
    for sigma, following in pairwise(sigmas):
        velocity = model(pack(state, model.config), torch.full((len(state),), NUM_STEPS * sigma))
        state = [
            replace(s, video=s.video + (following - sigma) * v, audio=s.audio + (following - sigma) * a)
            for s, v, a in zip(state, velocity.video, velocity.audio, strict=True)
        ]
    return list(state)


def run_ranks(function: Callable[..., None], num_ranks: int, folder: Path, *arguments: Any) -> None:
    """Run `function(rank, *arguments)` on that many gloo ranks, each forked off a process that did nothing but import."""
    multiprocessing.set_forkserver_preload(["tests.model.rank_jobs"])
    store = folder / f"store-{function.__name__}-{num_ranks}"
    mp.start_processes(
        _enter, (function, num_ranks, str(store), arguments), nprocs=num_ranks, start_method="forkserver"
    )


def _enter(rank: int, function: Callable[..., None], num_ranks: int, store: str, arguments: tuple[Any, ...]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
    try:
        function(rank, *arguments)
    finally:
        torch.distributed.destroy_process_group()
