"""Distribution matching (DMD2, Yin et al. 2024, arXiv 2405.14867): what a student generates, and where that is to move.

    x0        what the student makes of noise, in as many of its sampler's passes as are drawn for the step
    x_t       x0 noised anew, to a level as training draws it
    real      x0 out of x_t by the teacher, guided as its sampler guides it
    fake      x0 out of x_t by a network that learns from what the student generates, and so knows its distribution
    target    x0 - (fake - real) / mean |x0 - real|, the mean over each modality of each clip

The squared distance of x0 from its target has the paper's gradient, twice: away from where the student has too many clips,
towards where the teacher has more. The paper's GAN term is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from model.network.flow import NUM_STEPS, Noised, interpolate
from model.network.nava import Nava
from model.network.tokens import Sample, Velocity, pack
from model.sampling.config import Guidance
from model.sampling.sampler import guide, passes_of

LEAST_ERROR = 1e-6
"""Of the teacher at a clip, latents having unit variance: what the division stops at."""


def generate(
    student: Nava, asked: Sequence[Sample], sigmas: Sequence[float], generators: Sequence[torch.Generator]
) -> list[Sample]:
    """Clips of the sizes and conditions of `asked`, on the device of the generators, by the first passes of `FewSteps`.

    sigmas      noise levels of the passes, the first of them 1: of what `asked` holds a given first frame alone remains

    Gradients, where they are enabled, are those of the last pass.
    """
    device = generators[0].device
    clips = [each_latent(sample, lambda latent: latent.to(device)) for sample in asked]
    for number, sigma in enumerate(sigmas, start=1):
        state = [_noised(clip, sigma, generator) for clip, generator in zip(clips, generators, strict=True)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and number == len(sigmas)):
            timesteps = torch.full((len(state),), NUM_STEPS * sigma, device=device)
            clips = predicted(state, student(pack(state, student.config), timesteps), [sigma] * len(state))
    return clips


class Negatives(NamedTuple):
    """Rows of text that a caption is held against, [n, text_dim]; no rows stand for no text."""

    of_pictures: Tensor
    of_sound_alone: Tensor


@torch.no_grad()  # type: ignore[untyped-decorator]
def guided_velocity(
    teacher: Nava, noised: Noised, timesteps: Tensor, guidance: Guidance, negatives: Negatives
) -> Velocity:
    """The teacher's velocity of every sample after guidance.

    Cost: a network call each for the conditions, their negatives, and what `guidance` asks for, whatever the samples are: ranks
    gather weights together.
    """
    samples = noised.samples
    passes = [
        passes_of(
            s,
            negatives.of_sound_alone if s.video is None else negatives.of_pictures,
            guidance,
            has_picture=s.video is not None,
            has_sound=s.audio is not None,
        )
        for s in samples
    ]
    names = ["conditional", "negative"]
    names += ["masked"] * guidance.has_alignment + ["voiceless"] * guidance.has_timbre
    outputs = {
        name: teacher(pack([each.get(name, each["conditional"]) for each in passes], teacher.config), timesteps)
        for name in names
    }
    guided = [
        guide({name: (outputs[name].video[i], outputs[name].audio[i]) for name in each}, guidance)
        for i, each in enumerate(passes)
    ]
    return Velocity([video for video, _ in guided], [audio for _, audio in guided])


@torch.no_grad()  # type: ignore[untyped-decorator]
def matched(clips: Sequence[Sample], noised: Noised, real: Velocity, fake: Velocity) -> Noised:
    """The batch with the targets of x0 instead of those of the velocity.

    real, fake      velocities of the guided teacher and the fake network at `noised`, which is `clips` with noise
    """
    sigmas = (noised.timesteps / NUM_STEPS).tolist()
    of_both = [predicted(noised.samples, velocity, sigmas) for velocity in (real, fake)]
    videos, audios = [], []
    for clip, by_teacher, by_fake in zip(clips, *of_both, strict=True):
        videos.append(_target(clip.video, by_teacher.video, by_fake.video, int(clip.is_first_frame_clean)))
        audios.append(_target(clip.audio, by_teacher.audio, by_fake.audio))
    return replace(noised, video_targets=videos, audio_targets=audios)


def predicted(noised: Sequence[Sample], velocity: Velocity, sigmas: Sequence[float]) -> list[Sample]:
    """x0 = x_t - sigma v of every sample; a given first frame stays."""
    clips = []
    for sample, video_v, audio_v, sigma in zip(noised, *velocity, sigmas, strict=True):
        video = None if sample.video is None or video_v is None else sample.video - sigma * video_v
        audio = None if sample.audio is None or audio_v is None else sample.audio - sigma * audio_v
        clips.append(_with_given_frame(replace(sample, video=video, audio=audio), sample))
    return clips


def each_latent(sample: Sample, change: Callable[[Tensor], Tensor]) -> Sample:
    """The sample with `change` made to its latents."""
    video, audio = (None if latent is None else change(latent) for latent in (sample.video, sample.audio))
    return replace(sample, video=video, audio=audio)


def _noised(clip: Sample, sigma: float, generator: torch.Generator) -> Sample:
    def change(latent: Tensor) -> Tensor:
        noise = torch.randn(latent.shape, generator=generator, device=generator.device)
        return interpolate(latent, noise, sigma)

    return _with_given_frame(each_latent(clip, change), clip)


def _with_given_frame(sample: Sample, given: Sample) -> Sample:
    if not given.is_first_frame_clean or sample.video is None or given.video is None:
        return sample
    return replace(sample, video=torch.cat([given.video[:, :1], sample.video[:, 1:]], dim=1))


def _target(x0: Tensor | None, real: Tensor | None, fake: Tensor | None, num_given: int = 0) -> Tensor | None:
    """Of one modality, whose first `num_given` columns are no prediction."""
    if x0 is None or real is None or fake is None:
        return None
    error = (x0 - real)[:, num_given:].abs().mean().clamp(min=LEAST_ERROR)
    return x0 - (fake - real) / error
