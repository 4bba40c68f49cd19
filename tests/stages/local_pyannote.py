"""A real pyannote diarization pipeline made of weights inside installed packages, for config.yaml to name.

It exists so that the production engine's loading and calling code runs in tests: a user's config.yaml differs in the
class it names and in its weights, nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines import SpeakerDiarization
from pyannote.audio.pipelines.clustering import Clustering

from schemas.spans import SPEECH_RATE_HZ
from stages.diarize.segmentation import Kind
from stages.engines.packaged import packaged
from stages.engines.speakers import EMBEDDING_SIZE, MIN_SPEECH_S, SpeakerEncoder


def pyannote_segmentation(kind: Kind = "near") -> Any:
    """A network of `stages.diarize.segmentation` as pyannote's own class, which a pipeline wants."""
    import typing
    from collections import defaultdict

    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.listconfig import ListConfig
    from omegaconf.nodes import AnyNode
    from pyannote.audio.core.model import Introspection
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    described = [torch.torch_version.TorchVersion, dict, int, list, defaultdict, typing.Any]
    described += [ContainerMetadata, Metadata, ListConfig, AnyNode, Introspection, Problem, Resolution, Specifications]
    with torch.serialization.safe_globals(described):
        stored = torch.load(
            packaged("segmentation" if kind == "near" else "segmentation_far"), map_location="cpu", weights_only=True
        )
    network = PyanNet(**stored["hyper_parameters"])
    network.specifications = stored["pyannote.audio"]["specifications"]
    network.setup()
    network.load_state_dict(stored["state_dict"])
    return network.eval()


class VoiceEmbedding:
    """The project's speaker encoder in the form pyannote's pipeline calls."""

    sample_rate = SPEECH_RATE_HZ
    dimension = EMBEDDING_SIZE
    metric = "cosine"
    min_num_samples = int(MIN_SPEECH_S * SPEECH_RATE_HZ)

    def __init__(self) -> None:
        self.encoder = SpeakerEncoder.load()

    def to(self, device: torch.device) -> VoiceEmbedding:
        return self

    def __call__(self, waveforms: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
        sounds = waveforms[:, 0].numpy()
        index = np.arange(sounds.shape[1]) * masks.shape[1] // sounds.shape[1]
        pieces = [sound[mask[index] > 0.5] for sound, mask in zip(sounds, masks.numpy(), strict=True)]
        nothing = np.full(EMBEDDING_SIZE, np.nan)
        return np.stack([nothing if e is None else e for e in self.encoder.embed_all(pieces)])


class LocalDiarization(SpeakerDiarization):
    """`SpeakerDiarization` without anything from a hub, whose `token` and `cache_dir` the loader always passes."""

    def __init__(
        self, clustering: str = "AgglomerativeClustering", segmentation_step: float = 0.25, **hub: Any
    ) -> None:
        super().__init__(
            segmentation=pyannote_segmentation(),
            segmentation_step=segmentation_step,
            embedding=None,
            plda=PLDA.__new__(PLDA),
            clustering="OracleClustering",
        )
        from pyannote.audio.core.io import Audio

        self.klustering = clustering
        self._embedding: Any = VoiceEmbedding()
        self._audio = Audio(sample_rate=SPEECH_RATE_HZ, mono="downmix")
        self.clustering = Clustering[clustering].value(metric="cosine")
        self._expects_num_speakers = self.clustering.expects_num_clusters
