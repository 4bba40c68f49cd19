"""Lines of text through time: which of them are one, and whether that is a subtitle, title, ticker, mark or part of the scene.

S samples of a clip, about one a second; all places are shares of the picture's sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stages.ocr.networks import TextLine

Picture = NDArray[np.uint8]
Kind = Literal["subtitle", "title", "ticker", "mark", "scene"]
OVERLAID: tuple[Kind, ...] = ("subtitle", "title", "ticker", "mark")
"""Kinds that were put over the picture afterwards."""

SAME_PLACE = 0.5
"""Overlap of two lines, intersection over union, from which they may be one."""
SAME_LOOK = 0.6
"""Correlation of two lines' thumbnails from which they say the same, where they lie in one place."""
SAME_ELSEWHERE, SAME_SIZE = 0.8, 0.25
"""The same where they do not, and by how much of itself the larger may be higher: text that moves with the scene."""
THUMB = (48, 8)
FIXED = 0.012
"""How far edges of a line that was laid over the picture wander, in picture sides: coding moves them by a pixel or two."""
LASTING = 0.8
"""Share of a clip's samples in which a mark is seen."""
CORNER = 0.3
"""Share of each side that is a corner; marks begin or end in one."""
LOWER, UPPER = 0.62, 0.2
"""Middles of subtitles lie below the former; of some above the latter."""
CENTRED = 0.15
"""How far the middle of a subtitle lies from the picture's."""
LINE_HEIGHT = (0.02, 0.16)
"""Heights of one line or two of subtitles, picture heights."""
LEAST_SUBTITLE_WIDTH = 0.1
BAND_WIDTH = 0.5
"""Least width of a ticker, picture widths; it runs out at a side."""
AT_SIDE = 0.04
TURNOVERS = 2
"""Changes from sample to sample without a pause from which text in a band is a ticker: nobody reads subtitles that fast."""


@dataclass(frozen=True, slots=True)
class FoundText:
    """One line in one sample."""

    line: TextLine
    thumb: NDArray[np.float16]
    """[384]: the line shrunken, without its mean, of length 1."""
    strip: Picture | None
    """For the reader: of the first sample that shows the line; None where nobody will read."""


@dataclass(frozen=True, slots=True)
class TextSample:
    """What was found in one picture."""

    time_s: float
    found: tuple[FoundText, ...]


@dataclass
class SeenText:
    """One line followed from sample to sample."""

    first: int
    """Which sample shows it first."""
    seen: list[FoundText] = field(default_factory=list)
    kind: Kind = "scene"

    @property
    def end(self) -> int:
        """One past the last sample that shows it."""
        return self.first + len(self.seen)

    @property
    def place(self) -> TextLine:
        """Median edges."""
        return TextLine(*np.median([found.line for found in self.seen], axis=0).tolist())

    @property
    def is_fixed(self) -> bool:
        """Whether its vertical edges and middle stay where they are."""
        edges = np.array([found.line[:4] for found in self.seen])
        moving = np.stack([edges[:, 1], edges[:, 3], (edges[:, 0] + edges[:, 2]) / 2])
        return bool(np.ptp(moving, axis=1).max() <= FIXED)


def thumb_of(strip: Picture) -> NDArray[np.float16]:
    """What a strip [48, w, 3] is recognised by."""
    import cv2

    small = cv2.resize(cv2.cvtColor(strip, cv2.COLOR_RGB2GRAY), THUMB, interpolation=cv2.INTER_AREA)
    values = small.astype(np.float32).ravel() - small.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-6), np.float16)


def is_same(before: FoundText, after: FoundText) -> bool:
    """Whether two lines of neighbouring samples look alike, the more so where they lie apart."""
    if before.line.overlap(after.line) >= SAME_PLACE:
        return _alike(before, after) >= SAME_LOOK
    low, high = sorted((before.line.bottom - before.line.top, after.line.bottom - after.line.top))
    return high - low <= SAME_SIZE * high and _alike(before, after) >= SAME_ELSEWHERE


def _alike(one: FoundText, other: FoundText) -> float:
    return float(one.thumb.astype(np.float32) @ other.thumb.astype(np.float32))


