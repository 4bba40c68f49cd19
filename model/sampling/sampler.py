"""From noise to latents: noise grids, solvers, guidance, and the loop over them. C channels, T, H, W latent grid, L latents.

    sigma   noise level in [0, 1]; the network is called at t = 1000 sigma, x = (1 - sigma) x0 + sigma noise
    v       velocity noise - x0, so x0 = x - sigma v

Both solvers are used alike: for each t in `timesteps`, call the network and hand its velocity to `step`.
Grids, updates and guidance are those of the official release; tests hold them to its recorded trajectories.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from model.network.context_parallel import Team, keep_share
from model.network.flow import NUM_STEPS, SIGMA_MIN
from model.network.nava import Nava, Sample, pack
from model.sampling.config import Guidance


class Solver(Protocol):
    """What `sample` needs of a solver."""

    timesteps: Tensor

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """The sample at the next noise level."""
        ...


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Noise levels moved towards 1 by `shift`: shift s / (1 + (shift - 1) s)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def euler_sigmas(num_steps: int, shift: float = 5.0) -> Tensor:
    """[num_steps] fp32 noise levels of the Euler solver, descending from 1; the closing 0 is not included."""
    grid = torch.linspace(1.0, SIGMA_MIN, num_steps + 1, dtype=torch.float64)[:-1]
    return shift_sigmas(grid, shift).float()


def unipc_sigmas(num_steps: int, shift: float = 5.0) -> Tensor:
    """[num_steps + 1] fp32 noise levels of UniPC, the last one 0.

    The shift is applied twice, to the first level (1 - 1/1000) and to the grid that starts from it, because the release
    gives it at construction and leaves `set_timesteps` to apply it again.
    """
    top = shift_sigmas(torch.tensor(1 - 1 / NUM_STEPS, dtype=torch.float64), shift).float().item()
    grid = torch.linspace(top, 0.0, num_steps + 1, dtype=torch.float64)[:-1]
    return torch.cat([shift_sigmas(grid, shift), torch.zeros(1, dtype=torch.float64)]).float()


def few_step_sigmas(num_steps: int, shift: float = 5.0) -> Tensor:
    """[num_steps] fp32 noise levels of a distilled network, descending: of four steps 1, 0.75, 0.5, 0.25, then shifted."""
    return shift_sigmas(torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)[:-1], shift).float()


class Euler:
    """First-order solver: one straight line per step."""

    def __init__(self, num_steps: int, shift: float = 5.0) -> None:
        self.sigmas = euler_sigmas(num_steps, shift)
        self.timesteps = self.sigmas * NUM_STEPS
        self._index = 0

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """The sample at the next noise level; the last step lands on 0."""
        here = self.sigmas[self._index].item()
        self._index += 1
        there = self.sigmas[self._index].item() if self._index < len(self.sigmas) else 0.0
        return sample + velocity * (there - here)


class FewSteps:
    """Of a network distilled to few steps (DMD2, Yin et al. 2024, arXiv 2405.14867), whose guidance is in its weights.

    Each step predicts x0 and puts new noise on it, of the next level; the last one lands on x0. The noise is drawn on the CPU
    from a stream of its own for each `seed`, which is no seed of the noise that sampling begins with.
    """

    def __init__(self, num_steps: int, shift: float, seed: int) -> None:
        self.sigmas = few_step_sigmas(num_steps, shift)
        self.timesteps = self.sigmas * NUM_STEPS
        self._levels: list[float] = [*self.sigmas.double().tolist(), 0.0]
        self._generator = torch.Generator().manual_seed(2**40 + seed)
        self._index = 0

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """The sample at the next noise level."""
        here, there = self._levels[self._index : self._index + 2]
        self._index += 1
        x0 = sample - here * velocity
        if not there:
            return x0
        noise = torch.randn(sample.shape, generator=self._generator).to(sample)
        return (1 - there) * x0 + there * noise


class UniPC:
    """Second-order predictor-corrector of Zhao et al. (arXiv 2302.04867), variant B2, on predicted x0.

    Every network call serves twice: it first corrects the step that led here, then predicts the next one. The first and
    the last step are of first order. As in the release, the network sees whole timesteps (`timesteps` is int64).
    An instance walks the grid once; make a new one for each sample and modality.
    """

    def __init__(self, num_steps: int, shift: float = 5.0) -> None:
        self.sigmas = unipc_sigmas(num_steps, shift)
        self.timesteps = (self.sigmas[:-1] * NUM_STEPS).to(torch.int64)
        self._levels: list[float] = self.sigmas.double().tolist()
        self._index = 0
        self._order = 1
        self._x0_history: list[Tensor] = []
        self._sample_before: Tensor | None = None

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """The sample at the next noise level, from the velocity at this one (same shape, any floating dtype)."""
        num_steps = len(self._levels) - 1
        if self._index >= num_steps:
            raise IndexError(f"UniPC was made for {num_steps} steps and has taken them all: make a new one per sample")
        x0 = sample - self._levels[self._index] * velocity
        if self._sample_before is not None:
            sample = self._correct(self._sample_before, x0)
        self._x0_history = [*self._x0_history[-1:], x0]
        self._order = min(2, num_steps - self._index, len(self._x0_history))
        self._sample_before = sample
        self._index += 1
        return self._predict(sample)

    def _predict(self, sample: Tensor) -> Tensor:
        """UniP: from level index-1 to level index, with the slope of the two newest x0 when the order is 2."""
        here, there = self._levels[self._index - 1], self._levels[self._index]
        x0 = self._x0_history[-1]
        step_log_snr = _log_snr(there) - _log_snr(here)
        phi_1 = math.expm1(-step_log_snr)
        moved = there / here * sample - (1 - there) * phi_1 * x0
        if self._order == 1:
            return moved
        ratio = (_log_snr(self._levels[self._index - 2]) - _log_snr(here)) / step_log_snr
        slope = (self._x0_history[-2] - x0) / ratio
        return moved - (1 - there) * phi_1 * 0.5 * slope

    def _correct(self, sample_before: Tensor, x0_now: Tensor) -> Tensor:
        """UniC: the last step again, now knowing the x0 predicted at its end."""
        here, there = self._levels[self._index - 1], self._levels[self._index]
        x0 = self._x0_history[-1]
        step_log_snr = _log_snr(there) - _log_snr(here)
        phi_1 = math.expm1(-step_log_snr)
        moved = there / here * sample_before - (1 - there) * phi_1 * x0
        change = x0_now - x0
        if self._order == 1:
            return moved - (1 - there) * phi_1 * 0.5 * change
        ratio = (_log_snr(self._levels[self._index - 2]) - _log_snr(here)) / step_log_snr
        slope = (self._x0_history[-2] - x0) / ratio
        weight_slope, weight_change = _corrector_weights(ratio, -step_log_snr, phi_1)
        return moved - (1 - there) * phi_1 * (weight_slope * slope + weight_change * change)


def _log_snr(sigma: float) -> float:
    """log((1 - sigma) / sigma), infinite at sigma 0."""
    return math.log((1 - sigma) / sigma) if sigma > 0 else math.inf


def _corrector_weights(ratio: float, h: float, phi_1: float) -> tuple[float, float]:
    """Weights that solve [[1, 1], [ratio, 1]] w = b, the order conditions of UniC-2 (eq. 8 of the paper, B2)."""
    phi_2 = phi_1 / h - 1
    phi_3 = phi_2 / h - 0.5
    b_1, b_2 = phi_2 / phi_1, 2 * phi_3 / phi_1
    weight_slope = (b_1 - b_2) / (1 - ratio)
    return weight_slope, b_1 - weight_slope


def guide_video(conditional: Tensor, negative: Tensor, masked: Tensor | None, guidance: Guidance) -> Tensor:
    """Guided video velocity: v + s (v - n) + a (v - m); without alignment (masked None) the usual n + s (v - n)."""
    direction = conditional - negative
    if masked is None:
        return negative + guidance.video_text * direction
    return conditional + guidance.video_text * direction + guidance.video_alignment * (conditional - masked)


def guide_audio(
    conditional: Tensor, negative: Tensor, masked: Tensor | None, voiceless: Tensor | None, guidance: Guidance
) -> Tensor:
    """Guided audio velocity: v + s (v - n) [+ a (v - m)] [+ b (v - without voices)]; n + s (v - n) if both are off."""
    direction = conditional - negative
    if masked is None and voiceless is None:
        return negative + guidance.audio_text * direction
    guided = conditional + guidance.audio_text * direction
    if masked is not None:
        guided = guided + guidance.audio_alignment * (conditional - masked)
    if voiceless is not None:
        guided = guided + guidance.timbre * (conditional - voiceless)
    return guided


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """One clip to generate. Text and voices are outputs of the frozen encoders; sizes are in latents.

    negative_text has zero rows for "no text". speakers has one entry per placeholder, None where a line has no reference.
    first_frame is the latent [C, 1, H, W] of a given picture. The settings have their defaults in `SampleConfig`.
    """

    text: Tensor
    negative_text: Tensor
    video_grid: tuple[int, int, int] | None
    num_audio_latents: int
    placeholders: Sequence[int] = ()
    speakers: Sequence[Tensor | None] | None = None
    first_frame: Tensor | None = None
    num_steps: int
    shift: float
    solver: Literal["unipc", "euler", "few_steps"]
    seed: int
    guidance: Guidance


@dataclass(frozen=True)
class Latents:
    """What was generated: video [C, T, H, W] and audio [L, C], fp32, normalised as the codecs' encoders give them."""

    video: Tensor | None
    audio: Tensor | None


