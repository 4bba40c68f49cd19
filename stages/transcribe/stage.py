"""`transcribe`: words with times, the language, and where anybody speaks, on the whole asset."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from schemas.errors import ItemError
from schemas.fields import f, struct
from schemas.records import PASSAGE, STRETCH, WORD, Row
from schemas.spans import SPEECH_RATE_HZ, Passage, joined
from schemas.stretches import Stretch
from stages.base import Context, Measure, Resources, StageConfig
from stages.engines.voice import VoiceActivity, VoiceConfig
from stages.transcribe.align import AlignEngine, spoken_form
from stages.transcribe.funasr import FunasrConfig, FunasrEngine
from stages.transcribe.pocketsphinx import PocketsphinxEngine
from stages.transcribe.transcripts import Transcript, find_transcripts, in_language
from stages.transcribe.whisperx import WhisperxConfig, WhisperxEngine
from stages.transcribe.words import Heard, Kept, keep_spoken

SURE = 0.5
"""Probability from which the language that is heard overrules the one a transcript is said to be in."""


class TranscribeConfig(StageConfig):
    """Which engine, and what counts as speech."""

    engine: Literal["auto", "whisperx", "pocketsphinx", "funasr", "align"] = "auto"
    """auto: align where a transcript in the language that is spoken is given, else `recogniser`. align alone refuses
    sources without a transcript, and trusts it to be in the language that is spoken."""
    recogniser: Literal["whisperx", "pocketsphinx"] = "whisperx"
    """Who listens under engine auto."""
    second: Literal["whisperx", "pocketsphinx", "funasr"] | None = None
    """Another engine that hears the same sound, only to tell how far both agree; doubles the cost."""
    whisperx: WhisperxConfig = WhisperxConfig()
    """Weights and settings of engine whisperx."""
    funasr: FunasrConfig = FunasrConfig()
    """Weights of engine funasr: Paraformer or SenseVoice."""
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
    version = "4"
    level = "asset"
    reads = ("uri", "metadata", "download.path", "probe.has_audio")
    adds = struct(
        f("engine", pa.string(), doc="engine that gave the words; null without sound"),
        f(
            "language",
            pa.string(),
            doc="ISO 639-1 code of most of what is said; null without words or where nobody knows",
        ),
        f(
            "language_confidence",
            pa.float64(),
            unit="ratio",
            doc="mean probability of that language where it is spoken; null where not measured",
            show="histogram",
        ),
        f("num_languages", pa.int32(), unit="count", doc="languages of the passages"),
        f("speech", pa.list_(STRETCH), doc="stretches in which anybody speaks, on the asset clock"),
        f("words", pa.list_(WORD), doc="words in order of start, on the asset clock, none outside the sound"),
        f("passages", pa.list_(PASSAGE), doc="what was written down at once, on the asset clock, and how it was heard"),
        f("num_dropped_words", pa.int32(), unit="count", doc="words the engine gave that were dropped, all reasons"),
        f("num_on_silence", pa.int32(), unit="count", doc="dropped: on silence, noise or music"),
        f("num_repeated", pa.int32(), unit="count", doc="dropped: the same words over and over"),
        f("num_outside", pa.int32(), unit="count", doc="dropped: outside the sound"),
        f("on_silence_ratio", pa.float64(), unit="ratio", doc="share of the engine's words that lay on silence"),
        f("repeated_ratio", pa.float64(), unit="ratio", doc="share of the engine's words that were repetitions"),
        f(
            "num_failed",
            pa.int32(),
            unit="count",
            doc="utterances on which the engine crashed, or cues that do not fit",
        ),
        f("text", pa.string(), doc="the words; joined by spaces where their script has them"),
        f(
            "agreement",
            pa.float64(),
            unit="ratio",
            doc="words shared with the second engine, in order, of all words of both",
        ),
        in_shard=False,
    )
    Config = TranscribeConfig
    resources = Resources(memory_gb=0.9, scratch_gb_per_h=0.3, timeout_s=7200.0)
    """Scratch: mono sound at 16 kHz, four bytes a sample."""

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        config = self.config
        self.voice = ctx.model(VoiceActivity.load)
        self.aligner = AlignEngine(ctx.scratch_dir)
        self.recogniser = config.recogniser if config.engine in ("auto", "align") else config.engine
        self.engine = self._load(self.recogniser)
        self.second = None if config.second is None else self._load(config.second)

    def _load(self, name: str) -> PocketsphinxEngine | WhisperxEngine | FunasrEngine:
        if name == "funasr":
            funasr = self.config.funasr
            return self.ctx.model(FunasrEngine.load, funasr.weights_path, funasr.writes_numbers)
        if name == "whisperx":
            return WhisperxEngine.load(self.config.whisperx, self.ctx)
        return PocketsphinxEngine(self.ctx.scratch_dir, self.config.states)

    def measure(self, row: Row) -> dict[str, Any]:
        if not row["probe"]["has_audio"]:
            return {**_struct(None, Heard([], []), [], Kept([], 0, 0, 0), 0.0), "agreement": None}
        config = self.config
        sound = self.ctx.media.audio(self.ctx.asset_path(row), rate_hz=SPEECH_RATE_HZ, mono=True)
        start_s, duration_s = float(sound.start), len(sound.samples) / SPEECH_RATE_HZ
        speech = self.voice.stretches(sound.samples, config.voice)
        engine, heard = self._hear(self._given(row), sound.samples, speech, start_s)
        kept = keep_spoken(heard.words, speech, duration_s, config.min_speech_share, config.max_repeats)
        common = None
        if self.second is not None:
            other = self.second.hear(sound.samples, speech)
            others = keep_spoken(other.words, speech, duration_s, config.min_speech_share, config.max_repeats)
            common = agreement([word.text for word in kept.words], [word.text for word in others.words])
        return {**_struct(engine, heard, speech, kept, start_s), "agreement": common}

    def _hear(
        self, given: list[Transcript], samples: NDArray[np.float32], speech: list[Stretch], start_s: float
    ) -> tuple[str, Heard]:
        """(engine, what it heard): of the transcripts `given` the one that is spoken, or what the recogniser hears."""
        engine = self.engine
        if given and not isinstance(engine, WhisperxEngine):
            return "align", self.aligner.align(given[0], samples, speech, start_s)
        if given and isinstance(engine, WhisperxEngine):
            spoken = engine.listen(samples, speech)
            is_sure = (spoken.language_confidence or 0.0) >= SURE and self.config.engine == "auto"
            chosen = in_language(given, spoken.language if is_sure else None)
            if chosen is not None:
                return "align", engine.align(chosen, samples, speech, start_s, spoken)
        return self.recogniser, engine.hear(samples, speech)

    def _given(self, row: Row) -> list[Transcript]:
        if self.config.engine not in ("auto", "align"):
            return []
        given = find_transcripts(row["uri"], json.loads(row["metadata"] or "{}"))
        if not given and self.config.engine == "align":
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


def main_language(passages: Sequence[Passage]) -> tuple[str | None, float | None]:
    """(the language that most is said in, its mean probability there), the latter None where it was not measured."""
    seconds: dict[str | None, float] = {}
    for passage in passages:
        seconds[passage.hearing.language] = seconds.get(passage.hearing.language, 0.0) + passage.duration_s
    if not seconds:
        return None, None
    language = max(seconds, key=lambda each: (seconds[each], each or ""))
    measured = [
        (p.hearing.language_confidence, p.duration_s)
        for p in passages
        if p.hearing.language == language and p.hearing.language_confidence is not None
    ]
    if not measured:
        return language, None
    values, weights = np.array(measured).T
    return language, float(np.average(values, weights=np.maximum(weights, 1e-3)))


def _struct(engine: str | None, heard: Heard, speech: list[Stretch], kept: Kept, start_s: float) -> dict[str, Any]:
    """The struct of what was `heard` in a sound that begins at `start_s`; all but `agreement`."""
    middles = sorted(word.middle_s for word in kept.words)
    passages = [p for p in heard.passages if bisect_left(middles, p.start_s) < bisect_right(middles, p.end_s)]
    language, confidence = main_language(passages)
    num = len(heard.words)
    return {
        "engine": engine,
        "language": language,
        "language_confidence": confidence,
        "num_languages": len({passage.hearing.language for passage in passages} - {None}),
        "speech": [stretch.moved(start_s).row() for stretch in speech],
        "words": [word.moved(start_s).row() for word in kept.words],
        "passages": [passage.moved(start_s).row() for passage in passages],
        "num_dropped_words": kept.num_dropped,
        "num_on_silence": kept.num_on_silence,
        "num_repeated": kept.num_repeated,
        "num_outside": kept.num_outside,
        "on_silence_ratio": kept.num_on_silence / num if num else None,
        "repeated_ratio": kept.num_repeated / num if num else None,
        "num_failed": heard.num_failed,
        "text": joined(word.text for word in kept.words),
    }
