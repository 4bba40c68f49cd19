"""Exact cutting: a clip's picture and sound begin at the same instant, frame for frame and sample for sample.

The picture is every frame with start_pts <= pts < end_pts, its timestamps kept relative to the first one (variable
frame rates included). The sound is cut from the asset's waveform, which lies on the container's clock, at the same
instant; it becomes AAC whose priming an edit list hides, so that players and libav hear sample 0 with frame 0.
Every clip is re-read by `verify_clip`, which measures the errors instead of believing the writer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from schemas.errors import MediaError
from schemas.scratch import Scratch
from schemas.shard import SOUND_RATE_HZ
from schemas.timing import Span, microseconds, sample_at
from stages.media.decoder import Decoder
from stages.media.waveform import Waveform

SEARCH_SAMPLES = 4_800
"""Largest displacement looked for when written sound is compared with the plan: 100 ms at 48 kHz."""
TIE_RATIO = 0.999
"""A correlation at lag 0 within this share of the highest one counts as the highest: periodic sound has many."""
PICTURE_TOLERANCE = 3.0
"""Largest mean difference (of 255 levels) of a 16 x 16 thumbnail; coding at crf 18 stays below 1, another frame is far
beyond wherever anything moved."""
FIRST_PICTURES = 8
"""Pictures that are compared in every written clip: a cut that is off by some frames shows at once."""
SINC_TAPS = 32
SINC_BLOCK = 1 << 16


@dataclass(frozen=True)
class CutOptions:
    """How a clip is written."""

    crf: int = 18
    """x264's constant rate factor; 18 is visually lossless for most material."""
    preset: str = "veryfast"
    allow_copy: bool = True
    """Copy H.264 packets unchanged where that is exact (see `CutReport.mode`)."""
    audio_bitrate: int = 192_000
    shift_ms: float = 0.0
    """How late the sound is at the middle of the clip; it is moved earlier by this, in whole samples."""
    drift_ppm: float = 0.0
    """How much later the sound gets, in microseconds per second around the middle; taken out by resampling."""
    crop: tuple[float, float, float, float] | None = None
    """(left, top, right, bottom) of the part of the picture that is written, shares of its sides; None for all."""
    faces: Sequence[Sequence[Sequence[float]]] = ()
    """What is hidden of the picture, see `stages.media.blur`; such a clip is encoded."""
    blur: Literal["none", "gaussian", "fill"] = "none"
    """How it is hidden."""


@dataclass(frozen=True)
class CutReport:
    """What was written, and after `verify_clip` how far it is from the plan (None: not measured yet)."""

    mode: Literal["copy", "encode"]
    """copy: packets unchanged, no loss. encode: x264 with one thread; equal input gives equal bytes."""
    cpu_s: float
    """Processor seconds of decoding and encoding."""
    num_frames: int
    duration: Fraction
    width_px: int
    height_px: int
    crop: tuple[int, int, int, int]
    """(x, y, width, height) of what was written of the upright picture, in its pixels."""
    whole: tuple[int, int]
    """(width, height) of the upright picture."""
    applied_shift_ms: float
    applied_drift_ppm: float
    frame_times: tuple[Fraction, ...] = field(repr=False)
    """When each frame is planned to begin, seconds from the first."""
    sound: np.ndarray | None = field(repr=False, compare=False)
    """The planned sound, float32 [n, 2]."""
    thumbs: np.ndarray = field(repr=False, compare=False)
    """uint8 [n, 16, 16]: the planned frames, small and grey."""
    start_error_us: int | None = None
    """First frame's time against the plan."""
    frame_error_us: int | None = None
    """Largest error of any frame's time."""
    duration_error_us: int | None = None
    sound_error_samples: int | None = None
    """First sample heard against the plan, by container and by correlation, whichever is worse; None without sound."""
    picture_error: float | None = None
    """Largest mean difference of the thumbnail of a frame that was compared, in levels of 255."""

    @property
    def num_samples(self) -> int:
        """Samples of sound, at 48 kHz; 0 without any."""
        return 0 if self.sound is None else len(self.sound)


