"""`sync`: how late the sound is, how sure that is, which faces are seen and which of them speaks each span.

Offsets are measured on real timestamps and stored; nothing is judged or repaired here. Positive = sound late. What
cannot be measured is null, with the reason in `status`: a still photograph never passes for somebody talking in sync.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from schemas.errors import MediaError
from schemas.fields import f, struct
from schemas.records import ACTIVE_FACE, FACE_TRACK, SYNC_WINDOW, Row, span_of
from stages.base import Context, Measure, Resources, StageConfig
from stages.engines.face_identity import FaceEncoder
from stages.engines.face_tracks import FaceDetector, FaceMesh, FaceTrack, FaceTracker, Tracks
from stages.media.decoder import Waveform
from stages.sync.active import Evidence, assign, mouth_stir
from stages.sync.mouth import IN_SYNC_S, MouthEngine, Peak, Signal, find_drift, find_peak, lags_s, mouth_features
from stages.sync.onset import onset_curve

Array = NDArray[Any]

MIN_FPS = 8.0
"""Below this a syllable (about 0.2 s) falls between two frames."""
MIN_FRAMES = 16
SILENT_RMS = 1e-4
"""-80 dB of full scale: below the noise of any microphone."""
STATIC_CHANGE = 0.15
"""Mean grey levels per frame below which a frame repeats the one before; a re-encoded photograph has 0.00 to 0.05."""
STATIC_SHARE = 0.95
FREEZE_S = 0.3
"""A picture that stands still this long has frozen: its mouth says nothing about the sound."""
STILL_MOUTH = 0.003
"""Standard deviation of the mouth opening over a clip, in eye distances, that no speaker stays below."""
MIN_SPEECH_S = 0.3
"""Speech a clip needs to be judged by lips."""
DRIFT_FROM_S = 8.0
"""Shortest clip whose drift is measured: 5 ms/s makes 40 ms in it, one frame."""
SURE = 4.0
"""Confidence from which `finding` calls an offset real."""
NO_MATCH = 2.8
"""Confidence below which a moving mouth and audible speech of `NO_MATCH_FROM_S` are called strangers."""
NO_MATCH_FROM_S = 5.0


class SyncConfig(StageConfig):
    """Engine and effort."""

    engine: Literal["mouth", "syncnet"] = "mouth"
    """mouth: embedded, offline. syncnet: the published network, needs `weights_path`, wants a GPU."""
    weights_path: str = ""
    """Official-format SyncNet weights (syncnet_v2.model); only for engine syncnet."""
    device: str = "cpu"
    """Where SyncNet runs: cpu, cuda, cuda:1."""
    max_offset_s: float = Field(default=1.3, ge=0.5, le=5.0)
    """Largest offset looked for by the mouth engine and on sound events. Wider finds more chance agreement."""
    min_s: float = Field(default=1.5, gt=0)
    """Shorter clips are not measured."""
    window_s: float = Field(default=3.0, ge=1.0)
    """Length of the windows, half overlapping, that clips longer than 1.5 windows are also measured in."""
    long_side_px: int = Field(default=640, ge=160)
    """Pictures are decoded at most this large; raise it where faces are smaller than a twentieth of the picture."""
    max_fps: float = Field(default=30.0, ge=10.0)
    """Faster video is looked at on a grid of this rate."""
    detect_every_s: float = Field(default=0.5, gt=0)
    """Time between two runs of the face detector."""
    max_faces: int = Field(default=4, ge=1)
    """Faces followed at a time, largest first."""
    identity: Literal["dlib", "none"] = "dlib"
    """What tells whether two faces are one person, for splits that share none; 0.3 s a face. none: nobody asks."""

    @model_validator(mode="after")
    def _complete(self) -> SyncConfig:
        if self.engine == "syncnet" and not self.weights_path:
            raise ValueError("engine syncnet needs weights_path, the path of syncnet_v2.model")
        return self


class Engine(Protocol):
    """Holds one face against the sound."""

    name: str
    crop_px: int
    """Side of the face crops it wants, 0 for none."""

    def evidence(self, track: FaceTrack, features: Signal, sound: Waveform) -> Evidence | None: ...

    def peak(self, curve: Array, lags: Array) -> Peak: ...


class Sync(Measure[SyncConfig]):
    """Offset of sound against picture per clip, faces, and the speaking face per span."""

    name = "sync"
    version = "2"
    level = "clip"
    reads = ("clip", "download.path", "probe.has_audio", "transcribe.speech")
    adds = struct(
        f("kind", pa.string(), doc="what the offset rests on: speech (lips), event (motion against onsets) or none"),
        f("engine", pa.string(), doc="mouth, syncnet or onset; null where nothing was measured"),
        f(
            "status",
            pa.string(),
            doc="measured, or why not: too_short, no_face, no_sound, too_few_frames, static_picture, still_mouth",
        ),
        f("finding", pa.string(), doc="in_sync, shifted, drifting, no_match (not this face or sound) or unclear"),
        f("offset_ms", pa.float64(), unit="ms", doc="positive = sound late; null if it could not be measured"),
        f("offset_std_ms", pa.float64(), unit="ms", doc="standard deviation of offset_ms"),
        f("confidence", pa.float64(), doc="peak height over the remaining offsets, in their standard deviations"),
        f("agreement", pa.float64(), doc="the same height within 80 ms of no offset: high only if in sync as it is"),
        f("drift_ms_per_s", pa.float64(), unit="ms/s", doc="change of the offset; null for clips under 8 s"),
        f("drift_std_ms_per_s", pa.float64(), unit="ms/s", doc="standard deviation of the drift"),
        f("num_faces", pa.int32(), unit="count", doc="face tracks of at least half a second"),
        f("faces", pa.list_(FACE_TRACK), doc="the face tracks, longest first"),
        f("active", pa.list_(ACTIVE_FACE), doc="one per clip.spans: who speaks it"),
        f("windows", pa.list_(SYNC_WINDOW), doc="the same measurement in windows of the clip"),
        f("curve_lags_ms", pa.list_(pa.float32()), unit="ms", doc="offsets of the curve"),
        f("curve", pa.list_(pa.float32()), doc="agreement at each offset, in standard deviations over the mean"),
    )
    Config = SyncConfig
    resources = Resources(cpus=1.0, memory_gb=0.8, timeout_s=900.0)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        config = self.config
        self.tracker = FaceTracker(
            FaceDetector(),
            FaceMesh(),
            detect_every_s=config.detect_every_s,
            max_faces=config.max_faces,
            encoder=FaceEncoder.load() if config.identity == "dlib" else None,
        )
        self.engine = make_engine(config)

    def measure(self, row: Row) -> dict[str, Any]:
        seen, sound, speech = self.observe(row)
        return measure(seen, sound, speech, row["clip"]["spans"] or [], self.engine, self.config)

    def observe(self, row: Row) -> tuple[Tracks, Waveform | None, list[tuple[float, float]] | None]:
        """What `measure` needs of a clip: what is seen, the asset's sound, and stretches of speech on its clock."""
        config, span = self.config, span_of(row["clip"])
        path = self.ctx.asset_path(row)
        frames = self.ctx.media.iter_frames(
            path,
            start=span.start,
            end=span.end,
            long_side_px=config.long_side_px,
            max_fps=config.max_fps,
            chunk=64,
        )
        seen = self.tracker.follow(frames, crop_px=self.engine.crop_px)
        if not len(seen.times_s):
            raise MediaError("No frame of the clip could be decoded.", reason="no_frames")
        sound = self.ctx.media.audio(path) if row["probe"]["has_audio"] else None
        told = (row.get("transcribe") or {}).get("speech")
        return seen, sound, None if told is None else [(s["start_s"], s["end_s"]) for s in told]


