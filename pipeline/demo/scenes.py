"""Pictures and how they follow each other: talking people, a bouncing ball, textures, stills; cuts, dissolves and fades."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.face import TalkingFace, photograph

Image = NDArray[np.uint8]
Mouths = Callable[[str, float], tuple[float, float]]
"""(who, scene time in s) -> (opening, rounding)."""


class DrawnPicture(ABC):
    """What one shot shows: an RGB picture for each time."""

    @abstractmethod
    def at(self, time_s: float, mouths: Mouths) -> Image:
        """(height, width, 3) uint8 at `time_s`."""

    def boxes_px(self) -> dict[str, list[int]]:
        """Left, top, width, height of every face at rest, by name; empty where nobody is seen."""
        return {}


class Talking(DrawnPicture):
    """One or several people side by side, each in an equal part of the width."""

    def __init__(self, who: Sequence[str], width_px: int, height_px: int, seed: int = 0) -> None:
        part = width_px // len(who)
        self.faces = {name: TalkingFace(name, part, height_px, seed) for name in who}

    def at(self, time_s: float, mouths: Mouths) -> Image:
        parts = [face.at(time_s, *mouths(name, time_s)) for name, face in self.faces.items()]
        return np.asarray(np.hstack(parts), np.uint8)

    def boxes_px(self) -> dict[str, list[int]]:
        boxes = {}
        for column, (name, face) in enumerate(self.faces.items()):
            left, top, width, height = face.face_box_px
            boxes[name] = [left + column * face.width_px, top, width, height]
        return boxes


class Still(DrawnPicture):
    """A photograph that does not move at all, cropped to the frame. `gain` darkens or brightens it."""

    def __init__(self, name: str, width_px: int, height_px: int, gain: float = 1.0) -> None:
        bright = np.clip(_cover(photograph(name), width_px, height_px) * gain, 0, 255)
        self._picture: Image = bright.astype(np.uint8)

    def at(self, time_s: float, mouths: Mouths) -> Image:
        return self._picture


class Pan(DrawnPicture):
    """A camera gliding over a photograph at `speed` photograph widths per second, tinted by `gain`."""

    def __init__(
        self,
        name: str,
        width_px: int,
        height_px: int,
        speed: float = 0.06,
        gain: tuple[float, float, float] = (1, 1, 1),
    ) -> None:
        tinted = np.clip(photograph(name) * np.asarray(gain, np.float32), 0, 255).astype(np.uint8)
        self._picture = _cover(tinted, round(width_px * 1.6), round(height_px * 1.6))
        self.width_px, self.height_px, self.speed = width_px, height_px, speed

    def at(self, time_s: float, mouths: Mouths) -> Image:
        import cv2

        high, wide = self._picture.shape[:2]
        spare_x, spare_y = wide - self.width_px, high - self.height_px
        sweep = 0.5 - 0.5 * np.cos(2 * np.pi * self.speed * time_s)
        matrix = np.array([[1, 0, -sweep * spare_x], [0, 1, -sweep * spare_y]], np.float32)
        return np.asarray(cv2.warpAffine(self._picture, matrix, (self.width_px, self.height_px)), np.uint8)


class BouncingBall(DrawnPicture):
    """A ball that touches the ground exactly at `impacts_s` (scene time), over a gliding background."""

    def __init__(self, impacts_s: NDArray[np.float64], width_px: int, height_px: int) -> None:
        self.impacts_s = impacts_s
        self._background = Still("grass.png", width_px, height_px, 0.6)
        self.width_px, self.height_px = width_px, height_px

    def at(self, time_s: float, mouths: Mouths) -> Image:
        import cv2

        picture = self._background.at(time_s, mouths).copy()
        radius = self.height_px // 9
        ground = self.height_px - radius // 2
        height = _height(self.impacts_s, time_s) * (self.height_px - 3 * radius)
        squash = max(0.0, 1 - height / (0.5 * radius)) * 0.3
        centre = (self.width_px // 2, round(ground - height - radius * (1 - squash)))
        axes = (round(radius * (1 + squash)), round(radius * (1 - squash)))
        cv2.ellipse(
            picture, (centre[0], ground), (round(radius * 1.1), radius // 4), 0, 0, 360, (40, 40, 40), -1, cv2.LINE_AA
        )
        cv2.ellipse(picture, centre, axes, 0, 0, 360, (235, 90, 40), -1, cv2.LINE_AA)
        return picture


def _height(impacts_s: NDArray[np.float64], time_s: float) -> float:
    """Height above ground of free flight between the impacts, relative to a flight of 0.9 s; 0 at every impact."""
    after = int(np.searchsorted(impacts_s, time_s))
    gap_s = float(np.median(np.diff(impacts_s)))
    begin = impacts_s[after - 1] if after > 0 else impacts_s[0] - gap_s
    end = impacts_s[after] if after < len(impacts_s) else impacts_s[-1] + gap_s
    if not begin <= time_s <= end:
        return 0.0
    return float(4 * (time_s - begin) * (end - time_s) / 0.9**2)


def _cover(picture: Image, width_px: int, height_px: int) -> Image:
    """The picture scaled and cropped in its middle to fill the frame."""
    import cv2

    scale = max(width_px / picture.shape[1], height_px / picture.shape[0])
    size = (max(width_px, round(picture.shape[1] * scale)), max(height_px, round(picture.shape[0] * scale)))
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (scaled.shape[0] - height_px) // 2, (scaled.shape[1] - width_px) // 2
    return np.asarray(scaled[top : top + height_px, left : left + width_px], np.uint8)


Then = Literal["cut", "dissolve", "fade"]


@dataclass(frozen=True)
class DrawnShot:
    """`num_frames` of one picture, and the transition of `blend_frames` that follows it (on top of num_frames).

    A dissolve blends this shot into the next over blend_frames; a fade takes blend_frames to black, blend_frames // 2 of
    black and blend_frames from black. The last shot of a film has no transition.
    """

    picture: DrawnPicture
    num_frames: int
    what: str = ""
    then: Then = "cut"
    blend_frames: int = 0


Weights = tuple[tuple[int, float], ...]


def frame_weights(shots: Sequence[DrawnShot]) -> list[Weights]:
    """For every frame of the film, which shots make it up with which weight (the rest is black)."""
    frames: list[Weights] = []
    for index, shot in enumerate(shots):
        frames += [((index, 1.0),)] * shot.num_frames
        if index + 1 == len(shots) or shot.then == "cut":
            continue
        ramp = [(k + 1) / (shot.blend_frames + 1) for k in range(shot.blend_frames)]
        if shot.then == "dissolve":
            frames += [((index, 1 - part), (index + 1, part)) for part in ramp]
        else:
            frames += [((index, 1 - part),) for part in ramp]
            frames += [()] * (shot.blend_frames // 2)
            frames += [((index + 1, part),) for part in ramp]
    return frames


def transitions(shots: Sequence[DrawnShot]) -> dict[str, Any]:
    """`hard_cuts`, `soft_transitions` and `shots` in the form of the media manifest: frames from 0, last frame included."""
    hard_cuts, soft, ranges = [], [], []
    at = 0
    for index, shot in enumerate(shots):
        faces = shot.picture.boxes_px()
        ranges.append({"first": at, "last": at + shot.num_frames - 1, "who": shot.what, "faces": faces})
        at += shot.num_frames
        if index + 1 == len(shots):
            break
        if shot.then == "cut":
            hard_cuts.append(at)
        elif shot.then == "dissolve":
            soft.append({"type": "dissolve", "first_frame": at, "last_frame": at + shot.blend_frames - 1})
            at += shot.blend_frames
        else:
            black = shot.blend_frames // 2
            for kind, length in (
                ("fade_out_to_black", shot.blend_frames),
                ("black", black),
                ("fade_in_from_black", shot.blend_frames),
            ):
                if length:
                    soft.append({"type": kind, "first_frame": at, "last_frame": at + length - 1})
                at += length
    return {"hard_cuts": hard_cuts, "soft_transitions": soft, "shots": ranges}


def frames_of(shots: Sequence[DrawnShot], mouths: Mouths, frame_time_s: Callable[[int], float]) -> Iterator[Image]:
    """The frames of all shots and transitions in order; frame i shows the scene at frame_time_s(i)."""
    for index, weights in enumerate(frame_weights(shots)):
        parts = [(weight, shots[shot].picture.at(frame_time_s(index), mouths)) for shot, weight in weights]
        if len(parts) == 1 and parts[0][0] == 1.0:
            yield parts[0][1]
        elif parts:
            yield np.sum([np.float32(weight) * picture for weight, picture in parts], axis=0).astype(np.uint8)
        else:
            yield np.zeros_like(shots[0].picture.at(0.0, mouths))
