"""Shots into clips: windows on frame timestamps that respect words and utterances, with their speech spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from schemas.ids import clip_id
from schemas.records import CLIP, Row, span_fields, span_of
from schemas.timing import Span
from stages.base import Resources, Split, StageConfig

Interval = tuple[float, float]
"""(start, end) in seconds."""

WINDOW_COST_S = 0.05
"""What one more window costs: between two plans that keep the same time, the one with fewer windows wins."""
UNEVEN_COST = 2e-4
"""Cost per squared second of length: equal windows are cheapest. Too small to outweigh `WINDOW_COST_S` up to 10 s."""
GUARD_S = 0.1
"""Distance from a word at which a cut is safe from errors of word times (aligners are off by 20 to 100 ms)."""
GUARD_COST_S = 0.02
"""Cost of a cut that touches a word, falling to nothing at `GUARD_S`."""
TOLERANCE_S = 1e-9
SMALLEST = (16, 16)
"""Size of pictures that are decoded for their times only."""


class ClipConfig(StageConfig):
    """Lengths of clips and what counts as a pause."""

    min_s: float = Field(default=2.0, gt=0)
    """Shortest clip."""
    max_s: float = Field(default=10.0, gt=0)
    """Longest clip."""
    pause_s: float = Field(default=0.3, ge=0)
    """Words of one speaker that are closer than this belong to one utterance."""

    @model_validator(mode="after")
    def _ordered(self) -> ClipConfig:
        if self.max_s < self.min_s:
            raise ValueError(f"max_s ({self.max_s:g}) must not be smaller than min_s ({self.min_s:g})")
        return self


class Clip(Split[ClipConfig]):
    """Windows inside shots; nothing inside a transition, nothing across a word. What fits no window is cut away."""

    name = "clip"
    version = "1"
    level = "shot"
    children = "clip"
    reads = ("download.asset_id", "download.path", "shot", "transcribe", "diarize")
    adds = CLIP
    Config = ClipConfig
    resources = Resources(cpus=1.0, memory_gb=0.1, timeout_s=600.0)

    def split(self, row: Row) -> Sequence[dict[str, Any]]:
        """The clips of one shot, in order."""
        shot = span_of(row["shot"])
        if row["shot"]["is_transition"] or shot.duration < self.config.min_s:
            return []
        marks = self._frame_marks(self.ctx.asset_path(row), shot)
        words = spoken_words(row.get("transcribe"), row.get("diarize"))
        utterances = group_utterances(words, self.config.pause_s)
        busy = [(u[0]["start_s"], u[-1]["end_s"]) for u in utterances] + wordless_speech(row.get("transcribe"), words)
        windows = plan_windows(
            np.asarray(marks * (shot.num / shot.den), np.float64),
            [(w["start_s"], w["end_s"]) for w in words],
            busy,
            self.config.min_s,
            self.config.max_s,
        )
        language = (row.get("transcribe") or {}).get("language")
        overlaps = intervals((row.get("diarize") or {}).get("overlaps"))
        clips: list[dict[str, Any]] = []
        for first, last in windows:
            span = Span(int(marks[first]), int(marks[last]), shot.num, shot.den)
            spans = spans_within(span, utterances, overlaps, language)
            clips.append(
                {
                    "clip_id": clip_id(row["download"]["asset_id"], span, self.version),
                    "parent_id": row["shot"]["shot_id"],
                    "asset_id": row["download"]["asset_id"],
                    "index": len(clips),
                    **span_fields(span),
                    "num_frames": last - first,
                    "is_mid_utterance": any(_inside(t, busy) for t in (float(span.start), float(span.end))),
                    "has_speech": bool(spans),
                    "num_speakers": len({s["speaker"] for s in spans} - {None}),
                    "spans": spans,
                }
            )
        return clips

    def _frame_marks(self, path: Path, shot: Span) -> NDArray[np.int64]:
        """pts of the frames of `shot`, and its end. Frames are decoded for it, for containers may lie about them."""
        decoded = self.ctx.media.iter_frames(path, start=shot.start, end=shot.end, size=SMALLEST, gray=True)
        return np.concatenate([run.pts for run in decoded] + [np.array([shot.end_pts], np.int64)])


def plan_windows(
    frame_times: NDArray[np.float64],
    words: Sequence[Interval],
    utterances: Sequence[Interval],
    min_s: float,
    max_s: float,
) -> list[tuple[int, int]]:
    """Disjoint windows (first mark, end mark) over `frame_times`, in order: the best plan, found exactly.

    `frame_times` [n + 1] are the seconds at which the frames of one shot begin, and the shot's end. The plan keeps
    as much time as possible in windows of min_s to max_s. No window begins or ends inside a word. Ending inside an
    utterance costs as much as losing `min_s`, so it happens only where an utterance is too long for a window or
    is cut by the shot itself, and then at a wide gap between words. Silence is divided evenly.
    Dynamic programming over the frames: time O(n x frames in max_s), memory O(n).
    """
    times = np.asarray(frame_times, np.float64)
    num = len(times) - 1
    cost = cut_costs(times, words, utterances, min(min_s, max_s / 4))
    best = np.zeros(num + 1)
    came_from = np.full(num + 1, -1)
    lows = np.searchsorted(times, times - max_s - TOLERANCE_S)
    highs = np.searchsorted(times, times - min_s + TOLERANCE_S, side="right")
    for k in range(1, num + 1):
        best[k] = best[k - 1]
        low, high = lows[k], min(highs[k], k)
        if low >= high or np.isinf(cost[k]):
            continue
        length = times[k] - times[low:high]
        gain = best[low:high] - cost[low:high] + length - UNEVEN_COST * length**2
        at = int(np.argmax(gain))
        if gain[at] - cost[k] - WINDOW_COST_S > best[k]:
            best[k] = gain[at] - cost[k] - WINDOW_COST_S
            came_from[k] = low + at
    windows: list[tuple[int, int]] = []
    k = num
    while k > 0:
        if came_from[k] >= 0:
            windows.append((int(came_from[k]), k))
            k = int(came_from[k])
        else:
            k -= 1
    return windows[::-1]


def cut_costs(
    times: NDArray[np.float64], words: Sequence[Interval], utterances: Sequence[Interval], mid_cost_s: float
) -> NDArray[np.float64]:
    """What a window end at each of `times` [n] costs, in seconds of kept time; infinite inside a word.

    Inside an utterance it is `mid_cost_s`, up to a quarter less where the gap between the words is wide.
    """
    cost = np.zeros(len(times))
    for start, end in utterances:
        cost[(times > start) & (times < end)] = mid_cost_s
    distance = np.full(len(times), np.inf)
    for start, end in words:
        distance = np.minimum(distance, np.maximum(start - times, times - end))
    cost[cost > 0] -= mid_cost_s / 4 * np.clip(distance[cost > 0] / GUARD_S, 0, 1)
    cost += GUARD_COST_S * (1 - np.clip(distance / GUARD_S, 0, 1))
    cost[distance < 0] = np.inf
    return cost


def spoken_words(transcribe: Mapping[str, Any] | None, diarize: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The timed words in order, each with the `speaker` whose turns cover most of it, or None."""
    turns = (diarize or {}).get("turns") or []
    words = []
    for word in (transcribe or {}).get("words") or []:
        if word["start_s"] is None or word["end_s"] is None or word["end_s"] < word["start_s"]:
            continue
        covered: dict[str, float] = {}
        for turn in turns:
            shared = min(word["end_s"], turn["end_s"]) - max(word["start_s"], turn["start_s"])
            if shared > 0:
                covered[turn["speaker"]] = covered.get(turn["speaker"], 0.0) + shared
        speaker = max(sorted(covered), key=covered.__getitem__) if covered else None
        words.append({**word, "speaker": speaker})
    return sorted(words, key=lambda w: (w["start_s"], w["end_s"]))


