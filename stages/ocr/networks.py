"""The two networks that find and read text in pictures: PP-OCRv6 small, detection and recognition, from the wheel of `rapidocr`.

Nothing of that package is imported: both are ONNX files, their pre- and postprocessing follows PaddleOCR's (Apache-2.0):
differentiable binarisation for finding, greedy CTC for reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.engines.packaged import packaged
from stages.engines.sessions import one_thread_session

Picture = NDArray[np.uint8]

STEP_PX = 32
"""Sides that the detector takes are multiples of this."""
INK = 0.3
"""Probability from which a pixel is of text (PaddleOCR's default)."""
LEAST_SCORE = 0.6
"""Mean probability of a line's pixels from which it is one (PaddleOCR's box_thresh)."""
GROWTH = 1.6
"""How far what was found is widened, in areas over perimeters: the network is trained on shrunken lines (unclip_ratio)."""
LEAST_PX = 4
"""Lines less high where they are looked for are speckles."""
MOST_PICTURE = 0.25
"""Share of the picture's sides that the shorter side of a line takes at most: larger are plates, wheels and faces."""
LINE_PX = 48
"""Height of a line as the reader takes it."""
LONGEST_PX = 960
"""Width up to which a line is read without being squeezed: 20 times its height."""


class TextLine(NamedTuple):
    """One line of text: its edges as shares of the picture's sides, and how sure it is."""

    left: float
    top: float
    right: float
    bottom: float
    score: float

    @property
    def area(self) -> float:
        """Share of the picture."""
        return (self.right - self.left) * (self.bottom - self.top)

    def overlap(self, other: TextLine) -> float:
        """Intersection over union."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        both = max(across, 0.0) * max(down, 0.0)
        return both / max(self.area + other.area - both, 1e-9)


@dataclass(frozen=True)
class TextDetector:
    """Finds lines of text. About 0.2 s a picture of 640 x 360 and core; raises RecipeError where its weights are missing."""

    session: Any

    @classmethod
    def load(cls) -> TextDetector:
        """The network, ready."""
        return cls(one_thread_session(packaged("text_detection")))

    def lines(self, picture: Picture) -> list[TextLine]:
        """Lines of an RGB picture [h, w, 3], from the top down."""
        import cv2

        size = tuple(max(STEP_PX, round(side / STEP_PX) * STEP_PX) for side in picture.shape[1::-1])
        scaled = cv2.resize(picture, size)[..., ::-1].astype(np.float32) / 127.5 - 1
        (found,) = self.session.run(None, {self.session.get_inputs()[0].name: scaled.transpose(2, 0, 1)[None]})
        return lines_of(found[0, 0])


def lines_of(ink: NDArray[np.float32]) -> list[TextLine]:
    """Lines in the probabilities [h, w] that pixels are of the shrunken middle of one."""
    import cv2

    num, labels, stats, _ = cv2.connectedComponentsWithStats((ink > INK).astype(np.uint8), connectivity=8)
    high, wide = ink.shape
    found = []
    for label in range(1, num):
        left, top, width, height, _ = (int(value) for value in stats[label])
        if min(height, width) < LEAST_PX or min(height / high, width / wide) > MOST_PICTURE:
            continue
        inside = (slice(top, top + height), slice(left, left + width))
        score = float(ink[inside][labels[inside] == label].mean())
        if score < LEAST_SCORE:
            continue
        by = GROWTH * width * height / (2 * (width + height))
        edges = ((left - by) / wide, (top - by) / high, (left + width + by) / wide, (top + height + by) / high)
        x, y, right, bottom = (min(max(edge, 0.0), 1.0) for edge in edges)
        found.append(TextLine(x, y, right, bottom, score))
    return sorted(found, key=lambda line: (line.top, line.left))


@dataclass(frozen=True)
class TextReader:
    """Reads a line of Chinese, English and other Latin text. About 0.1 s a line and core."""

    session: Any
    letters: tuple[str, ...]

    @classmethod
    def load(cls) -> TextReader:
        """The network, ready, with the letters that its own file names."""
        session = one_thread_session(packaged("text_recognition"))
        letters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
        return cls(session, ("", *letters, " "))

    def read(self, strip: Picture) -> tuple[str, float]:
        """(text, mean probability of its letters) of one line [48, w, 3] RGB; empty where there is none."""
        pixels = strip[..., ::-1].astype(np.float32) / 127.5 - 1
        (found,) = self.session.run(None, {self.session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]})
        return spelled(found[0], self.letters)


def strip_of(picture: Picture, line: TextLine) -> Picture:
    """`line` of a picture [h, w, 3] as the reader takes it: [48, w, 3], at most `LONGEST_PX` wide."""
    import cv2

    high, wide = picture.shape[:2]
    top, bottom = round(line.top * high), max(round(line.top * high) + 1, round(line.bottom * high))
    left, right = round(line.left * wide), max(round(line.left * wide) + 1, round(line.right * wide))
    part = picture[top:bottom, left:right]
    width = min(LONGEST_PX, max(LINE_PX, round(part.shape[1] * LINE_PX / part.shape[0])))
    return np.asarray(cv2.resize(part, (width, LINE_PX), interpolation=cv2.INTER_LINEAR), np.uint8)


def spelled(probabilities: NDArray[np.float32], letters: tuple[str, ...]) -> tuple[str, float]:
    """What [steps, letters] say: the likeliest of each step, repeats once, the first letter standing for none."""
    best = probabilities.argmax(1)
    is_new = (best > 0) & (best != np.concatenate([[0], best[:-1]]))
    if not is_new.any():
        return "", 0.0
    text = "".join(letters[at] for at in best[is_new])
    return text.strip(), float(probabilities.max(1)[is_new].mean())
