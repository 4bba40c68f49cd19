"""Whether a voice reference holds the voice it stands for: leaks of other speakers, and references of the wrong one.

Scored with the embedded diarizer's turns, on every file whose manifest states all turns of several speakers. Every turn
found that is long enough for a line stands for a span, and its reference is chosen as stage `timbre` does.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality_speech import equal_error_rate
from schemas.spans import SPEECH_RATE_HZ, SpeechSpan
from schemas.stretches import Stretch, Timed, covered_s, merge
from stages.base import Context
from stages.diarize.embedded import EmbeddedConfig, EmbeddedDiarizer
from stages.engines.speakers import similarity
from stages.engines.voice import VoiceConfig
from stages.engines.voice_memory import VoiceMemory
from stages.timbre import TimbreConfig, choose_reference

SHORTEST_LINE_S = 0.8
LEAK_SHARE = 0.05
"""Share of a reference in which somebody else really speaks, beyond which it counts as a leak."""

Item = Mapping[str, Any]


def score_timbre(media_dir: Path | str) -> dict[str, Any]:
    """{"all": figures, "without_same_span": figures, "voices": figures, ...}: `references`, `wrong_voice` and `leak` as shares.

    `voices` tells whether references of one person sound alike: pairs of references within a file, by who really speaks.
    """
    media_dir = Path(media_dir)
    items = json.loads((media_dir / "manifest.json").read_text())["items"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch))
        engine = EmbeddedDiarizer.load(EmbeddedConfig(), context)
        memory = VoiceMemory.of(context)
        for item in items:
            truth = item["ground_truth"].get("speaker_turns") or []
            if len({turn["speaker"] for turn in truth}) > 1:
                sound = context.media.audio(media_dir / item["path"], rate_hz=SPEECH_RATE_HZ, mono=True)
                rows += [{"file": item["path"], **row} for row in _references(truth, sound, engine, memory)]
        context.media.close()
    clean = {row["file"] for row in rows} - {row["file"] for row in rows if row["is_leak"]}
    crossed = [row for row in rows if row["origin"] != "same_span"]
    return {
        "all": _summary(rows),
        "without_same_span": _summary(crossed),
        "voices": _voices(rows),
        "files_without_leak": sorted(clean),
    }


def _references(
    truth: Sequence[Item], sound: Any, engine: EmbeddedDiarizer, memory: VoiceMemory
) -> list[dict[str, Any]]:
    start_s = float(sound.start)
    whole = Stretch(start_s, float(sound.end))
    diarized = engine.hear(np.array(sound.samples))
    turns = [turn.moved(start_s) for turn in diarized.turns]
    alone = {where.moved(start_s): embedding for where, embedding in diarized.alone.items()}
    memory.keep(sound, alone)
    stretches = engine.voice.stretches(np.array(sound.samples), VoiceConfig())
    speech = merge(stretch.moved(start_s) for stretch in stretches)
    rows: list[dict[str, Any]] = []
    for turn in turns:
        if turn.duration_s < SHORTEST_LINE_S:
            continue
        span = SpeechSpan(start_s=turn.start_s - start_s, end_s=turn.end_s - start_s, text="", speaker=turn.speaker)
        found = choose_reference(span, whole, turns, speech, sound, TimbreConfig())
        spoken = spoken_shares(truth, turn)
        if found is None or not spoken:
            continue
        heard, meant = spoken_shares(truth, found.where), max(spoken, key=spoken.__getitem__)
        others = max((share for name, share in heard.items() if name != meant), default=0.0)
        is_wrong = others > heard.get(meant, 0.0)
        row = {"origin": found.origin, "is_wrong": is_wrong, "is_leak": others > LEAK_SHARE, "leak": others}
        voice = memory.voice(sound, [found.where], list(alone))
        rows.append(
            {**row, "where": found.where, "heard": max(heard, key=heard.__getitem__, default=""), "voice": voice}
        )
    return rows


def _voices(rows: Sequence[Item]) -> dict[str, Any]:
    """Equal error rate of same against different voice on pairs of different references in one file."""
    chosen = {(row["file"], row["where"]): row for row in rows if row["voice"] is not None and row["heard"]}
    same: list[float] = []
    different: list[float] = []
    for one, other in combinations(chosen.values(), 2):
        if one["file"] == other["file"] and not one["where"].overlap_s(other["where"]):
            pairs = same if one["heard"] == other["heard"] else different
            pairs.append(similarity(one["voice"], other["voice"]))
    return {
        "same_pairs": len(same),
        "different_pairs": len(different),
        "eer": equal_error_rate(np.array(same), np.array(different)),
        "median_same": float(np.median(same)) if same else None,
        "median_different": float(np.median(different)) if different else None,
    }


def spoken_shares(truth: Sequence[Item], where: Timed) -> dict[str, float]:
    """Speaker -> share of `where` in which they really speak; those who do not are left out."""
    shares = {}
    for name in sorted({turn["speaker"] for turn in truth}):
        said = merge(Stretch(turn["start"], turn["end"]) for turn in truth if turn["speaker"] == name)
        shares[name] = covered_s(where, said) / where.duration_s
    return {name: share for name, share in shares.items() if share > 0}


def _summary(rows: Sequence[Item]) -> dict[str, Any]:
    if not rows:
        return {"references": 0}
    return {
        "references": len(rows),
        "origins": dict(Counter(row["origin"] for row in rows)),
        "wrong_voice": float(np.mean([row["is_wrong"] for row in rows])),
        "leak": float(np.mean([row["is_leak"] for row in rows])),
        "leaked_time": float(np.mean([row["leak"] for row in rows])),
    }
