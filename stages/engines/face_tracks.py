"""Faces in moving pictures: where they are, followed through time, with a mesh of 468 points on every frame.

A detector finds faces a few times a second, a mesh follows each of them, because it knows where the same face will be on
the next frame.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.engines.face_identity import FaceEncoder, Portrait, portrait_of
from stages.engines.face_networks import Face, FaceDetector, FaceMesh, overlap, square_to
from stages.media.decoder import Frames

Array = NDArray[Any]

MIN_FACE_PX = 32
"""Below this a mouth is narrower than ten pixels and its motion cannot be told from noise."""
MESH_MARGIN = 1.5
"""Side of the square given to the mesh, in face sizes (MediaPipe's own figure)."""
PRESENCE_THRESHOLD = 0.5
"""Probability of a face in the square below which the mesh is not believed (MediaPipe's default)."""
INNER_LIP = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
OUTER_LIP = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
CHIN = (152, 148, 377, 176, 400)
STEADY = (33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 10, 151, 9, 8, 127, 356, 234, 454, 93, 323, 70, 300, 105, 334)
"""Mesh points of eyes, nose, forehead and temples, which speech does not move; they define the head's pose."""
KEPT_POINTS = tuple(sorted((*INNER_LIP, *OUTER_LIP, *CHIN, *STEADY)))
"""The 69 mesh points that a track keeps of every frame: the mouth, and what the head's pose is told by."""
LASTING_S = 0.5
"""Faces followed for less are none: a detector's slip is gone by its next look."""
RIGHT_EYE, LEFT_EYE = 33, 263
"""Mesh points at the outer eye corners; right is the person's right, left in the picture."""
CENTRE_SMOOTHING, SIZE_SMOOTHING = 0.35, 0.1
"""Weight of the newest frame in a track's running position and size: quick enough for a nod, and little jitter."""
LOST_S = 0.75
"""A face neither detected nor meshed for this long is gone."""
ONE_FACE = 0.6
"""Overlap of two followed faces from which they are one, on which a wandering mesh has come to rest."""
UNCONFIRMED_S = 2.1
"""A mesh that no detection has confirmed for this long has wandered off onto something else."""
CUT_CHANGE, CUT_CONTRAST, CUT_AGAINST = 8.0, 3.0, 8
"""Mean change of a picture, in grey levels, at which a shot may begin, if it is so many times the median of as many before."""
STILL_CHANGE, STILL_S, STIRRED = 0.15, 0.3, 2.0
"""A picture that has changed less from each to the next for this long stands still; until, slowly, it has changed that much."""
FLAT = 6.0
"""Standard deviation of luma below which nobody is to be seen."""
LEVELS = 255 / 219
"""Grey levels from black 0 to white 255 for each that is stored, from 16 to 235 (ITU-R BT.601)."""
FAST_PX = 128
"""OpenCV turns planes into colour by vectors of so many pixels; measured (4.14, AVX-512), and a multiple of what others take."""
TOLERANCE_S = 1e-6
"""Two ways to compute the time of a frame differ by less, and two frames by more."""


@dataclass
class FaceTrack:
    """One face followed through a clip. Frames on which it was not seen are absent."""

    times_s: Array
    """float64 [n]: when each frame begins, on the asset clock."""
    points: Array
    """float32 [n, 69, 3]: `KEPT_POINTS` of the mesh in pixels, depth on the same scale."""
    boxes: Array
    """float32 [n, 4]: left, top, right, bottom in pixels."""
    score: float
    """Mean score of the detections that confirmed the track."""
    squares: Array = field(default_factory=lambda: np.zeros((0, 3)))
    """float64 [n, 3]: centre and side in pixels of the square that was given to the mesh."""
    crop_times_s: Array = field(default_factory=lambda: np.zeros(0))
    """float64 [m]: when the pictures begin that were cropped."""
    crops: Array = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))
    """uint8 [m, side, side, 3]: square face crops, if asked for."""
    embedding: Array | None = None
    """float32 [128]: who it is, if asked for and if the face was seen well."""


@dataclass
class Tracks:
    """What was seen in a clip."""

    faces: list[FaceTrack]
    """Longest first."""
    times_s: Array
    """float64 [n]: every frame looked at."""
    end_s: float
    """End of the last frame."""
    width_px: int
    height_px: int
    change: Array
    """float32 [n]: mean absolute difference to the frame before, in grey levels; 0 for the first."""

    @property
    def lasting(self) -> list[FaceTrack]:
        """The faces seen for `LASTING_S` or longer: those with a number, which is their place here."""
        return [track for track in self.faces if track.times_s[-1] - track.times_s[0] >= LASTING_S]


def at(*mesh_points: int) -> list[int]:
    """Where points of the mesh lie among `KEPT_POINTS`."""
    return [KEPT_POINTS.index(point) for point in mesh_points]