@torch.no_grad()  # type: ignore[untyped-decorator]
def sample(
    model: Nava,
    request: SampleRequest,
    on_step: Callable[[int, int], None] | None = None,
    team: Team | None = None,
) -> Latents:
    """The generated latents, on the device of the model. Ranks of a team share the clip's tokens, and all have the result.

    Cost: per step one network call each for the condition and its negative, one more for alignment (joint clips) and one
    more for timbre (clips with voices); with `few_steps` one call alone. The noise depends on the seed and the sizes only,
    not on the device. A given first frame is put back before every call and at the end. Raises ModelError if the request
    does not fit the network.
    """
    device = model.patch_embedding.weight.device
    config = model.config
    video = audio = None
    if request.video_grid is not None:
        video = _noise((config.video_channels, *request.video_grid), 2 * request.seed).to(device)
    if request.num_audio_latents:
        audio = _noise((request.num_audio_latents, config.audio_channels), 2 * request.seed + 1).to(device)
    video_solver, audio_solver = _solver(request, 2 * request.seed), _solver(request, 2 * request.seed + 1)
    conditions = _conditions(request, device if team is None else torch.device("cpu"))
    for index, t in enumerate(video_solver.timesteps.tolist()):
        video = _with_first_frame(video, request.first_frame)
        video_v, audio_v = _guided_velocity(
            _Passes(model, conditions, team), Latents(video, audio), t, request.guidance
        )
        if video is not None and video_v is not None:
            video = video_solver.step(video_v.float(), video)
        if audio is not None and audio_v is not None:
            audio = audio_solver.step(audio_v.float(), audio)
        if on_step is not None:
            on_step(index + 1, request.num_steps)
    return Latents(_with_first_frame(video, request.first_frame), audio)


