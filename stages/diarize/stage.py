"""`diarize`: who speaks when on the whole asset, where several speak at once, and what each voice sounds like."""

from __future__ import annotations

from dataclasses import replace
from string import ascii_uppercase
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.fields import f, struct
from schemas.records import SPEAKER, STRETCH, TURN, Row
from schemas.spans import SPEECH_RATE_HZ, Speaker, Turn, overlaps
from schemas.stretches import outside
from stages.base import Context, Measure, Resources, StageConfig
from stages.diarize.embedded import EmbeddedConfig, EmbeddedDiarizer
from stages.diarize.pyannote import PyannoteDiarizer
from stages.engines.speakers import MIN_SPEECH_S, SpeakerEncoder

MAX_EMBEDDED_S = 60.0
"""Speech per speaker that enters the embedding; beyond a minute it no longer changes."""


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

    def turns(self, samples: NDArray[np.float32]) -> list[Turn]:
        """Turns in mono `samples` at 16 kHz."""
        ...


class Diarize(Measure[DiarizeConfig]):
    """Speaker turns of the whole asset, so that a speaker keeps one label across its clips."""

    name = "diarize"
    version = "2"
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
        in_shard=False,
    )
    Config = DiarizeConfig
    resources = Resources(memory_gb=1.5, timeout_s=3600.0)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.encoder = ctx.model(SpeakerEncoder.load)
        self.engine: Engine
        if self.config.engine == "pyannote":
            self.engine = ctx.model(PyannoteDiarizer.load, self.config.weights, self.config.device)
        else:
            self.engine = EmbeddedDiarizer.load(self.config.embedded, ctx)

    def measure(self, row: Row) -> dict[str, Any]:
        if not row["probe"]["has_audio"]:
            return {"engine": None, "turns": [], "overlaps": [], "num_speakers": 0, "speakers": []}
        sound = self.ctx.media.audio(self.ctx.asset_path(row), rate_hz=SPEECH_RATE_HZ, mono=True)
        end_s = len(sound.samples) / SPEECH_RATE_HZ
        turns = name_by_appearance([turn.within(0.0, end_s) for turn in self.engine.turns(sound.samples)])
        start_s = float(sound.start)
        return {
            "engine": self.config.engine,
            "turns": [turn.moved(start_s).row() for turn in turns],
            "overlaps": [stretch.moved(start_s).row() for stretch in overlaps(turns)],
            "num_speakers": len({turn.speaker for turn in turns}),
            "speakers": [s.row() for s in describe_speakers(turns, sound.samples, self.encoder)],
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


def describe_speakers(turns: list[Turn], samples: NDArray[np.float32], encoder: SpeakerEncoder) -> list[Speaker]:
    """The speakers in order of first appearance; the embedding is null with too little clean speech."""
    shared = overlaps(turns)
    clean: dict[str, list[NDArray[np.float32]]] = {}
    speech_s: dict[str, float] = {}
    for turn in turns:
        speech_s[turn.speaker] = speech_s.get(turn.speaker, 0.0) + turn.end_s - turn.start_s
        pieces = clean.setdefault(turn.speaker, [])
        for part in outside(turn, shared):
            pieces.append(samples[round(part.start_s * SPEECH_RATE_HZ) : round(part.end_s * SPEECH_RATE_HZ)])
    described = []
    for speaker, pieces in clean.items():
        speech = np.concatenate(pieces)[: int(MAX_EMBEDDED_S * SPEECH_RATE_HZ)] if pieces else np.zeros(0, np.float32)
        embedding = encoder.embed(speech) if len(speech) >= MIN_SPEECH_S * SPEECH_RATE_HZ else None
        described.append(Speaker(speaker, speech_s[speaker], None if embedding is None else embedding.tolist()))
    return described
