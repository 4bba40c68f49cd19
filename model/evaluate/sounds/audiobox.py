"""Audiobox-aesthetics: how sound is enjoyed, used, composed and produced (Tjandra et al. 2025, arXiv 2502.05139).

The folder as published, config.json beside model.safetensors, or checkpoint.pt, which holds both: a WavLM, and of each
opinion weights for its layers and plain layers on their sum. The published program computes in bfloat16, this in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.evaluate.media import mono_sound
from model.evaluate.metric import Metric
from model.evaluate.networks import DECODER, guarded
from model.evaluate.records import Better, EvalCase, Protocol
from model.evaluate.sounds.wavlm import RATE_HZ, HiddenStates
from schemas.errors import ModelError
from schemas.networks.tensors import TensorFile, plain_content

if TYPE_CHECKING:
    from torch import Tensor

WINDOW_S = 10
CONFIG, WEIGHTS = "config.json", "model.safetensors"
OPINIONS: Mapping[str, tuple[str, Better]] = {
    "CE": ("enjoyed", "higher"),
    "CU": ("useful to others", "higher"),
    "PC": ("complex in its making", "lower"),
    "PQ": ("well produced", "higher"),
}
"""Opinion -> how the sound is said to be, and which way Verse-Bench takes it."""


class Audiobox:
    """Four opinions of sounds, 1 to 10 each."""

    def __init__(self, path: Path) -> None:
        self.weights = TensorFile(path)
        told = read_config(path)
        published = {"use_weighted_layer_sum": True, "normalize_embed": True}
        if got := {name: told.get(name) for name, value in published.items() if told.get(name, value) != value}:
            raise ModelError(
                f"{path} is configured with {got}, expected {published}.", remedy="Give the published one."
            )
        self._scales: Mapping[str, Mapping[str, float]] = told["target_transform"]

    @cached_property
    def _prefix(self) -> str:
        return "model." if "model.layer_weights.CE" in self.weights else ""

    @cached_property
    def _states(self) -> HiddenStates:
        return HiddenStates(self.weights, f"{self._prefix}wavlm_model.")

    @lru_cache(maxsize=4096)  # noqa: B019 - as long as the metrics, which are as long as the command
    def of_file(self, path: Path) -> Mapping[str, float]:
        """The opinions of a file's sound, whole. Raises MediaError."""
        return self.of_sound(mono_sound(path, RATE_HZ)[0])

    def one_of_file(self, name: str, _: EvalCase, sample: Path) -> float:
        """One of the opinions of a sample. Raises MediaError."""
        return self.of_file(sample)[name]

    def of_sound(self, sound: np.ndarray[Any, np.dtype[np.float32]]) -> Mapping[str, float]:
        """Of mono samples [n] at 16 kHz: the mean over windows of 10 s, the last as much as it is long."""
        import torch

        size = WINDOW_S * RATE_HZ
        lengths = [min(size, len(sound) - start) for start in range(0, len(sound), size)]
        found = []
        with torch.inference_mode():
            for number, length in enumerate(lengths):
                window = np.zeros(size, np.float32)
                window[:length] = sound[number * size :][:length]
                found.append(self.opinions(torch.from_numpy(window)[None], length))
        return {name: float(np.average([each[name] for each in found], weights=lengths)) for name in OPINIONS}

    def opinions(self, window: Tensor, length: int) -> Mapping[str, float]:
        """Of one window [1, samples], of which the first `length` are sound."""
        from torch.nn.functional import normalize

        states, counts = self._states.of_sounds(window, [length])
        found = {}
        for name in OPINIONS:
            shares = self.weights[f"{self._prefix}layer_weights.{name}"].softmax(0)
            rows = (states * shares[:, None, None, None]).sum(0)
            told = self._judged(normalize(rows[counts].mean(0, keepdim=True), dim=-1), name)
            found[name] = float(told) * self._scales[name]["std"] + self._scales[name]["mean"]
        return found

    def _judged(self, vector: Tensor, name: str) -> Tensor:
        """[1, c] through the layers of an opinion: with a GELU before each but the first."""
        from torch.nn.functional import gelu

        head = f"{self._prefix}proj_layer.{name}"
        for at, number in enumerate(self.weights.numbers(f"{head}.")):
            if self.weights[f"{head}.{number}.weight"].ndim == 2:
                vector = self.weights.linear(gelu(vector) if at else vector, f"{head}.{number}")
            else:
                vector = self.weights.layer_norm(vector, f"{head}.{number}", eps=1e-5)
        return vector


def read_config(path: Path) -> Mapping[str, Any]:
    """What belongs to the network in a file beside its tensors: how it is built, mean and deviation of each opinion.

    Of safetensors the config.json beside it. Raises ModelError where there is none, or no deviations in it.
    """
    if path.suffix == ".safetensors":
        beside = path.with_name(CONFIG)
        told = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    else:
        content = plain_content(path)
        told = {**content.get("model_cfg", {}), "target_transform": content.get("target_transform")}
    if not set(OPINIONS) <= set(told.get("target_transform") or ()):
        raise ModelError(
            f"{path} comes without mean and deviation of {', '.join(OPINIONS)}.",
            remedy=f"Give the published checkpoint.pt, or {CONFIG} beside {WEIGHTS}.",
        )
    return told


def is_audiobox(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of Audiobox-aesthetics, which names no kind."""
    return "target_transform" in config


def audiobox_metrics(path: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """The four opinions, by the network in a file."""
    network = Audiobox(path)
    model = f"Audiobox-aesthetics in {path.name if path.name != WEIGHTS else path.parent.name}"
    return tuple(
        Metric(
            name=f"audiobox_{name.lower()}", doc=f"{name}: how {how} it is, 1 to 10", better=better, model=model,
            read=guarded(partial(network.one_of_file, name)), sha256=network.weights.sha256,
            decoder=DECODER,
            crop=f"mono 16 kHz, windows of {WINDOW_S} s, by their length",
        )
        for name, (how, better) in OPINIONS.items()
    )  # fmt: skip
