"""Scores where anybody speaks, who does, and how alike voices sound, against a manifest's truth.

    python -m benchmarks.quality_speech MEDIA_DIR

MEDIA_DIR holds manifest.json in the form of the project's test media: `items[].path` and `items[].ground_truth` with
`speaker`, `speaker_turns`, `speech_interval_s`, `uem`. Where the project's two media folders lie side by side, meetings mixed of
voices that chose no setting are scored too. Nothing is fitted here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fit_sync import person_of
from benchmarks.intervals import pooled_ratio
from benchmarks.meetings import PUBLISHED, Meeting, meetings, voices_of
from benchmarks.sounds import Sounds
from pipeline.config import Packing
from schemas.spans import SPEECH_RATE_HZ, Turn
from schemas.stretches import Stretch, Timed, merge
from stages.base import Context
from stages.diarize.embedded import EmbeddedConfig, EmbeddedDiarizer
from stages.engines.speakers import SpeakerEncoder, similarity
from stages.engines.voice import VoiceActivity, VoiceConfig

F32 = NDArray[np.float32]


def score_speech(media_dir: Path | str) -> dict[str, Any]:
    """Figures per measure; every `interval` is a 95 % bootstrap over files."""
    media_dir = Path(media_dir)
    items = json.loads((media_dir / "manifest.json").read_text())["items"]
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch))
        sounds = Sounds(media_dir, context)
        voice, encoder = context.model(VoiceActivity.load), context.model(SpeakerEncoder.load)
        result: dict[str, Any] = {"voice_activity": score_voice(items, sounds, voice)}
        result["diarize"] = {"embedded": score_diarization(items, sounds, context)}
        made = published_meetings(media_dir, voice)
        if made:
            result["diarize"]["meetings"] = score_meetings(made, context)
        result["speakers"] = score_speakers(items, sounds, voice, encoder)
        context.media.close()
    return result


def score_voice(items: list[dict[str, Any]], sounds: Sounds, voice: VoiceActivity) -> dict[str, Any]:
    """Share of time on which voice activity and truth disagree: missed speech and false alarms over speech time.

    Truth are turns and speech intervals, which hold the short pauses inside utterances; pauses below 0.5 s are bridged.
    """
    rows = []
    for item in items:
        truth = item["ground_truth"]
        given = truth.get("speaker_turns") or []
        said = [Stretch(t["start"], t["end"]) for t in given]
        if truth.get("speech_interval_s"):
            said = [Stretch(*truth["speech_interval_s"])]
        if not said:
            continue
        samples, start_s = sounds.of(item)
        low, high = truth.get("uem") or (start_s, start_s + len(samples) / SPEECH_RATE_HZ)
        found = merge((s.moved(start_s) for s in voice.stretches(samples, VoiceConfig())), gap_s=0.5)
        times = np.arange(low, high, 0.01)
        is_said, is_found = _mask(times, merge(said, 0.5)), _mask(times, found)
        rows.append((item["path"], (is_said & ~is_found).sum(), (is_found & ~is_said).sum(), is_said.sum()))
    return _ratios(rows, ("missed", "false_alarm"))


def _mask(times: NDArray[np.float64], stretches: Sequence[Timed]) -> NDArray[np.bool_]:
    inside = np.zeros(len(times), bool)
    for stretch in stretches:
        inside |= (times >= stretch.start_s) & (times < stretch.end_s)
    return inside


INEXACT = ("multispeaker/ami_ES2011a_headset_6s.wav", "multispeaker/phone_order_agent_customer_8k.wav")
"""Turns of doubtful speakers, and turns marked by hand from pauses and pitch."""


def score_diarization(items: list[dict[str, Any]], sounds: Sounds, context: Context) -> dict[str, Any]:
    """DER and JER with pyannote.metrics, overlaps scored, collars 0, 0.25 and 0.5 s.

    A collar lies half on each side of a boundary there: its 0.5 is what NIST's scorer calls 0.25.

    Files with turns of one speaker only count as tests of whether one voice stays one speaker.
    """
    engine = EmbeddedDiarizer.load(EmbeddedConfig(), context)
    scores: list[dict[str, Any]] = []
    exact: list[dict[str, Any]] = []
    num_single = num_single_right = 0
    wall_s = sound_s = 0.0
    for item in items:
        truth = item["ground_truth"]
        given = truth.get("speaker_turns") or []
        names = {turn["speaker"] for turn in given}
        is_single = len(names) == 1 or (not names and "speaker" in truth)
        if len(names) < 2 and not is_single:
            continue
        samples, start_s = sounds.of(item)
        began = time.perf_counter()
        turns = engine.turns(samples)
        wall_s += time.perf_counter() - began
        sound_s += len(samples) / SPEECH_RATE_HZ
        if is_single:
            num_single += 1
            num_single_right += len({t.speaker for t in turns}) == 1
            continue
        reference = [Turn(t["speaker"], t["start"], t["end"], None) for t in given]
        found = [turn.moved(start_s) for turn in turns]
        limits = truth.get("uem") or (start_s, start_s + len(samples) / SPEECH_RATE_HZ)
        scores.append({"path": item["path"], **compare_turns(reference, found, limits)})
        if item["path"] not in INEXACT:
            exact.append(scores[-1])
    return {
        "files": scores,
        "der_collar_0.25_exact_turns": _pooled(exact, "errors_0.25", "total_0.25"),
        "der_collar_0.5": _pooled(scores, "errors_0.5", "total_0.5"),
        "der_collar_0.25": _pooled(scores, "errors_0.25", "total_0.25"),
        "der_collar_0": _pooled(scores, "errors_0", "total_0"),
        "jer_collar_0.25": float(np.mean([s["jer_0.25"] for s in scores])) if scores else None,
        "overlap_recall": _pooled(scores, "overlap_found_s", "overlap_s"),
        "overlap_precision": _pooled(scores, "overlap_found_s", "overlap_said_s"),
        "right_number_of_speakers": [sum(s["speakers"] == s["speakers_found"] for s in scores), len(scores)],
        "single_voice_files_right": [num_single_right, num_single],
        "times_real_time": round(sound_s / wall_s, 1) if wall_s else None,
    }


SEED = 11
NUM_MEETINGS = 16


def published_meetings(media_dir: Path, voice: VoiceActivity) -> list[Meeting]:
    """Meetings of two to five voices that chose nothing; none where the files they are made of are not beside `media_dir`."""
    root = media_dir.parent
    if not all((root / path).is_file() for path in PUBLISHED):
        return []
    return meetings(voices_of(root, PUBLISHED, voice), range(NUM_MEETINGS), SEED)


def score_meetings(made: Sequence[Meeting], context: Context) -> dict[str, Any]:
    """DER, recall and precision of overlap and right numbers of people, over all meetings and by how many speak."""
    engine = EmbeddedDiarizer.load(EmbeddedConfig(), context)
    scores = []
    for meeting in made:
        limits = (0.0, len(meeting.samples) / SPEECH_RATE_HZ)
        scores.append(compare_turns(meeting.turns, engine.turns(meeting.samples), limits))
    by_people = {str(n): [s for s in scores if s["speakers"] == n] for n in sorted({s["speakers"] for s in scores})}
    return {"all": _meeting_figures(scores), **{f"{n} people": _meeting_figures(some) for n, some in by_people.items()}}


def _meeting_figures(scores: list[dict[str, Any]]) -> dict[str, Any]:
    said_s = sum(s["total_0"] - s["overlap_s"] for s in scores)
    num = {sign: sum(np.sign(s["speakers_found"] - s["speakers"]) == sign for s in scores) for sign in (-1, 0, 1)}
    return {
        "der_collar_0.25": _pooled(scores, "errors_0.25", "total_0.25"),
        "der_collar_0": _pooled(scores, "errors_0", "total_0"),
        "overlap_recall": _pooled(scores, "overlap_found_s", "overlap_s"),
        "overlap_precision": _pooled(scores, "overlap_found_s", "overlap_said_s"),
        "overlap_share": sum(s["overlap_s"] for s in scores) / said_s,
        "right_number_of_speakers": pooled_ratio([(s["speakers"] == s["speakers_found"], 1) for s in scores]),
        "too_few": int(num[-1]),
        "too_many": int(num[1]),
    }


def compare_turns(reference: list[Turn], found: list[Turn], limits: Sequence[float]) -> dict[str, Any]:
    """Errors and totals in seconds of `found` against `reference` within `limits`, for each collar."""
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

    def annotation(turns: list[Turn]) -> Any:
        made = Annotation()
        for index, turn in enumerate(turns):
            made[Segment(turn.start_s, turn.end_s), index] = turn.speaker
        return made

    uem = Timeline([Segment(*limits)])
    score: dict[str, Any] = {
        "speakers": len({t.speaker for t in reference}),
        "speakers_found": len({t.speaker for t in found}),
    }
    for collar in (0.5, 0.25, 0):
        detail = DiarizationErrorRate(collar=collar)(annotation(reference), annotation(found), uem=uem, detailed=True)
        score[f"der_{collar:g}"] = detail["diarization error rate"]
        score[f"errors_{collar:g}"] = sum(detail[k] for k in ("missed detection", "false alarm", "confusion"))
        score[f"total_{collar:g}"] = detail["total"]
        score[f"jer_{collar:g}"] = JaccardErrorRate(collar=collar)(annotation(reference), annotation(found), uem=uem)
    times = np.arange(limits[0], limits[1], 0.01)
    truth, guess = (_count(times, turns) >= 2 for turns in (reference, found))
    score |= {
        "overlap_s": float(truth.sum()) / 100,
        "overlap_found_s": float((truth & guess).sum()) / 100,
        "overlap_said_s": float(guess.sum()) / 100,
    }
    return score


def _count(times: NDArray[np.float64], turns: list[Turn]) -> NDArray[np.int64]:
    names = {t.speaker for t in turns}
    return sum(
        (_mask(times, [t for t in turns if t.speaker == name]).astype(np.int64) for name in names),
        np.zeros(len(times), np.int64),
    )


def score_speakers(
    items: list[dict[str, Any]], sounds: Sounds, voice: VoiceActivity, encoder: SpeakerEncoder, piece_s: float = 2.0
) -> dict[str, Any]:
    """Equal error rate of same against different voice on pieces of about `piece_s` of speech, and the similarities' medians.

    Pairs from one file of one voice are left out: they share the room and the microphone, which would flatter the figure.
    """
    voices: list[tuple[str, str, F32]] = []
    for item in items:
        name = only_speaker(item)
        if name is None:
            continue
        samples, _ = sounds.of(item)
        spoken = [
            samples[int(s.start_s * SPEECH_RATE_HZ) : int(s.end_s * SPEECH_RATE_HZ)]
            for s in voice.stretches(samples, VoiceConfig())
        ]
        speech = np.concatenate(spoken) if spoken else samples[:0]
        size = int(piece_s * SPEECH_RATE_HZ)
        pieces = [speech[i : i + size] for i in range(0, max(1, len(speech) - size // 2), size)]
        for embedding in encoder.embed_all(pieces):
            if embedding is not None:
                voices.append((person_of(name), item["path"], embedding))
    same, different = [], []
    for (one, path, a), (other, second_path, b) in combinations(voices, 2):
        if one == other and path != second_path:
            same.append(similarity(a, b))
        elif one != other:
            different.append(similarity(a, b))
    return {
        "voices": len({v[0] for v in voices}),
        "same_pairs": len(same),
        "different_pairs": len(different),
        "eer": equal_error_rate(np.array(same), np.array(different)),
        "median_same": float(np.median(same)) if same else None,
        "median_different": float(np.median(different)) if different else None,
        "at_split": at_split(same, different, Packing().same_voice),
    }


def at_split(same: Sequence[float], different: Sequence[float], bound: float | None) -> dict[str, float | None]:
    """Errors at the similarity from which `pack` keeps two recordings on one side; none where it compares no voices."""
    return {
        "similarity": bound,
        "same_missed": None if bound is None or not same else float(np.mean(np.array(same) < bound)),
        "different_joined": None if bound is None or not different else float(np.mean(np.array(different) >= bound)),
    }


def only_speaker(item: dict[str, Any]) -> str | None:
    """Who speaks alone in a manifest's item; None where several speak, or nobody knows who."""
    truth = item["ground_truth"]
    names = {turn["speaker"] for turn in truth.get("speaker_turns") or []} or {truth.get("speaker")}
    return str(*names) if len(names) == 1 and None not in names else None


def equal_error_rate(same: NDArray[np.float64], different: NDArray[np.float64]) -> float | None:
    """The rate at which as many same pairs are refused as different pairs are accepted."""
    if not len(same) or not len(different):
        return None
    thresholds = np.unique(np.concatenate([same, different]))
    refused = np.searchsorted(np.sort(same), thresholds) / len(same)
    accepted = 1 - np.searchsorted(np.sort(different), thresholds) / len(different)
    at = int(np.argmin(np.abs(refused - accepted)))
    return float((refused[at] + accepted[at]) / 2)


def _pooled(scores: list[dict[str, Any]], errors: str, total: str) -> dict[str, Any]:
    return pooled_ratio([(s[errors], s[total]) for s in scores])


def _ratios(rows: list[tuple[Any, ...]], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: pooled_ratio([(row[1 + i], row[-1]) for row in rows]) for i, name in enumerate(names)}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the scores of a media folder as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media_dir", help="folder with manifest.json")
    chosen = parser.parse_args(argv)
    json.dump(score_speech(chosen.media_dir), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
