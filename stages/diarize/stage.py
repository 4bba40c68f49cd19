"""`diarize`: who speaks when on the whole asset, where several speak at once, and what each voice sounds like."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from math import ceil
from string import ascii_uppercase
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.fields import f, struct
from schemas.records import SPEAKER, STRETCH, TURN, Row
from schemas.spans import SPEECH_RATE_HZ, Speaker, Turn, Word, alone, overlaps
from schemas.stretches import Stretch, Timed, outside
from stages.base import Context, Measure, Resources, StageConfig
from stages.diarize.by_words import heed_words
from stages.diarize.diarized import Diarized
from stages.diarize.embedded import EmbeddedConfig, EmbeddedDiarizer
from stages.diarize.pyannote import PyannoteDiarizer
from stages.engines.speakers import MIN_SPEECH_S
from stages.engines.voice_memory import VoiceMemory
from stages.media.waveform import Waveform

MAX_PIECE_S = 3.0
"""Longest stretch that stands for one voice where the engine names none, as in `EmbeddedConfig.max_unit_s`."""


class DiarizeConfig(StageConfig):
    """Which engine, and its settings."""

    engine: Literal["embedded", "pyannote"] = "embedded"
    """embedded: weights inside installed packages. pyannote: a local pipeline folder given in `weights`."""
    weights: str = ""
    """Folder or config.yaml of a pyannote pipeline; read by engine pyannote only."""
    device: str = "cpu"
    """Torch device of engine pyannote."""
    embedded: EmbeddedConfig = EmbeddedConfig()
    """Settings of engine embedded."""


class Engine(Protocol):
    """What a diarizer must do."""

    def hear(self, samples: NDArray[np.float32]) -> Diarized:
        """What is heard in mono `samples` at 16 kHz."""
        ...


class Diarize(Measure[DiarizeConfig]):
    """Speaker turns of the whole asset, so that a speaker keeps one label across its clips."""

    name = "diarize"
    version = "5"
    level = "asset"
    reads = ("download.path", "probe.has_audio")
    adds = struct(
        f("engine", pa.string(), doc="engine that found the turns; null without sound"),
        f(
            "turns",
            pa.list_(TURN),
            doc="turns in order of start, on the asset clock; turns of two speakers may overlap",
        ),
        f("overlaps", pa.list_(STRETCH), doc="stretches in which two or more speak, on the asset clock"),
        f("num_speakers", pa.int32(), unit="count", doc="distinct speakers"),
        f("speakers", pa.list_(SPEAKER), doc="speakers in order of first appearance"),
        f(
            "alone",
            pa.list_(STRETCH),
            doc="stretches of up to 3 s in which one voice alone is heard, by which voices are compared; on the asset clock",
        ),
        in_shard=False,
    )
    Config = DiarizeConfig
    resources = Resources(memory_gb=1.5, timeout_s=3600.0)

    @classmethod
    def may_read(cls, config: DiarizeConfig) -> tuple[str, ...]:
        """Between which words a turn may change."""
        return ("transcribe.words",)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.memory = VoiceMemory.of(ctx)
        self.engine: Engine
        if self.config.engine == "pyannote":
            self.engine = ctx.model(PyannoteDiarizer.load, self.config.weights, self.config.device)
        else:
            self.engine = EmbeddedDiarizer.load(self.config.embedded, ctx)

    def measure(self, row: Row) -> dict[str, Any]:
        if not row["probe"]["has_audio"]:
            return {"engine": None, "turns": [], "overlaps": [], "num_speakers": 0, "speakers": [], "alone": []}
        sound = self.ctx.media.audio(self.ctx.asset_path(row), rate_hz=SPEECH_RATE_HZ, mono=True)
        start_s, end_s = float(sound.start), len(sound.samples) / SPEECH_RATE_HZ
        heard = self.engine.hear(sound.samples)
        turns = [turn.within(0.0, end_s).moved(start_s) for turn in heard.turns]
        words = Word.all_of((row.get("transcribe") or {}).get("words"))
        turns = name_by_appearance(heed_words(sorted(turns, key=lambda turn: (turn.start_s, turn.end_s)), words))
        self.memory.keep(sound, {where.moved(start_s): told for where, told in heard.alone.items()})
        alone_in = [where.moved(start_s) for where in heard.alone] or pieces_of(turns)
        return {
            "engine": self.config.engine,
            "turns": [turn.row() for turn in turns],
            "overlaps": [stretch.row() for stretch in overlaps(turns)],
            "num_speakers": len({turn.speaker for turn in turns}),
            "speakers": [each.row() for each in describe_speakers(turns, alone_in, sound, self.memory)],
            "alone": [stretch.row() for stretch in alone_in],
        }


def name_by_appearance(turns: list[Turn]) -> list[Turn]:
    """`turns` in order of start, speakers renamed A, B, ..., Z, AA, AB, ... by first appearance."""
    ordered = sorted((t for t in turns if t.end_s > t.start_s), key=lambda t: (t.start_s, t.end_s))
    names: dict[str, str] = {}
    for turn in ordered:
        names.setdefault(turn.speaker, _label(len(names)))
    return [replace(turn, speaker=names[turn.speaker]) for turn in ordered]


def _label(index: int) -> str:
    tens, ones = divmod(index, len(ascii_uppercase))
    return (_label(tens - 1) if tens else "") + ascii_uppercase[ones]


def pieces_of(turns: list[Turn]) -> list[Stretch]:
    """The parts of `turns` in which nobody else speaks, long ones in equal pieces of at most `MAX_PIECE_S`."""
    pieces = []
    for turn in turns:
        for part in alone(turn, turn.speaker, turns):
            count = ceil(part.duration_s / MAX_PIECE_S)
            edges = [part.start_s + part.duration_s * at / count for at in range(count + 1)]
            pieces += [Stretch(*pair) for pair in pairwise(edges) if pair[1] - pair[0] >= MIN_SPEECH_S]
    return sorted(pieces)


def describe_speakers(turns: list[Turn], pieces: list[Stretch], sound: Waveform, memory: VoiceMemory) -> list[Speaker]:
    """The speakers in order of first appearance; the embedding is null with too little clean speech."""
    shared = overlaps(turns)
    said: dict[str, list[Turn]] = {}
    for turn in turns:
        said.setdefault(turn.speaker, []).append(turn)
    described = []
    for speaker, own in said.items():
        clean = [part for turn in own for part in outside(turn, shared)]
        embedding = memory.voice(sound, clean, pieces) if total_s(clean) >= MIN_SPEECH_S else None
        told = None if embedding is None else embedding.tolist()
        described.append(Speaker(speaker, total_s(own), told))
    return described


def total_s(stretches: Iterable[Timed]) -> float:
    """The seconds of all `stretches` together."""
    return sum(each.duration_s for each in stretches)
