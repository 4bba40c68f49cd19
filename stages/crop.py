"""Which part of a clip's picture is written, where a recipe wants it free of text or bars, and what is said of that part then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from schemas.records import Row, Struct
from stages.base import StageConfig
from stages.framing import shot_size
from stages.ocr.kinds import OVERLAID, covered, freed
from stages.ocr.networks import TextLine

Edges = tuple[float, float, float, float]
"""left, top, right, bottom as shares of the picture's sides."""
WHOLE: Edges = (0.0, 0.0, 1.0, 1.0)
MARGIN = 0.01
"""By how much more than its lines is cut away, picture sides: edges and shadows of letters lie beyond what is found of them."""
MOSTLY = 0.5
"""Share of a line of text or a face that has to lie in the part for it to be seen there."""


class CropRule(StageConfig):
    """What is cut away at the sides. Faces that were followed stay in the picture, whole."""

    text: bool = False
    """Cut away what stage `ocr` found laid over the picture: subtitles, titles, tickers, marks."""
    bars: bool = False
    """Cut away bars, as stage `quality` found them."""
    min_kept_ratio: float = Field(default=0.6, gt=0, le=1)
    """Least share of the picture that stays; a clip of which less would is written whole. Gate on `ocr.crop_ratio` and
    `quality.crop_ratio` to drop such clips instead."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The stages it needs."""
        return (*(("ocr",) if self.text else ()), *(("quality", "probe") if self.bars else ()))

    @property
    def may_read(self) -> tuple[str, ...]:
        """The stages whose words follow the crop, where the recipe has them."""
        return ("faces", "framing", "ocr", "quality", "probe") if self.text or self.bars else ()


def crop_of(row: Row, rule: CropRule) -> Edges | None:
    """The part of the clip's picture to be written; None for all of it, also where too little would be left."""
    parts = [_between_bars(row)] if rule.bars else []
    faces = [_line(face) for face in (row.get("faces") or {}).get("tracks") or ()]
    if rule.text and (lines := _overlaid((row["ocr"] or {}).get("lines"))):
        parts.append(freed(lines, faces))
    left, top, right, bottom = common(WHOLE, *parts)
    is_kept = all(
        face.left >= left and face.top >= top and face.right <= right and face.bottom <= bottom for face in faces
    )
    share = max(0.0, right - left) * max(0.0, bottom - top)
    return (left, top, right, bottom) if is_kept and rule.min_kept_ratio <= share < 1 else None


def common(*parts: Edges) -> Edges:
    """What lies in all of them."""
    lefts, tops, rights, bottoms = zip(*parts, strict=True)
    return max(lefts), max(tops), min(rights), min(bottoms)


def _line(box: Struct) -> TextLine:
    return TextLine(box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"], 1.0)


def _overlaid(lines: Sequence[Struct] | None) -> list[TextLine]:
    """Where lines of text lie that were put over the picture, with a margin."""
    found = [covered(line["kind"], _line(line)) for line in lines or () if line["kind"] in OVERLAID]
    return [
        TextLine(line.left - MARGIN, line.top - MARGIN, line.right + MARGIN, line.bottom + MARGIN, line.score)
        for line in found
    ]


def _between_bars(row: Row) -> Edges:
    quality, probe = row["quality"] or {}, row["probe"]
    if quality.get("crop_ratio") is None:
        return WHOLE
    x, y, wide, high = (quality[f"crop_{name}_px"] for name in ("x", "y", "width", "height"))
    return (
        x / probe["width_px"],
        y / probe["height_px"],
        (x + wide) / probe["width_px"],
        (y + high) / probe["height_px"],
    )


def after_crop(row: Row, crop: tuple[int, int, int, int], whole: tuple[int, int]) -> Mapping[str, Struct]:
    """What stages say of the written part `crop`, (x, y, width, height) in pixels of a picture of size `whole`.

    Boxes are shares of the written picture; what lies outside is left out, and what would have to be measured again is null.
    """
    edges = (crop[0] / whole[0], crop[1] / whole[1], (crop[0] + crop[2]) / whole[0], (crop[1] + crop[3]) / whole[1])
    said: dict[str, Struct] = {}
    if (faces := row.get("faces")) is not None:
        tracks = [placed for face in faces["tracks"] if (placed := _placed(face, edges)) is not None]
        said["faces"] = {"num_faces": len(tracks), "tracks": tracks}
    if (framing := row.get("framing")) is not None and framing["face_height_ratio"] is not None:
        height_ratio = framing["face_height_ratio"] / (edges[3] - edges[1])
        said["framing"] = {"face_height_ratio": height_ratio, "shot_size": shot_size(height_ratio)}
    if (ocr := row.get("ocr")) is not None and ocr["lines"] is not None:
        said["ocr"] = _text_left(ocr, edges)
    if (quality := row.get("quality")) is not None and quality["bars"] is not None:
        said["quality"] = _bars_left(common(_between_bars(row), edges), edges, crop[2:])
    return said


def _placed(box: Struct, edges: Edges) -> dict[str, Any] | None:
    """`box` in the part `edges` of the picture; None where most of it is outside."""
    was = _line(box)
    left, top, right, bottom = common((was.left, was.top, was.right, was.bottom), edges)
    if max(0.0, right - left) * max(0.0, bottom - top) < MOSTLY * was.area:
        return None
    wide, high = edges[2] - edges[0], edges[3] - edges[1]
    place = {"x": (left - edges[0]) / wide, "y": (top - edges[1]) / high}
    return {**box, **place, "width": (right - left) / wide, "height": (bottom - top) / high}


def _text_left(ocr: Struct, edges: Edges) -> dict[str, Any]:
    lines = [placed for line in ocr["lines"] if (placed := _placed(line, edges)) is not None]
    kinds = {line["kind"] for line in lines}
    subtitle, overlaid = "subtitle" in kinds, bool(kinds & set(OVERLAID))
    left, top, right, bottom = freed([covered(line["kind"], _line(line)) for line in lines if line["kind"] in OVERLAID])
    return {
        "area_ratio": None if lines else 0.0,
        "overlaid_area_ratio": None if overlaid else 0.0,
        "frames_ratio": None if lines else 0.0,
        "has_subtitles": subtitle,
        "subtitle_ratio": ocr["subtitle_ratio"] if subtitle else 0.0,
        "has_mark": "mark" in kinds,
        "lines": lines,
        "subtitles": ocr["subtitles"] if subtitle else ocr["subtitles"] and "",
        "agreement": ocr["agreement"] if subtitle else None,
        "crop_x": left,
        "crop_y": top,
        "crop_width": right - left,
        "crop_height": bottom - top,
        "crop_ratio": (right - left) * (bottom - top),
    }


def _bars_left(inner: Edges, edges: Edges, size: Sequence[int]) -> dict[str, Any]:
    """The fields of `quality` about bars, of a written picture of `size` that has `inner` of all within `edges`."""
    scale = (size[0] / (edges[2] - edges[0]), size[1] / (edges[3] - edges[1]))
    x, y = round((inner[0] - edges[0]) * scale[0]), round((inner[1] - edges[1]) * scale[1])
    width, height = round((inner[2] - inner[0]) * scale[0]), round((inner[3] - inner[1]) * scale[1])
    beside, above = width < size[0], height < size[1]
    names = {(False, False): "none", (True, False): "pillarbox", (False, True): "letterbox", (True, True): "windowbox"}
    return {
        "bars": names[beside, above],
        "crop_x_px": x,
        "crop_y_px": y,
        "crop_width_px": width,
        "crop_height_px": height,
        "crop_ratio": width * height / (size[0] * size[1]),
    }