def cut_clip(
    path: Path | str,
    span: Span,
    out_path: Path | str,
    *,
    options: CutOptions = CutOptions(),
    decoder: Decoder | None = None,
) -> CutReport:
    """Writes the clip as MP4 to `out_path`. Give the worker's `decoder` so that an asset's sound is decoded only once.

    Raises MediaError where the span holds no frame or the asset is not the one the span was made from.
    """
    out = Path(out_path)
    with _decoder(decoder) as media:
        sound = _sound_or_none(path, span, options, media)
        raw = None if sound is None else out.with_suffix(".sound")
        try:
            if raw is not None:
                raw.write_bytes(np.ascontiguousarray(sound).data)
            told = media.ask(
                "cut",
                path=str(path),
                out=str(out),
                span=[span.start_pts, span.end_pts, span.num, span.den],
                encoding={
                    "crf": options.crf,
                    "preset": options.preset,
                    "audio_bitrate": options.audio_bitrate,
                    "crop": options.crop,
                    "faces": options.faces,
                    "blur": options.blur,
                },
                allow_copy=options.allow_copy,
                sound=None if raw is None else str(raw),
                rate_hz=SOUND_RATE_HZ,
                max_pixels=media.max_pixels,
            )
        finally:
            if raw is not None:
                raw.unlink(missing_ok=True)
    return CutReport(
        mode=told["mode"],
        cpu_s=told["cut_cpu_s"],
        num_frames=len(told["pts"]),
        duration=span.duration,
        width_px=told["size"][0],
        height_px=told["size"][1],
        crop=tuple(told["crop"]),
        whole=tuple(told["whole"]),
        applied_shift_ms=1000 * _shift_samples(options, SOUND_RATE_HZ) / SOUND_RATE_HZ,
        applied_drift_ppm=options.drift_ppm,
        frame_times=tuple(pts * span.time_base for pts in told["pts"]),
        sound=sound,
        thumbs=_thumbs(told["thumbs"]),
    )


def cut_sound(
    path: Path | str,
    span: Span,
    rate_hz: int = SOUND_RATE_HZ,
    channels: int = 2,
    *,
    options: CutOptions = CutOptions(),
    decoder: Decoder | None = None,
) -> np.ndarray:
    """float32 [n, channels] heard during the span, n = sample_at(end) - sample_at(start), zeros where there is none.

    Raises MediaError("no_audio") if the asset has no sound.
    """
    with _decoder(decoder) as media:
        waveform = media.audio(path, rate_hz=rate_hz, channels=channels)
    return shifted(waveform, span, options).reshape(-1, channels)


def shifted(waveform: Waveform, span: Span, options: CutOptions) -> np.ndarray:
    """The span's sound with the options' shift and drift taken out, float32 [n(, channels)]."""
    shift = Fraction(_shift_samples(options, waveform.rate_hz), waveform.rate_hz)
    if not options.drift_ppm:
        start = span.start + shift
        count = sample_at(span.end, waveform.rate_hz) - sample_at(span.start, waveform.rate_hz)
        return waveform.cut(start, start + Fraction(count, waveform.rate_hz))[:count]
    return _stretched(waveform, span, shift, options.drift_ppm * 1e-6)


def _shift_samples(options: CutOptions, rate_hz: int) -> int:
    return round(options.shift_ms * rate_hz / 1000)


