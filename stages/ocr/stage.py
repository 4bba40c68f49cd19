"""`ocr`: what is written over the picture: where, how long, of what kind, and what it says. Once a second."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from schemas.fields import f, struct
from schemas.records import Row, span_of
from schemas.timing import Span
from stages.asset_pass import Wish
from stages.base import Context, Measure, Resources, StageConfig
from stages.media.decoder import Frames, Look
from stages.ocr.kinds import (
    OVERLAID,
    FoundText,
    SeenText,
    TextSample,
    agreement,
    covered,
    followed,
    freed,
    is_same,
    joined,
    named,
    thumb_of,
)
from stages.ocr.networks import TextDetector, TextLine, TextReader, strip_of

MOST_LINES = 40
"""Lines kept of one picture, largest first: a page of text has more, and needs no more to be known as one."""
MOST_READ = 24
"""Lines of a clip that are read, longest seen first."""
FEWEST_LETTERS, LEAST_CONFIDENCE = 2, 0.6
"""Letters, and their mean probability, from which what looks like text is some: eyes and plates are read as
nothing."""

OCR_LINE = struct(
    f("kind", pa.string(), doc="subtitle, title, ticker, mark (a watermark or logo with letters) or scene"),
    f("start_s", pa.float64(), unit="s", doc="first picture looked at that shows it, on the clip clock"),
    f("end_s", pa.float64(), unit="s", doc="first picture looked at that does not any more"),
    f("x", pa.float64(), unit="ratio", doc="median left edge, share of the picture width"),
    f("y", pa.float64(), unit="ratio", doc="median top edge, share of the picture height"),
    f("width", pa.float64(), unit="ratio", doc="median width, share of the picture width"),
    f("height", pa.float64(), unit="ratio", doc="median height, share of the picture height"),
    f("text", pa.string(), doc="what it says; null where nobody read it"),
    f("confidence", pa.float64(), unit="ratio", doc="mean probability of its letters; null where nobody read it"),
)

OCR = struct(
    f("area_ratio", pa.float64(), unit="ratio", doc="mean share of the picture under text of any kind", show="histogram"),
    f("overlaid_area_ratio", pa.float64(), unit="ratio", doc="mean share of it under subtitles, titles, tickers and marks"),
    f("frames_ratio", pa.float64(), unit="ratio", doc="share of the pictures looked at that have text", show="histogram"),
    f("has_subtitles", pa.bool_(), doc="whether there is a subtitle", show="label"),
    f("subtitle_ratio", pa.float64(), unit="ratio", doc="share of the pictures looked at that have a subtitle"),
    f("has_mark", pa.bool_(), doc="whether a watermark or logo with letters stays in a corner", show="label"),
    f("lines", pa.list_(OCR_LINE), doc="the lines seen, in order of time", show="lane"),
    f("subtitles", pa.string(), doc="what subtitles say, in order of time; null where nobody read"),
    f("agreement", pa.float64(), unit="ratio", doc="share of the subtitles' letters that clip.spans say in the same order; "
      "null without either", show="histogram"),
    f("crop_x", pa.float64(), unit="ratio", doc="left edge of the largest part without text laid over it, share of the width"),
    f("crop_y", pa.float64(), unit="ratio", doc="top edge of it, share of the height"),
    f("crop_width", pa.float64(), unit="ratio", doc="width of it, share of the width"),
    f("crop_height", pa.float64(), unit="ratio", doc="height of it, share of the height"),
    f("crop_ratio", pa.float64(), unit="ratio", doc="share of the picture that it is", show="histogram"),
)  # fmt: skip


class OcrConfig(StageConfig):
    """How closely text is looked for."""

    long_side_px: int = Field(default=640, ge=320)
    """Pictures are looked at at most this large."""
    every_s: float = Field(default=1.0, gt=0)
    """Time between two looks. Subtitles stay for a second and more."""
    reads: bool = True
    """Whether lines are read, 0.1 s each, and those in which nothing can be read are left out."""


class OcrWatch:
    """Finds lines of text in one picture a second: up to 50 kB for each line that was not there before."""

    def __init__(self, ctx: Context, config: OcrConfig) -> None:
        self.look = Look(long_side_px=config.long_side_px, max_fps=1 / config.every_s, format="rgb24")
        self._detector = ctx.model(TextDetector.load)
        self._reads = config.reads
        self._samples: list[TextSample] = []

    def see(self, run: Frames) -> None:
        """Adds pictures, uint8 [n, h, w, 3]."""
        for picture, time_s in zip(run.images, run.times_s.tolist(), strict=True):
            lines = sorted(self._detector.lines(picture), key=lambda line: -line.area)[:MOST_LINES]
            before = self._samples[-1].found if self._samples else ()
            self._samples.append(TextSample(time_s, tuple(self._found(picture, line, before) for line in lines)))

    def _found(self, picture: NDArray[np.uint8], line: TextLine, before: Sequence[FoundText]) -> FoundText:
        strip = strip_of(picture, line)
        found = FoundText(line, thumb_of(strip), strip if self._reads else None)
        known = next((other for other in before if is_same(other, found)), None)
        return found if known is None else replace(found, strip=known.strip)

    def of(self, span: Span) -> list[TextSample]:
        """The samples of a clip, or the last before it."""
        low, high = (
            bisect_left(self._samples, float(at) - 1e-6, key=lambda each: each.time_s) for at in (span.start, span.end)
        )
        return self._samples[max(0, min(low, high - 1)) : high]


class Ocr(Measure[OcrConfig]):
    """Text in a clip's picture: its part of what the asset pass saw once a second.

    Found and read by PP-OCRv6 small. Kinds follow from place and time alone: text of the scene that lies low and in the middle of
    a picture that does not move passes for a subtitle, a logo without letters is not seen, and nor is text that comes and
    goes between two looks. About 0.2 CPU s a look of 640 x 360, and 0.1 for each line read.
    """

    name = "ocr"
    version = "2"
    level = "clip"
    reads = ("clip", "download.path")
    adds = OCR
    Config = OcrConfig
    is_watching = True
    resources = Resources(cpus=1.0, memory_gb=0.5, timeout_s=300.0)

    @classmethod
    def watches(cls, config: OcrConfig, ctx: Context) -> Wish:
        """A watch of the asset."""
        return OcrWatch, config

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        ctx.model(TextDetector.load)
        self.reader = ctx.model(TextReader.load) if self.config.reads else None

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        span = span_of(row["clip"])
        samples = self.ctx.asset_pass.look(self.ctx.asset_path(row), OcrWatch, self.config).of(span)
        if not samples:
            return dict.fromkeys((field.name for field in OCR), None)
        items = joined(self._read(followed(samples)))
        named(items, len(samples))
        items.sort(key=lambda item: (item.first, item.place.top, item.place.left))
        said = " ".join(span["text"] for span in row["clip"]["spans"] or () if span["text"])
        subtitles = " ".join(item.text for item in items if item.kind == "subtitle" and item.text)
        left, top, right, bottom = freed([covered(item.kind, item.place) for item in items if item.kind in OVERLAID])
        ends = [sample.time_s for sample in samples[1:]] + [float(span.end)]
        return {
            **shares(len(samples), items),
            "lines": [
                line_row(item, samples[item.first].time_s - float(span.start), ends[item.end - 1] - float(span.start))
                for item in items
            ],
            "subtitles": subtitles if self.reader is not None else None,
            "agreement": agreement(subtitles, said),
            "crop_x": left,
            "crop_y": top,
            "crop_width": right - left,
            "crop_height": bottom - top,
            "crop_ratio": (right - left) * (bottom - top),
        }

    def _read(self, items: Sequence[SeenText]) -> list[SeenText]:
        """`items` with what they say, without those in which nothing can be read: eyes, plates and leaves are found as well."""
        if self.reader is None:
            return list(items)
        for item in sorted(items, key=lambda item: -len(item.seen))[:MOST_READ]:
            if (strip := item.seen[0].strip) is not None:
                item.text, item.confidence = self.reader.read(strip)
        return [item for item in items if item.confidence is None or is_text(item.text or "", item.confidence)]


def is_text(text: str, confidence: float) -> bool:
    """Whether what was read is there at all."""
    return sum(map(str.isalnum, text)) >= FEWEST_LETTERS and confidence >= LEAST_CONFIDENCE


def shares(num: int, items: Sequence[SeenText]) -> dict[str, Any]:
    """The fields of `OCR` about how much and how long, of `num` samples."""
    kinds = {item.kind for item in items}
    with_subtitle = {item.first + at for item in items if item.kind == "subtitle" for at in range(len(item.seen))}
    with_text = {item.first + at for item in items for at in range(len(item.seen))}
    areas = [(item.kind in OVERLAID, sum(found.line.area for found in item.seen)) for item in items]
    return {
        "area_ratio": min(1.0, sum(area for _, area in areas) / num),
        "overlaid_area_ratio": min(1.0, sum(area for is_overlaid, area in areas if is_overlaid) / num),
        "frames_ratio": len(with_text) / num,
        "has_subtitles": "subtitle" in kinds,
        "subtitle_ratio": len(with_subtitle) / num,
        "has_mark": "mark" in kinds,
    }


def line_row(item: SeenText, start_s: float, end_s: float) -> dict[str, Any]:
    """The `OCR_LINE` of an item."""
    place = item.place
    return {
        "kind": item.kind,
        "start_s": max(0.0, start_s),
        "end_s": end_s,
        "x": place.left,
        "y": place.top,
        "width": place.right - place.left,
        "height": place.bottom - place.top,
        "text": item.text,
        "confidence": item.confidence,
    }
