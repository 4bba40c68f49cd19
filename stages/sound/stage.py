"""`sound`: what is heard in a clip and when, of which class that is, how good speech sounds, and if it is in stereo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.fields import f, struct
from schemas.records import Row, span_of
from schemas.spans import SPEECH_RATE_HZ
from schemas.stretches import Stretch, merge, outside
from stages.base import Context, Measure, Resources, StageConfig
from stages.sound.events import EVENTS, Event, EventNetwork, both, events_of
from stages.sound.mos import SpeechRater

F32 = NDArray[np.float32]

SILENT_DB = -50.0
"""Level of a 100 ms frame below which nothing is heard: 25 dB below speech at broadcast loudness."""
FRAME = SPEECH_RATE_HZ // 10
CLASS_SHARE: Mapping[Event, float] = {"singing": 0.3, "speech": 0.2, "music": 0.3}
"""Share of a clip from which it may be of a class, in the order in which they are asked."""
RATED_S = 1.0
"""Least speech that is rated."""
SAME_CHANNEL = 0.02
"""Share of a channel's power that the other does not explain from which two are a stereo sound: lossy coding of one sound
twice leaves less than a hundredth."""

HEARD = struct(
    f("kind", pa.string(), doc="speech, singing, music, or other: sound that is none of them"),
    f("start_s", pa.float64(), unit="s", doc="on the clip clock"),
    f("end_s", pa.float64(), unit="s", doc="on the clip clock"),
)
SOUND = struct(
    f("heard", pa.list_(HEARD), doc="what is heard when; kinds may overlap", show="lane"),
    f("speech_ratio", pa.float64(), unit="ratio", doc="share of the clip with speech", show="histogram"),
    f("singing_ratio", pa.float64(), unit="ratio", doc="share of the clip with singing"),
    f("music_ratio", pa.float64(), unit="ratio", doc="share of the clip with music", show="histogram"),
    f("other_ratio", pa.float64(), unit="ratio", doc="share of the clip with sound that is none of them"),
    f("music_under_speech_ratio", pa.float64(), unit="ratio", doc="share of the speech that has music under it; null without "
      "speech",
      show="histogram"),
    f("kind", pa.string(), doc="NAVA's class: single_speaker, multi_speaker, singing, music, ambience, or silence", show="label"),
    f("mos_overall", pa.float64(), doc="DNSMOS P.835, 1 bad to 5 excellent, of the whole; null under 1 s of speech, and if not "
      "asked for",
      show="histogram"),
    f("mos_speech", pa.float64(), doc="the same of the speech alone"),
    f("mos_background", pa.float64(), doc="the same of the background alone"),
    f("mos_p808", pa.float64(), doc="DNSMOS P.808, 1 bad to 5 excellent, of the whole as it is; null as the others"),
    f("mos_mean", pa.float64(), doc="mean of mos_overall and mos_p808: falls with noise, missing treble, clipping and lost "
      "pieces alike",
      show="histogram"),
    f("mos_plc", pa.float64(), doc="PLCMOS v2, 1 bad to 5 excellent: how well lost packets are concealed; noise may raise it; "
      "null as the others"),
    f("stereo", pa.string(), doc="mono, dual_mono (the same twice), inverted, one_channel (the others silent) or stereo: of "
      "the two "
      "loudest channels; null for silence", show="label"),
    f("unlike_ratio", pa.float64(), unit="ratio", doc="share of a channel's power that the other does not explain; null for "
      "mono"),
)  # fmt: skip


class SoundConfig(StageConfig):
    """What is asked for."""

    rate_speech: bool = True
    """Rate speech by DNSMOS and PLCMOS, which takes most of the stage's time; without it the opinions (`mos_*`) are null."""


