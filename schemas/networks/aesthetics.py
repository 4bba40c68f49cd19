"""How well pictures please: a head of plain layers on the vector that SigLIP or CLIP has of them.

The folder of the network, as transformers saves it, also holds the head's file: aesthetic_predictor_v2_5.pth for SigLIP
so400m-384, sac+logos+ava1-l14-linearMSE.pth for CLIP ViT-L/14, or either in safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ModelError
from schemas.networks.folders import WEIGHTS, LocalNetwork
from schemas.networks.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

SIDE_PX = 1_024
"""Frames are decoded at most this large; the network's own front end scales them down."""
KINDS = ("siglip", "siglip_vision_model", "clip", "clip_vision_model")
"""What transformers calls networks that there are heads for."""
LAYER = re.compile(r"(?:scoring_head|layers)\.(\d+)")
NUM_LAYERS = 5


class Aesthetics(LocalNetwork):
    """What is thought of pictures, 1 to 10."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        super().__init__(folder, device)
        if self.kind not in KINDS:
            raise ModelError(
                f"{folder / 'config.json'}: expected a network of type {' or '.join(KINDS)}, got '{self.kind}'.",
                remedy="Give the folder of SigLIP so400m-384 or CLIP ViT-L/14 with its aesthetic head.",
            )
        heads = sorted({*folder.glob("*.pth"), *folder.glob("*.safetensors")} - {folder / WEIGHTS})
        if len(heads) != 1:
            raise ModelError(
                f"{folder} has {len(heads)} files for a head, expected one beside {WEIGHTS}.",
                remedy="Put aesthetic_predictor_v2_5.pth (SigLIP) or sac+logos+ava1-l14-linearMSE.pth (CLIP) there.",
            )
        self.head = TensorFile(heads[0], device=device)

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        is_clip = self.kind.startswith("clip")
        network = self.load("CLIPVisionModelWithProjection" if is_clip else "SiglipVisionModel")
        return network, self.picture_front_end()

    def ready(self) -> None:
        """Loads the network and reads its head. Raises ModelError for another head or one of a network of another size."""
        network, _ = self._parts
        own = network.config.projection_dim if self.kind.startswith("clip") else network.config.hidden_size
        wanted = self.head[f"{self.head.names(LAYER, NUM_LAYERS)[0]}.weight"].shape[1]
        if own != wanted:
            raise ModelError(
                f"{self.head.path} is a head for vectors of {wanted}, expected {own} as the network in {self.folder} has.",
                remedy="Put the network that the head was trained on beside it.",
            )

    def of_pictures(self, pictures: Iterable[NDArray[np.uint8]]) -> float:
        """The mean over pictures RGB [h, w, 3], one or more, which are taken one by one."""
        import torch

        network, processor = self._parts
        opinions: list[float] = []
        with torch.inference_mode():
            for picture in pictures:
                seen = network(**processor(picture, return_tensors="pt").to(self.device))
                opinions.append(self.opinion(seen.image_embeds if "image_embeds" in seen else seen.pooler_output))
        return sum(opinions) / len(opinions)

    def opinion(self, vector: Tensor) -> float:
        """What the head says of one vector [1, d], whose length is no matter. It has no bends: its layers are one."""
        from torch.nn.functional import normalize

        told = normalize(vector, dim=-1)
        for name in self.head.names(LAYER, NUM_LAYERS):
            told = self.head.linear(told, name)
        return float(told)
