"""Who speaks when, from weights that come inside packages: segmentation, stitching, clustering, in plain functions.

    windows     the segmentation network of whisperx's voice-activity file (a pyannote PyanNet: up to three speakers at
                once, 5 s windows) gives the activity of anonymous local speakers           [W windows, F frames, 3]
    stitch      local speakers of overlapping windows that are active together are one track [T frames, tracks]
    units       stretches of one track, at most a few seconds long, each with an embedding of its clean part
    cluster     units are joined bottom-up by voice similarity and by what the network said about pairs of them
    regroup     windows are laid over each other again, now by cluster, which gives turns and overlaps

Two people whom the network holds for one are told apart by the embeddings; two units that the network saw as two people
are kept apart even where their voices are alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.spans import SPEECH_RATE_HZ, Turn
from schemas.stretches import Runs, Stretch, bridged, runs
from stages.base import Context, StageConfig
from stages.diarize.cluster import Bonds, VoiceCluster, VoicePiece, cluster_of, join
from stages.diarize.diarized import Diarized
from stages.diarize.segmentation import FRAME_S, WINDOW_FRAMES, Windows, load_segmentation, segment
from stages.engines.speakers import MIN_SPEECH_S, SpeakerEncoder, unit
from stages.engines.voice import VoiceActivity, VoiceConfig

F32 = NDArray[np.float32]


class EmbeddedConfig(StageConfig):
    """Settings of the embedded diarizer; docs/quality.md says what chose them."""

    step_s: float = Field(default=0.5, gt=0, le=2.5)
    """Distance of windows; cost is inversely proportional to it."""
    block_s: float = Field(default=240.0, ge=20)
    """Longer sound is cut at pauses into blocks of about this length, whose speakers are then compared."""
    onset: float = 0.5
    """Activity from which somebody speaks."""
    offset: float = 0.35
    """Activity below which a turn ends: onset - 0.15, as in stages/engines/voice.py."""
    min_turn_s: float = 0.2
    """Shorter turns are dropped."""
    min_pause_s: float = 0.5
    """A shorter pause does not end a turn."""
    max_unit_s: float = 3.0
    """Longest stretch that is taken for one voice without looking inside."""
    threshold: float = 0.78
    """Corrected voice similarity from which two clusters are one person; benchmarks/fit_diarize.py."""
    apart: float = 0.2
    """Weight of the network having seen two units as different people."""
    together: float = 0.05
    """Weight of the network having seen two units as the same person; small, as it often holds two people for one."""


MIN_MIXED_S = 0.8
"""A unit spoken over all along still gets an embedding when it is this long, counted as 0.3 of its length."""


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


def hush(tracks_TK: F32, speech: list[Stretch]) -> F32:
    """`tracks_TK` with the frames outside `speech` set to zero: the network bridges pauses between two people."""
    is_speech = np.zeros(len(tracks_TK), bool)
    for stretch in speech:
        is_speech[int(stretch.start_s / FRAME_S) : int(np.ceil(stretch.end_s / FRAME_S))] = True
    return np.asarray(tracks_TK * is_speech[:, None], np.float32)


def active_runs(activity: F32, onset: float, offset: float) -> Runs:
    """Runs of the frames of `activity` [T] at or above `offset` that reach `onset`."""
    found = runs(activity >= offset)
    is_reaching = [bool(activity[low:high].max() >= onset) for low, high in found]
    return np.asarray(found[np.array(is_reaching, bool)])


def cut_units(tracks_TK: F32, config: EmbeddedConfig, min_on_s: float = 0.15) -> list[VoicePiece]:
    """Units of every track: what surely is one voice, long runs cut into equal parts; embeddings still missing."""
    units: list[VoicePiece] = []
    for track in range(tracks_TK.shape[1]):
        for low, high in active_runs(tracks_TK[:, track], config.onset, config.onset).tolist():
            if (high - low) * FRAME_S < min_on_s:
                continue
            parts = int(np.ceil((high - low) * FRAME_S / config.max_unit_s))
            edges = np.linspace(low, high, parts + 1).round().astype(int)
            units += [VoicePiece(track, int(a), int(b), float(b - a) * FRAME_S) for a, b in pairwise(edges)]
    return sorted(units, key=lambda u: (u.low, u.track))


def embed_units(units: list[VoicePiece], tracks_TK: F32, samples: F32, encoder: SpeakerEncoder) -> None:
    """Fills `clean_s` and `embedding` of each unit from the frames in which no other track is active."""
    pieces = []
    for u in units:
        others = np.delete(tracks_TK[u.low : u.high], u.track, axis=1)
        clean = ~(others > 0.3).any(axis=1)
        edges = np.round(np.arange(u.low, u.high + 1) * FRAME_S * SPEECH_RATE_HZ).astype(int)
        parts = [samples[edges[i] : edges[i + 1]] for i in np.flatnonzero(clean)]
        piece = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        u.clean_s, u.is_alone = len(piece) / SPEECH_RATE_HZ, bool(clean.all())
        if u.clean_s < MIN_SPEECH_S and u.duration_s >= MIN_MIXED_S:
            piece = samples[edges[0] : edges[-1]]
            u.clean_s = 0.3 * u.duration_s
        pieces.append(piece)
    for u, embedding in zip(units, encoder.embed_all(pieces), strict=True):
        u.embedding = embedding


def pair_evidence(units: list[VoicePiece], windows: Windows) -> tuple[F32, F32]:
    """What the network says about pairs of units that it saw in one window: (shares of apart, of together) [U, U].

    Only windows that hold most of both units count; pairs never seen together have zero of both.
    """
    num = len(units)
    apart, together, seen = (np.zeros((num, num), np.float32) for _ in range(3))
    for w, scores in enumerate(windows.scores):
        first = int(windows.first[w])
        rows = []
        for index, u in enumerate(units):
            low, high = max(u.low - first, 0), min(u.high - first, WINDOW_FRAMES)
            if high - low >= 0.7 * (u.high - u.low):
                mean = scores[low:high].mean(axis=0)
                if mean.max() >= 0.4:
                    rows.append((index, unit(mean)))
        for i, (a, va) in enumerate(rows):
            for b, vb in rows[i + 1 :]:
                alike = float(va @ vb)
                together[a, b] += alike
                apart[a, b] += 1 - alike
                seen[a, b] += 1
    share = np.maximum(seen + seen.T, 1)
    return (apart + apart.T) / share, (together + together.T) / share


def cluster_units(units: list[VoicePiece], windows: Windows, config: EmbeddedConfig) -> list[VoiceCluster]:
    """Clusters of the units that have embeddings, joined bottom-up."""
    low, high = np.array([[u.low, u.high] for u in units]).reshape(-1, 2).T * FRAME_S
    overlap = np.maximum(np.minimum(high[:, None], high) - np.maximum(low[:, None], low), 0).astype(np.float32)
    bonds = Bonds(units, *pair_evidence(units, windows), overlap, config.apart, config.together)
    singles = [cluster_of(units, [i]) for i, u in enumerate(units) if u.embedding is not None]
    return join(singles, bonds, config.threshold)


def first_activity(units: list[VoicePiece], clusters: list[VoiceCluster], tracks_TK: F32) -> F32:
    """Speaker activity [T, K] from the clusters' own units; units without embedding follow the unit nearest in their track."""
    owner = {i: k for k, c in enumerate(clusters) for i in c.members}
    for i, u in enumerate(units):
        if i in owner:
            continue
        kin = [j for j in owner if units[j].track == u.track]
        if kin:
            owner[i] = owner[min(kin, key=lambda j: min(abs(units[j].low - u.high), abs(u.low - units[j].high)))]
    activity = np.zeros((len(tracks_TK), len(clusters)), np.float32)
    for i, k in owner.items():
        u = units[i]
        activity[u.low : u.high, k] = np.maximum(activity[u.low : u.high, k], tracks_TK[u.low : u.high, u.track])
    return activity


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


