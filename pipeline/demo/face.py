"""A photographed face that speaks: NASA's portrait of Eileen Collins (public domain), from the scikit-image wheel.

The photograph is warped, not drawn: the jaw goes down, the lips part over the photograph's own teeth and a dark mouth,
lids close, the head moves a little. A second and third person are made from the same photograph by mirroring, recolouring
hair, skin and suit, another background and other proportions. Pictures are RGB uint8; coordinates without suffix are
photograph pixels (x right, y down).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stages.engines.packaged import packaged

Image = NDArray[np.uint8]
Field = NDArray[np.float32]

# Measured by eye on the photograph, to about one pixel.
MOUTH_CENTRE, MOUTH_HALF_WIDTH, TILT = (224.5, 140.5), 21.5, 0.035
UPPER_TEETH, LOWER_TEETH, LIPS_MEET = 2.0, 9.0, 4.8  # below the line between the corners, at the centre
JAW_DROP = 15.0
EYES = ((203.0, 101.0, 11.0), (246.0, 103.5, 11.5))  # centre x, y, half width
CHIN_Y, COLLAR_Y = 177.0, 212.0
NECK = (226.0, 185.0)
FACE_BOX = (178.0, 78.0, 92.0, 104.0)
"""Left, top, width and height of the face from hair line to chin in the photograph."""

_HEAD = """154,75 155,57 165,48 177,40 186,36 192,29 202,22 217,17 230,15 244,17 260,22 272,30 286,40 297,60 301,82
299,100 285,120 279,128 272,136 267,136 264,149 258,160 256,175 245,187 226,191 205,187 188,181 184,168 183,148 181,132
172,128 166,116 157,103 155,92"""
_FACE = """183,88 190,72 215,80 240,84 262,92 268,108 269,130 262,152 256,168 254,184 226,191 205,187 187,180 186,160
182,140 180,110"""
_BODY = """182,149 162,149 147,152 135,160 127,172 123,185 115,186 114,200 112,205 100,214 80,226 50,265 40,330 20,430
20,511 511,511 500,360 400,340 365,352 350,290 325,246 305,235 300,217 290,200 275,185 260,175 257,158"""

MOST_DRAWN_PX = 640
"""Longer side of what is drawn before scaling up: already twice the photograph's resolution, which shows 350 pixels at most."""


@dataclass(frozen=True)
class Person:
    """How one person is made from the photograph. Gains multiply RGB; `widen` and `lengthen` change the proportions."""

    is_mirrored: bool = False
    hair_gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    skin_gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    suit_hue_turn: int = 0
    background: str | None = None
    widen: float = 1.0
    lengthen: float = 1.0


PEOPLE = {
    "ann": Person(),
    "ben": Person(True, (0.42, 0.36, 0.34), (0.80, 0.70, 0.62), 100, "brick.png", 1.12, 1.0),
    "cat": Person(True, (1.12, 0.98, 0.78), (1.04, 0.98, 0.95), 55, "grass.png", 0.92, 1.04),
    "dan": Person(False, (0.75, 0.76, 0.82), (0.92, 0.82, 0.74), 130, "gravel.png", 1.08, 1.06),
}


def photograph(name: str) -> Image:
    """The RGB picture `name` of scikit-image's data folder, read from the installed wheel; nothing is downloaded.

    Raises RecipeError when scikit-image is not installed or carries another.
    """
    import cv2

    picture = cv2.imread(str(packaged(name)), cv2.IMREAD_COLOR)
    assert picture is not None, "a checked file can be read"
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


@lru_cache(maxsize=8)
def portrait(who: str) -> Image:
    """The 512 x 512 photograph as `who` of PEOPLE, before mirroring and proportions (they are part of the warp)."""
    import cv2

    person, base = PEOPLE[who], photograph("astronaut.png")
    picture = base.astype(np.float32)
    head, face, body = (_mask(outline)[..., None] for outline in (_HEAD, _FACE, _BODY))
    if person.background is not None:
        wall = cv2.GaussianBlur(cv2.resize(photograph(person.background), (512, 512)), (0, 0), 3).astype(np.float32)
        keep = np.maximum(head, body)
        picture = keep * picture + (1 - keep) * wall
    if person.suit_hue_turn:
        hsv = cv2.cvtColor(base, cv2.COLOR_RGB2HSV)
        suit = body * np.clip((hsv[..., 1:2].astype(np.float32) - 110) / 60, 0, 1) * (1 - head)
        hsv[..., 0] = (hsv[..., 0].astype(np.int32) + person.suit_hue_turn) % 180
        picture = suit * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) + (1 - suit) * picture
    hair = head * (1 - face)
    gain = 1 + hair * (np.asarray(person.hair_gain) - 1) + face * (np.asarray(person.skin_gain) - 1)
    return np.asarray(np.clip(picture * gain, 0, 255), np.uint8)


