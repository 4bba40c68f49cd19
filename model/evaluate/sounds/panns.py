"""What is heard, by the convolutional network Cnn14 of PANNs (Kong et al. 2020, arXiv 1912.10211).

The network as Cnn14_mAP=0.431.pth has it, as a function of its tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.evaluate.distances import inception_score
from model.evaluate.media import mono_sound
from model.evaluate.metric import SetMetric, Vector
from model.evaluate.networks import DECODER, vector_or_none
from model.evaluate.records import Protocol
from schemas.networks.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

RATE_HZ, LENGTH_S = 32_000, 10
FFT, HOP = 1_024, 320
FLOOR = 1e-10
NUM_BLOCKS = 6
LEAST_CHANCE = 1e-8
"""MOVA's toolkit holds chances this far from 0 and 1."""


class Cnn14:
    """Chances of the classes of AudioSet."""

    def __init__(self, path: Path) -> None:
        self.weights = TensorFile(path)

    def of_file(self, path: Path) -> Vector:
        """The distribution [c] of the first 10 s of a file's sound, shorter ones filled up. Raises MediaError.

        As MOVA's toolkit makes one of chances that are no distribution: their logits through a softmax.
        """
        import torch

        size = LENGTH_S * RATE_HZ
        sound = mono_sound(path, RATE_HZ)[0][:size]
        with torch.inference_mode():
            chances = self.chances(torch.from_numpy(np.pad(sound, (0, size - len(sound))))[None])[0].double()
            held = chances.clamp(LEAST_CHANCE, 1 - LEAST_CHANCE)
            return np.asarray(held.logit().softmax(0).numpy())

    def chances(self, sounds: Tensor) -> Tensor:
        """[n, c] of sounds [n, samples] at 32 kHz, each class for itself."""
        from torch.nn.functional import avg_pool2d, conv2d

        bands = self.weights.batch_norm(self._bands(sounds).transpose(1, 3), "bn0").transpose(1, 3)
        for number in range(1, NUM_BLOCKS + 1):
            for layer in (1, 2):
                block = f"conv_block{number}"
                bands = conv2d(bands, self.weights[f"{block}.conv{layer}.weight"], padding=1)
                bands = self.weights.batch_norm(bands, f"{block}.bn{layer}").relu()
            bands = avg_pool2d(bands, 2) if number < NUM_BLOCKS else bands
        rows = bands.mean(3)
        told = self.weights.linear(rows.amax(2) + rows.mean(2), "fc1").relu()
        return self.weights.linear(told, "fc_audioset").sigmoid()

    def _bands(self, sounds: Tensor) -> Tensor:
        """Levels in dB of the file's own mel bands [n, 1, rows, bands]."""
        import torch

        spectrum = torch.stft(sounds, FFT, HOP, window=torch.hann_window(FFT), return_complex=True)
        power = spectrum.abs().square().mT @ self.weights["logmel_extractor.melW"]
        return 10 * power.clamp(min=FLOOR).log10()[:, None]


def panns_metrics(path: Path, protocol: Protocol) -> tuple[SetMetric, ...]:
    """How sure and how various what is heard is, by the network in a file."""
    network = Cnn14(path)
    return (
        SetMetric(
            name="is_panns", doc="inception score: how sure and how various is what is heard", better="higher",
            describe=vector_or_none(network.of_file), distance=lambda made, _: inception_score(made),
            reads_recording=False, model=f"Cnn14 of PANNs in {path.name}", sha256=network.weights.sha256, decoder=DECODER,
            crop=f"mono 32 kHz, first {LENGTH_S} s",
        ),
    )  # fmt: skip