class FaceTracker:
    """Follows every face through the pictures of one file.

    Detection costs most, so it runs every `detect_every_s` to find newcomers and to confirm who is there, and where the picture
    changes as at a cut; in between each face is handed from mesh to mesh, picture by picture. Where the picture stands
    still, or is flat, nobody looks. Holds 0.9 kB a face and mesh, and up to 68 kB for the portrait of a face and shot.
    """

    def __init__(self, detector: FaceDetector, mesh: FaceMesh, *, detect_every_s: float, max_faces: int) -> None:
        self.detector, self.mesh = detector, mesh
        self.detect_every_s, self.max_faces = detect_every_s, max_faces
        self._alive: list[_Alive] = []
        self._ended: list[_Alive] = []
        self._times: list[float] = []
        self._changes: list[float] = []
        self._thumb: Array | None = None
        self._size, self._end_s = (0, 0), 0.0
        self._detected_s = -np.inf
        self._still_since_s = np.inf
        self._stirred = 0.0

    def see(self, run: Frames) -> None:
        """The next pictures, yuv420p."""
        self._end_s = run.end_pts * run.num / run.den
        for planes, time_s in zip(run.images, run.times_s.tolist(), strict=True):
            picture = Planes(planes)
            self._size = picture.size
            change = self._change(picture, time_s)
            is_cut = self._is_cut(change)
            is_still = not is_cut and time_s - self._still_since_s >= STILL_S
            is_due = is_cut or time_s - self._detected_s >= self.detect_every_s
            if is_due:
                self._detected_s = time_s
                self._detect(picture, time_s, is_still=is_still, is_cut=is_cut)
            self._step(picture, time_s, is_still=is_still)

    def _change(self, picture: Planes, time_s: float) -> float:
        """Mean absolute difference to the picture before, in grey levels; notes since when hardly anything has changed."""
        before, self._thumb = self._thumb, picture.thumbnail()
        change = 0.0 if before is None else mean_change(before, self._thumb)
        self._stirred += change
        if before is None or change >= STILL_CHANGE or self._stirred >= STIRRED:
            self._still_since_s, self._stirred = time_s, 0.0
        self._times.append(time_s)
        self._changes.append(change)
        return change

    def _is_cut(self, change: float) -> bool:
        """Whether the newest picture may begin a shot: it differs much, and more than pictures did just before."""
        before = self._changes[-1 - CUT_AGAINST : -1]
        return change >= CUT_CHANGE and change >= CUT_CONTRAST * float(np.median(before))

    def _detect(self, picture: Planes, time_s: float, *, is_still: bool, is_cut: bool) -> None:
        if is_still:
            for face in self._alive:
                face.stay_confirmed(time_s)
            return
        is_flat = self._thumb is not None and LEVELS * float(self._thumb.std()) < FLAT
        faces = [] if is_flat else self.detector.detect(picture.rgb)
        _confirm(self._alive, faces, time_s, self.max_faces, is_cut=is_cut)
        if is_cut:
            self._end([face for face in self._alive if face.confirmed_s < time_s])

    def _step(self, picture: Planes, time_s: float, *, is_still: bool) -> None:
        for face in self._alive:
            if is_still and face.times:
                face.stay(time_s)
                continue
            face.step(self.mesh, picture.rgb, time_s)
            if face.times[-1:] == [time_s] == [face.confirmed_s]:
                face.portray(picture.rgb)
        self._end([face for n, face in enumerate(self._alive) if face.is_gone(time_s) or face.is_any(self._alive[:n])])

    def _end(self, gone: list[_Alive]) -> None:
        self._alive = [face for face in self._alive if face not in gone]
        self._ended += gone

    def tracks(self, start_s: float = -np.inf, end_s: float = np.inf, encoder: FaceEncoder | None = None) -> Tracks:
        """What was seen of [start_s, end_s) on the asset clock, longest track first; with an encoder, who it is.

        A face counts where a detection within that time called it one.
        """
        low, high = (bisect_left(self._times, at - TOLERANCE_S) for at in (start_s, end_s))
        change = np.array(self._changes[low:high], np.float32)
        change[:1] = 0.0
        parts = [face.part(start_s, end_s, encoder) for face in self._ended + self._alive]
        faces = sorted((part for part in parts if part is not None), key=lambda track: -len(track.times_s))
        return Tracks(faces, np.array(self._times[low:high]), min(end_s, self._end_s), *self._size, change)


