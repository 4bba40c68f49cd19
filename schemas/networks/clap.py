"""CLAP: sound and text in one space of vectors (laion/clap-htsat-fused and others of its class)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.networks.folders import LocalNetwork, Vector

CLAP_PEAK = 10 ** (-1 / 20)
"""Verse-Bench scales sound to a peak of -1 dB before it is heard."""


class Clap(LocalNetwork):
    """Sound and text in one space."""

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        return self.load("ClapModel"), self.front_end("ClapFeatureExtractor"), self.front_end("AutoTokenizer")

    def ready(self) -> None:
        """Loads the network. Raises what transformers raises for a folder with another."""
        assert self._parts

    @property
    def rate_hz(self) -> int:
        """Of the sound that it hears."""
        return int(self._parts[1].sampling_rate)

    def of_sound(self, sound: NDArray[np.float32]) -> Vector:
        """The vector of the beginning of mono sound at `rate_hz`, as long as the network hears; its peak at -1 dB.

        The published front end takes a random part of longer sound instead, another one each time.
        """
        import torch

        network, extractor, _ = self._parts
        sound = sound[: extractor.nb_max_samples]
        sound = sound * (CLAP_PEAK / max(float(np.abs(sound).max()), 1e-9))
        with torch.inference_mode():
            given = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt").to(self.device)
            return np.asarray(network.get_audio_features(**given)[0].double().cpu().numpy())

    def of_text(self, text: str) -> Vector:
        """The vector of a text."""
        import torch

        network, _, tokenizer = self._parts
        with torch.inference_mode():
            given = tokenizer([text], return_tensors="pt", return_token_type_ids=False).to(self.device)
            return np.asarray(network.get_text_features(**given)[0].double().cpu().numpy())