class SoundStage(Measure[SoundConfig]):
    """What is heard in a clip. About 4 to 5 CPU s a minute, of which most is the rating of speech.

    A noise that holds a pitch may pass for music, and barks now and then for speech: where `transcribe` heard no speech,
    there is none here either. Speakers are those of `clip.spans`.
    """

    name = "sound"
    version = "2"
    level = "clip"
    reads = ("download.path", "probe.has_audio", "transcribe.speech", "clip")
    adds = SOUND
    Config = SoundConfig
    resources = Resources(cpus=1.0, memory_gb=0.4, timeout_s=300.0)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.network = ctx.model(EventNetwork.load)
        self.rater = ctx.model(SpeechRater.load) if self.config.rate_speech else None

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip; all fields null where the asset has no sound."""
        if not row["probe"]["has_audio"]:
            return dict.fromkeys((field.name for field in SOUND), None)
        span, path = span_of(row["clip"]), self.ctx.asset_path(row)
        samples = self.ctx.media.audio(path, rate_hz=SPEECH_RATE_HZ, mono=True).cut(span.start, span.end)
        channels = self.ctx.media.audio(path, rate_hz=None, mono=False).cut(span.start, span.end)
        known = Stretch.all_of((row.get("transcribe") or {}).get("speech"))
        heard = heard_in(self.network.probabilities(samples), [one.moved(-float(span.start)) for one in known])
        speakers = {said["speaker"] for said in row["clip"]["spans"] or () if said["speaker"] is not None}
        spoken_s = sum(stretch.duration_s for stretch in heard["speech"])
        rating = self.rater.rate(samples) if self.rater and spoken_s >= RATED_S else None
        stereo, unlike = stereo_of(channels)
        return {
            **described(heard, samples, len(speakers)),
            "mos_overall": rating and rating.overall,
            "mos_speech": rating and rating.speech,
            "mos_background": rating and rating.background,
            "mos_p808": rating and rating.p808,
            "mos_mean": rating and rating.mean,
            "mos_plc": rating and rating.plc,
            "stereo": stereo,
            "unlike_ratio": unlike,
        }


def heard_in(probabilities: F32, speech: Sequence[Stretch]) -> dict[Event, list[Stretch]]:
    """Events of probabilities [n, 3]; of speech only what touches a stretch that voice activity found as well."""
    found = events_of(probabilities)
    voiced = merge(speech)
    found["speech"] = [each for each in found["speech"] if any(each.overlap_s(other) > 0 for other in voiced)]
    return found


def described(heard: Mapping[Event, Sequence[Stretch]], samples: F32, num_speakers: int) -> dict[str, Any]:
    """The fields of `SOUND` about what is heard in mono `samples` at 16 kHz."""
    length_s = max(len(samples) / SPEECH_RATE_HZ, 1e-9)
    taken = merge(stretch for event in EVENTS for stretch in heard[event])
    audible = audible_in(samples)
    other = [part for stretch in audible for part in outside(stretch, taken)]
    shares = {event: sum(stretch.duration_s for stretch in heard[event]) / length_s for event in EVENTS}
    spoken_s = shares["speech"] * length_s
    named = [(event, stretch) for event in EVENTS for stretch in heard[event]] + [("other", part) for part in other]
    rows = [{"kind": kind, **stretch.within(0.0, length_s).row()} for kind, stretch in named]
    return {
        "heard": sorted(rows, key=lambda row: row["start_s"]),
        **{f"{event}_ratio": min(1.0, share) for event, share in shares.items()},
        "other_ratio": min(1.0, sum(part.duration_s for part in other) / length_s),
        "music_under_speech_ratio": both(heard["speech"], heard["music"]) / spoken_s if spoken_s else None,
        "kind": kind_of(shares, bool(audible), num_speakers),
    }


def audible_in(samples: F32) -> list[Stretch]:
    """Stretches of mono `samples` at 16 kHz that are not silent, by frames of 100 ms."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    is_loud = np.square(frames, dtype=np.float64).mean(1) >= 10 ** (SILENT_DB / 10)
    return merge(Stretch(at / 10, (at + 1) / 10) for at in np.flatnonzero(is_loud).tolist())


def kind_of(shares: Mapping[Event, float], is_audible: bool, num_speakers: int) -> str:
    """Which of NAVA's classes a clip is of, or silence."""
    if shares["singing"] >= CLASS_SHARE["singing"] and shares["singing"] >= shares["speech"]:
        return "singing"
    if shares["speech"] >= CLASS_SHARE["speech"]:
        return "multi_speaker" if num_speakers > 1 else "single_speaker"
    if shares["music"] >= CLASS_SHARE["music"]:
        return "music"
    return "ambience" if is_audible else "silence"


def stereo_of(samples: F32) -> tuple[str | None, float | None]:
    """(name, share of a channel's power that the other does not explain) of samples [n, channels]."""
    powers = np.square(samples, dtype=np.float64).mean(0) if len(samples) else np.zeros(1)
    quiet = 10 ** (SILENT_DB / 10)
    if powers.max() < quiet:
        return None, None
    if len(powers) == 1:
        return "mono", None
    order = np.argsort(powers)[::-1]
    if powers[order[1]] < quiet:
        return "one_channel", None
    first, second = (samples[:, at].astype(np.float64) for at in order[:2])
    likeness = float((first * second).mean() / np.sqrt(powers[order[0]] * powers[order[1]]))
    unlike = max(0.0, 1 - likeness**2)
    if unlike >= SAME_CHANNEL:
        return "stereo", unlike
    return ("inverted" if likeness < 0 else "dual_mono"), unlike