def draw_turns(activity_TK: F32, config: EmbeddedConfig) -> list[Turn]:
    """Turns of every column, pauses bridged and crumbs dropped; speakers are named by column number."""
    turns: list[Turn] = []
    for k, column in enumerate(activity_TK.T):
        active = active_runs(column, config.onset, config.offset)
        for low, high in bridged(active, config.min_pause_s / FRAME_S).tolist():
            if (high - low) * FRAME_S >= config.min_turn_s:
                said = column[low:high]
                confidence = float(said[said >= config.onset].mean())
                turns.append(Turn(str(k), low * FRAME_S, high * FRAME_S, confidence))
    return sorted(turns, key=lambda t: (t.start_s, t.end_s))


@dataclass
class Voices:
    """One block of sound as the networks hear it: windows, track activity [T, K] and units with their embeddings."""

    windows: Windows
    tracks: F32
    units: list[VoicePiece]


def group(voices: Voices, config: EmbeddedConfig) -> tuple[F32, list[VoiceCluster]]:
    """(activity [T, K] of each speaker, the clusters that are the speakers)."""
    clusters = cluster_units(voices.units, voices.windows, config)
    if not clusters:
        return voices.tracks[:, :0], []
    return regroup(voices.windows, first_activity(voices.units, clusters, voices.tracks)), clusters


PAUSES = VoiceConfig(onset=0.4, offset=0.25, min_silence_s=0.15, pad_s=0.04)
"""Voice activity that is asked only for pauses: quick to hear one, slow to deny speech."""