def make_engine(config: SyncConfig) -> Engine:
    """The engine a recipe asks for, with its weights."""
    if config.engine == "syncnet":
        from stages.sync.syncnet import SyncNetEngine

        return SyncNetEngine(config.weights_path, config.device)
    return MouthEngine(config.max_offset_s)


def _is_silent(sound: Waveform, start_s: float, end_s: float) -> bool:
    """Whether a stretch of sound holds no more than the noise of a converter."""
    samples = sound.cut(*(Fraction(at).limit_denominator(1_000_000) for at in (start_s, end_s)))
    return not len(samples) or float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) < SILENT_RMS


@dataclass(frozen=True)
class Seen:
    """One face with everything its engine needs."""

    track: FaceTrack
    features: Signal
    evidence: Evidence


def measure(
    seen: Tracks,
    sound: Waveform | None,
    speech: Sequence[tuple[float, float]] | None,
    spans: Sequence[Any],
    engine: Engine,
    config: SyncConfig,
) -> dict[str, Any]:
    """The `sync` struct of one clip from what was seen and heard in it.

    `speech` are the stretches of speech on the asset clock, None if nobody looked for any; then a face decides whether
    lips or events are measured. `spans` are `clip.spans`.
    """
    start_s, end_s = float(seen.times_s[0]), seen.end_s
    if sound is not None and _is_silent(sound, start_s, end_s):
        sound = None
    tracks = [t for t in seen.faces if t.times_s[-1] - t.times_s[0] >= 0.5]
    result = _nothing(seen, tracks, spans)
    spoken_s = None if speech is None else sum(max(0.0, min(e, end_s) - max(s, start_s)) for s, e in speech)
    is_speech = bool(tracks) if spoken_s is None else spoken_s >= MIN_SPEECH_S
    result["status"] = _obstacle(seen, sound, end_s - start_s, config)
    if result["status"] is not None or sound is None:
        return result
    if not is_speech:
        lags = lags_s(config.max_offset_s)
        curve = onset_curve(seen.change, seen.times_s, end_s, sound, config.max_offset_s)
        found = find_peak(curve, lags)
        return result | {"kind": "event", "engine": "onset", "status": "measured"} | _offset(found, curve, lags)
    result["kind"] = "speech"
    frozen = frozen_stretches(seen)
    faces: list[Seen] = []
    numbers: list[int] = []
    for number, track in enumerate(tracks):
        features = _without(mouth_features(track, start_s, end_s), frozen)
        evidence = engine.evidence(track, features, sound)
        if evidence is not None:
            faces.append(Seen(track, features, evidence))
            numbers.append(number)
    if not faces:
        return result | {"status": "no_face"}
    return result | _judge_lips(faces, numbers, spans, engine, config, (start_s, end_s))


