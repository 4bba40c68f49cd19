"""Whether a voice reference holds the voice it stands for: leaks of other speakers, and references of the wrong one.

Scored with the embedded diarizer's turns, on every file whose manifest states all turns of several speakers, and on
generated meetings (`benchmarks.meetings`). Every turn found that is long enough for a line stands for a span, and its
reference is chosen as stage `timbre` does.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.intervals import pooled_ratio
from benchmarks.quality_speech import equal_error_rate, published_meetings
from schemas.spans import SPEECH_RATE_HZ, SpeechSpan, Turn
from schemas.stretches import Stretch, Timed, covered_s, merge
from stages.base import Context
from stages.diarize.diarized import Diarized
from stages.diarize.embedded import EmbeddedConfig, EmbeddedDiarizer
from stages.diarize.stage import describe_speakers
from stages.engines.speakers import similarity
from stages.engines.voice import VoiceActivity, VoiceConfig
from stages.engines.voice_memory import VoiceMemory
from stages.media.waveform import Waveform
from stages.timbre import Dialogue, TimbreConfig, VoiceJudge, choices

SHORTEST_LINE_S = 0.8
LEAK_SHARE = 0.05
"""Share of a reference in which somebody else really speaks, beyond which it counts as a leak."""

MEETING = "ami_meeting"
"""What recordings of meetings by distant microphones are called."""

Item = Mapping[str, Any]


def score_timbre(media_dir: Path | str) -> dict[str, Any]:
    """Figures of the files outside meetings, of recorded meetings and of generated ones, and whether references sound alike."""
    media_dir = Path(media_dir)
    items = json.loads((media_dir / "manifest.json").read_text())["items"]
    rows: list[dict[str, Any]] = []
    made: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch))
        for item in items:
            turns = item["ground_truth"].get("speaker_turns") or []
            truth = [Turn(turn["speaker"], turn["start"], turn["end"]) for turn in turns]
            if len({turn.speaker for turn in truth}) > 1:
                sound = context.media.audio(media_dir / item["path"], rate_hz=SPEECH_RATE_HZ, mono=True)
                rows += [{"file": item["path"], **row} for row in references(truth, sound, context)]
        for number, meeting in enumerate(published_meetings(media_dir, context.model(VoiceActivity.load))):
            sound = Waveform(meeting.samples, SPEECH_RATE_HZ, Fraction(0))
            made += [{"file": str(number), **row} for row in references(meeting.turns, sound, context)]
        context.media.close()
    met = [row for row in rows if MEETING in row["file"]]
    apart = [row for row in rows if MEETING not in row["file"]]
    return {
        "files": summary(apart),
        "recorded_meetings": summary(met),
        "generated_meetings": summary(made),
        "voices": _voices([row for row in rows if row["origin"] is not None]),
    }


def references(truth: Sequence[Turn], sound: Waveform, context: Context) -> list[dict[str, Any]]:
    """A row for every line of `sound`: what its reference is, and who is really heard in it."""
    start_s = float(sound.start)
    engine = EmbeddedDiarizer.load(EmbeddedConfig(), context)
    diarized = engine.hear(np.array(sound.samples))
    speech = merge(each.moved(start_s) for each in engine.voice.stretches(np.array(sound.samples), VoiceConfig()))
    return choose(truth, sound, diarized, speech, VoiceMemory.of(context), TimbreConfig())


def choose(
    truth: Sequence[Turn],
    sound: Waveform,
    diarized: Diarized,
    speech: Sequence[Stretch],
    memory: VoiceMemory,
    config: TimbreConfig,
) -> list[dict[str, Any]]:
    """`references` of what the diarizer heard; `speech` is on the asset clock, `diarized` on the sound's own."""
    start_s = float(sound.start)
    whole = Stretch(start_s, float(sound.end))
    turns = [turn.moved(start_s) for turn in diarized.turns]
    alone = {where.moved(start_s): embedding for where, embedding in diarized.alone.items()}
    memory.keep(sound, alone)
    heard = Dialogue(turns, speech, list(alone), (), describe_speakers(turns, list(alone), sound, memory))
    judge = VoiceJudge(memory, sound, heard.alone, heard.speakers, config)
    rows: list[dict[str, Any]] = []
    for turn in turns:
        spoken = spoken_shares(truth, turn)
        if turn.duration_s < SHORTEST_LINE_S or not spoken:
            continue
        span = SpeechSpan(start_s=turn.start_s, end_s=turn.end_s, text="", speaker=turn.speaker)
        found = judge.first(span, turns, choices(span, whole, heard, sound, config))
        if found is None:
            rows.append({"origin": None})
            continue
        choice, voice, _ = found
        shares, meant = spoken_shares(truth, choice.where), max(spoken, key=spoken.__getitem__)
        others = max((share for name, share in shares.items() if name != meant), default=0.0)
        rows.append(
            {
                "origin": choice.origin,
                "is_wrong": others > shares.get(meant, 0.0),
                "is_leak": others > LEAK_SHARE,
                "leak": others,
                "where": choice.where,
                "heard": max(shares, key=shares.__getitem__, default=""),
                "voice": voice,
            }
        )
    return rows


def _voices(rows: Sequence[Item]) -> dict[str, Any]:
    """Equal error rate of same against different voice on pairs of different references in one file."""
    chosen = {(row["file"], row["where"]): row for row in rows if row["heard"]}
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


def spoken_shares(truth: Sequence[Turn], where: Timed) -> dict[str, float]:
    """Speaker -> share of `where` in which they really speak; those who do not are left out."""
    shares = {}
    for name in sorted({turn.speaker for turn in truth}):
        said = merge(turn for turn in truth if turn.speaker == name)
        shares[name] = covered_s(where, said) / where.duration_s
    return {name: share for name, share in shares.items() if share > 0}


def summary(rows: Sequence[Item]) -> dict[str, Any]:
    """Shares of wrong voices and leaks among the references, with intervals over files, and of lines that have one."""
    given = [row for row in rows if row["origin"] is not None]
    if not given:
        return {"lines": len(rows), "references": 0}
    files = sorted({row["file"] for row in given})
    by_file = [[row for row in given if row["file"] == file] for file in files]
    return {
        "lines": len(rows),
        "references": len(given),
        "origins": dict(Counter(row["origin"] for row in given)),
        "wrong_voice": pooled_ratio([(sum(row["is_wrong"] for row in some), len(some)) for some in by_file]),
        "leak": pooled_ratio([(sum(row["is_leak"] for row in some), len(some)) for some in by_file]),
        "leaked_time": float(np.mean([row["leak"] for row in given])),
    }
