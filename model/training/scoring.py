"""Generated held-out clips as media, and what metrics of `nava-train evaluate` say of them that ask no other process.

    latents of a sample, and of its clip -> codecs -> step-N/CLIP.mp4, real/CLIP.mp4 -> readings -> a mean by metric

Metrics that measure with stages of the curation half are left to `nava-train evaluate real --generated step-N`. So are those
that hold a sample against texts, which latent shards do not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model.encoding.codec import open_decoders
from model.evaluate.local import with_local
from model.evaluate.metric import Metric, weighted_mean
from model.evaluate.protocols import rules_here
from model.evaluate.records import EvalCase, EvalItem, Protocol
from model.network.config import NavaConfig
from model.sampling.sample import write_media
from model.sampling.sampler import Latents
from model.training.config import ValidationConfig
from schemas.errors import NavaError

REAL = "real"
"""Folder of the held-out clips as the codecs give them back, with which samples are compared."""
FAILURES = (NavaError, OSError, RuntimeError, ValueError, ArithmeticError, LookupError)
"""What decoders, encoders and metrics end with, want of memory among it: a figure less, and no end of training."""
PROTOCOL: Protocol = "own"


@dataclass(frozen=True, slots=True)
class MadeClip:
    """A held-out clip, and what was generated from its caption and voices."""

    clip_id: str
    has_voice: bool
    real: Latents
    made: Latents


class SampleScorer:
    """Holds decoders in host memory and what the metrics need. Only the first rank has one."""

    def __init__(self, settings: ValidationConfig, network: NavaConfig, device: torch.device) -> None:
        """Raises ModelError for codecs or networks that are not there or do not fit the network."""
        assert settings.codecs is not None, "without codecs there is nothing to score"
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self._codecs = open_decoders(settings.codecs, network, torch.device("cpu"), dtype)
        self._network, self._device = network, device
        self._written: set[Path] = set()
        rules = rules_here(PROTOCOL)
        if settings.models is not None:
            rules = with_local(rules, settings.models, PROTOCOL)
        whole = EvalItem(item_id="", reference=Path(REAL), voice=Path(REAL))
        here = (each for each in rules.metrics if not each.stage and not each.settings)
        self._metrics = [each for each in here if each.applies(whole)]

    def score(self, clips: Sequence[MadeClip], folder: Path, step: int) -> dict[str, float | None]:
        """Metric -> mean over the clips, None where it can be read of none. Media of clips end up in `folder`."""
        cases = []
        for clip in clips:
            name = f"{clip.clip_id}.mp4"
            real, made = folder / REAL / name, folder / f"step-{step:08d}" / name
            try:
                self._bring_to(self._device)
                if real not in self._written:
                    self._write(real, clip.real)
                    self._written.add(real)
                self._write(made, clip.made)
            except FAILURES as error:
                print(f"{made} cannot be scored: {error}", flush=True)
                continue
            item = EvalItem(item_id=clip.clip_id, reference=real, voice=real if clip.has_voice else None)
            cases.append(EvalCase(item, made))
        self._bring_to(torch.device("cpu"))
        return {metric.name: _mean(metric, cases) for metric in self._metrics}

    @torch.no_grad()
    def _write(self, path: Path, latents: Latents) -> None:
        write_media(path, latents, self._codecs, self._network.video_fps)

    def _bring_to(self, device: torch.device) -> None:
        if (video := self._codecs.video) is not None:
            video.vae.to(device)
        if (audio := self._codecs.audio) is not None:
            audio.vae.to(device)
            if audio.vocoder is not None:
                audio.vocoder.to(device)


def _mean(metric: Metric, cases: Sequence[EvalCase]) -> float | None:
    found: list[tuple[float, float]] = []
    for case in cases:
        if not metric.applies(case.item):
            continue
        try:
            reading = metric.read(case)
        except FAILURES as error:
            print(f"{case.sample} has no {metric.name}: {error}", flush=True)
            continue
        if reading.value is not None:
            found.append((reading.value, reading.weight))
    return weighted_mean(found) if found else None
