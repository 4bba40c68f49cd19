"""Cheap measures of a clip's sound: loud, clean, clipped, silent, narrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.fields import f, struct
from schemas.records import Row, span_of
from schemas.stretches import Stretch, runs
from stages.base import Measure, Resources, StageConfig

Samples = NDArray[np.float32]

FLOOR_DB = -120.0
"""What digital silence is reported as; below the quantisation noise of 16-bit sound (-98 dB)."""
MUTE_LUFS = -70.0
"""Absolute gate of ITU-R BS.1770-4: whatever is quieter has no loudness and is reported as this."""
GATING_BLOCK_S = 0.4
"""Shortest sound that BS.1770 can measure."""
FRAME_S = 0.02
NO_SIGNAL_DB = -90.0
"""Level of one step of 16-bit sound: below it nothing was recorded, or nothing is stored."""
GAP_S = 0.5
"""Shortest hole that counts: gates and de-noisers leave shorter ones between words."""
SILENT_DB = -50.0
"""Level of a 20 ms frame below which it counts as silent: 25 dB below speech at broadcast loudness (-23 LUFS)."""
MIN_PAUSE_S = 0.2
"""Least sound outside speech from which its noise is taken."""
PAUSE_GUARD_S = 0.05
"""Distance kept from speech when noise is taken: voice activity ends a little early or late."""
QUIET_SHARE = 0.05
"""Without a pause, the quietest twentieth of the frames stands for the noise, as in minimum-statistics estimators."""
MAX_SNR_DB = 80.0
MIN_SNR_DB = -20.0
"""Where the pauses are louder than the speech (music between sentences) the figure stops here."""
FULL_SCALE = 0.99
"""What a player cuts off; decoders of lossy sound give values beyond it."""
FLAT_LEVEL = 0.98
FLAT_MIN_PEAK = 0.5
CLIP_RUN = 3
"""Clipped: at least three samples in a row at full scale or beyond, or within 2 % of the channel's own peak (sound
clipped before its level was lowered). Sines of 1 kHz and less stay there as long, so a few are normal."""
BAND_DROP_DB = 75.0
"""A frequency carries sound if its level is within this of the strongest: coders' low-pass edges fall deeper, the
noise of a quiet room does not reach it."""

AUDIO = struct(
    f("loudness_lufs", pa.float64(), unit="lufs", doc="integrated (ITU-R BS.1770-4), -70 if gated away; null under 0.4 s",
      show="histogram"),
    f("peak_db", pa.float64(), unit="db", doc="highest sample, relative to full scale; -120 for digital silence"),
    f("snr_db", pa.float64(), unit="db", doc="speech over pauses of this clip, -20 to 80; null without speech", show="histogram"),
    f("is_snr_from_pauses", pa.bool_(), doc="noise was taken from pauses, not guessed from the quietest frames"),
    f("clipping_ratio", pa.float64(), unit="ratio", doc="share of samples in flat tops at the clip's peak; the worst channel"),
    f("silence_ratio", pa.float64(), unit="ratio", doc="share of 20 ms frames below -50 dB in every channel"),
    f("gap_ratio", pa.float64(), unit="ratio", doc="share of the time without any signal, not even noise, for 0.5 s or more"),
    f("covered_ratio", pa.float64(), unit="ratio", doc="share of the clip's length for which the file has sound"),
    f("bandwidth_hz", pa.float64(), unit="hz", doc="highest frequency that carries sound; null for silence"),
    f("dc_offset", pa.float64(), unit="ratio", doc="mean of the samples, of full scale; the worst channel"),
    f("num_silent_channels", pa.int32(), unit="count", doc="channels without any sound above -50 dB"),
    f("channel_correlation", pa.float64(), unit="ratio", doc="of the two loudest channels; -1 phase inverted, null for mono"),
    f("speech_ratio", pa.float64(), unit="ratio", doc="share of the clip in which voice activity was found"),
    f("tonality", pa.float64(), unit="ratio", doc="share of the spectrum's energy in tones held for 0.1 s; music is high"),
)  # fmt: skip


class AudioConfig(StageConfig):
    """Nothing to choose."""


class Audio(Measure[AudioConfig]):
    """Sound measures of a clip at the file's own rate, over all of its channels. Costs about a hundredth of real time.

    What kind of sound it is says stage `sound`.
    """

    name = "audio"
    version = "4"
    level = "clip"
    reads = ("download.path", "probe.has_audio", "transcribe.speech", "clip")
    adds = AUDIO
    Config = AudioConfig
    resources = Resources(cpus=1.0, memory_gb=0.3, timeout_s=300.0)

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip; all fields null where the asset has no sound."""
        if not row["probe"]["has_audio"]:
            return dict.fromkeys((field.name for field in AUDIO), None)
        span = span_of(row["clip"])
        sound = self.ctx.media.audio(self.ctx.asset_path(row), rate_hz=None, mono=False)
        samples = sound.cut(span.start, span.end)
        covered = min(span.end, sound.end) - max(span.start, sound.start)
        heard = Stretch.all_of((row.get("transcribe") or {}).get("speech"))
        measured = measure(samples, sound.rate_hz, [stretch.moved(-float(span.start)) for stretch in heard])
        return {**measured, "covered_ratio": max(0.0, float(covered / span.duration)) if span.duration else None}


