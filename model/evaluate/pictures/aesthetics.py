"""How well pictures please: a head of plain layers on the vector that SigLIP or CLIP has of them.

The folder of the network, as transformers saves it, also holds the head's file: aesthetic_predictor_v2_5.pth for SigLIP
so400m-384, sac+logos+ava1-l14-linearMSE.pth for CLIP ViT-L/14, or either in safetensors.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.evaluate.media import read_pictures
from model.evaluate.metric import Metric, SetMetric
from model.evaluate.networks import DECODER, EVERY, guarded
from schemas.errors import ModelError
from schemas.networks.folders import WEIGHTS, LocalNetwork
from schemas.networks.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

SIDE_PX = 1_024
"""Frames are decoded at most this large; the network's own front end scales them down."""
LAYER = re.compile(r"(?:scoring_head|layers)\.(\d+)")
NUM_LAYERS = 5


class Aesthetics(LocalNetwork):
    """What is thought of pictures, 1 to 10."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        heads = sorted({*folder.glob("*.pth"), *folder.glob("*.safetensors")} - {folder / WEIGHTS})
        if len(heads) != 1:
            raise ModelError(
                f"{folder} has {len(heads)} files for a head, expected one beside {WEIGHTS}.",
                remedy="Put aesthetic_predictor_v2_5.pth (SigLIP) or sac+logos+ava1-l14-linearMSE.pth (CLIP) there.",
            )
        self.head = TensorFile(heads[0])

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        is_clip = self.kind.startswith("clip")
        network = self.load("CLIPVisionModelWithProjection" if is_clip else "SiglipVisionModel")
        return network, self.picture_front_end()

    def of_film(self, path: Path) -> float:
        """The mean over every 5th frame. Raises MediaError."""
        import torch

        network, processor = self._parts
        frames, _ = read_pictures(path, SIDE_PX, "rgb24", every=EVERY)
        opinions: list[float] = []
        with torch.inference_mode():
            for frame in frames:
                seen = network(**processor(frame, return_tensors="pt"))
                opinions.append(self.opinion(seen.image_embeds if "image_embeds" in seen else seen.pooler_output))
        return sum(opinions) / len(opinions)

    def opinion(self, vector: Tensor) -> float:
        """What the head says of one vector [1, d], whose length is no matter. It has no bends: its layers are one."""
        from torch.nn.functional import normalize

        told = normalize(vector, dim=-1)
        for name in self.head.names(LAYER, NUM_LAYERS):
            told = self.head.linear(told, name)
        return float(told)

    def metrics(self) -> tuple[tuple[Metric, ...], tuple[SetMetric, ...]]:
        """How well the pictures please."""
        return (
            Metric(
                name="aesthetic", doc="how well the pictures please, 1 to 10", better="higher",
                read=guarded(lambda _, sample: self.of_film(sample)), sha256=f"{self.sha256},{self.head.sha256}",
                model=f"{self.head.path.name} on {self.kind} in {self.folder.name}", decoder=DECODER,
                crop=f"every {EVERY}th frame, as the network's front end crops it",
            ),
        ), ()  # fmt: skip