def _solver(request: SampleRequest, seed: int) -> Solver:
    if request.solver == "few_steps":
        return FewSteps(request.num_steps, request.shift, seed)
    if request.solver == "euler":
        return Euler(request.num_steps, request.shift)
    return UniPC(request.num_steps, request.shift)


def _conditions(request: SampleRequest, device: torch.device) -> dict[str, Sample]:
    """The network's passes by name, still without latents; only those that the guidance needs."""
    speakers = request.speakers
    if speakers is not None:
        speakers = [None if voice is None else voice.to(device) for voice in speakers]
    conditional = Sample(
        "sample",
        text=request.text.to(device),
        placeholders=request.placeholders,
        speakers=speakers,
        is_first_frame_clean=request.first_frame is not None,
    )
    if request.solver == "few_steps":
        return {"conditional": conditional}
    return passes_of(
        conditional,
        request.negative_text.to(device),
        request.guidance,
        has_picture=request.video_grid is not None,
        has_sound=request.num_audio_latents > 0,
    )


def passes_of(
    conditional: Sample, negative_text: Tensor, guidance: Guidance, *, has_picture: bool, has_sound: bool
) -> dict[str, Sample]:
    """What the network is asked for a guided velocity, by name: the condition, and what `guidance` holds it against."""
    negative = replace(conditional, text=negative_text, placeholders=(), speakers=None)
    passes = {"conditional": conditional, "negative": negative}
    voiceless = replace(conditional, speakers=None)
    if guidance.has_alignment:
        base = voiceless if guidance.is_alignment_voiceless else conditional
        passes["masked"] = replace(base, is_cross_modal_masked=has_picture and has_sound)
    if guidance.has_timbre and has_sound and any(voice is not None for voice in conditional.speakers or ()):
        passes["voiceless"] = voiceless
    return passes


