"""`transcribe`: words with times, the language, and where anybody speaks, on the whole asset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from schemas.errors import ItemError
from schemas.fields import f, struct
from schemas.records import STRETCH, WORD, Row
from schemas.spans import SPEECH_RATE_HZ
from schemas.stretches import Stretch
from stages.base import Context, Measure, Resources, StageConfig
from stages.engines.voice import VoiceActivity, VoiceConfig
from stages.transcribe.align import AlignEngine, spoken_form
from stages.transcribe.pocketsphinx import PocketsphinxEngine
from stages.transcribe.transcripts import Transcript, find_transcript
from stages.transcribe.whisperx import WhisperxConfig, WhisperxEngine
from stages.transcribe.words import Heard, Kept, keep_spoken


class TranscribeConfig(StageConfig):
    """Which engine, and what counts as speech."""

    engine: Literal["auto", "pocketsphinx", "whisperx", "align"] = "auto"
    """auto: align where a transcript is given, else pocketsphinx. align alone refuses sources without a transcript."""
    second: Literal["pocketsphinx", "whisperx"] | None = None
    """Another engine that hears the same sound, only to tell how far both agree; doubles the cost."""
    whisperx: WhisperxConfig = WhisperxConfig()
    """Weights and settings of engine whisperx."""
    voice: VoiceConfig = VoiceConfig()
    """Voice activity, shared by all engines."""
    states: int = Field(default=6000, ge=100)
    """States pocketsphinx searches per frame; 30000 is its own default, 3000 doubles the speed at a third more errors."""
    min_speech_share: float = Field(default=0.3, ge=0, le=1)
    """Words of which less than this lies on speech are dropped."""
    max_repeats: int = Field(default=3, ge=1)
    """The same one to four words more often than this in a row are cut to one."""


class Transcribe(Measure[TranscribeConfig]):
    """Words of the whole asset, because context helps and because clips are cut between words."""

    name = "transcribe"
    version = "3"
    level = "asset"
    reads = ("uri", "metadata", "download.path", "probe.has_audio")
    adds = struct(
        f("engine", pa.string(), doc="engine that gave the words; null without sound"),
        f("language", pa.string(), doc="ISO 639-1 code; pocketsphinx always says en, it knows nothing else"),
        f("language_confidence", pa.float64(), unit="ratio", doc="probability; null where stated and not measured"),
        f("speech", pa.list_(STRETCH), doc="stretches in which anybody speaks, on the asset clock"),
        f("words", pa.list_(WORD), doc="words in order of start, on the asset clock, none outside the sound"),
        f("num_dropped_words", pa.int32(), unit="count", doc="words the engine gave that were dropped, all reasons"),
        f("num_on_silence", pa.int32(), unit="count", doc="dropped: on silence, noise or music"),
        f("num_repeated", pa.int32(), unit="count", doc="dropped: the same words over and over"),
        f("num_outside", pa.int32(), unit="count", doc="dropped: outside the sound"),
        f(
            "num_failed",
            pa.int32(),
            unit="count",
            doc="utterances on which the engine crashed, or cues that do not fit",
        ),
        f("text", pa.string(), doc="the words joined by spaces"),
        f(
            "agreement",
            pa.float64(),
            unit="ratio",
            doc="words shared with the second engine, in order, of all words of both",
        ),
        in_shard=False,
    )
    Config = TranscribeConfig
    resources = Resources(memory_gb=0.4, scratch_gb_per_h=0.3, timeout_s=7200.0)
    """Scratch: mono sound at 16 kHz, four bytes a sample."""

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.voice = ctx.model(VoiceActivity.load)
        self.aligner = AlignEngine(ctx.scratch_dir)
        self.engine = self._load("whisperx" if self.config.engine == "whisperx" else "pocketsphinx")
        self.second = None if self.config.second is None else self._load(self.config.second)

    def _load(self, name: str) -> PocketsphinxEngine | WhisperxEngine:
        if name == "whisperx":
            return WhisperxEngine.load(self.config.whisperx, self.voice, self.config.voice, self.ctx.scratch_dir)
        return PocketsphinxEngine(self.ctx.scratch_dir, self.config.states)

    def measure(self, row: Row) -> dict[str, Any]:
        if not row["probe"]["has_audio"]:
            return {**_struct(None, Heard([], None, None), [], Kept([], 0, 0, 0), 0.0), "agreement": None}
        config = self.config
        sound = self.ctx.media.audio(self.ctx.asset_path(row), rate_hz=SPEECH_RATE_HZ, mono=True)
        start_s, duration_s = float(sound.start), len(sound.samples) / SPEECH_RATE_HZ
        speech = self.voice.stretches(sound.samples, config.voice)
        given = self._given(row)
        if given is not None:
            heard = self.aligner.align(given, sound.samples, speech, start_s)
            engine = "align"
        else:
            engine = "pocketsphinx" if config.engine == "auto" else config.engine
            heard = self.engine.hear(sound.samples, speech)
        kept = keep_spoken(heard.words, speech, duration_s, config.min_speech_share, config.max_repeats)
        common = None
        if self.second is not None:
            other = self.second.hear(sound.samples, speech)
            others = keep_spoken(other.words, speech, duration_s, config.min_speech_share, config.max_repeats)
            common = agreement([word.text for word in kept.words], [word.text for word in others.words])
        return {**_struct(engine, heard, speech, kept, start_s), "agreement": common}

    def _given(self, row: Row) -> Transcript | None:
        if self.config.engine not in ("auto", "align"):
            return None
        given = find_transcript(row["uri"], json.loads(row["metadata"] or "{}"))
        if given is None and self.config.engine == "align":
            raise ItemError(
                "This source has no transcript to align.",
                reason="no_transcript",
                remedy="Put a .srt, .vtt or .txt of the same name beside it, add a manifest column 'transcript', "
                "or use engine: auto.",
            )
        return given


def agreement(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Share of the words of both that stand in common order (2 x matches / all), as spoken; None without words."""
    first, second = ([form for word in words if (form := spoken_form(word))] for words in (one, other))
    if not first and not second:
        return None
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


def _struct(engine: str | None, heard: Heard, speech: list[Stretch], kept: Kept, start_s: float) -> dict[str, Any]:
    """The struct of what was `heard` in a sound that begins at `start_s`; all but `agreement`."""
    return {
        "engine": engine,
        "language": heard.language if kept.words else None,
        "language_confidence": heard.language_confidence if kept.words else None,
        "speech": [stretch.moved(start_s).row() for stretch in speech],
        "words": [word.moved(start_s).row() for word in kept.words],
        "num_dropped_words": kept.num_dropped,
        "num_on_silence": kept.num_on_silence,
        "num_repeated": kept.num_repeated,
        "num_outside": kept.num_outside,
        "num_failed": heard.num_failed,
        "text": " ".join(word.text for word in kept.words),
    }