def _mask(outline: str) -> Field:
    """(512, 512) float32 in 0..1: inside of an outline "x,y x,y ...", with an edge two pixels soft."""
    import cv2

    points = np.array([[int(n) for n in point.split(",")] for point in outline.split()], np.int32)
    filled = cv2.fillPoly(np.zeros((512, 512), np.float32), [points], 1.0)
    return np.asarray(cv2.GaussianBlur(filled, (0, 0), 1.5), np.float32)


class TalkingFace:
    """One person in a picture of fixed size; call `at` for each frame. Holds 12 bytes per drawn pixel."""

    def __init__(self, who: str, width_px: int, height_px: int, seed: int = 0) -> None:
        """`seed` chooses the head's motion and the times of the blinks."""
        self.width_px, self.height_px = width_px, height_px
        self.person = PEOPLE[who]
        self._photo = portrait(who)
        self._view = _view(width_px / height_px)
        random = np.random.default_rng([seed, sum(who.encode())])
        self._phases = random.uniform(0, 2 * np.pi, 6)
        self._blinks_s = np.cumsum(random.uniform(1.8, 4.2, 400))
        shrink = min(1.0, MOST_DRAWN_PX / max(width_px, height_px))
        self._drawn_px = round(width_px * shrink), round(height_px * shrink)
        self._still = self._head_fields()

    @property
    def face_box_px(self) -> tuple[int, int, int, int]:
        """Left, top, width, height of the face at rest in the output picture."""
        left, top, size_x, size_y = self._view
        x, y, width, height = FACE_BOX
        half, centre = width * self.person.widen / 2, x + width / 2
        x0 = (centre - half - left) / size_x
        if self.person.is_mirrored:
            x0 = 1 - x0 - 2 * half / size_x
        scale_x, scale_y, longer = self.width_px, self.height_px, self.person.lengthen
        return (
            round(x0 * scale_x),
            round((125 + (y - 125) * longer - top) / size_y * scale_y),
            round(2 * half / size_x * scale_x),
            round(height * longer / size_y * scale_y),
        )

    def at(self, time_s: float, opening: float, rounding: float) -> Image:
        """(height, width, 3) picture at `time_s` with the mouth open by `opening` and pursed by `rounding`, both 0..1."""
        import cv2

        photo = self._photo.copy()
        _speak(self._photo, photo, opening, rounding)
        _blink(self._photo, photo, self._lids_closed(time_s))
        map_x, map_y = self._moved(time_s)
        picture = cv2.remap(photo, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if self._drawn_px != (self.width_px, self.height_px):
            picture = cv2.resize(picture, (self.width_px, self.height_px), interpolation=cv2.INTER_LINEAR)
        return np.asarray(picture, np.uint8)

    def _lids_closed(self, time_s: float) -> float:
        """How far the lids are down, 0..1: a blink is 0.2 s long."""
        nearest_s = float(np.min(np.abs(self._blinks_s - time_s)))
        return max(0.0, 1.0 - nearest_s / 0.1)

    def _head_fields(self) -> tuple[Field, Field, Field]:
        """Source x and y of every drawn pixel with the head at rest, and how much the head's motion applies there."""
        left, top, size_x, size_y = self._view
        wide, high = self._drawn_px
        x = left + (np.arange(wide, dtype=np.float32) + 0.5) / wide * size_x - 0.5
        y = top + (np.arange(high, dtype=np.float32) + 0.5) / high * size_y - 0.5
        grid_x, grid_y = np.meshgrid(x[::-1] if self.person.is_mirrored else x, y)
        across, down = (grid_x - 226) / 95, (grid_y - 100) / 110
        weight = np.exp(-(across**4) - down**4)
        near = np.exp(-(((grid_x - 226) / 75) ** 4) - ((grid_y - 125) / 85) ** 4)
        grid_x = grid_x + near * (226 - grid_x) * (1 - 1 / self.person.widen)
        grid_y = grid_y + near * (125 - grid_y) * (1 - 1 / self.person.lengthen)
        return grid_x.astype(np.float32), grid_y.astype(np.float32), weight.astype(np.float32)

    def _moved(self, time_s: float) -> tuple[Field, Field]:
        """Source x and y of every drawn pixel at `time_s`: slow sway and nod of about two photograph pixels."""
        grid_x, grid_y, weight = self._still
        wave = np.sin(2 * np.pi * np.array([0.21, 0.47, 0.17, 0.39, 0.13, 0.31]) * time_s + self._phases)
        sway, nod, turn = (
            1.8 * wave[0] + 0.8 * wave[1],
            1.2 * wave[2] + 0.6 * wave[3],
            0.012 * wave[4] + 0.008 * wave[5],
        )
        map_x = grid_x - weight * (np.float32(sway) - np.float32(turn) * (grid_y - NECK[1]))
        map_y = grid_y - weight * (np.float32(nod) + np.float32(turn) * (grid_x - NECK[0]))
        return map_x, map_y


def _view(aspect: float) -> tuple[float, float, float, float]:
    """Left, top, width and height of the part of the photograph shown at `aspect`: the head with a little shoulder."""
    height = 196.0 if aspect >= 1 else 250.0
    width = height * aspect
    return 226.0 - width / 2, 8.0, width, height


@lru_cache(maxsize=1)
def _mouth_grid() -> tuple[slice, slice, Field, Field]:
    """Rows and columns of the lower face in the photograph, and the x and y of its pixels."""
    rows, columns = slice(116, 216), slice(172, 280)
    y, x = np.mgrid[rows, columns].astype(np.float32)
    return rows, columns, x, y


def _speak(source: Image, target: Image, opening: float, rounding: float) -> None:
    """Writes the lower face of `source` into `target` with the jaw down by `opening`.

    Between upper edge U and lower edge L of the lips lies the mouth; below L the jaw moves down with the lip, above U the
    upper lip yields a little. With both at rest the lips meet, although the photograph smiles.
    """
    import cv2

    rows, columns, x, y = _mouth_grid()
    narrow = 1 - 0.25 * rounding
    corner_pull = np.exp(-(((x - MOUTH_CENTRE[0]) / 29) ** 4) - ((y - MOUTH_CENTRE[1] - 5) / 20) ** 4)
    x_from = x + corner_pull * (x - MOUTH_CENTRE[0]) * (1 / narrow - 1)
    lip = np.maximum(1 - ((x_from - MOUTH_CENTRE[0]) / MOUTH_HALF_WIDTH) ** 2, 0)
    corners = MOUTH_CENTRE[1] + TILT * (x - MOUTH_CENTRE[0])
    drop = JAW_DROP * opening * (1 - 0.25 * rounding)
    upper = corners + lip * (LIPS_MEET - opening * (LIPS_MEET - UPPER_TEETH))
    lower = corners + lip * (LIPS_MEET + drop)
    below = np.clip((y - lower) / 22, 0, 1)
    jaw = lip * (1 - below) + np.exp(-(((x - MOUTH_CENTRE[0]) / 36) ** 4)) * below
    fade_down = np.clip((COLLAR_Y - y) / (COLLAR_Y - CHIN_Y), 0, 1)
    moved_down = jaw * (LIPS_MEET + drop - LOWER_TEETH) * fade_down
    fade_up = np.clip((y - 124) / 14, 0, 1)
    moved_up = lip * (LIPS_MEET - UPPER_TEETH) * (1 - opening) * fade_up
    y_from = np.where(
        y >= lower, y - moved_down, np.where(y <= upper, y - moved_up, y - (upper - corners - lip * UPPER_TEETH))
    )
    warped = cv2.remap(source, x_from.astype(np.float32), y_from.astype(np.float32), cv2.INTER_LINEAR).astype(
        np.float32
    )
    inside = np.clip(y - upper + 0.5, 0, 1) * np.clip(lower - y + 0.5, 0, 1) * (lip > 0)
    teeth_end = corners + lip * LOWER_TEETH - 1.5
    is_tooth = np.clip(teeth_end - y_from, 0, 1)
    depth = np.clip((lower - y) / np.maximum(lower - upper, 1), 0, 1)
    throat = np.array([92.0, 34.0, 34.0], np.float32) * (1.05 - 0.75 * depth)[..., None]
    mouth = is_tooth[..., None] * warped * 0.86 + (1 - is_tooth[..., None]) * throat
    weight = inside[..., None]
    target[rows, columns] = np.clip(weight * mouth + (1 - weight) * warped, 0, 255).astype(np.uint8)


def _blink(source: Image, target: Image, closed: float) -> None:
    """Draws the skin of the upper lids down over the eyes of `target` by `closed` (0..1)."""
    import cv2

    if closed <= 0:
        return
    for centre_x, centre_y, half_width in EYES:
        rows, columns = slice(int(centre_y) - 14, int(centre_y) + 12), slice(int(centre_x) - 14, int(centre_x) + 15)
        y, x = np.mgrid[rows, columns].astype(np.float32)
        almond = np.maximum(1 - ((x - centre_x) / half_width) ** 2, 0)
        middle = centre_y + 0.05 * (x - centre_x)
        brow, lid = middle - 9.0, middle - 4.5 * almond
        edge = lid + closed * 8.5 * almond
        stretched = brow + (y - brow) * (lid - brow) / np.maximum(edge - brow, 1e-3)
        y_from = np.where((y > brow) & (y < edge), stretched, y)
        target[rows, columns] = cv2.remap(source, x, y_from.astype(np.float32), cv2.INTER_LINEAR)