def _judge_lips(
    faces: Sequence[Seen],
    numbers: Sequence[int],
    spans: Sequence[Any],
    engine: Engine,
    config: SyncConfig,
    clip_s: tuple[float, float],
) -> dict[str, Any]:
    """Offset, windows, drift and active faces of a clip with faces and speech."""
    start_s, end_s = clip_s
    moving = [face for face in faces if mouth_stir(face.features, start_s, end_s) >= STILL_MOUTH]
    if not moving:
        active = assign(spans, [(face.evidence, face.features) for face in faces], start_s, 0.0)
        return {"status": "still_mouth", "active": _renumber(active, numbers)}
    lags = moving[0].evidence.lags_s
    best = max(moving, key=lambda face: engine.peak(face.evidence.curve(start_s, end_s), lags).height)
    found = engine.peak(best.evidence.curve(start_s, end_s), lags)
    active = assign(
        spans, [(face.evidence, face.features) for face in faces], start_s, found.offset_s if found.height > SURE else 0
    )
    stretches = _speaking(active, spans, faces, best, clip_s)
    curve = _joined(stretches)
    found = engine.peak(curve, lags)
    if found.height <= 0:
        return {"status": "no_face", "active": _renumber(active, numbers)}
    result = _offset(found, curve, lags) | {"engine": engine.name, "status": "measured"}
    result["active"] = _renumber(active, numbers)
    windows = _windows(stretches, engine, lags, config.window_s, clip_s)
    result["windows"] = [w[0] for w in windows]
    drift: tuple[float, float] | None = None
    if end_s - start_s >= DRIFT_FROM_S and len(windows) >= 3:
        centres = np.array([start_s + (w["start_s"] + w["end_s"]) / 2 for w, _ in windows])
        drift = find_drift(np.stack([c for _, c in windows]), centres, lags, found.offset_s)
        result |= {"drift_ms_per_s": 1000 * drift[0], "drift_std_ms_per_s": 1000 * drift[1]}
    heard_s = sum(min(face.evidence.seen_s, e - s) for face, s, e in stretches)
    result["finding"] = _finding(found, drift, heard_s)
    return result


def _speaking(
    active: Sequence[dict[str, Any]],
    spans: Sequence[Any],
    faces: Sequence[Seen],
    best: Seen,
    clip_s: tuple[float, float],
) -> list[tuple[Seen, float, float]]:
    """Which face to hold against the sound when: the speaking one of each span, or `best` throughout."""
    start_s, end_s = clip_s
    speaking = {a["track"] for a in active if a["status"] == "on_screen"}
    if len(speaking) < 2:
        only = faces[speaking.pop()] if speaking else best
        return [(only, start_s, end_s)]
    pad = 0.25
    return [
        (faces[a["track"]], max(start_s, start_s + span["start_s"] - pad), min(end_s, start_s + span["end_s"] + pad))
        for a, span in zip(active, spans, strict=True)
        if a["status"] == "on_screen"
    ]


def _joined(stretches: Sequence[tuple[Seen, float, float]]) -> Array:
    """Mean curve of the stretches, each by its length."""
    lengths = np.array([e - s for _, s, e in stretches])
    curves = np.stack([face.evidence.curve(s, e) for face, s, e in stretches])
    return np.asarray((curves * lengths[:, None]).sum(0) / lengths.sum())


def _windows(
    stretches: Sequence[tuple[Seen, float, float]],
    engine: Engine,
    lags: Array,
    window_s: float,
    clip_s: tuple[float, float],
) -> list[tuple[dict[str, Any], Array]]:
    """`SYNC_WINDOW`s and their curves."""
    start_s, end_s = clip_s
    count = max(1, int(np.ceil((end_s - start_s) / window_s * 2 - 1 - 1e-6)))
    length = (end_s - start_s) if count == 1 else window_s
    out = []
    for low in np.linspace(start_s, end_s - length, count):
        high = low + length
        parts = [(face, max(s, low), min(e, high)) for face, s, e in stretches if min(e, high) - max(s, low) > 0.5]
        if not parts:
            continue
        curve = _joined(parts)
        found = engine.peak(curve, lags)
        if found.height > 0:
            window = {
                "start_s": float(low - start_s),
                "end_s": float(high - start_s),
                "offset_ms": 1000 * found.offset_s,
                "confidence": found.height,
            }
            out.append((window, curve))
    return out


