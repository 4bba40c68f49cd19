"""The training objective: flow matching from noise (sigma 1) to data (sigma 0). B samples, K = 1000 grid points.

    x_t = (1 - sigma) x0 + sigma noise        target v = noise - x0        t = 1000 sigma
    L   = mean of w(t) |v_video - target|^2  +  0.2 * mean of w(t) |v_audio - target|^2

One sigma per sample, shared by its video and audio. `FlowConfig` holds every choice; `FlowConfig.official()` trains as the
release does, the defaults correct it where it has defects, and each correction can be switched off alone.
All random numbers come from one generator per clip (`clip_generators`), so a sample's modes, noise and timestep depend on
(seed, epoch, clip) and not on its neighbours, the number of ranks or the order of work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from model.network.flow_config import FlowConfig
from model.network.tokens import Sample, Velocity

NUM_STEPS = 1000
SIGMA_MIN = 0.003 / 1.002
"""Last grid point before the shift (it is left out itself), the constant of the release's scheduler."""


@dataclass(frozen=True)
class Noised:
    """A batch ready for the network: samples that carry x_t, their timesteps and what the velocity should be."""

    samples: list[Sample]
    timesteps: Tensor  # float32 [B]
    weights: Tensor  # float32 [B]
    video_targets: list[Tensor | None]
    audio_targets: list[Tensor | None]


class LossTerms(NamedTuple):
    """Per sample [B]: mean squared errors (0 where the modality is absent or unscored), weights, shares of the mean.

    The loss of a step is sum(weight * share * mse) / sum(share) per modality; the divisors are sums over all ranks.
    """

    video_mse: Tensor
    audio_mse: Tensor
    weights: Tensor
    video_shares: Tensor
    audio_shares: Tensor

    def divisors(self) -> Tensor:
        """[sum of video shares, sum of audio shares] of this pack; add them up over micro-steps and ranks."""
        return torch.stack([self.video_shares.sum(), self.audio_shares.sum()])

    def without_first(self, num_samples: int) -> LossTerms:
        """The same without the first samples."""
        return LossTerms(*(term[num_samples:] for term in self))