@dataclass
class EmbeddedDiarizer:
    """Segmentation from whisperx's wheel, voices from `SpeakerEncoder`, pauses from Silero.

    Needs no download. About 15 times real time on one core at half a second per step. Two voices recorded alike
    are told apart from about two seconds each; dense overlap in one distant microphone is beyond it.
    Figures: docs/quality.md.
    """

    config: EmbeddedConfig
    network: Any
    encoder: SpeakerEncoder
    voice: VoiceActivity

    @classmethod
    def load(cls, config: EmbeddedConfig, ctx: Context) -> EmbeddedDiarizer:
        """The engine with its three networks, shared with whoever uses them in this worker."""
        networks = ctx.model(load_segmentation), ctx.model(SpeakerEncoder.load), ctx.model(VoiceActivity.load)
        return cls(config, *networks)

    def turns(self, samples: F32) -> list[Turn]:
        """Turns in mono `samples` at 16 kHz, in order of start."""
        return self.hear(samples).turns

    def hear(self, samples: F32) -> Diarized:
        """Turns in mono `samples` at 16 kHz, and what is known of the voices in it."""
        pauses = self.voice.stretches(samples, PAUSES)
        if not pauses:
            return Diarized([])
        parts: list[tuple[float, F32, list[VoiceCluster]]] = []
        alone: dict[Stretch, F32] = {}
        for low, high in blocks(pauses, len(samples), self.config.block_s):
            start_s = low / SPEECH_RATE_HZ
            inside = [stretch.moved(-start_s) for stretch in pauses]
            voices = self.listen(samples[low:high], inside)
            parts.append((start_s, *group(voices, self.config)))
            alone |= {where.moved(start_s): told for where, told in heard_alone(voices.units, high - low).items()}
        if not any(clusters for _, _, clusters in parts):
            return Diarized([])
        names = name_across([clusters for _, _, clusters in parts], self.config.threshold)
        turns: list[Turn] = []
        for (start_s, activity, _), labels in zip(parts, names, strict=True):
            for turn in draw_turns(activity, self.config):
                turns.append(replace(turn.moved(start_s), speaker=str(labels[int(turn.speaker)])))
        return Diarized(sorted(turns, key=lambda t: (t.start_s, t.end_s)), alone)

    def listen(self, samples: F32, speech: list[Stretch]) -> Voices:
        """What the networks hear in one block, before anybody is told from anybody. `speech` is from `PAUSES`."""
        windows = segment(self.network, samples, self.config.step_s, speech)
        tracks = hush(stitch(windows), speech)
        units = cut_units(tracks, self.config)
        embed_units(units, tracks, samples, self.encoder)
        return Voices(windows, tracks, units)


def heard_alone(units: list[VoicePiece], num_samples: int) -> dict[Stretch, F32]:
    """The embeddings of the units in which nobody else is heard, by where they lie in the sound, to the sample."""
    found = {}
    for u in units:
        if u.is_alone and u.embedding is not None:
            edges = [min(round(at * FRAME_S * SPEECH_RATE_HZ), num_samples) for at in (u.low, u.high)]
            found[Stretch(*(edge / SPEECH_RATE_HZ for edge in edges))] = u.embedding
    return found


def blocks(speech: list[Stretch], num_samples: int, block_s: float) -> list[tuple[int, int]]:
    """Sample ranges of about `block_s` that cover the sound, each ending in the middle of the last pause before its limit."""
    edges = [0]
    while (num_samples - edges[-1]) / SPEECH_RATE_HZ > 1.25 * block_s:
        limit_s = edges[-1] / SPEECH_RATE_HZ + block_s
        middles = [(a.end_s + b.start_s) / 2 for a, b in pairwise(speech)]
        usable = [m for m in middles if limit_s - 0.5 * block_s <= m <= limit_s]
        edges.append(round((usable[-1] if usable else limit_s) * SPEECH_RATE_HZ))
    return list(pairwise([*edges, num_samples]))


def name_across(blocks_of: list[list[VoiceCluster]], threshold: float) -> list[list[int]]:
    """A speaker number for each cluster of each block: voices alike are one person, two of one block never are."""
    units = [
        VoicePiece(block, 0, 0, c.clean_s, c.clean_s, unit(c.vector))
        for block, clusters in enumerate(blocks_of)
        for c in clusters
    ]
    block = np.array([u.track for u in units])
    length = np.array([u.duration_s for u in units], np.float32)
    same_block = np.where(block[:, None] == block, np.maximum(length[:, None], length), 0).astype(np.float32)
    none = np.zeros((len(units), len(units)), np.float32)
    groups = join(
        [cluster_of(units, [i]) for i in range(len(units))], Bonds(units, none, none, same_block, 0.0, 0.0), threshold
    )
    number = {i: k for k, group in enumerate(groups) for i in group.members}
    flat = iter(range(len(units)))
    return [[number[next(flat)] for _ in clusters] for clusters in blocks_of]
