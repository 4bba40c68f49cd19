"""Lines of text through time: which of them are one, and whether that is a subtitle, title, ticker, mark or part of the scene.

S samples of a clip, about one a second; all places are shares of the picture's sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
SAME_TEXT = 0.8
"""Share of letters, as `difflib` counts, in which two readings of one line agree."""
THUMB = (96, 8)
FIXED = 0.012
"""How far edges of a line that was laid over the picture wander, in picture sides: coding moves them by a pixel or two."""
LASTING = 0.8
"""Share of a clip's samples in which a mark is seen."""
CORNER = 0.3
"""Share of each side that is a corner; marks begin or end in one."""
LOWER, UPPER = 0.62, 0.2
"""Middles of subtitles lie below the former; of some above the latter."""
CENTRED, CENTRED_ONCE = 0.1, 0.05
"""How far the middle of a subtitle lies from the picture's; of one that a single sample shows, which might be moving."""
LINE_HEIGHT = (0.02, 0.16)
"""Heights of one line or two of subtitles, picture heights."""
LEAST_SUBTITLE_WIDTH = 0.1
SAME_WIDTH, MOVED = 0.15, 0.03
"""One line has moved where one about as wide lies so much further, picture widths: subtitles stay in the middle."""
BAND_WIDTH = 0.5
"""Least width of a ticker, picture widths; it runs out at a side."""
AT_SIDE = 0.04
RUN = 3
"""Samples in a row that show other text in one band from which it is a ticker: nobody reads subtitles that fast."""
AT_BORDER = 0.15
"""Share of the height at the top and the bottom in which text that moves sideways is a ticker."""


@dataclass(frozen=True, slots=True)
class FoundText:
    """One line in one sample."""

    line: TextLine
    thumb: NDArray[np.float16]
    """[768]: the line shrunken, without the mean of each row, of length 1: a band behind letters is no letter."""
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
    text: str | None = None
    """What it says; None where nobody read it."""
    confidence: float | None = None

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
        """Whether its top, bottom and middle stay where they are in most samples."""
        edges = np.array([found.line[:4] for found in self.seen])
        moving = np.stack([edges[:, 1], edges[:, 3], (edges[:, 0] + edges[:, 2]) / 2])
        apart = np.abs(moving - np.median(moving, axis=1, keepdims=True))
        return bool(np.median(apart, axis=1).max() <= FIXED / 2)

    @property
    def runs_sideways(self) -> bool:
        """Whether it moves to one side and at no time up or down."""
        edges = np.array([found.line[:4] for found in self.seen])
        steps = np.diff((edges[:, 0] + edges[:, 2]) / 2)
        is_level = np.ptp(edges[:, 1]) <= FIXED and np.ptp(edges[:, 3]) <= FIXED
        return bool(is_level and (np.all(steps > FIXED) or np.all(steps < -FIXED)))


def thumb_of(strip: Picture) -> NDArray[np.float16]:
    """What a strip [48, w, 3] is recognised by."""
    import cv2

    small = cv2.resize(cv2.cvtColor(strip, cv2.COLOR_RGB2GRAY), THUMB, interpolation=cv2.INTER_AREA)
    values = (small - small.mean(1, keepdims=True, dtype=np.float32)).ravel()
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


def joined(items: Sequence[SeenText]) -> list[SeenText]:
    """`items`, in order of when they are seen first, with those as one that read alike, in one place, one after another.

    Over a picture that moves, thumbnails of one line differ.
    """
    found: list[SeenText] = []
    for item in items:
        for at, before in enumerate(found):
            if before.end == item.first and _reads_as(before, item):
                found[at] = replace(before, seen=[*before.seen, *item.seen])
                break
        else:
            found.append(item)
    return found


def _reads_as(before: SeenText, after: SeenText) -> bool:
    from difflib import SequenceMatcher

    if before.text is None or after.text is None or before.seen[-1].line.overlap(after.seen[0].line) < SAME_PLACE:
        return False
    return SequenceMatcher(None, before.text, after.text, autojunk=False).ratio() >= SAME_TEXT


def named(items: Sequence[SeenText], num_samples: int) -> None:
    """Gives every item of a clip with so many samples its kind."""
    for item in items:
        item.kind = _kind_of(item, num_samples)
    for item in items:
        if _turns_over(item, items):
            item.kind = "ticker"
        elif len(item.seen) == 1 and any(_moves_on(item, other) for other in items):
            item.kind = "scene"


