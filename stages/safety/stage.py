"""`safety`: whether a clip shows what is not safe for work, by a published classifier of pictures. One look a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.errors import RecipeError
from schemas.fields import f, struct
from schemas.networks.folders import WEIGHTS
from schemas.records import Row, span_of
from schemas.timing import Span
from stages.base import Context, Measure, Resources, StageConfig
from stages.engines.published import loaded
from stages.media.decoder import Look
from stages.safety.classifier import PictureClassifier

LONG_SIDE_PX = 1_024
"""Pictures are decoded at most this large; the network's own front end shrinks them, to 224 px as a rule."""
PICTURES_PER_S = 1.0
LEAST_NSFW = 0.5
"""Probability from which a picture counts for `nsfw_share`: of two labels, the likelier one."""

SAFETY = struct(
    f("nsfw", pa.float64(), unit="ratio", doc="highest probability of the label among the pictures looked at; null where there "
      "was none", show="histogram"),
    f("nsfw_share", pa.float64(), unit="ratio", doc="share of pictures that have it with 0.5 and more", show="histogram"),
    f("num_pictures", pa.int32(), unit="count", doc="pictures looked at, one a second and the clip's first"),
)  # fmt: skip


class SafetyConfig(StageConfig):
    """Which published network is asked, and for what."""

    path: str = ""
    """Folder of a classifier of pictures as transformers saves it (config.json, preprocessor_config.json, model.safetensors),
    such as Falconsai/nsfw_image_detection. The stage does not run without."""
    label: str = "nsfw"
    """Which of its labels is looked for, as its config.json spells it."""
    device: str = "cpu"
    """Where it runs: cpu, cuda, cuda:1. State what a worker then needs in `resources.safety`."""


class Safety(Measure[SafetyConfig]):
    """Whether a clip shows what is not safe for work, as a network from a path says of one picture a second.

    No network of the kind comes with any package: without a path to one the run ends before it begins, and nothing is measured
    in its stead. What lies between the pictures is not looked at. The clip is decoded once more.
    """

    name = "safety"
    version = "1"
    level = "clip"
    reads = ("clip", "download.path", "probe.has_video")
    adds = SAFETY
    Config = SafetyConfig
    resources = Resources(cpus=1.0, memory_gb=1.0, timeout_s=300.0)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        place = Path(self.config.path).expanduser()
        if not self.config.path or not (place / WEIGHTS).is_file():
            raise RecipeError(
                f"stages.safety.path: expected the folder of a classifier of pictures with {WEIGHTS}, got '{self.config.path}'.",
                remedy="Set it to the published folder, or leave the stage out of the recipe.",
            )
        self.network = ctx.model(loaded, PictureClassifier, place, self.config.device)
        self.number = self.network.number_of(self.config.label)

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        if not row["probe"]["has_video"]:
            return told([])
        pictures = self._pictures(self.ctx.asset_path(row), span_of(row["clip"]))
        return told([float(self.network.of_picture(picture)[self.number]) for picture in pictures])

    def _pictures(self, path: Path, span: Span) -> Iterator[NDArray[np.uint8]]:
        """One picture a second of a clip, RGB [h, w, 3], each there until the next is asked for."""
        look: Look = {"start": span.start, "end": span.end, "long_side_px": LONG_SIDE_PX, "max_fps": PICTURES_PER_S}
        for run in self.ctx.media.iter_frames(path, **look):
            yield from run.images


def told(probabilities: list[float]) -> dict[str, Any]:
    """The `SAFETY` struct of a clip whose pictures have the label with these probabilities."""
    if not probabilities:
        return {"nsfw": None, "nsfw_share": None, "num_pictures": 0}
    share = sum(each >= LEAST_NSFW for each in probabilities) / len(probabilities)
    return {"nsfw": max(probabilities), "nsfw_share": share, "num_pictures": len(probabilities)}