def measure(samples: Samples, rate_hz: int, speech: Sequence[Stretch]) -> dict[str, Any]:
    """The `AUDIO` fields, all but covered_ratio, of `samples` [n, channels]; `speech` in seconds from sample 0."""
    if not samples.size:
        return {field.name: None for field in AUDIO if field.name != "covered_ratio"}
    energies = np.square(samples, dtype=np.float64)
    levels, powers = frame_levels(energies, rate_hz), energies.mean(0)
    main = np.ascontiguousarray(samples[:, int(np.argmax(powers))])
    is_speech = mark(speech, len(levels))
    snr, is_from_pauses = signal_to_noise(levels[:, int(np.argmax(powers))], speech)
    return {
        "loudness_lufs": loudness(samples, rate_hz),
        "peak_db": decibels(float(np.abs(samples).max())),
        "snr_db": snr,
        "is_snr_from_pauses": is_from_pauses,
        "clipping_ratio": max(clipping(samples[:, c]) for c in range(samples.shape[1])),
        "silence_ratio": float((levels.max(1) < SILENT_DB).mean()),
        "gap_ratio": gap_ratio(levels.max(1)),
        "bandwidth_hz": bandwidth(main, rate_hz),
        "dc_offset": float(np.abs(samples.mean(0, dtype=np.float64)).max()),
        "num_silent_channels": int((levels.max(0) < SILENT_DB).sum()),
        "channel_correlation": channel_correlation(samples, powers),
        "speech_ratio": float(is_speech.mean()),
        "tonality": held_tones(main, rate_hz),
    }


def decibels(amplitude: float) -> float:
    """20 log10 of `amplitude`, not below `FLOOR_DB`."""
    return float(max(FLOOR_DB, 20 * np.log10(max(amplitude, 1e-12))))


def loudness(samples: Samples, rate_hz: int) -> float | None:
    """Integrated loudness of `samples` [n, channels] in LUFS (pyloudnorm's K-weighting and gating).

    None for less than a gating block and for layouts other than mono, stereo, 3.0, 5.0 and 5.1 (whose LFE is left out).
    """
    channels = {1: [0], 2: [0, 1], 3: [0, 1, 2], 5: [0, 1, 2, 3, 4], 6: [0, 1, 2, 4, 5]}.get(samples.shape[1])
    if len(samples) < GATING_BLOCK_S * rate_hz or channels is None:
        return None
    import pyloudnorm

    value = float(pyloudnorm.Meter(rate_hz).integrated_loudness(samples[:, channels].astype(np.float64)))
    return value if np.isfinite(value) and value > MUTE_LUFS else MUTE_LUFS


def frame_levels(energies: NDArray[np.float64], rate_hz: int) -> NDArray[np.float64]:
    """Level in dB of each 20 ms frame of the squared samples `energies` [n, channels] -> [frames, channels]."""
    size = max(1, min(len(energies), round(FRAME_S * rate_hz)))
    num = len(energies) // size
    frames = energies[: num * size].reshape(num, size, -1)
    return np.asarray(np.maximum(10 * np.log10(frames.mean(1) + 1e-24), FLOOR_DB))


def gap_ratio(levels: NDArray[np.float64]) -> float:
    """Share of the 20 ms frames of level `levels` [n] that lie in runs of `GAP_S` or more below `NO_SIGNAL_DB`."""
    lengths = np.diff(runs(levels < NO_SIGNAL_DB))
    return float(lengths[lengths >= round(GAP_S / FRAME_S)].sum() / len(levels))


def mark(stretches: Sequence[Stretch], num: int, widen_s: float = 0.0) -> NDArray[np.bool_]:
    """Which of `num` 20 ms frames lie at least half inside one of the `stretches`, widened on both sides."""
    middles = (np.arange(num) + 0.5) * FRAME_S
    inside = np.zeros(num, bool)
    for stretch in stretches:
        inside |= (middles >= stretch.start_s - widen_s) & (middles < stretch.end_s + widen_s)
    return inside