def _kind_of(item: SeenText, num_samples: int) -> Kind:
    place, share = item.place, len(item.seen) / max(num_samples, 1)
    middle_x, middle_y = (place.left + place.right) / 2, (place.top + place.bottom) / 2
    if len(item.seen) > 1 and not item.is_fixed:
        return "ticker" if item.runs_sideways and min(middle_y, 1 - middle_y) <= AT_BORDER else "scene"
    if place.left <= AT_SIDE and place.right >= 1 - AT_SIDE and min(middle_y, 1 - middle_y) <= AT_BORDER:
        return "ticker"
    is_cornered = (place.right < CORNER or place.left > 1 - CORNER) and (
        place.bottom < CORNER or place.top > 1 - CORNER
    )
    if is_cornered:
        return "mark" if share >= LASTING else "title"
    height, width = place.bottom - place.top, place.right - place.left
    is_line = LINE_HEIGHT[0] <= height <= LINE_HEIGHT[1] and width >= LEAST_SUBTITLE_WIDTH
    is_apart = middle_y >= LOWER or middle_y <= UPPER
    if is_line and is_apart and abs(middle_x - 0.5) <= (CENTRED if len(item.seen) > 1 else CENTRED_ONCE):
        return "subtitle"
    return "title" if len(item.seen) > 1 else "scene"


def _turns_over(item: SeenText, items: Sequence[SeenText]) -> bool:
    """Whether the item's band is full of other text in `RUN` samples in a row, and the text runs out at a side."""
    band = [other for other in items if len(other.seen) == 1 and _shares_band(other.place, item.place)]
    if item not in band:
        return False
    full: list[int] = []
    for sample in sorted({other.first for other in band}):
        lines = [other.place for other in band if other.first == sample]
        left, right = min(line.left for line in lines), max(line.right for line in lines)
        if right - left >= BAND_WIDTH and (left <= AT_SIDE or right >= 1 - AT_SIDE):
            full.append(sample)
    starts = [first for first in full if all(first + step in full for step in range(RUN))]
    return any(first <= item.first < first + RUN for first in starts)


def _moves_on(item: SeenText, other: SeenText) -> bool:
    """Whether a line of the same size lies further to the side in the sample before or behind."""
    here, there = item.place, other.place
    is_neighbour = other.first == item.end or other.end == item.first
    is_level = abs(here.top - there.top) <= FIXED and abs(here.bottom - there.bottom) <= FIXED
    width, other_width = here.right - here.left, there.right - there.left
    is_as_wide = abs(width - other_width) <= SAME_WIDTH * width
    return (
        is_neighbour and is_level and is_as_wide and abs(here.left + here.right - there.left - there.right) / 2 > MOVED
    )


def _shares_band(one: TextLine, other: TextLine) -> bool:
    both = min(one.bottom, other.bottom) - max(one.top, other.top)
    return both >= 0.5 * min(one.bottom - one.top, other.bottom - other.top)


def covered(kind: str, place: TextLine) -> TextLine:
    """Where a line is in the course of a clip: tickers run through the whole width."""
    return place._replace(left=0.0, right=1.0) if kind == "ticker" else place


def freed(places: Sequence[TextLine], kept: Sequence[TextLine] = ()) -> tuple[float, float, float, float]:
    """The largest part, (left, top, right, bottom), with nothing of `places` in it and all of `kept`; zeros without one."""
    lefts = sorted({0.0, *(place.right for place in places)})
    rights = sorted({1.0, *(place.left for place in places)})
    first, last = min((each.left for each in kept), default=1.0), max((each.right for each in kept), default=0.0)
    high, low = min((each.top for each in kept), default=1.0), max((each.bottom for each in kept), default=0.0)
    best, most = (0.0, 0.0, 0.0, 0.0), 0.0
    for left in (edge for edge in lefts if edge <= first):
        for right in (edge for edge in rights if edge >= last and edge - left > most):
            inside = [(place.top, place.bottom) for place in places if place.right > left and place.left < right]
            for top, bottom in gaps(inside):
                if top <= high and bottom >= low and (right - left) * (bottom - top) > most:
                    best, most = (left, top, right, bottom), (right - left) * (bottom - top)
    return best


def gaps(taken: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The parts of 0 to 1 in which nothing of `taken` lies."""
    end = 0.0
    for low, high in sorted(taken):
        if low > end:
            yield end, low
        end = max(end, high)
    if end < 1:
        yield end, 1.0


def agreement(shown: str, spoken: str) -> float | None:
    """Share of the letters and digits of `shown` that `spoken` has in the same order; None if either has none."""
    from difflib import SequenceMatcher

    first, second = ["".join(filter(str.isalnum, text.casefold())) for text in (shown, spoken)]
    if not first or not second:
        return None
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / len(first)
