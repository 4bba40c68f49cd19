"""Whose voice it is, by WavLM large and ECAPA-TDNN as Seed-TTS-eval takes them (Chen et al. 2022, arXiv 2110.13900; Desplanques
et al. 2020, arXiv 2005.07143).

The network as UniSpeech's wavlm_large_finetune.pth has it, as a function of its tensors.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.evaluate.media import mono_sound
from model.evaluate.metric import Metric, Vector, has_voice
from model.evaluate.networks import DECODER, guarded
from model.evaluate.records import EvalCase, Protocol
from model.evaluate.sounds.wavlm import RATE_HZ, HiddenStates
from schemas.errors import MediaError
from schemas.networks.folders import cosine
from schemas.networks.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

DILATIONS = {"layer2": 2, "layer3": 3, "layer4": 4}
SCALE = 8
"""Parts that a layer's channels are cut into, each but the last heard together with the one before."""
LEAST = 1e-9
LEAST_S = 0.1
"""Of which two rows and more are made."""


class WavlmEcapa:
    """Vectors of voices."""

    def __init__(self, path: Path) -> None:
        self.weights = TensorFile(path)

    @cached_property
    def _states(self) -> HiddenStates:
        return HiddenStates(self.weights, "feature_extract.model.")

    @lru_cache(maxsize=4096)  # noqa: B019 - as long as the metric, which is as long as the command
    def of_file(self, path: Path) -> Vector:
        """The vector of the voice in a file, whole, at 16 kHz. Raises MediaError."""
        import torch

        sound, _ = mono_sound(path, RATE_HZ)
        if len(sound) < LEAST_S * RATE_HZ:
            raise MediaError(f"{path.name} holds {len(sound) / RATE_HZ:.2f} s of sound, less than {LEAST_S} s.")
        with torch.inference_mode():
            return np.asarray(self.vectors(torch.from_numpy(sound)[None])[0].double().numpy())

    def vectors(self, sounds: Tensor) -> Tensor:
        """[n, d] of sounds [n, samples] at 16 kHz."""
        import torch
        from torch.nn.functional import instance_norm

        states, _ = self._states.of_sounds(sounds, [sounds.shape[1]] * len(sounds))
        shares = self.weights["feature_weight"].softmax(0)
        heard = instance_norm((states * shares[:, None, None, None]).sum(0).mT + 1e-6)
        heard, told = self._layer(heard, "layer1", padding=2), []
        for name, dilation in DILATIONS.items():
            heard = self._block(heard, name, dilation)
            told.append(heard)
        together = self._convolved(torch.cat(told, 1), "conv").relu()
        return self.weights.linear(self.weights.batch_norm(self._pooled(together), "bn"), "linear")

    def _block(self, heard: Tensor, name: str, dilation: int) -> Tensor:
        """[n, c, rows] -> the same: parts of the channels one after the other, weighted by what is in all rows."""
        import torch

        parts = list(self._layer(heard, f"{name}.Conv1dReluBn1").chunk(SCALE, 1))
        for number in range(SCALE - 1):
            given = parts[number] + parts[number - 1] if number else parts[number]
            inner = f"{name}.Res2Conv1dReluBn"
            parts[number] = self._convolved(
                given, f"{inner}.convs.{number}", dilation=dilation, padding=dilation
            ).relu()
            parts[number] = self.weights.batch_norm(parts[number], f"{inner}.bns.{number}")
        told = self._layer(torch.cat(parts, 1), f"{name}.Conv1dReluBn2")
        counts = self.weights.linear(told.mean(2), f"{name}.SE_Connect.linear1").relu()
        counts = self.weights.linear(counts, f"{name}.SE_Connect.linear2").sigmoid()
        beside = self._convolved(heard, f"{name}.shortcut") if f"{name}.shortcut.weight" in self.weights else heard
        return told * counts[..., None] + beside

    def _pooled(self, heard: Tensor) -> Tensor:
        """[n, 2 c] of [n, c, rows]: mean and deviation, every channel over the rows that it attends to."""
        import torch

        shares = self._convolved(self._convolved(heard, "pooling.linear1").tanh(), "pooling.linear2").softmax(2)
        mean = (shares * heard).sum(2)
        spread = (shares * heard.square()).sum(2) - mean.square()
        return torch.cat([mean, spread.clamp(min=LEAST).sqrt()], 1)

    def _layer(self, given: Tensor, name: str, padding: int = 0) -> Tensor:
        return self.weights.batch_norm(self._convolved(given, f"{name}.conv", padding=padding).relu(), f"{name}.bn")

    def _convolved(self, given: Tensor, name: str, dilation: int = 1, padding: int = 0) -> Tensor:
        from torch.nn.functional import conv1d

        kernel, bias = (self.weights[f"{name}.{part}"] for part in ("weight", "bias"))
        return conv1d(given, kernel, bias, padding=padding, dilation=dilation)


def unispeech_metrics(path: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """The similarity of voices, by the network in a file."""
    network = WavlmEcapa(path)

    def similarity(case: EvalCase, sample: Path) -> float:
        assert case.item.voice is not None
        return cosine(network.of_file(sample), network.of_file(case.item.voice))

    return (
        Metric(
            name="sim_unispeech", doc="cosine of the voice heard and the voice given", unit="cosine", better="higher",
            read=guarded(similarity), applies=has_voice, model=f"WavLM and ECAPA-TDNN in {path.name}",
            sha256=network.weights.sha256, decoder=DECODER, crop="the whole sound, mono 16 kHz",
        ),
    )  # fmt: skip