def _finding(found: Peak, drift: tuple[float, float] | None, heard_s: float) -> str:
    """The evidence in a word."""
    if found.height < SURE:
        return "no_match" if found.height < NO_MATCH and heard_s >= NO_MATCH_FROM_S else "unclear"
    if drift is not None and abs(drift[0]) > max(0.002, 3 * drift[1]):
        return "drifting"
    return "in_sync" if abs(found.offset_s) <= IN_SYNC_S + found.std_s else "shifted"


def _offset(found: Peak, curve: Array, lags: Array) -> dict[str, Any]:
    """The offset fields of a measured clip."""
    rest = curve[np.abs(lags - found.offset_s) > 0.2] if len(lags) > 40 else curve
    spread = max(float(rest.std()), 1e-9)
    return {
        "offset_ms": 1000 * found.offset_s,
        "offset_std_ms": 1000 * found.std_s,
        "confidence": found.height,
        "agreement": found.at_zero,
        "curve_lags_ms": [float(x) for x in np.round(1000 * lags, 3)],
        "curve": [float(x) for x in (curve - rest.mean()) / spread],
        "finding": "unclear",
    }


def _renumber(active: Sequence[dict[str, Any]], numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [a | {"track": None if a["track"] is None else numbers[a["track"]]} for a in active]


def _obstacle(seen: Tracks, sound: Waveform | None, duration_s: float, config: SyncConfig) -> str | None:
    """Why nothing can be measured, or None."""
    if sound is None:
        return "no_sound"
    if len(seen.times_s) < MIN_FRAMES or len(seen.times_s) / max(duration_s, 1e-6) < MIN_FPS:
        return "too_few_frames" if duration_s >= config.min_s else "too_short"
    if duration_s < config.min_s:
        return "too_short"
    still = seen.change[1:] < STATIC_CHANGE
    return "static_picture" if still.mean() >= STATIC_SHARE else None


def frozen_stretches(seen: Tracks) -> list[tuple[float, float]]:
    """Where the picture stands still for `FREEZE_S` or longer, on the asset clock."""
    still = np.concatenate([[False], seen.change[1:] < STATIC_CHANGE, [False]])
    edges = np.flatnonzero(np.diff(still.astype(np.int8)))
    times = np.append(seen.times_s, seen.end_s)
    found = [(float(times[a]), float(times[b])) for a, b in edges.reshape(-1, 2)]
    return [(low, high) for low, high in found if high - low >= FREEZE_S]


def _without(features: Signal, stretches: Sequence[tuple[float, float]]) -> Signal:
    """`features` that count for nothing inside `stretches`."""
    weights = features.weights.copy()
    for low, high in stretches:
        weights[(features.times_s >= low) & (features.times_s < high)] = 0.0
    return Signal(features.first, features.values, weights)


def _nothing(seen: Tracks, tracks: Sequence[FaceTrack], spans: Sequence[Any]) -> dict[str, Any]:
    """The struct of a clip on which nothing was measured, faces and unknown speakers included."""
    start_s = float(seen.times_s[0])
    frame_s = float(np.median(np.diff(seen.times_s))) if len(seen.times_s) > 1 else 0.0
    scale = np.array([seen.width_px, seen.height_px] * 2)
    faces = []
    for number, track in enumerate(tracks):
        left, top, right, bottom = np.median(track.boxes, axis=0) / scale
        faces.append(
            {
                "track": number,
                "start_s": float(track.times_s[0]) - start_s,
                "end_s": min(float(track.times_s[-1]) + frame_s, seen.end_s) - start_s,
                "x": float(left),
                "y": float(top),
                "width": float(right - left),
                "height": float(bottom - top),
                "confidence": track.score,
                "embedding": None if track.embedding is None else track.embedding.tolist(),
            }
        )
    empty = dict.fromkeys(("engine", "status", "finding", "offset_ms", "offset_std_ms", "confidence", "agreement"))
    active = [{"span_index": i, "status": "unknown", "track": None, "score": None} for i in range(len(spans))]
    return {
        **empty,
        "kind": "none",
        "drift_ms_per_s": None,
        "drift_std_ms_per_s": None,
        "num_faces": len(faces),
        "faces": faces,
        "active": active,
        "windows": [],
        "curve_lags_ms": [],
        "curve": [],
    }
