"""Shots into clips: windows on frame timestamps that respect words and utterances, with their speech spans."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from schemas.ids import clip_id
from schemas.records import CLIP, Row, span_fields, span_of
from schemas.spans import Passage, SpeechSpan, Turn, Word, joined, words_in
from schemas.stretches import Stretch, Timed
from schemas.timing import Span
from stages.base import Context, Resources, Split, StageConfig

WINDOW_COST_S = 0.05
"""What one more window costs: between two plans that keep the same time, the one with fewer windows wins."""
UNEVEN_COST = 2e-4
"""Cost per squared second of length: equal windows are cheapest. Too small to outweigh `WINDOW_COST_S` up to 10 s."""
GUARD_S = 0.1
"""Distance from a word at which a cut is safe from errors of word times (aligners are off by 20 to 100 ms)."""
GUARD_COST_S = 0.02
"""Cost of a cut that touches a word, falling to nothing at `GUARD_S`."""
SOUND_STEP_S = 0.04
"""One audio latent of NAVA: sound without a picture is cut as finely as it is modelled."""
TOLERANCE_S = 1e-9
SEVERAL_LANGUAGES = "mul"
"""ISO 639-2 for several languages."""


class ClipConfig(StageConfig):
    """Lengths of clips and what counts as a pause."""

    min_s: float = Field(default=2.0, gt=0)
    """Shortest clip."""
    max_s: float = Field(default=10.0, gt=0)
    """Longest clip."""
    pause_s: float = Field(default=0.3, ge=0)
    """Words of one speaker that are closer than this belong to one utterance."""
    whole_shots: bool = False
    """Every shot of `min_s` and more is one clip as it is, also where it ends inside a word: for files that are scored."""

    @model_validator(mode="after")
    def _ordered(self) -> ClipConfig:
        if self.max_s < self.min_s:
            raise ValueError(f"max_s ({self.max_s:g}) must not be smaller than min_s ({self.min_s:g})")
        return self


class ClipSplit(Split[ClipConfig]):
    """Windows inside shots; nothing inside a transition, nothing across a word. What fits no window is cut away."""

    name = "clip"
    version = "2"
    level = "shot"
    children = "clip"
    reads = ("download.asset_id", "download.path", "shot", "transcribe", "diarize")
    adds = CLIP
    Config = ClipConfig
    is_watching = True
    resources = Resources(cpus=1.0, memory_gb=0.1, timeout_s=600.0)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self._last: tuple[Any, Any, Talk] | None = None

    def split(self, row: Row) -> Sequence[dict[str, Any]]:
        """The clips of one shot, in order. Costs what is said in the shot, and once what is said in the asset."""
        shot = span_of(row["shot"])
        if row["shot"]["is_transition"] or shot.duration < self.config.min_s:
            return []
        is_shown = row["shot"]["num_frames"] != 0
        marks = self._frame_marks(self.ctx.asset_path(row), shot) if is_shown else sound_marks(shot)
        talk = self._talk(row).near(Stretch(float(shot.start), float(shot.end)))
        busy = talk.busy()
        windows = (
            [(0, len(marks) - 1)]
            if self.config.whole_shots
            else plan_windows(
                np.asarray(marks * (shot.num / shot.den), np.float64),
                [word for utterance in talk.utterances for word in utterance],
                busy,
                self.config.min_s,
                self.config.max_s,
            )
        )
        clips: list[dict[str, Any]] = []
        for first, last in windows:
            span = Span(int(marks[first]), int(marks[last]), shot.num, shot.den)
            spans = spans_within(span, talk.utterances, talk.overlaps)
            clips.append(
                {
                    "clip_id": clip_id(row["download"]["asset_id"], span, self.version),
                    "parent_id": row["shot"]["shot_id"],
                    "asset_id": row["download"]["asset_id"],
                    "index": len(clips),
                    **span_fields(span),
                    "num_frames": last - first if is_shown else 0,
                    "is_mid_utterance": any(_inside(t, busy) for t in (float(span.start), float(span.end))),
                    **spoken_fields(spans),
                }
            )
        return clips

    def _talk(self, row: Row) -> Talk:
        """The talk of the row's asset, made once for all of its shots, which are shown the same structs."""
        heard, known = row.get("transcribe"), row.get("diarize")
        if self._last is None or self._last[0] is not heard or self._last[1] is not known:
            self._last = (heard, known, Talk.of(row, self.config.pause_s))
        return self._last[2]

    def _frame_marks(self, path: Path, shot: Span) -> NDArray[np.int64]:
        """pts of the frames of `shot` as they were decoded, for containers may lie about them, and its end."""
        pts = self.ctx.asset_pass.seen(path).pts
        low, high = np.searchsorted(pts, [shot.start_pts, shot.end_pts])
        return np.append(pts[low:high], shot.end_pts)


