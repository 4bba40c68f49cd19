"""Who is active when, frame by frame: local speakers of windows stitched into tracks, laid over speakers, and drawn as turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.stretches import Runs, Timed, runs
from stages.diarize.segmentation import FRAME_S, Windows

F32 = NDArray[np.float32]


def stitch(windows: Windows, accept: float = 0.4, min_active_s: float = 0.1) -> F32:
    """Track activity [T, K]: local speakers of neighbouring windows whose activities agree become one track.

    Agreement is min over max of the two activities, summed over the frames both windows see; `accept` is the least.
    """
    from scipy.optimize import linear_sum_assignment

    num_frames = windows.num_frames
    total = np.zeros((num_frames, 0), np.float32)
    count = np.zeros((num_frames, 0), np.float32)
    cover = np.zeros((num_frames, 1), np.float32)
    for w, window in enumerate(windows.scores):
        here, inside = windows.frames(w)
        scores = window[inside]
        cover[here] += 1
        local = [s for s in range(scores.shape[1]) if (scores[:, s] > 0.5).sum() * FRAME_S >= min_active_s]
        known = np.flatnonzero(count[here].any(axis=0))
        label: dict[int, int] = {}
        if local and len(known):
            mean = total[here][:, known] / np.maximum(count[here][:, known], 1)
            seen = (count[here][:, known] > 0).astype(np.float32)
            agreement = np.zeros((len(local), len(known)))
            for i, s in enumerate(local):
                both = np.minimum(mean, scores[:, s : s + 1]) * seen
                either = np.maximum(mean, scores[:, s : s + 1]) * seen
                agreement[i] = both.sum(axis=0) / np.maximum(either.sum(axis=0), 0.1 / FRAME_S)
            for i, k in zip(*linear_sum_assignment(-agreement), strict=True):
                if agreement[i, k] >= accept:
                    label[local[i]] = int(known[k])
        fresh = [s for s in local if s not in label]
        if fresh:
            grow = np.zeros((num_frames, len(fresh)), np.float32)
            label |= {s: total.shape[1] + i for i, s in enumerate(fresh)}
            total, count = np.hstack([total, grow]), np.hstack([count, grow])
        for s, k in label.items():
            total[here, k] += scores[:, s]
            count[here, k] += 1
    return np.asarray(total / np.maximum(cover, 1), np.float32)


def spoken(speech: Iterable[Timed], num_frames: int) -> F32:
    """One in the frames [T] that `speech` touches, else zero: the networks bridge pauses between two people."""
    is_speech = np.zeros(num_frames, np.float32)
    for stretch in speech:
        is_speech[int(stretch.start_s / FRAME_S) : int(np.ceil(stretch.end_s / FRAME_S))] = 1
    return is_speech


def active_runs(activity: F32, onset: float, offset: float) -> Runs:
    """Runs of the frames of `activity` [T] at or above `offset` that reach `onset`."""
    found = runs(activity >= offset)
    is_reaching = [bool(activity[low:high].max() >= onset) for low, high in found]
    return np.asarray(found[np.array(is_reaching, bool)])


def held(drawn: Sequence[Runs], most: float) -> list[Runs]:
    """Runs of each speaker, joined over pauses of less than `most` frames in which none of the others speaks.

    Of two who pause at once the first holds the turn.
    """
    kept = list(drawn)
    for k, own in enumerate(drawn):
        if len(own) < 2:
            continue
        others = np.concatenate([own[:0], *kept[:k], *kept[k + 1 :]])
        low, high = own[:-1, 1], own[1:, 0]
        is_taken = ((others[:, 0] < high[:, None]) & (others[:, 1] > low[:, None])).any(axis=1)
        is_end = is_taken | (high - low >= most)
        kept[k] = np.column_stack([own[np.r_[True, is_end], 0], own[np.r_[is_end, True], 1]])
    return kept


def regroup(windows: Windows, activity_TK: F32) -> F32:
    """Speaker activity [T, K] after each window's local speakers were matched to the speakers active at that time.

    Where one speaker alone is active and the local speaker matched to it is silent, the network held two people for one:
    the sound then goes to the speaker known to be active, not to the one matched over the whole window.
    """
    from scipy.optimize import linear_sum_assignment

    is_active = activity_TK >= 0.5
    alone = np.where(is_active.sum(axis=1) == 1, is_active.argmax(axis=1), -1)
    total = np.zeros_like(activity_TK)
    cover = np.zeros((len(activity_TK), 1), np.float32)
    for w, window in enumerate(windows.scores):
        here, inside = windows.frames(w)
        scores = window[inside]
        common = np.minimum(scores[:, :, None], activity_TK[here][:, None, :]).sum(axis=0)
        matched = np.zeros((len(scores), activity_TK.shape[1]), np.float32)
        for s, k in zip(*linear_sum_assignment(-common), strict=True):
            if common[s, k] > 0:
                matched[:, k] = scores[:, s]
        owner = alone[here]
        rows = np.arange(len(scores))
        lost = (owner >= 0) & (matched[rows, owner] < 0.3)
        matched[lost] = 0
        matched[rows[lost], owner[lost]] = scores.max(axis=1)[lost]
        total[here] += matched
        cover[here] += 1
    return np.asarray(total / np.maximum(cover, 1), np.float32)


RAISED = 0.6
"""Activity of who must be speaking by the number of voices: above every onset."""
LEAST = 0.02
"""Activity below which nobody is taken for a voice that must be there."""


def raised(activity_TK: F32, is_voice_T: NDArray[np.bool_], is_pair_T: NDArray[np.bool_]) -> F32:
    """`activity_TK` with as many speakers active as voices are heard: the most active one, and where two are heard the next.

    Each network tells that two speak more surely than who the second one is: averaged over windows that take another for
    the second, nobody reaches the onset.
    """
    made = activity_TK.copy()
    order = np.argsort(-activity_TK, axis=1, kind="stable")
    for rank, is_heard in enumerate([is_voice_T, is_pair_T & is_voice_T][: activity_TK.shape[1]]):
        who = order[:, rank]
        rows = np.flatnonzero(is_heard & (activity_TK[np.arange(len(who)), who] > LEAST))
        made[rows, who[rows]] = np.maximum(made[rows, who[rows]], RAISED)
    return made
