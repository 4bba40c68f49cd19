"""`quality`: how good a clip's picture is by itself, and what is wrong with it. One look a second at the stored size."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.fields import f, struct
from schemas.networks.aesthetics import SIDE_PX, Aesthetics
from schemas.networks.folders import WEIGHTS
from schemas.records import Row, span_of
from schemas.timing import Span
from stages.asset_pass import Wish
from stages.base import Context, Measure, Resources, StageConfig
from stages.engines.published import asked
from stages.media.decoder import Frames, Look
from stages.quality.brisque import Brisque
from stages.quality.faults import bars, blockiness, blur, is_combed, noise

LONG_SIDE_PX = 1920
"""Larger pictures are shrunk to this; faults finer than that are gone where anybody trains."""
PICTURES_PER_S = 1.0
CENTRE_PX = 640
"""Side of the middle of the picture that is looked at for all but BRISQUE, combs and bars."""
PLACE_PX = 448
"""Side of the places of which BRISQUE looks at the one that has most detail: what is out of focus or of one colour may be so
on purpose."""
PLACES = ((0.5, 0.5), (0.28, 0.28), (0.28, 0.72), (0.72, 0.28), (0.72, 0.72))
"""Their middles, as shares of height and width."""
NUM_JUDGED = 5
"""Pictures of a clip that the aesthetic predictor is shown at most."""
LEAST_BAR = 0.01
"""Share of a side from which a bar counts."""

QUALITY = struct(
    f("brisque", pa.float64(), doc="BRISQUE of the most detailed of five places of 448 px: 0 clean, 100 unlike any photograph; "
      "median; drawn pictures and text score badly", show="histogram"),
    f("blur", pa.float64(), unit="ratio", doc="0 sharp to 1 blurred, by what blurring again takes away; median",
      show="histogram"),
    f("noise", pa.float64(), unit="grey level", doc="standard deviation of noise and grain; median", show="histogram"),
    f("blockiness", pa.float64(), unit="ratio", doc="how much more pixels differ across the borders of 8 x 8 blocks, less 1; "
      "median; blocks that were scaled are not seen", show="histogram"),
    f("interlaced_ratio", pa.float64(), unit="ratio", doc="share of pictures in which two fields of different times are woven"),
    f("bars", pa.string(), doc="none, letterbox, pillarbox or windowbox: bars of one level of grey, whatever level; null if "
      "all is flat", show="label"),
    f("crop_x_px", pa.int32(), unit="px", doc="left edge of what lies between bars, display pixels"),
    f("crop_y_px", pa.int32(), unit="px", doc="top edge of it"),
    f("crop_width_px", pa.int32(), unit="px", doc="width of it"),
    f("crop_height_px", pa.int32(), unit="px", doc="height of it"),
    f("crop_ratio", pa.float64(), unit="ratio", doc="share of the picture that lies between bars"),
    f("aesthetic", pa.float64(), doc="how well it pleases, 1 to 10, by the aesthetic predictor: mean of up to 5 pictures; null "
      "without its weights", show="histogram"),
)  # fmt: skip
FIGURES = ("brisque", "blur", "noise", "blockiness")


class QualityConfig(StageConfig):
    """Whether a published network is asked how well a picture pleases."""

    aesthetic: str = ""
    """Folder of SigLIP so400m-384 as transformers saves it, with aesthetic_predictor_v2_5.pth in it, or of CLIP ViT-L/14 with
    sac+logos+ava1-l14-linearMSE.pth; without one it is not asked."""
    device: str = "cpu"
    """Where it runs: cpu, cuda, cuda:1. State what a worker then needs in `resources.quality`."""


@dataclass(frozen=True, slots=True)
class SeenPicture:
    """One picture."""

    pts: int
    figures: tuple[float | None, ...]
    """`FIGURES`"""
    is_combed: bool
    bars: tuple[int, int, int, int] | None


class QualityWatch:
    """Looks at one grey picture a second: 100 bytes each. About 30 ms for one of 1080p."""

    look = Look(long_side_px=LONG_SIDE_PX, max_fps=PICTURES_PER_S, format="gray")

    def __init__(self, ctx: Context) -> None:
        self._brisque = ctx.model(Brisque.load)
        self._seen: list[SeenPicture] = []
        self._shape = (0, 0)

    def see(self, run: Frames) -> None:
        """Adds pictures, uint8 [n, h, w]."""
        self._shape = run.images.shape[1:]
        for picture, pts in zip(run.images, run.pts.tolist(), strict=True):
            edges = bars(picture)
            middle, place = centre(picture, edges), most_detailed(picture, edges)
            figures = (self._brisque.score(place), blur(middle), noise(middle), blockiness(middle))
            self._seen.append(SeenPicture(pts, figures, is_combed(picture), edges))

    def of(self, span: Span, width_px: int, height_px: int) -> dict[str, Any]:
        """The `QUALITY` struct of a clip that is shown at `width_px` x `height_px`: of pictures in it, or the last before it.

        `aesthetic` is null: networks are not asked here.
        """
        seen = self._within(span)
        nothing: dict[str, Any] = dict.fromkeys(field.name for field in QUALITY)
        if not seen:
            return nothing
        medians = {
            name: float(np.median(known)) if (known := [v for v in values if v is not None]) else None
            for name, values in zip(FIGURES, zip(*(each.figures for each in seen), strict=True), strict=True)
        }
        combed = float(np.mean([each.is_combed for each in seen]))
        edges = [each.bars for each in seen if each.bars is not None]
        return nothing | medians | {"interlaced_ratio": combed} | self._crop(edges, width_px, height_px)

    def judged(self, span: Span) -> list[int]:
        """The pts of `NUM_JUDGED` pictures at most of those that `of` is of, evenly apart."""
        seen = self._within(span)
        num = min(NUM_JUDGED, len(seen))
        return [seen[(2 * at + 1) * len(seen) // (2 * num)].pts for at in range(num)]

    def _within(self, span: Span) -> list[SeenPicture]:
        """The pictures in `span`, or the last before it."""
        low, high = (bisect_left(self._seen, pts, key=lambda seen: seen.pts) for pts in (span.start_pts, span.end_pts))
        return self._seen[max(0, min(low, high - 1)) : high]

    def _crop(self, edges: list[tuple[int, int, int, int]], width_px: int, height_px: int) -> dict[str, Any]:
        if not edges:
            return dict.fromkeys(
                ("bars", "crop_x_px", "crop_y_px", "crop_width_px", "crop_height_px", "crop_ratio"), None
            )
        high, wide = self._shape
        left, top, right, bottom = (least for least in np.min(edges, axis=0).tolist())
        if left + right < LEAST_BAR * wide:
            left = right = 0
        if top + bottom < LEAST_BAR * high:
            top = bottom = 0
        across, down = width_px / wide, height_px / high
        x, y = round(left * across), round(top * down)
        width, height = round((wide - left - right) * across), round((high - top - bottom) * down)
        names = {
            (False, False): "none",
            (True, False): "pillarbox",
            (False, True): "letterbox",
            (True, True): "windowbox",
        }
        return {
            "bars": names[bool(left + right), bool(top + bottom)],
            "crop_x_px": x,
            "crop_y_px": y,
            "crop_width_px": width,
            "crop_height_px": height,
            "crop_ratio": width * height / (width_px * height_px),
        }


def centre(picture: NDArray[np.uint8], edges: tuple[int, int, int, int] | None) -> NDArray[np.uint8]:
    """The middle of what lies between the bars of [h, w], `CENTRE_PX` a side at most."""
    inner = _inner(picture, edges)
    high, wide = (min(side, CENTRE_PX) for side in inner.shape)
    y, x = (inner.shape[0] - high) // 2, (inner.shape[1] - wide) // 2
    return np.ascontiguousarray(inner[y : y + high, x : x + wide])


def most_detailed(picture: NDArray[np.uint8], edges: tuple[int, int, int, int] | None) -> NDArray[np.uint8]:
    """Of `PLACES` between the bars of [h, w], `PLACE_PX` a side, the one with most detail; all of it where that is no larger."""
    import cv2

    inner = _inner(picture, edges)
    if min(inner.shape) <= PLACE_PX:
        return np.ascontiguousarray(inner)
    corners = [
        [
            min(max(0, round(share * side - PLACE_PX / 2)), side - PLACE_PX)
            for share, side in zip(each, inner.shape, strict=True)
        ]
        for each in PLACES
    ]
    places = [np.ascontiguousarray(inner[y : y + PLACE_PX, x : x + PLACE_PX]) for y, x in corners]
    return max(places, key=lambda place: float(np.abs(cv2.Laplacian(place, cv2.CV_32F)).mean()))


def _inner(picture: NDArray[np.uint8], edges: tuple[int, int, int, int] | None) -> NDArray[np.uint8]:
    left, top, right, bottom = edges or (0, 0, 0, 0)
    return picture[top : picture.shape[0] - bottom, left : picture.shape[1] - right]


class Quality(Measure[QualityConfig]):
    """Quality of a clip's picture: its part of what the asset pass saw once a second at the stored size.

    Interlacing is seen where the stored rows are looked at, up to 1920 px; drawings, screens and text have statistics of
    their own, for which BRISQUE was not made. The aesthetic predictor, where a recipe has a path for it, is
    shown some of the same pictures in colour, for which the clip is decoded once more.
    """

    name = "quality"
    version = "2"
    level = "clip"
    reads = ("clip", "download.path", "probe.width_px", "probe.height_px")
    adds = QUALITY
    Config = QualityConfig
    is_watching = True
    resources = Resources(cpus=1.0, memory_gb=0.2, timeout_s=300.0)

    @classmethod
    def watches(cls, config: QualityConfig, ctx: Context) -> Wish:
        """A watch of the asset."""
        return (QualityWatch,)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        ctx.model(Brisque.load)
        self.aesthetics = asked(
            ctx, self.config.device, Aesthetics, "stages.quality.aesthetic", self.config.aesthetic, WEIGHTS
        )

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        path, span = self.ctx.asset_path(row), span_of(row["clip"])
        watch = self.ctx.asset_pass.look(path, QualityWatch)
        found = watch.of(span, row["probe"]["width_px"], row["probe"]["height_px"])
        if self.aesthetics is None or not (pictures := self._pictures(path, watch.judged(span), span.time_base)):
            return found
        return found | {"aesthetic": self.aesthetics.of_pictures(pictures)}

    def _pictures(self, path: Path, pts: list[int], time_base: Fraction) -> list[NDArray[np.uint8]]:
        """The pictures of these pts, of those that were seen once a second, RGB [h, w, 3]."""
        if not pts:
            return []
        start, end = pts[0] * time_base, (pts[-1] + 1) * time_base
        runs = self.ctx.media.iter_frames(path, start=start, end=end, long_side_px=SIDE_PX, max_fps=PICTURES_PER_S)
        return [image.copy() for run in runs for image, at in zip(run.images, run.pts, strict=True) if at in pts]
