"""How picture and sound are in themselves, as the curation half measures them, and how near a picture is to the real one."""

from __future__ import annotations

import numpy as np

from model.evaluate.media import mono_sound, read_pictures
from model.evaluate.metric import Metric, has_reference, of_columns
from model.evaluate.records import Better, EvalCase, Reading
from schemas.errors import MediaError

SIDE_PX = 256
RMS_HZ = 48_000
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


def sound_rms_db(case: EvalCase) -> Reading:
    """Root mean square of the mono sound, in dB of full scale."""
    assert case.sample is not None
    try:
        samples, _ = mono_sound(case.sample, RMS_HZ)
    except MediaError as error:
        return Reading(None, why=str(error))
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return Reading(10 * float(np.log10(power))) if power > 0 else Reading(None, why="it is silent")


RMS_DB = Metric(
    name="sound_rms_db", doc="root mean square of the sound, of full scale", unit="db", better="neither", read=sound_rms_db,
    model="formula", decoder="PyAV", crop="mono 48 kHz, whole",
)  # fmt: skip


def of_column(stage: str, column: str, doc: str, unit: str, better: Better, model: str, crop: str) -> Metric:
    """The mean of a column of a stage over a sample's clips, called picture_COLUMN or sound_COLUMN."""
    heading = "sound" if stage in ("audio", "sound") else "picture"
    return Metric(
        name=f"{heading}_{column}", doc=doc, unit=unit, better=better, read=of_columns(stage, column), model=model, stage=stage,
        crop=crop,
    )  # fmt: skip


WHOLE = "whole picture at 384 px"
CENTRE = "middle 640 px, once a second"
DETAILED = "most detailed of five places of 448 px, once a second"
CHANNELS = "all channels at the file's own rate"
SPEECH = "clips with 1 s of speech and more"
MOS = "DNSMOS P.835 from the package speechmos"
CONTENT_QUALITIES = (
    of_column(
        "quality", "brisque", "unlike any photograph: 0 clean to 100", "", "lower", "BRISQUE from its package", DETAILED
    ),
    of_column("quality", "blur", "0 sharp to 1 blurred", "ratio", "lower", "formula", CENTRE),
    of_column("quality", "noise", "standard deviation of noise and grain", "grey level", "lower", "formula", CENTRE),
    of_column(
        "quality", "blockiness", "how much borders of 8 x 8 blocks stand out", "ratio", "lower", "formula", CENTRE
    ),
)
"""They need the extra `content`."""
OWN_QUALITIES = (
    of_column("picture", "sharpness", "median variance of the Laplacian", "grey level^2", "higher", "formula", WHOLE),
    of_column("picture", "brightness", "mean luma", "ratio", "neither", "formula", WHOLE),
    of_column("picture", "flicker", "mean bend of the brightness curve", "ratio", "lower", "formula", WHOLE),
    of_column("picture", "motion", "mean change of luma over 0.2 s", "ratio", "neither", "formula", WHOLE),
    of_column("picture", "freeze_ratio", "share of the time in which nothing moves", "ratio", "lower", "formula", WHOLE),
    Metric(
        name="picture_ssim", doc="structural similarity to the real frames, of copies", unit="ratio", better="higher",
        read=picture_ssim, applies=has_reference, model="scikit-image", decoder="PyAV", crop=f"grey at {SIDE_PX} px, every 5th",
    ),
    of_column("audio", "loudness_lufs", "integrated loudness", "lufs", "neither", "formula", CHANNELS),
    RMS_DB,
    of_column("audio", "snr_db", "speech over pauses", "db", "higher", "formula", CHANNELS),
    of_column("audio", "clipping_ratio", "share of samples in flat tops", "ratio", "lower", "formula", CHANNELS),
    of_column("audio", "bandwidth_hz", "highest frequency that carries sound", "hz", "higher", "formula", CHANNELS),
    of_column("audio", "silence_ratio", "share of silent frames", "ratio", "neither", "formula", CHANNELS),
    of_column("sound", "mos_overall", "1 bad to 5 excellent, all of it", "", "higher", MOS, SPEECH),
    of_column("sound", "mos_speech", "the same of the speech alone", "", "higher", MOS, SPEECH),
    of_column("sound", "mos_background", "the same of the background alone", "", "higher", MOS, SPEECH),
)  # fmt: skip