def _stretched(waveform: Waveform, span: Span, shift: Fraction, drift: float) -> np.ndarray:
    """The span's sound read at (1 + drift) of its speed around the middle, by windowed-sinc interpolation."""
    rate = waveform.rate_hz
    count = sample_at(span.end, rate) - sample_at(span.start, rate)
    first = float((span.start + shift - waveform.start) * rate)
    middle = (count - 1) / 2
    out = np.zeros((count, *waveform.samples.shape[1:]), np.float32)
    taps = np.arange(-SINC_TAPS // 2 + 1, SINC_TAPS // 2 + 1)
    for low in range(0, count, SINC_BLOCK):
        index = np.arange(low, min(low + SINC_BLOCK, count))
        at = first + index + drift * (index - middle)
        whole = np.floor(at).astype(np.int64)
        places = whole[:, None] + taps
        distance = at[:, None] - places
        weights = np.sinc(distance) * np.cos(np.pi * distance / (SINC_TAPS + 2)) ** 2
        inside = (places >= 0) & (places < len(waveform.samples))
        values = waveform.samples[np.where(inside, places, 0)]
        out[index] = np.einsum("nt,nt...->n...", weights * inside, values)
    return out


def verify_clip(
    out_path: Path | str, expected: CutReport, *, is_whole: bool = True, decoder: Decoder | None = None
) -> CutReport:
    """`expected` with every error measured on the written file.

    Times of all frames, length and sound are compared in full, pictures if `is_whole`; else the first `FIRST_PICTURES` of them.
    Raises MediaError("cut_mismatch") if an error is not 0, that of the pictures if it is beyond `PICTURE_TOLERANCE`.
    """
    out = Path(out_path)
    scratch = out.with_name(out.name + ".check")
    with _decoder(decoder) as media:
        try:
            found = media.ask(
                "verify",
                path=str(out),
                out=str(scratch),
                num_decoded=None if is_whole else FIRST_PICTURES,
                max_pixels=media.max_pixels,
            )
            heard = None
            if found["sound"] is not None:
                heard = np.fromfile(scratch, np.float32).reshape(found["sound"]["shape"])
            thumbs = _thumbs(found["thumbs"])
        finally:
            scratch.unlink(missing_ok=True)
            scratch.with_name(scratch.name + ".thumbs").unlink(missing_ok=True)
    base = Fraction(*found["time_base"])
    times = [pts * base for pts in found["pts"]]
    if len(times) != expected.num_frames or found["damaged_packets"]:
        raise _mismatch(out, f"{expected.num_frames} whole frames", f"{len(times)}, {found['damaged_packets']} damaged")
    errors = [microseconds(a) - microseconds(b) for a, b in zip(times, expected.frame_times, strict=True)]
    differences = np.abs(thumbs.astype(int) - expected.thumbs[: len(thumbs)].astype(int)).mean(axis=(1, 2))
    measured = replace(
        expected,
        start_error_us=errors[0],
        frame_error_us=max(errors, key=abs),
        duration_error_us=microseconds(found["duration_pts"] * base) - microseconds(expected.duration),
        sound_error_samples=_sound_error(found["sound"], heard, expected),
        picture_error=float(differences.max()),
    )
    _judge(out, measured)
    return measured


def _judge(out: Path, report: CutReport) -> None:
    if report.frame_error_us or report.start_error_us:
        raise _mismatch(out, "frames at their times", f"an error of {report.frame_error_us} us")
    if report.duration_error_us:
        raise _mismatch(out, f"a length of {float(report.duration):.6f} s", f"{report.duration_error_us} us more")
    if report.sound_error_samples:
        raise _mismatch(out, "sound starting with the picture", f"{report.sound_error_samples} samples late")
    if report.picture_error is not None and report.picture_error > PICTURE_TOLERANCE:
        raise _mismatch(out, "the planned frames", f"one that differs by {report.picture_error:.1f} of 255 levels")


def _mismatch(out: Path, expected: str, got: str) -> MediaError:
    return MediaError(
        f"The written clip '{out.name}' is not what was planned: expected {expected}, got {got}.", reason="cut_mismatch"
    )


def _sound_error(found: dict[str, Any] | None, heard: np.ndarray | None, expected: CutReport) -> int | None:
    """Samples by which the written sound starts late; its length counts as an error too."""
    if expected.sound is None and found is None:
        return None
    if expected.sound is None or found is None or heard is None:
        return SEARCH_SAMPLES
    stamped = sample_at(Fraction(*found["start"]), found["rate_hz"])
    missing = len(expected.sound) - len(heard)
    loudest = int(np.argmax(np.square(expected.sound).sum(axis=0)))
    placed = sound_lag(expected.sound[:, loudest], heard[:, loudest])
    return max((stamped, placed + stamped, missing), key=abs)


def sound_lag(planned: np.ndarray, heard: np.ndarray) -> int:
    """Samples by which `heard` lags `planned`, both float [n], by the peak of their correlation; 0 if either is silent."""
    from scipy.signal import fftconvolve

    a, b = planned.astype(np.float64), heard.astype(np.float64)
    a, b = a - a.mean(), b - b.mean()
    if not a.any() or not b.any():
        return 0
    curve = fftconvolve(b, a[::-1])
    middle = len(a) - 1
    low, high = max(0, middle - SEARCH_SAMPLES), min(len(curve), middle + SEARCH_SAMPLES + 1)
    window = curve[low:high]
    if curve[middle] >= TIE_RATIO * window.max():
        return 0
    return int(np.argmax(window)) + low - middle


def _sound_or_none(path: Path | str, span: Span, options: CutOptions, media: Decoder) -> np.ndarray | None:
    try:
        return cut_sound(path, span, options=options, decoder=media)
    except MediaError as error:
        if error.reason in ("no_audio", "no_sound_decoded"):
            return None
        raise


def _thumbs(told: Mapping[str, Any]) -> np.ndarray:
    thumbs = np.fromfile(told["file"], np.uint8).reshape(told["shape"])
    Path(told["file"]).unlink()
    return thumbs


@contextmanager
def _decoder(given: Decoder | None) -> Iterator[Decoder]:
    if given is not None:
        yield given
        return
    with Scratch("cut") as folder:
        media = Decoder(folder)
        try:
            yield media
        finally:
            media.close()