def sound_marks(shot: Span) -> NDArray[np.int64]:
    """Where sound without a picture may be cut: every `SOUND_STEP_S` of a shot in microseconds, and at its end."""
    step = round(SOUND_STEP_S * shot.den / shot.num)
    return np.append(np.arange(shot.start_pts, shot.end_pts, step), shot.end_pts)


def spoken_fields(spans: Sequence[SpeechSpan]) -> dict[str, Any]:
    """The `CLIP` columns that say what is spoken in a clip."""
    languages = {span.hearing.language for span in spans}

    def known(name: str) -> list[float]:
        return [value for span in spans if (value := getattr(span.hearing, name)) is not None]

    return {
        "has_speech": bool(spans),
        "num_speakers": len({span.speaker for span in spans} - {None}),
        "language": SEVERAL_LANGUAGES if len(languages) > 1 else next(iter(languages), None),
        "language_confidence": min(known("language_confidence"), default=None),
        "no_speech_prob": max(known("no_speech_prob"), default=None),
        "avg_logprob": min(known("avg_logprob"), default=None),
        "compression_ratio": max(known("compression_ratio"), default=None),
        "is_language_measured": bool(known("language_confidence")),
        "is_text_scored": bool(known("avg_logprob")),
        "spans": [span.row() for span in spans],
    }


def plan_windows(
    frame_times: NDArray[np.float64],
    words: Sequence[Timed],
    utterances: Sequence[Timed],
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
    times: NDArray[np.float64], words: Sequence[Timed], utterances: Sequence[Timed], mid_cost_s: float
) -> NDArray[np.float64]:
    """What a window end at each of `times` [n] costs, in seconds of kept time; infinite inside a word.

    Inside an utterance it is `mid_cost_s`, up to a quarter less where the gap between the words is wide.
    """
    cost = np.zeros(len(times))
    for utterance in utterances:
        cost[(times > utterance.start_s) & (times < utterance.end_s)] = mid_cost_s
    distance = np.full(len(times), np.inf)
    for word in words:
        distance = np.minimum(distance, np.maximum(word.start_s - times, times - word.end_s))
    cost[cost > 0] -= mid_cost_s / 4 * np.clip(distance[cost > 0] / GUARD_S, 0, 1)
    cost += GUARD_COST_S * (1 - np.clip(distance / GUARD_S, 0, 1))
    cost[distance < 0] = np.inf
    return cost


@dataclass(frozen=True, slots=True)
class Talk:
    """What is said in an asset, on its clock."""

    utterances: list[list[Word]]
    """Words of one speaker without a pause, in order."""
    overlaps: list[Stretch]
    """Where two or more speak."""
    wordless: list[Stretch]
    """Speech in which no word is known."""

    @classmethod
    def of(cls, row: Row, pause_s: float) -> Talk:
        """The talk of the asset of `row`, from the structs of `transcribe` and `diarize`, either of which may be null."""
        heard, known = row.get("transcribe") or {}, row.get("diarize") or {}
        heard_words = within_passages(Word.all_of(heard.get("words")), Passage.all_of(heard.get("passages")))
        words = spoken_words(heard_words, Turn.all_of(known.get("turns")))
        return cls(
            utterances=group_utterances(words, pause_s),
            overlaps=Stretch.all_of(known.get("overlaps")),
            wordless=[s for s in Stretch.all_of(heard.get("speech")) if not len(_overlapping(s, _bounds(words))[0])],
        )

    def near(self, where: Stretch) -> Talk:
        """What of it lies in `where`, or so near that a cut there has to keep clear of it; utterances stay whole."""
        first_s, last_s = where.start_s - GUARD_S, where.end_s + GUARD_S

        def is_near(start_s: float, end_s: float) -> bool:
            return start_s <= last_s and end_s >= first_s

        return replace(
            self,
            utterances=[
                words for words in self.utterances if is_near(words[0].start_s, max(word.end_s for word in words))
            ],
            overlaps=[stretch for stretch in self.overlaps if is_near(stretch.start_s, stretch.end_s)],
            wordless=[stretch for stretch in self.wordless if is_near(stretch.start_s, stretch.end_s)],
        )

    def busy(self) -> list[Stretch]:
        """What is not to be cut through: utterances, and speech of unknown words."""
        return [Stretch(words[0].start_s, words[-1].end_s) for words in self.utterances] + self.wordless