class FlowObjective:
    """Draws modes, noise and timesteps, and measures the loss."""

    def __init__(self, config: FlowConfig) -> None:
        self.config = config
        self.sigmas = sigma_grid(config.shift)
        self.weights = timestep_weights(self.sigmas)

    def sample_modes(self, samples: Sequence[Sample], generators: Sequence[torch.Generator]) -> list[Sample]:
        """The samples with first-frame mode, cross-modal masking, text and timbre dropout drawn, one generator each.

        Only what applies is set: masking needs both modalities, a clean first frame a second frame to predict.
        """
        config = self.config
        draws = [_uniform(generator, 3) for generator in generators]
        drops_text = [draw[2] < config.text_dropout_prob for draw in draws]
        if not config.drop_all_text and all(drops_text):
            drops_text[0] = False
        moded = []
        for sample, draw, drop_text, generator in zip(samples, draws, drops_text, generators, strict=True):
            first_frame, mask, _ = draw if config.modes_per_sample else draws[0]
            has_frames = sample.video is not None and sample.video.shape[1] > 1
            has_both = sample.video is not None and sample.audio is not None
            changed = replace(
                sample,
                is_first_frame_clean=has_frames and first_frame < config.clean_first_frame_prob,
                is_cross_modal_masked=has_both and mask < config.cross_modal_mask_prob,
                speakers=self._drop_voices(sample.speakers, generator),
            )
            moded.append(without_text(changed) if drop_text else changed)
        return moded

    def noise(
        self, samples: Sequence[Sample], generators: Sequence[torch.Generator], indices: Sequence[int] | None = None
    ) -> Noised:
        """x_t, targets, timesteps and weights for clean samples, one generator each; at given grid points, if any."""
        indices = [self._draw_index(generator) for generator in generators] if indices is None else list(indices)
        noised, videos, audios = [], [], []
        for sample, index, generator in zip(samples, indices, generators, strict=True):
            sigma = float(self.sigmas[index])
            video_t, video_target = self._noise_latent(sample.video, sigma, generator)
            audio_t, audio_target = self._noise_latent(sample.audio, sigma, generator)
            if sample.is_first_frame_clean and video_t is not None and sample.video is not None:
                video_t = torch.cat([sample.video[:, :1].to(video_t.dtype), video_t[:, 1:]], dim=1)
            noised.append(replace(sample, video=video_t, audio=audio_t))
            videos.append(video_target)
            audios.append(audio_target)
        drawn = torch.tensor(indices)
        weights = torch.ones(len(indices)) if self.config.importance_sampling else self.weights[drawn].float()
        return Noised(noised, (self.sigmas[drawn] * NUM_STEPS).float(), weights, videos, audios)

    def loss(self, velocity: Velocity, noised: Noised) -> LossTerms:
        """Errors and weights of every sample; combine them with `total`."""
        B, first = len(noised.samples), next(v for v in [*velocity.video, *velocity.audio] if v is not None)
        errors = {"video": [first.new_zeros(())] * B, "audio": [first.new_zeros(())] * B}
        for i, sample in enumerate(noised.samples):
            skip = self._num_unscored_frames(sample)
            video, video_target = velocity.video[i], noised.video_targets[i]
            audio, audio_target = velocity.audio[i], noised.audio_targets[i]
            if video is not None and video_target is not None:
                errors["video"][i] = _squared_error(video[:, skip:], video_target[:, skip:])
            if audio is not None and audio_target is not None:
                errors["audio"][i] = _squared_error(audio, audio_target)
        shares = self.shares(noised.samples).to(first.device)
        return LossTerms(
            video_mse=torch.stack(errors["video"]),
            audio_mse=torch.stack(errors["audio"]),
            weights=noised.weights.to(first.device),
            video_shares=shares[0],
            audio_shares=shares[1],
        )

    def shares(self, samples: Sequence[Sample]) -> Tensor:
        """[2, B] float64, video and audio: how much each sample counts in the mean of its modality.

        Known as soon as modes are drawn, so the divisors of a step can be summed over ranks before its first forward.
        """
        if self.config.mean_over == "samples":
            return torch.ones(2, len(samples), dtype=torch.float64)
        video = [s.video[0, self._num_unscored_frames(s) :].numel() if s.video is not None else 0 for s in samples]
        audio = [len(s.audio) if s.audio is not None else 0 for s in samples]
        return torch.tensor([video, audio], dtype=torch.float64)

    def _num_unscored_frames(self, sample: Sample) -> int:
        return 1 if sample.is_first_frame_clean and not self.config.score_clean_frame else 0

    def total(self, terms: LossTerms, divisors: Tensor | None = None) -> Tensor:
        """The scalar to differentiate. `divisors` are the sums of `terms.divisors()` over everything that makes one step,
        so that the gradients of all packs and ranks simply add up; by default those of this pack alone."""
        video_divisor, audio_divisor = (terms.divisors() if divisors is None else divisors).clamp(min=1).unbind()
        video = (terms.weights * terms.video_shares * terms.video_mse).sum() / video_divisor
        audio = (terms.weights * terms.audio_shares * terms.audio_mse).sum() / audio_divisor
        return self.config.video_weight * video + self.config.audio_weight * audio

    def even_indices(self, num: int) -> list[int]:
        """`num` grid points, descending in sigma, spread evenly over what training draws from."""
        drawn = self.weights if self.config.importance_sampling else torch.ones(NUM_STEPS, dtype=torch.float64)
        levels = (torch.arange(num, dtype=torch.float64) + 0.5) / num
        found = torch.searchsorted(drawn.cumsum(0) / drawn.sum(), levels).clamp(max=NUM_STEPS - 1)
        return [int(index) for index in found]

    def _draw_index(self, generator: torch.Generator) -> int:
        if self.config.importance_sampling:
            weights = self.weights.to(generator.device)
            return int(torch.multinomial(weights, 1, generator=generator))
        return int(torch.randint(NUM_STEPS, (1,), generator=generator, device=generator.device))

    def _noise_latent(
        self, clean: Tensor | None, sigma: float, generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor | None]:
        if clean is None:
            return None, None
        dtype = torch.bfloat16 if self.config.round_to_bfloat16 else torch.float32
        clean = clean.to(dtype)
        noise = torch.randn(clean.shape, generator=generator, device=generator.device).to(clean.device, dtype)
        return interpolate(clean.float(), noise.float(), sigma), noise - clean

    def _drop_voices(
        self, speakers: Sequence[Tensor | None] | None, generator: torch.Generator
    ) -> Sequence[Tensor | None] | None:
        if not speakers:
            return speakers
        draws = _uniform(generator, len(speakers))
        return [None if draw < self.config.timbre_dropout_prob else s for s, draw in zip(speakers, draws, strict=True)]


def sigma_grid(shift: float = 5.0) -> Tensor:
    """sigmas_K, float64, descending from 1: linspace(1, 0.003/1.002, 1001) without its end, s -> shift s/(1 + (shift-1)s)."""
    even = torch.linspace(1.0, SIGMA_MIN, NUM_STEPS + 1, dtype=torch.float64)[:-1]
    return shift * even / (1 + (shift - 1) * even)


def timestep_weights(sigmas: Tensor) -> Tensor:
    """w_K of mean 1: a bell around t = 500, exp(-2((t - 500)/1000)^2), lowered to 0 at its minimum and normalised."""
    bell = torch.exp(-2 * (sigmas - 0.5).square())
    raised = bell - bell.min()
    return raised * len(sigmas) / raised.sum()


def interpolate(clean: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """x_t = (1 - sigma) clean + sigma noise."""
    return (1 - sigma) * clean + sigma * noise


def without_text(sample: Sample) -> Sample:
    """The sample as a caption-free one: no text rows and no voices; every context row is then the image of zero."""
    return replace(sample, text=sample.text[:0], speakers=(), placeholders=())


def clip_generators(
    seed: int, epoch: int, clip_ids: Sequence[str], device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """One generator per clip, seeded by SHA-256 of (seed, epoch, clip id)."""
    digests = (hashlib.sha256(f"{seed}/{epoch}/{clip_id}".encode()).digest() for clip_id in clip_ids)
    return [torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1) for digest in digests]


def _squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    return (predicted.to(dtype) - target.to(predicted.device, dtype)).square().mean()


def _uniform(generator: torch.Generator, num: int) -> list[float]:
    draws: list[float] = torch.rand(num, generator=generator, device=generator.device).tolist()
    return draws
