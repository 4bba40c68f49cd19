"""Distribution matching: on distributions that are known, against the sampler's guidance, and with what is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.network.flow import NUM_STEPS, FlowObjective, Noised, clip_generators
from model.network.flow_config import FlowConfig
from model.network.nava import Nava
from model.network.tokens import Packed, Sample, Velocity, pack
from model.sampling.config import Guidance
from model.sampling.sampler import SampleRequest, few_step_sigmas, sample
from model.training.matching import Negatives, each_latent, generate, guided_velocity, matched
from tests.model.latent_shards import SMALL, TINY

NOTHING = Negatives(*[torch.zeros(0, TINY.text_dim)] * 2)
PLAIN = Guidance(video_text=1, audio_text=1, has_alignment=False, has_timbre=False)


class KnownFlow(nn.Module):
    """In place of a network: pictures and sounds are each a distribution of two numbers, of which x0 follows exactly."""

    config = TINY

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor([[first, second]] * 2))

    def forward(self, packed: Packed, t_B: Tensor) -> Velocity:
        """Velocities of one sample."""
        sigma = float(t_B) / NUM_STEPS
        by_place = packed.video_patches.unflatten(1, (TINY.video_channels, -1)).transpose(1, 2).flatten(1)
        (video,), (audio,) = packed.split_video(by_place), packed.split_audio(packed.audio_latents)
        parts = zip((video, audio), self.numbers.unbind(), strict=True)
        video_v, audio_v = ((x - self.x0(x, sigma, *numbers)) / sigma for x, numbers in parts)
        return Velocity([video_v], [audio_v])

    def x0(self, x: Tensor, sigma: float, mean: Tensor, log_deviation: Tensor) -> Tensor:
        """Expected, where clips are N(mean, deviation^2)."""
        variance = (2 * log_deviation).exp()
        total = (1 - sigma) ** 2 * variance + sigma**2
        return mean + (1 - sigma) * variance / total * (x - (1 - sigma) * mean)


class OnePass(KnownFlow):
    """A student whose clips are N(shift, slope^2), made of noise."""

    def x0(self, x: Tensor, sigma: float, shift: Tensor, slope: Tensor) -> Tensor:
        """What it makes of noise."""
        return shift + slope * x


def silent(clip_id: str, **fields: object) -> Sample:
    """A clip of zeros."""
    video, audio = torch.zeros(TINY.video_channels, 3, 8, 8), torch.zeros(60, TINY.audio_channels)
    return Sample(clip_id, **{"text": torch.zeros(2, TINY.text_dim), "video": video, "audio": audio, **fields})  # type: ignore[arg-type]


def test_a_student_comes_to_make_what_the_teacher_has_seen() -> None:
    """From N(0, 0.5^2) to N(1, 1), picture and sound alike, by the gradients of the loss alone."""
    teacher, fake, student = KnownFlow(1.0, 0.0), KnownFlow(0.0, -0.5), OnePass(0.0, 0.5)
    objective = FlowObjective(FlowConfig())
    optimizers = [torch.optim.Adam(part.parameters(), lr=0.05, betas=(0.0, 0.99)) for part in (student, fake)]
    for step in range(36):
        generators = clip_generators(0, step, ["a"])
        clips = generate(student, [silent("a")], few_step_sigmas(1).tolist(), generators)
        noised = objective.noise([each_latent(clip, Tensor.detach) for clip in clips], generators)
        real = guided_velocity(teacher, noised, noised.timesteps, PLAIN, NOTHING)
        targets = matched(clips, noised, real, fake(pack(noised.samples, TINY), noised.timesteps))
        made = Velocity([clip.video for clip in clips], [clip.audio for clip in clips])
        of_student = objective.total(objective.loss(made, targets))
        noised = objective.noise([each_latent(clip, Tensor.detach) for clip in clips], generators)
        of_fake = objective.total(objective.loss(fake(pack(noised.samples, TINY), noised.timesteps), noised))
        for loss, optimizer in zip((of_student, of_fake), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(student.numbers.detach(), torch.ones(2, 2), atol=0.15, rtol=0)


def test_a_teacher_is_guided_as_the_sampler_guides(tiny_nava: Nava) -> None:
    """One step of the sampler from noise leaves noise - v; a pack has the same v for each of its clips."""
    draws = torch.Generator().manual_seed(3)
    text = torch.randn(5, TINY.text_dim, generator=draws)
    voice, frame = torch.randn(TINY.speaker_dim, generator=draws), torch.randn(TINY.video_channels, 1, 4, 4)
    kinds = [
        {"video_grid": (2, 4, 4), "num_audio_latents": 6, "placeholders": (1,), "speakers": [voice]},
        {"video_grid": None, "num_audio_latents": 7},
        {"video_grid": (3, 4, 4), "num_audio_latents": 0, "first_frame": frame},
    ]
    guidance, negatives = Guidance(), Negatives(text[:2], text[1:4])
    samples, expected = [], []
    for seed, kind in enumerate(kinds):
        request = SampleRequest(
            text=text,
            negative_text=negatives[0 if kind["video_grid"] else 1],
            num_steps=1,
            shift=5.0,
            solver="euler",
            seed=seed,
            guidance=guidance,
            **kind,
        )  # type: ignore[arg-type]
        left = sample(tiny_nava, request)
        grid, num_audio = request.video_grid, request.num_audio_latents
        of_seed = [torch.Generator().manual_seed(2 * seed + i) for i in (0, 1)]
        video = torch.randn(TINY.video_channels, *grid, generator=of_seed[0]) if grid else None
        audio = torch.randn(num_audio, TINY.audio_channels, generator=of_seed[1]) if num_audio else None
        expected.append([None if x is None else x - y for x, y in ((video, left.video), (audio, left.audio))])
        if video is not None and request.first_frame is not None:
            video = torch.cat([request.first_frame, video[:, 1:]], dim=1)
        samples.append(
            Sample(
                str(seed),
                text,
                video,
                audio,
                request.speakers or (),
                request.placeholders,
                request.first_frame is not None,
            )
        )
    timesteps = torch.full((3,), 1000.0)
    noised = Noised(samples, timesteps, torch.ones(3), [], [])
    found = guided_velocity(tiny_nava, noised, timesteps, guidance, negatives)
    for i, (video, audio) in enumerate(expected):
        for got, due in ((found.video[i], video), (found.audio[i], audio)):
            assert (got is None) == (due is None)
            if got is not None:
                first = int(samples[i].is_first_frame_clean)
                torch.testing.assert_close(got[:, first:], due[:, first:], rtol=1e-4, atol=1e-4)


def test_what_is_given_stays_and_only_the_last_pass_has_gradients() -> None:
    student = Nava(SMALL)
    student.init_weights(torch.Generator().manual_seed(0))
    frame = torch.randn(TINY.video_channels, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    given = silent("a", video=frame, is_first_frame_clean=True)
    calls = []
    student.register_forward_hook(lambda module, args, out: calls.append((float(args[1][0]), torch.is_grad_enabled())))
    (clip,) = generate(student, [given], few_step_sigmas(4).tolist()[:3], clip_generators(0, 1, ["a"]))
    assert clip.video is not None
    assert clip.audio is not None
    assert torch.equal(clip.video[:, :1], frame[:, :1])
    assert not torch.isclose(clip.video[:, 1:], frame[:, 1:]).any()
    assert calls == [(1000.0, False), (937.5, False), (float(torch.tensor(1000 * 5 / 6)), True)]
    clip.audio.sum().backward()
    assert all(parameter.grad is not None for parameter in student.head_audio.parameters())
    objective = FlowObjective(FlowConfig())
    noised = objective.noise([clip], clip_generators(0, 2, ["a"]))
    none = Velocity([torch.zeros_like(frame)], [torch.zeros_like(clip.audio)])
    targets = matched([clip], noised, none, none)
    assert torch.equal(targets.video_targets[0], clip.video.detach()), "teacher and fake network agree: nothing to move"
