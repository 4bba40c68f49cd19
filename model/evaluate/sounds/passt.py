"""What is heard, by PaSST: a vision transformer over a spectrogram (Koutini et al. 2022, arXiv 2110.05069).

The network as passt-s-f128-p16-s10-ap.476-swa.pt has it, as a function of its tensors. At inference no patches are left out.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.evaluate.media import mono_sound
from model.evaluate.metric import Metric, Vector, has_reference
from model.evaluate.networks import DECODER, guarded
from model.evaluate.records import EvalCase, Protocol
from model.evaluate.vision_blocks import vision_block
from schemas.errors import MediaError
from schemas.networks.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

RATE_HZ = 32_000
WINDOW_S, STEP_S = 10, 5
SHORTEST = 0.15
"""Share of a window up to which sound is heard as long as it is; longer one is filled up."""
LEAST_S = 0.2
"""Of which a patch is made."""
PEAK = 10 ** (-1 / 20)
"""Verse-Bench scales sound to a peak of -1 dB before it is heard."""
LEAST = 1e-6
"""Added to chances of the sample before their logarithm, as Verse-Bench has it."""
NUM_HEADS, STRIDE = 12, 10
EMPHASIS = -0.97
FFT, WIDTH, HOP, BANDS = 1_024, 800, 320, 128
HIGHEST_HZ = 15_000.0
FLOOR, SHIFT, SPREAD = 1e-5, 4.5, 5.0


class Passt:
    """Distributions over the classes of AudioSet."""

    def __init__(self, path: Path) -> None:
        self.weights = TensorFile(path)

    @lru_cache(maxsize=4096)  # noqa: B019 - as long as the metric, which is as long as the command
    def of_file(self, path: Path) -> Vector:
        """The distribution [c] of a file's sound. Raises MediaError."""
        sound, _ = mono_sound(path, RATE_HZ)
        if len(sound) < LEAST_S * RATE_HZ:
            raise MediaError(f"{path.name} holds {len(sound) / RATE_HZ:.2f} s of sound, less than {LEAST_S} s.")
        return self.of_sound(sound)

    def of_sound(self, sound: np.ndarray[Any, np.dtype[np.float32]]) -> Vector:
        """The distribution [c] of mono samples [n] at 32 kHz: of the mean logits of windows of 10 s, one every 5 s."""
        import torch

        sound = sound * np.float32(PEAK / max(float(np.abs(sound).max()), 1e-9))
        with torch.inference_mode():
            logits = torch.cat([self.logits(torch.from_numpy(window)[None]) for window in _windows(sound)])
            return np.asarray(logits.double().mean(0).softmax(0).numpy())

    def logits(self, sounds: Tensor) -> Tensor:
        """[n, c] of sounds [n, samples] at 32 kHz, at most 10 s."""
        import torch
        from torch.nn.functional import conv2d

        kernel, bias = (self.weights[f"patch_embed.proj.{part}"] for part in ("weight", "bias"))
        patches = conv2d(spectrogram(sounds)[:, None], kernel, bias, STRIDE)
        places = self.weights["time_new_pos_embed"][..., : patches.shape[3]] + self.weights["freq_new_pos_embed"]
        first = torch.cat([self.weights["cls_token"], self.weights["dist_token"]], 1) + self.weights["new_pos_embed"]
        tokens = torch.cat([first.expand(len(sounds), -1, -1), (patches + places).flatten(2).mT], 1)
        for number in range(self.weights.num_blocks("blocks.")):
            tokens = vision_block(self.weights, f"blocks.{number}", tokens, NUM_HEADS)
        told = self.weights.layer_norm(tokens[:, :2], "norm").mean(1)
        return self.weights.linear(self.weights.layer_norm(told, "head.0", eps=1e-5), "head.1")


def _windows(sound: np.ndarray[Any, np.dtype[np.float32]]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Windows of 10 s, one every 5 s, the last filled up; sound of 1.5 s and less is one window as long as it is."""
    size, step = WINDOW_S * RATE_HZ, STEP_S * RATE_HZ
    if len(sound) <= SHORTEST * size:
        return [sound]
    cut = [sound[start : start + size] for start in range(0, max(step, len(sound) - step), step)]
    return [np.pad(each, (0, size - len(each))) for each in cut]


def spectrogram(sounds: Tensor) -> Tensor:
    """Logarithms of 128 bands [n, bands, rows] of sounds [n, samples] at 32 kHz, scaled as the network was trained."""
    import torch

    sharper = sounds[:, 1:] + EMPHASIS * sounds[:, :-1]
    window = torch.hann_window(WIDTH, periodic=False)
    power = torch.stft(sharper, FFT, HOP, WIDTH, window, return_complex=True).abs().square()
    return ((bands() @ power + FLOOR).log() + SHIFT) / SPREAD


@cache
def bands() -> Tensor:
    """[bands, frequencies]: triangles on Kaldi's mel scale from 0 to 15 kHz."""
    import torch
    from transformers.audio_utils import mel_filter_bank

    told = mel_filter_bank(
        num_frequency_bins=FFT // 2 + 1, num_mel_filters=BANDS, min_frequency=0.0, max_frequency=HIGHEST_HZ,
        sampling_rate=RATE_HZ, mel_scale="kaldi", triangularize_in_mel_space=True,
    )  # fmt: skip
    return torch.from_numpy(told).float().T


def divergence_held(made: Vector, real: Vector) -> float:
    """Kullback-Leibler divergence sum real log(real / (made + 1e-6)) of two distributions [c], in nats, as Verse-Bench has it."""
    return float(np.sum(real * (np.log(np.maximum(real, np.finfo(float).tiny)) - np.log(made + LEAST))))


def passt_metrics(path: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """The divergence of what is heard from what is really heard, by the network in a file."""
    network = Passt(path)

    def apart(case: EvalCase, sample: Path) -> float:
        assert case.item.reference is not None
        return divergence_held(network.of_file(sample), network.of_file(case.item.reference))

    return (
        Metric(
            name="kl_passt", doc="divergence of what is heard from what is really heard", unit="nats", better="lower",
            read=guarded(apart), applies=has_reference, model=f"PaSST in {path.name}", sha256=network.weights.sha256,
            decoder=DECODER, crop=f"mono 32 kHz, windows of {WINDOW_S} s, one every {STEP_S} s, peak -1 dB",
        ),
    )  # fmt: skip