class Planes:
    """A yuv420p picture [h x 3/2, w], turned into colour when somebody asks."""

    def __init__(self, planes: Array) -> None:
        self._planes = planes
        self.size = (planes.shape[1], planes.shape[0] * 2 // 3)

    @cached_property
    def rgb(self) -> Array:
        """uint8 [h, w, 3]; OpenCV takes up to eight times as long for what `FAST_PX` leaves of the width, so it is given more."""
        import cv2

        width, height = self.size
        planes, wide = self._planes, -(-width // FAST_PX) * FAST_PX
        if wide > width:
            planes = np.empty((len(planes), wide), np.uint8)
            planes[:height, :width] = self._planes[:height]
            chroma = self._planes[height:].reshape(2, height // 2, width // 2)
            planes[height:].reshape(2, height // 2, wide // 2)[..., : width // 2] = chroma
        return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420))[:, :width]

    def thumbnail(self) -> Array:
        """uint8 luma as stored, a quarter as large."""
        import cv2

        width, height = self.size
        quarter = (max(1, width // 4), max(1, height // 4))
        return np.asarray(cv2.resize(self._planes[:height], quarter, interpolation=cv2.INTER_AREA))


def mean_change(before: Array, after: Array) -> float:
    """Mean absolute difference of two thumbnails, in grey levels between black 0 and white 255."""
    import cv2

    return LEVELS * cv2.norm(before, after, cv2.NORM_L1) / after.size


@dataclass
class _Leg:
    """A face between two possible cuts: one person."""

    start_s: float
    portrait: Portrait | None = None
    """The best so far."""
    embedding: Array | None = None

    def who(self, encoder: FaceEncoder) -> Array | None:
        """The embedding of its portrait, made once; None without one."""
        if self.embedding is None and self.portrait is not None:
            self.embedding = encoder.embed(self.portrait)
        return self.embedding


class _Alive:
    """A face being followed."""

    def __init__(self, face: Face, time_s: float) -> None:
        self.times: list[float] = []
        self.points: list[Array] = []
        self.boxes: list[Array] = []
        self.squares: list[tuple[float, float, float]] = []
        self.mesh = np.zeros((0, 3), np.float32)
        self.detections: list[tuple[float, float]] = []
        self.legs: list[_Leg] = []
        self.begin(face, time_s)

    def begin(self, face: Face, time_s: float) -> None:
        """Starts from a detection, as somebody new."""
        self._place(face)
        self.detections.append((time_s, face.score))
        self.legs.append(_Leg(time_s))
        self.confirmed_s = self.seen_s = time_s

    def _place(self, face: Face) -> None:
        self.box = face.box
        self.centre = (face.box[:2] + face.box[2:]) / 2
        self.side_px = MESH_MARGIN * float(max(face.box[2:] - face.box[:2]))
        eyes = face.points[1] - face.points[0]
        self.angle = float(np.arctan2(eyes[1], eyes[0]))

    def confirm(self, face: Face, time_s: float) -> None:
        """A detection agrees; where the mesh has lost the face, the detection takes over."""
        self.confirmed_s = time_s
        self.detections.append((time_s, face.score))
        if self.seen_s < time_s - LOST_S / 2:
            self._place(face)

    def stay_confirmed(self, time_s: float) -> None:
        """Nothing has changed since a detection agreed."""
        self.confirmed_s = time_s
        self.detections.append((time_s, self.detections[-1][1]))

    def stay(self, time_s: float) -> None:
        """Nothing has changed since the mesh was fitted."""
        if self.seen_s == self.times[-1]:
            self.seen_s = time_s
            self.times.append(time_s)
            for kept in (self.points, self.boxes, self.squares):
                kept.append(kept[-1])  # type: ignore[arg-type]

    def step(self, mesh: FaceMesh, image: Array, time_s: float) -> None:
        """Fits the mesh on the next picture and moves along with it."""
        presence, points = mesh.fit(image, self.centre, self.side_px, self.angle)
        if presence < PRESENCE_THRESHOLD:
            return
        self.seen_s = time_s
        flat = points[:, :2].astype(np.float64)
        self.box = np.concatenate(_corners(flat))
        self.squares.append((*self.centre.tolist(), self.side_px))
        self.times.append(time_s)
        self.points.append(points[list(KEPT_POINTS)])
        self.mesh = points
        self.boxes.append(self.box.astype(np.float32))
        eyes = flat[LEFT_EYE] - flat[RIGHT_EYE]
        angle = float(np.arctan2(eyes[1], eyes[0]))
        upright = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        low, high = _corners(flat @ upright.T)
        self.centre = self.centre + CENTRE_SMOOTHING * (upright.T @ (low + high) / 2 - self.centre)
        self.side_px += SIZE_SMOOTHING * (MESH_MARGIN * float(max(high - low)) - self.side_px)
        drift = (angle - self.angle + np.pi) % (2 * np.pi) - np.pi
        self.angle += CENTRE_SMOOTHING * drift

    def is_gone(self, time_s: float) -> bool:
        """Not seen for too long, or the mesh follows something that no detection calls a face."""
        lost = time_s - max(self.seen_s, self.confirmed_s) > LOST_S
        return lost or time_s - self.confirmed_s > UNCONFIRMED_S

    def is_any(self, others: list[_Alive]) -> bool:
        """Whether this is the face that one of the others follows already."""
        return any(overlap(self.box, other.box) > ONE_FACE for other in others)

    def portray(self, image: Array) -> None:
        """Keeps the face of the newest picture if it shows best so far."""
        leg, taken = self.legs[-1], portrait_of(image, self.mesh)
        if taken is not None and (leg.portrait is None or taken.quality_px > leg.portrait.quality_px):
            leg.portrait = taken

    def part(self, start_s: float, end_s: float, encoder: FaceEncoder | None) -> FaceTrack | None:
        """What was seen of it in [start_s, end_s); None if it was not, or only unconfirmed."""
        low, high = (bisect_left(self.times, at - TOLERANCE_S) for at in (start_s, end_s))
        if low == high:
            return None
        first, last = (bisect_left(self.detections, (at - TOLERANCE_S,)) for at in (start_s, end_s))
        scores = [score for _, score in self.detections[first:last]]
        if not scores:
            return None
        leg = max(bisect_right([leg.start_s for leg in self.legs], self.times[(low + high) // 2]) - 1, 0)
        return FaceTrack(
            np.array(self.times[low:high]),
            np.stack(self.points[low:high]),
            np.stack(self.boxes[low:high]),
            float(np.mean(scores)),
            squares=np.array(self.squares[low:high]),
            embedding=None if encoder is None else self.legs[leg].who(encoder),
        )


def _corners(points: Array) -> tuple[Array, Array]:
    """Least and greatest x and y of points [n, 2]; column by column, a sixth of the time of both at once."""
    columns = np.ascontiguousarray(points.T)
    return columns.min(1), columns.max(1)


def _confirm(alive: list[_Alive], faces: list[Face], time_s: float, max_faces: int, *, is_cut: bool) -> None:
    """Matches detections to the faces being followed, nearest first, and starts following newcomers, largest first.

    After a cut, whoever is where a face was is somebody new.
    """
    faces = [face for face in faces if min(face.box[2:] - face.box[:2]) >= MIN_FACE_PX]
    faces.sort(key=lambda face: -float(np.prod(face.box[2:] - face.box[:2])))
    free = list(alive)
    for face in faces:
        middle = (face.box[:2] + face.box[2:]) / 2
        reach = 0.5 * float(max(face.box[2:] - face.box[:2]))
        distance = [float(np.linalg.norm((one.box[:2] + one.box[2:]) / 2 - middle)) for one in free]
        nearest = int(np.argmin(distance)) if distance else -1
        if nearest >= 0 and distance[nearest] < reach:
            matched = free.pop(nearest)
            (matched.begin if is_cut else matched.confirm)(face, time_s)
        elif len(alive) < max_faces:
            alive.append(_Alive(face, time_s))


def with_crops(seen: Tracks, runs: Iterable[Frames], crop_px: int) -> Tracks:
    """`seen` with a square crop of every face in each of the pictures, yuv420p, from its first mesh to its last.

    The square is that of the mesh; where the face was lost for a moment it is interpolated.
    """
    times: list[list[float]] = [[] for _ in seen.faces]
    crops: list[list[Array]] = [[] for _ in seen.faces]
    for run in runs:
        for planes, time_s in zip(run.images, run.times_s.tolist(), strict=True):
            picture = Planes(planes)
            for face, when, kept in zip(seen.faces, times, crops, strict=True):
                if face.times_s[0] - TOLERANCE_S <= time_s <= face.times_s[-1] + TOLERANCE_S:
                    x, y, side_px = (np.interp(time_s, face.times_s, column) for column in face.squares.T)
                    when.append(time_s)
                    kept.append(_crop(picture.rgb, np.array([x, y]), side_px / MESH_MARGIN, crop_px))
    none = np.zeros((0, crop_px, crop_px, 3), np.uint8)
    faces = [
        replace(face, crop_times_s=np.array(when), crops=np.stack(kept) if kept else none)
        for face, when, kept in zip(seen.faces, times, crops, strict=True)
    ]
    return replace(seen, faces=faces)


def _crop(image: Array, centre: Array, face_px: float, out_px: int) -> Array:
    """An unturned square reaching 40 % of half a face past the face and as much towards the chin, as SyncNet saw them."""
    import cv2

    below = centre + np.array([0.0, 0.2 * face_px])
    turn = square_to(below, 1.4 * face_px, 0.0, out_px)
    return np.asarray(cv2.warpAffine(image, turn, (out_px, out_px), flags=cv2.INTER_LINEAR), np.uint8)