def within_passages(words: Sequence[Word], passages: Sequence[Passage]) -> list[Word]:
    """`words`, each with that of the `passages` it lies in, or lies nearest to; without passages as they are."""
    if not passages:
        return list(words)
    ordered = sorted(passages, key=lambda passage: passage.start_s)
    ends = [passage.end_s for passage in ordered]
    found = []
    for word in words:
        at = min(bisect_left(ends, word.middle_s), len(ordered) - 1)
        if at and word.middle_s - ends[at - 1] < ordered[at].start_s - word.middle_s:
            at -= 1
        found.append(replace(word, hearing=ordered[at].hearing))
    return found


def spoken_words(words: Sequence[Word], turns: Sequence[Turn]) -> list[Word]:
    """`words` in order of time, each with the speaker whose `turns` cover most of it, or None."""
    spoken, bounds = [], _bounds(turns)
    for word in words:
        covered: dict[str, float] = {}
        for at, shared_s in zip(*_overlapping(word, bounds), strict=True):
            speaker = turns[at].speaker
            covered[speaker] = covered.get(speaker, 0.0) + float(shared_s)
        spoken.append(replace(word, speaker=max(sorted(covered), key=covered.__getitem__) if covered else None))
    return sorted(spoken, key=lambda w: (w.start_s, w.end_s))


def group_utterances(words: Sequence[Word], pause_s: float) -> list[list[Word]]:
    """Runs of words of one speaker and language without a gap of `pause_s`. A word of unknown speaker joins the run around it."""
    runs: list[list[Word]] = []
    speaker = None
    for word in words:
        is_same = word.speaker is None or speaker is None or word.speaker == speaker
        is_same = is_same and (not runs or word.hearing.language == runs[-1][-1].hearing.language)
        if runs and is_same and word.start_s - runs[-1][-1].end_s < pause_s:
            runs[-1].append(word)
            speaker = speaker or word.speaker
        else:
            runs.append([word])
            speaker = word.speaker
    return runs


def spans_within(clip: Span, utterances: Sequence[Sequence[Word]], overlaps: Sequence[Stretch]) -> list[SpeechSpan]:
    """The speech spans of `clip`, on its clock and in speaking order: of each utterance the words that `words_in` gives."""
    origin, end, length = float(clip.start), float(clip.end), float(clip.duration)
    spans = []
    for utterance in utterances:
        heard = words_in(utterance, origin, end)
        if not heard:
            continue
        words = tuple(word.moved(-origin).within(0.0, length) for word in heard)
        where = Stretch(words[0].start_s, max(word.end_s for word in words))
        known = [word.confidence for word in heard if word.confidence is not None]
        spans.append(
            SpeechSpan(
                start_s=where.start_s,
                end_s=where.end_s,
                text=joined(word.text for word in heard),
                speaker=next((word.speaker for word in heard if word.speaker is not None), None),
                hearing=heard[0].hearing,
                is_overlap=any(where.moved(origin).overlap_s(overlap) for overlap in overlaps),
                confidence=float(np.mean(known)) if known else None,
                words=words,
            )
        )
    return spans


def _bounds(found: Sequence[Timed]) -> NDArray[np.float64]:
    """[2, n]: starts and ends."""
    return np.array([[each.start_s for each in found], [each.end_s for each in found]], np.float64)


def _overlapping(where: Timed, bounds: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(index, seconds) of those of `bounds` [2, n] that share time with `where`."""
    shared_s = np.minimum(bounds[1], where.end_s) - np.maximum(bounds[0], where.start_s)
    at = np.flatnonzero(shared_s > 0)
    return at, shared_s[at]


def _inside(instant_s: float, stretches: Sequence[Stretch]) -> bool:
    return any(stretch.start_s < instant_s < stretch.end_s for stretch in stretches)
