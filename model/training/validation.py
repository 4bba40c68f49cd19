"""The loss on clips that are not trained on: the same clips, noise and noise levels every time, at any number of ranks.

Clips are drawn once from the split by the recipe's seed, laid into packs, and the packs shared out over the ranks. Clip i
of n is noised to the level that training stays below in (i + 1/2)/n of all draws, so every level is seen in proportion; all
modes are off (no text, voice or frame is dropped or given). Some clips can also be generated, from a noise of their own,
and scored where codecs turn them into media.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from model.data.index import ShardIndex
from model.data.reader import SampleReader, open_shards
from model.encoding.latents import read_latents
from model.encoding.online import open_index
from model.network.flow import FlowObjective, Noised, clip_generators
from model.network.tokens import Sample, pack
from model.ranks import World
from model.sampling.config import Guidance
from model.sampling.sample import write_sampled
from model.sampling.sampler import Latents, SampleRequest, sample
from model.training.config import TrainConfig
from model.training.feed import idle_sample
from model.training.losses import Losses, add_losses, losses, no_sums
from model.training.optim import Ema
from model.training.parallel import let_go
from model.training.scoring import MadeClip, SampleScorer
from schemas.errors import DamagedSampleError, PlanError


class ValidationLine(Losses):
    """One line of validation.jsonl, to which the scores of samples come as `samples`, where there are some."""

    step: int
    num_clips: int


def open_validator(config: TrainConfig, folder: Path, world: World, trained: ShardIndex) -> Validator | None:
    """What validates this stage, None where the recipe asks for none.

    Raises PlanError when the split has no clips, is the trained one, or clips are encoded while training, ModelError for
    codecs or networks that samples cannot be scored with.
    """
    if config.validation.every_steps is None:
        return None
    split = config.validation.split
    if config.data.online is not None:
        raise PlanError(
            "validation reads latent shards, but data.online encodes clips while training.",
            remedy="Encode them with `nava-train encode`, or remove validation.every_steps.",
        )
    if split == config.data.split or config.data.split is None:
        raise PlanError(
            f"validation.split {split!r} is trained on (data.split: {config.data.split}).",
            remedy="Set data.split to train, or validation.split to another one.",
        )
    index = open_index(config.data.model_copy(update={"split": split}))
    if not len(index):
        raise PlanError(
            f"no clip of the {len(trained)} trained ones' shards is of the split {split!r}.",
            remedy="Pack with a pack.validation_fraction above 0, or remove validation.every_steps.",
        )
    return Validator(config, folder / "generated", world, index)


class Validator:
    """Holds which clips are looked at; reads them anew each time, so that they cost no memory in between."""

    def __init__(self, config: TrainConfig, folder: Path, world: World, index: ShardIndex) -> None:
        self._config, self._folder, self._world = config, folder, world
        self._objective, self._network = FlowObjective(config.flow), config.network.network()
        self._reader = SampleReader(index, open_shards(config.data.shards), verify=config.data.has_checksums)
        tokens = index.video_tokens.astype(np.int64) + index.audio_tokens
        fitting = np.flatnonzero(tokens <= config.plan.token_budget)
        drawn = np.random.default_rng(config.seed).permutation(fitting)[: config.validation.num_clips]
        self.rows = [int(row) for row in drawn]
        self.packs = _packs(self.rows, [int(tokens[row]) for row in self.rows], config.plan.token_budget)
        self._levels = dict(zip(self.rows, self._objective.even_indices(len(self.rows)), strict=True))
        is_scoring = config.validation.codecs is not None and world.is_first
        self._scorer = SampleScorer(config.validation, self._network, world.device) if is_scoring else None

    @torch.no_grad()
    def measure(self, model: Any, step: int) -> ValidationLine:
        """The line of this step, the same on all ranks, which all call it. Damaged clips are left out, and counted."""
        sums, counted = no_sums(), 0
        for round_ in range(math.ceil(len(self.packs) / self._world.size)):
            mine = round_ * self._world.size + self._world.rank
            noised = self._noised(self.packs[mine] if mine < len(self.packs) else [])
            packed = pack(noised.samples, self._network).to(self._world.device)
            timesteps = noised.timesteps.to(self._world.device)
            terms = self._objective.loss(model(packed, timesteps), noised)
            if noised.samples[0].clip_id:
                add_losses(sums, timesteps, terms)
                counted += len(noised.samples)
        let_go(model)
        total = torch.from_numpy(np.append(sums.ravel(), counted))
        dist.all_reduce(total, group=self._world.control)
        sums = total[:-1].numpy().reshape(sums.shape)
        flow = self._config.flow
        line: ValidationLine = {
            "step": step,
            "num_clips": int(total[-1]),
            **losses(sums, flow.video_weight, flow.audio_weight),
        }
        if self._world.is_first:
            print(_text(line, len(self.rows)), flush=True)
        return line

    def generate(self, model: Any, ema: Ema | None, step: int) -> dict[str, float | None]:
        """Generate the first clips from noise, by the average of the weights where one is kept; every rank calls it.

        Each gets the caption and voices of its clip and a noise of its own that stays the same; latents of `step` end up in
        generated/step-N/CLIP.safetensors. All ranks compute the same, because weights are gathered for all together.
        Returned are the means by metric, on the first rank and where the recipe has codecs.
        """
        settings, flow, distill = self._config.validation, self._config.flow, self._config.distill
        made: list[MadeClip] = []
        let_go(model)
        with ema.swapped() if ema is not None else nullcontext():
            for number, row in enumerate(self.rows[: settings.num_samples]):
                try:
                    clip = read_latents(self._reader.read(row))
                except DamagedSampleError:  # told of by `measure`
                    continue
                request = SampleRequest(
                    text=clip.text,
                    negative_text=clip.text[:0],
                    placeholders=clip.placeholders,
                    speakers=clip.speakers,
                    video_grid=None if clip.video is None else _grid(clip.video),
                    num_audio_latents=0 if clip.audio is None else len(clip.audio),
                    num_steps=settings.sample_steps if distill is None else distill.student_steps,
                    shift=flow.shift,
                    solver="unipc" if distill is None else "few_steps",
                    seed=number,
                    guidance=Guidance(),
                )
                latents = sample(model, request)
                let_go(model)
                if self._world.is_first:
                    path = self._folder / f"step-{step:08d}" / f"{clip.clip_id}.safetensors"
                    try:
                        write_sampled(path, latents, number)
                    except OSError as error:
                        print(f"{path} cannot be written ({error.strerror})", flush=True)
                if self._scorer is not None:
                    has_voice = any(voice is not None for voice in clip.speakers or ())
                    made.append(MadeClip(clip.clip_id, has_voice, Latents(clip.video, clip.audio), latents))
        return {} if self._scorer is None else self._scorer.score(made, self._folder, step)

    def _noised(self, rows: list[int]) -> Noised:
        """A pack ready for the network; of one idle sample without a name where there is nothing to look at."""
        clips: list[Sample] = []
        levels: list[int] = []
        for row in rows:
            try:
                clips.append(read_latents(self._reader.read(row)))
                levels.append(self._levels[row])
            except DamagedSampleError as error:
                print(f"a clip of validation is damaged: {error}", flush=True)
        if not clips:
            clips, levels = [idle_sample(self._network)], [0]
        generators = clip_generators(self._config.seed, 0, [clip.clip_id for clip in clips])
        return self._objective.noise(clips, generators, levels)


def _grid(video: Tensor) -> tuple[int, int, int]:
    _, frames, height, width = video.shape
    return frames, height, width


def _packs(rows: list[int], tokens: list[int], token_budget: int) -> list[list[int]]:
    """The rows in order, as many to a pack as the budget holds."""
    packs: list[list[int]] = []
    room = 0
    for row, needed in zip(rows, tokens, strict=True):
        if needed > room:
            packs.append([])
            room = token_budget
        packs[-1].append(row)
        room -= needed
    return packs


def _text(line: ValidationLine, num_asked: int) -> str:
    kinds = {"video": line["loss_video"], "audio": line["loss_audio"]}
    by_kind = ", ".join(f"{kind} {value:.4f}" for kind, value in kinds.items() if value is not None)
    loss = "-" if line["loss"] is None else f"{line['loss']:.4f} ({by_kind})"
    return f"step {line['step']}  held-out loss {loss} of {line['num_clips']} of {num_asked} clips"