def signal_to_noise(levels: NDArray[np.float64], speech: Sequence[Stretch]) -> tuple[float | None, bool | None]:
    """(SNR in dB, whether noise came from pauses) of the frame `levels` [n] of one channel; Nones without speech.

    Speech power is what the speech frames have beyond the noise. Where the clip has no pause, the noise is guessed
    from the quietest frames, which a voice without gaps lets appear too loud: the figure is then too low.
    """
    power = 10 ** (levels / 10)
    is_speech = mark(speech, len(levels))
    if not is_speech.any():
        return None, None
    pauses = ~mark(speech, len(levels), PAUSE_GUARD_S)
    is_from_pauses = bool(pauses.sum() * FRAME_S >= MIN_PAUSE_S)
    if is_from_pauses:
        noise = float(power[pauses].mean())
    else:
        noise = float(np.sort(power)[: max(1, round(QUIET_SHARE * len(power)))].mean())
    voice = max(float(power[is_speech].mean()) - noise, 1e-12)
    ratio_db = 10 * np.log10(voice / max(noise, 1e-12))
    return float(np.clip(ratio_db, MIN_SNR_DB, MAX_SNR_DB)), is_from_pauses


def clipping(channel: Samples) -> float:
    """Share of the samples [n] that lie in flat tops, runs of three and more: see `CLIP_RUN`."""
    peak = float(np.abs(channel).max())
    level = min(FULL_SCALE, FLAT_LEVEL * peak if peak >= FLAT_MIN_PEAK else np.inf)
    total = 0
    for is_top in (channel >= level, channel <= -level):
        lengths = np.diff(runs(is_top))
        total += int(lengths[lengths >= CLIP_RUN].sum())
    return total / len(channel)


def bandwidth(channel: Samples, rate_hz: int) -> float | None:
    """Highest frequency in Hz whose mean power density is within `BAND_DROP_DB` of the strongest; None for silence."""
    from scipy.signal import welch

    if np.abs(channel).max() < 10 ** (SILENT_DB / 20):
        return None
    frequencies, density = welch(channel, rate_hz, nperseg=min(len(channel), 2048))
    carries = np.flatnonzero(density > density.max() * 10 ** (-BAND_DROP_DB / 10))
    return float(frequencies[carries[-1]])


def channel_correlation(samples: Samples, powers: NDArray[np.float64]) -> float | None:
    """Correlation of the two loudest channels of `samples` [n, channels]; None if there are not two with sound."""
    if samples.shape[1] < 2:
        return None
    first, second = (samples[:, c].astype(np.float64) for c in np.argsort(powers)[::-1][:2])
    first, second = first - first.mean(), second - second.mean()
    size = float(np.sqrt((first**2).mean() * (second**2).mean()))
    return float((first * second).mean() / size) if size > 10 ** (SILENT_DB / 10) else None


def held_tones(channel: Samples, rate_hz: int) -> float | None:
    """Share of spectral energy in peaks that stay in place for 0.1 s; None for silence.

    The harmonics of a voice glide, the notes of an instrument stand. Measured up to 4 kHz with 64 ms windows every
    16 ms: a peak counts where its bin is a local maximum, 10 dB above its surroundings, in seven windows running.
    """
    from scipy.ndimage import minimum_filter1d
    from scipy.signal import stft

    if len(channel) < rate_hz * 0.25 or np.abs(channel).max() < 10 ** (SILENT_DB / 20):
        return None
    size = round(0.064 * rate_hz)
    frequencies, _, bins = stft(channel, rate_hz, nperseg=size, noverlap=size - round(0.016 * rate_hz))
    power = np.abs(bins[(frequencies >= 80) & (frequencies <= 4000)]) ** 2
    level = 10 * np.log10(power + 1e-14)
    is_top = level >= np.maximum(np.roll(level, 1, 0), np.roll(level, -1, 0))
    held = minimum_filter1d((is_top & stands_out(level)).astype(np.uint8), 7, axis=1, mode="constant")
    near = np.maximum(np.maximum(np.roll(held, 1, 0), np.roll(held, -1, 0)), held)
    return float(power[near > 0].sum() / max(power.sum(), 1e-20))


def stands_out(level: Samples, by_db: float = 10.0, reach: int = 7) -> NDArray[np.bool_]:
    """Which of `level` [bins, times] lie more than `by_db` over the median of the 15 bins around them, edges repeated.

    They do where more than half of those 15 lie that far below them: no median has to be found.
    """
    above = np.pad(level + np.float32(by_db), ((reach, reach), (0, 0)), mode="edge")
    below = sum((above[at : at + len(level)] < level).astype(np.uint8) for at in range(2 * reach + 1))
    return np.asarray(below > reach)
