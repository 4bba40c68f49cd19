"""How picture and sound are in themselves, as the curation half measures them, and how near a picture is to the real one."""

from __future__ import annotations

import numpy as np

from model.evaluate.media import read_pictures
from model.evaluate.metric import Metric, has_reference, of_columns
from model.evaluate.records import Better, EvalCase, Reading
from schemas.errors import MediaError

SIDE_PX = 256
EVERY = 5
"""Frames from one that is compared to the next: neighbours tell the same."""
MOST_MISSING = 2
"""Frames by which copies of one video may differ in number, as encoders drop some at the ends."""


def picture_ssim(case: EvalCase) -> Reading:
    """Structural similarity of the sample's frames to the real ones; for copies and reconstructions, frame by frame."""
    from skimage.metrics import structural_similarity

    if case.sample is None or case.item.reference is None:
        return Reading(None, why="there is no real recording")
    try:
        (made, _), (real, _) = (read_pictures(path, SIDE_PX) for path in (case.sample, case.item.reference))
    except MediaError as error:
        return Reading(None, why=str(error))
    if abs(len(made) - len(real)) > MOST_MISSING or made[0].shape != real[0].shape:
        return Reading(None, why="it has other frames than the real recording: not a copy of it")
    pairs = list(zip(made, real, strict=False))[::EVERY]
    return Reading(float(np.mean([structural_similarity(one, other) for one, other in pairs])))


def _picture(column: str, doc: str, unit: str, better: Better) -> Metric:
    return Metric(
        name=f"picture_{column}", doc=doc, unit=unit, better=better, read=of_columns("picture", column), model="formula",
        stage="picture", crop="whole picture at 384 px",
    )  # fmt: skip


def _sound(column: str, doc: str, unit: str, better: Better) -> Metric:
    return Metric(
        name=f"sound_{column}", doc=doc, unit=unit, better=better, read=of_columns("audio", column), model="formula",
        stage="audio", crop="all channels at the file's own rate",
    )  # fmt: skip


OWN_QUALITIES = (
    _picture("sharpness", "median variance of the Laplacian", "grey level^2", "higher"),
    _picture("brightness", "mean luma", "ratio", "neither"),
    _picture("flicker", "mean bend of the brightness curve", "ratio", "lower"),
    _picture("motion", "mean change of luma over 0.2 s", "ratio", "neither"),
    _picture("freeze_ratio", "share of the time in which nothing moves", "ratio", "lower"),
    Metric(
        name="picture_ssim", doc="structural similarity to the real frames, of copies", unit="ratio", better="higher",
        read=picture_ssim, applies=has_reference, model="scikit-image", decoder="PyAV", crop=f"grey at {SIDE_PX} px, every 5th",
    ),
    _sound("loudness_lufs", "integrated loudness", "lufs", "neither"),
    _sound("snr_db", "speech over pauses", "db", "higher"),
    _sound("clipping_ratio", "share of samples in flat tops", "ratio", "lower"),
    _sound("bandwidth_hz", "highest frequency that carries sound", "hz", "higher"),
    _sound("silence_ratio", "share of silent frames", "ratio", "neither"),
)  # fmt: skip