def group_utterances(words: Sequence[dict[str, Any]], pause_s: float) -> list[list[dict[str, Any]]]:
    """Runs of words by one speaker without a gap of `pause_s`. A word of unknown speaker joins the run around it."""
    runs: list[list[dict[str, Any]]] = []
    speaker = None
    for word in words:
        is_same = word["speaker"] is None or speaker is None or word["speaker"] == speaker
        if runs and is_same and word["start_s"] - runs[-1][-1]["end_s"] < pause_s:
            runs[-1].append(word)
            speaker = speaker or word["speaker"]
        else:
            runs.append([word])
            speaker = word["speaker"]
    return runs


def wordless_speech(transcribe: Mapping[str, Any] | None, words: Sequence[Mapping[str, Any]]) -> list[Interval]:
    """Stretches of detected speech in which no word is known; they are not to be cut through either."""
    return [
        (start, end)
        for start, end in intervals((transcribe or {}).get("speech"))
        if not any(w["start_s"] < end and w["end_s"] > start for w in words)
    ]


def spans_within(
    clip: Span, utterances: Sequence[Sequence[Mapping[str, Any]]], overlaps: Sequence[Interval], language: str | None
) -> list[dict[str, Any]]:
    """The `SPEECH_SPAN` rows of `clip`, in speaking order: the words that lie wholly inside, on the clip clock."""
    origin, end, length = float(clip.start), float(clip.end), float(clip.duration)
    spans = []
    for utterance in utterances:
        inside = [w for w in utterance if w["start_s"] >= origin - TOLERANCE_S and w["end_s"] <= end + TOLERANCE_S]
        if not inside:
            continue
        moved = [
            {
                "text": w["text"],
                "start_s": min(max(0.0, w["start_s"] - origin), length),
                "end_s": min(max(0.0, w["end_s"] - origin), length),
                "confidence": w["confidence"],
            }
            for w in inside
        ]
        start_s, end_s = moved[0]["start_s"], max(w["end_s"] for w in moved)
        known = [w["confidence"] for w in inside if w["confidence"] is not None]
        spans.append(
            {
                "text": " ".join(w["text"] for w in inside),
                "speaker": next((w["speaker"] for w in inside if w["speaker"] is not None), None),
                "language": language,
                "start_s": start_s,
                "end_s": end_s,
                "is_overlap": any(a < end_s + origin and b > start_s + origin for a, b in overlaps),
                "confidence": float(np.mean(known)) if known else None,
                "words": moved,
            }
        )
    return spans


def intervals(stretches: Sequence[Mapping[str, Any]] | None) -> list[Interval]:
    """(start, end) of each `STRETCH`."""
    return [(s["start_s"], s["end_s"]) for s in stretches or []]


def _inside(instant: float, stretches: Sequence[Interval]) -> bool:
    return any(start < instant < end for start, end in stretches)