@dataclass(frozen=True)
class _Passes:
    """The network, and what it is asked at each step."""

    model: Nava
    conditions: dict[str, Sample]
    team: Team | None

    def velocity(self, condition: Sample, latents: Latents, t_B: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(video, audio) velocity of one pass; with a team from this rank's share of the tokens and the others'."""
        if self.team is None:
            clip = replace(condition, video=latents.video, audio=latents.audio)
            found = self.model(pack([clip], self.model.config), t_B)
            return found.video[0], found.audio[0]
        video, audio = (None if x is None else x.cpu() for x in (latents.video, latents.audio))
        clip = replace(condition, video=video, audio=audio)
        packed = keep_share(pack([clip], self.model.config), 1, self.team)
        found = self.model(packed.to(t_B.device), t_B)
        whole = [None if part is None else part.contiguous() for part in (found.video[0], found.audio[0])]
        for part in whole:
            if part is not None:
                dist.all_reduce(part, group=self.team.group)  # zero where another rank has the token
        return whole[0], whole[1]


def _guided_velocity(
    passes: _Passes, latents: Latents, t: float, guidance: Guidance
) -> tuple[Tensor | None, Tensor | None]:
    """(video velocity, audio velocity) after guidance; None for an absent modality.

    With one modality there is nothing to mask, so the alignment pass is the conditional one and is not computed again,
    unless it also loses its voices.
    """
    t_B = torch.tensor([float(t)], device=passes.model.patch_embedding.weight.device)
    is_joint = latents.video is not None and latents.audio is not None
    outputs: dict[str, tuple[Tensor | None, Tensor | None]] = {}
    for name, condition in passes.conditions.items():
        if name == "masked" and not is_joint and not guidance.is_alignment_voiceless:
            outputs[name] = outputs["conditional"]
            continue
        outputs[name] = passes.velocity(condition, latents, t_B)
    return guide(outputs, guidance)


def guide(
    outputs: Mapping[str, tuple[Tensor | None, Tensor | None]], guidance: Guidance
) -> tuple[Tensor | None, Tensor | None]:
    """(video velocity, audio velocity) out of those of the passes of `passes_of`; the condition's where there is no other."""
    if set(outputs) == {"conditional"}:
        return outputs["conditional"]
    video, audio = ({name: v for name, output in outputs.items() if (v := output[i]) is not None} for i in range(2))
    video_v = audio_v = None
    if video:
        video_v = guide_video(video["conditional"], video["negative"], video.get("masked"), guidance)
    if audio:
        masked, voiceless = audio.get("masked"), audio.get("voiceless")
        audio_v = guide_audio(audio["conditional"], audio["negative"], masked, voiceless, guidance)
    return video_v, audio_v


def _with_first_frame(video: Tensor | None, first_frame: Tensor | None) -> Tensor | None:
    if video is None or first_frame is None:
        return video
    return torch.cat([first_frame.to(video), video[:, 1:]], dim=1)


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