def followed(samples: Sequence[TextSample]) -> list[SeenText]:
    """The lines of a clip's samples, in order of when they are seen first."""
    items: list[SeenText] = []
    live: list[SeenText] = []
    for number, sample in enumerate(samples):
        free = [item for item in live if item.end == number]
        live = []
        for found in sample.found:
            match = next((item for item in free if is_same(item.seen[-1], found)), None)
            if match is None:
                match = SeenText(number)
                items.append(match)
            else:
                free.remove(match)
            match.seen.append(found)
            live.append(match)
    return items


def named(items: Sequence[SeenText], num_samples: int) -> None:
    """Gives every item of a clip with so many samples its kind."""
    for item in items:
        item.kind = _kind_of(item, num_samples)
    for item in items:
        if _turns_over(item, items):
            item.kind = "ticker"


def _kind_of(item: SeenText, num_samples: int) -> Kind:
    place, share = item.place, len(item.seen) / max(num_samples, 1)
    middle_x, middle_y = (place.left + place.right) / 2, (place.top + place.bottom) / 2
    if len(item.seen) > 1 and not item.is_fixed:
        return "scene"
    is_cornered = (place.right < CORNER or place.left > 1 - CORNER) and (
        place.bottom < CORNER or place.top > 1 - CORNER
    )
    if is_cornered:
        return "mark" if share >= LASTING else "title"
    height, width = place.bottom - place.top, place.right - place.left
    is_line = LINE_HEIGHT[0] <= height <= LINE_HEIGHT[1] and width >= LEAST_SUBTITLE_WIDTH
    is_apart = middle_y >= LOWER or middle_y <= UPPER
    if is_line and is_apart and abs(middle_x - 0.5) <= CENTRED:
        return "subtitle"
    return "title" if len(item.seen) > 1 else "scene"


def _turns_over(item: SeenText, items: Sequence[SeenText]) -> bool:
    """Whether what stands in the item's band is another text in sample after sample, and runs out at a side."""
    place = item.place
    if len(item.seen) > 1 or place.right - place.left < BAND_WIDTH:
        return False
    if place.left > AT_SIDE and place.right < 1 - AT_SIDE:
        return False
    band = [other for other in items if len(other.seen) == 1 and _shares_band(other.place, place)]
    times = {other.first for other in band}
    run = sum(
        1 for step in range(-TURNOVERS, TURNOVERS + 1) if step and all(item.first + s in times for s in _between(step))
    )
    return run >= TURNOVERS


def _between(step: int) -> range:
    """The steps from the next one to `step`."""
    return range(1, step + 1) if step > 0 else range(step, 0)


def _shares_band(one: TextLine, other: TextLine) -> bool:
    both = min(one.bottom, other.bottom) - max(one.top, other.top)
    return both >= 0.5 * min(one.bottom - one.top, other.bottom - other.top)


def freed(places: Sequence[TextLine]) -> tuple[float, float, float, float]:
    """The largest (left, top, right, bottom) of the picture in which nothing of `places` lies."""
    lefts, tops = [0.0, *(place.right for place in places)], [0.0, *(place.bottom for place in places)]
    rights, bottoms = [1.0, *(place.left for place in places)], [1.0, *(place.top for place in places)]
    best, most = (0.0, 0.0, 0.0, 0.0), 0.0
    for left in lefts:
        for right in (edge for edge in rights if edge > left):
            inside = [place for place in places if place.right > left and place.left < right]
            for top in tops:
                for bottom in (edge for edge in bottoms if edge > top):
                    is_free = all(place.bottom <= top or place.top >= bottom for place in inside)
                    if is_free and (right - left) * (bottom - top) > most:
                        best, most = (left, top, right, bottom), (right - left) * (bottom - top)
    return best


def agreement(shown: str, spoken: str) -> float | None:
    """Share of the letters and digits of `shown` that `spoken` has in the same order; None if either has none."""
    from difflib import SequenceMatcher

    first, second = ["".join(filter(str.isalnum, text.casefold())) for text in (shown, spoken)]
    if not first or not second:
        return None
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / len(first)
