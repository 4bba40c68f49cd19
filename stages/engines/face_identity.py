"""Who it looks like: the best portrait taken while a face is followed, and an embedding of it.

The network is dlib's ResNet (King 2017, CC0, 99.4 % on LFW by its author's account); its weights lie in the package
`face_recognition_models`. Two portraits of one person lie within about 0.6 of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecipeError
from stages.engines.packaged import packaged

Array = NDArray[Any]

CHIP_PX = 150
"""Side of the picture the network takes."""
CHIP_PADDING = 0.25
"""Margin around the face on each side, in face sizes, that the network was trained with."""
MESH_POINTS = (263, 362, 33, 133, 2)
"""Mesh points at the outer and inner eye corners, left then right, and below the nose."""
MEAN_FACE = np.array(
    [[0.8596, 0.2135], [0.6461, 0.2290], [0.1206, 0.2137], [0.3341, 0.2291], [0.4901, 0.6278]],
)
"""Where these points lie in an upright face, in face sizes (dlib, image_transforms/interpolation.h, five-point model)."""
MIN_QUALITY_PX = 12.0
"""Eye distance times frontality below which no portrait is taken: profiles and faces of a few pixels resemble anybody."""


class Portrait(NamedTuple):
    """An upright face and how well it shows: the distance of the eyes in pixels, less the more the head is turned."""

    quality_px: float
    chip: Array
    """uint8 [150, 150, 3]"""


def portrait_of(image: Array, points: Array) -> Portrait | None:
    """The face meshed by `points` [468, 2 or 3] cut out of an RGB picture; None if it is small or turned away."""
    import cv2

    marks = points[list(MESH_POINTS), :2].astype(np.float64)
    across = (marks[0] + marks[1] - marks[2] - marks[3]) / 2
    off_centre = abs(float((marks[4] - marks[:4].mean(axis=0)) @ across)) / max(float(across @ across), 1e-9)
    quality_px = float(np.hypot(*across)) * max(0.0, 1 - 2 * off_centre)
    if quality_px < MIN_QUALITY_PX:
        return None
    wanted = (MEAN_FACE + CHIP_PADDING) / (1 + 2 * CHIP_PADDING) * CHIP_PX
    here, there = marks @ [1, 1j], wanted @ [1, 1j]
    apart = here - here.mean()
    turn = (np.conj(apart) * (there - there.mean())).sum() / (np.abs(apart) ** 2).sum()
    shift = there.mean() - turn * here.mean()
    move = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    return Portrait(
        quality_px, np.asarray(cv2.warpAffine(image, move, (CHIP_PX, CHIP_PX), flags=cv2.INTER_AREA), np.uint8)
    )


@dataclass
class FaceEncoder:
    """dlib's face recognition network: 100 ms a portrait on one core, 22 MB of weights."""

    network: Any

    @classmethod
    def load(cls) -> FaceEncoder:
        """The network, ready. Raises RecipeError with the command that installs what is missing."""
        weights = packaged("face_identity")
        try:
            import dlib
        except ImportError as error:
            raise RecipeError(
                "Faces are compared by dlib, which is not installed.",
                remedy="Run: pip install dlib-bin, or set stages.faces.identity: none in the recipe.",
            ) from error
        return cls(dlib.face_recognition_model_v1(str(weights)))

    def embed(self, portrait: Portrait) -> Array:
        """float32 [128]"""
        return np.asarray(self.network.compute_face_descriptor(portrait.chip), np.float32)
