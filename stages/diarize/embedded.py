"""Who speaks when, from weights that come inside packages: segmentation, stitching, clustering, in plain functions.

    windows     two segmentation networks give the activity of anonymous local speakers: whisperx's in windows of 5 s, and
                segmentation-3.0 in windows of 10 s, which finds more of what is said at once  [W windows, F frames, 3]
    stitch      local speakers of overlapping wide windows that are active together are one track [T frames, tracks]
    units       stretches of one track, at most a few seconds long, each with an embedding of its clean part
    cluster     units in which one voice is heard are joined bottom-up while same is likelier than different; the others go
                to the voice that fits best of those who do not speak at the same time
    regroup     windows of both networks are laid over each other again, now by cluster
    raise       as many speakers are active as the networks hear voices, which gives turns and overlaps

Two people whom the network holds for one are told apart by the embeddings; two units that the network saw as two people
are kept apart even where their voices are alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.spans import SPEECH_RATE_HZ, Turn, overlaps
from schemas.stretches import Stretch, bridged, merge
from stages.base import Context, StageConfig
from stages.diarize.activity import active_runs, held, raised, regroup, spoken, stitch
from stages.diarize.cluster import Bonds, VoiceCluster, VoicePiece, cluster_of, join, place
from stages.diarize.diarized import Diarized
from stages.diarize.segmentation import FRAME_S, Segmentation, Windows
from stages.engines.speakers import MIN_SPEECH_S, SpeakerEncoder, unit
from stages.engines.voice import VoiceActivity, VoiceConfig

F32 = NDArray[np.float32]


class EmbeddedConfig(StageConfig):
    """Settings of the embedded diarizer; docs/quality.md says what chose them."""

    near_step_s: float = Field(default=1.0, gt=0, le=2.5)
    """Distance of the 5 s windows; cost is inversely proportional to it."""
    far_step_s: float = Field(default=2.0, gt=0, le=5.0)
    """Distance of the 10 s windows."""
    block_s: float = Field(default=240.0, ge=20)
    """Longer sound is cut at pauses into blocks of about this length, whose speakers are then compared."""
    onset: float = 0.5
    """Activity from which somebody speaks."""
    offset: float = 0.35
    """Activity below which a turn ends: onset - 0.15, as in stages/engines/voice.py."""
    overlap: float = 0.35
    """Probability from which two speak at once, by the network of 10 s; docs/quality.md."""
    min_turn_s: float = 0.2
    """Shorter turns are dropped."""
    min_pause_s: float = 0.5
    """A shorter pause does not end a turn."""
    hold_s: float = Field(default=1.0, ge=0)
    """Nor does one in which nobody else speaks: silences within talk last up to a second (Jefferson 1989)."""
    max_unit_s: float = 3.0
    """Longest stretch that is taken for one voice without looking inside."""
    min_voice_s: float = 0.6
    """A voice is known from clean stretches of this length."""
    threshold: float = 0.74
    """Likeness from which two clusters are one person; benchmarks/fit_diarize.py."""
    apart: float = 0.1
    """Weight of the network having seen two units as different people."""


MIN_UNIT_S = 0.15
"""Shorter stretches of a track are nobody's."""
MIN_PART_S = 0.3
"""Shortest part of a stretch that is looked at by itself."""
MIN_MIXED_S = 0.8
"""A unit spoken over all along still gets an embedding when it is this long, counted as 0.3 of its length."""
SILENCE_S = 0.6
"""A pause as long as this is silence whatever the networks say; in shorter ones they hear distant voices that Silero misses."""
CLEAN = 0.3
"""Activity of another track up to which a frame is clean."""
CLEAN_OVERLAP = 0.25
"""Probability of two voices up to which it is."""


@dataclass
class Voices:
    """One block of sound as the networks hear it: windows, track activity [T, K] and units with their embeddings."""

    near: Windows
    far: Windows
    is_speech: F32
    """One in the frames [T] where anybody speaks."""
    tracks: F32
    units: list[VoicePiece]

    @property
    def speech(self) -> F32:
        """How surely anybody speaks [T], by both networks."""
        return np.asarray((self.near.speech + self.far.speech) / 2 * self.is_speech, np.float32)

    @property
    def overlap(self) -> F32:
        """How surely two or more speak [T], by both networks."""
        return np.asarray((self.near.overlap + self.far.overlap) / 2 * self.is_speech, np.float32)


def cut_units(tracks_TK: F32, is_pair_T: NDArray[np.bool_], config: EmbeddedConfig) -> list[VoicePiece]:
    """Units of every track, embeddings still missing: cut where others fall in or stop, as tracks change hands there.

    Long ones are cut into equal parts.
    """
    units: list[VoicePiece] = []
    for track in range(tracks_TK.shape[1]):
        is_shared = is_pair_T | (np.delete(tracks_TK, track, axis=1) > CLEAN).any(axis=1)
        for low, high in active_runs(tracks_TK[:, track], config.onset, config.onset).tolist():
            if (high - low) * FRAME_S < MIN_UNIT_S:
                continue
            flips = low + 1 + np.flatnonzero(np.diff(is_shared[low:high]))
            edges = [low]
            edges += [int(at) for at in flips if min(at - edges[-1], high - at) * FRAME_S >= MIN_PART_S]
            for first, last in pairwise([*edges, high]):
                parts = int(np.ceil((last - first) * FRAME_S / config.max_unit_s))
                cuts = np.linspace(first, last, parts + 1).round().astype(int)
                units += [VoicePiece(track, int(a), int(b), float(b - a) * FRAME_S) for a, b in pairwise(cuts)]
    return sorted(units, key=lambda u: (u.low, u.track))


def embed_units(
    units: list[VoicePiece], tracks_TK: F32, is_pair_T: NDArray[np.bool_], samples: F32, encoder: SpeakerEncoder
) -> None:
    """Fills in what is known of each unit's voice, from the frames in which nobody else is heard."""
    pieces = []
    for u in units:
        others = np.delete(tracks_TK[u.low : u.high], u.track, axis=1)
        clean = ~((others > CLEAN).any(axis=1) | is_pair_T[u.low : u.high])
        edges = np.round(np.arange(u.low, u.high + 1) * FRAME_S * SPEECH_RATE_HZ).astype(int)
        parts = [samples[edges[i] : edges[i + 1]] for i in np.flatnonzero(clean)]
        piece = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        u.clean_s, u.is_alone = len(piece) / SPEECH_RATE_HZ, bool(clean.all())
        if u.clean_s < MIN_SPEECH_S and u.duration_s >= MIN_MIXED_S:
            piece = samples[edges[0] : edges[-1]]
            u.clean_s, u.is_mixed = 0.3 * u.duration_s, True
        pieces.append(piece)
    for u, embedding in zip(units, encoder.embed_all(pieces), strict=True):
        u.embedding = embedding


def seen_apart(units: list[VoicePiece], windows: Windows) -> F32:
    """How far the network told pairs of units apart that it saw in one window: 0 to 1 [U, U], NaN for others.

    Only windows that hold most of both units count.
    """
    num = len(units)
    apart, seen = np.zeros((num, num), np.float32), np.zeros((num, num), np.float32)
    for first, scores in zip(windows.first.tolist(), windows.scores, strict=True):
        rows = []
        for index, u in enumerate(units):
            low, high = max(u.low - first, 0), min(u.high - first, len(scores))
            if high - low >= 0.7 * (u.high - u.low):
                mean = scores[low:high].mean(axis=0)
                if mean.max() >= 0.4:
                    rows.append((index, unit(mean)))
        for i, (a, va) in enumerate(rows):
            for b, vb in rows[i + 1 :]:
                apart[a, b] += 1 - float(va @ vb)
                seen[a, b] += 1
    with np.errstate(invalid="ignore"):
        return np.asarray((apart + apart.T) / (seen + seen.T), np.float32)


def cluster_units(units: list[VoicePiece], windows: Windows, config: EmbeddedConfig) -> list[VoiceCluster]:
    """Clusters of the units in which one voice is heard for long enough, joined bottom-up."""
    shared = np.array([[one.shared(other) * FRAME_S for other in units] for one in units], np.float32)
    bonds = Bonds(units, seen_apart(units, windows), shared, config.apart)
    known = [i for i, u in enumerate(units) if u.embedding is not None and not u.is_mixed]
    long = [i for i in known if units[i].clean_s >= config.min_voice_s] or known
    return join([cluster_of(units, [i]) for i in long], bonds, config.threshold)


def group(voices: Voices, config: EmbeddedConfig) -> tuple[F32, list[VoiceCluster]]:
    """(activity [T, K] of each speaker, the clusters that are the speakers)."""
    clusters = cluster_units(voices.units, voices.far, config)
    owner = place(voices.units, clusters, FRAME_S)
    own = np.zeros((len(voices.tracks), len(clusters)), np.float32)
    if not clusters:
        return own, []
    for i, k in owner.items():
        u = voices.units[i]
        own[u.low : u.high, k] = np.maximum(own[u.low : u.high, k], voices.tracks[u.low : u.high, u.track])
    laid = (regroup(voices.near, own) + regroup(voices.far, own)) * voices.is_speech[:, None]
    mean = np.asarray((laid + own) / 3, np.float32)
    return raised(mean, voices.speech > config.onset, voices.far.overlap > config.overlap), clusters


def draw_turns(activity_TK: F32, config: EmbeddedConfig) -> list[Turn]:
    """Turns of every column, pauses bridged and crumbs dropped; speakers are named by column number."""
    turns: list[Turn] = []
    drawn = [
        bridged(active_runs(column, config.onset, config.offset), config.min_pause_s / FRAME_S)
        for column in activity_TK.T
    ]
    lasting = [own[(own[:, 1] - own[:, 0]) * FRAME_S >= config.min_turn_s] for own in drawn]
    for k, own in enumerate(held(lasting, config.hold_s / FRAME_S)):
        for low, high in own.tolist():
            said = activity_TK[low:high, k]
            confidence = float(said[said >= config.onset].mean())
            turns.append(Turn(str(k), low * FRAME_S, high * FRAME_S, confidence))
    return sorted(turns, key=lambda t: (t.start_s, t.end_s))


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
    near: Segmentation
    far: Segmentation
    encoder: SpeakerEncoder
    voice: VoiceActivity

    @classmethod
    def load(cls, config: EmbeddedConfig, ctx: Context) -> EmbeddedDiarizer:
        """The engine with its networks, shared with whoever uses them in this worker."""
        near, far = ctx.model(Segmentation.load, "near"), ctx.model(Segmentation.load, "far")
        return cls(config, near, far, ctx.model(SpeakerEncoder.load), ctx.model(VoiceActivity.load))

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
            single = heard_alone(voices, high - low, self.config)
            alone |= {where.moved(start_s): told for where, told in single.items()}
        if not any(clusters for _, _, clusters in parts):
            return Diarized([])
        names = name_across([clusters for _, _, clusters in parts], self.config.threshold)
        turns: list[Turn] = []
        for (start_s, activity, _), labels in zip(parts, names, strict=True):
            for turn in draw_turns(activity, self.config):
                turns.append(replace(turn.moved(start_s), speaker=str(labels[int(turn.speaker)])))
        turns.sort(key=lambda t: (t.start_s, t.end_s))
        shared = overlaps(turns)
        alone = {where: told for where, told in alone.items() if not any(where.overlap_s(each) for each in shared)}
        return Diarized(turns, alone)

    def listen(self, samples: F32, speech: list[Stretch]) -> Voices:
        """What the networks hear in one block, before anybody is told from anybody. `speech` is from `PAUSES`."""
        near = self.near.windows(samples, self.config.near_step_s, speech)
        far = self.far.windows(samples, self.config.far_step_s, speech)
        is_speech = spoken(merge(speech, SILENCE_S), far.num_frames)
        tracks = np.asarray(stitch(far) * is_speech[:, None], np.float32)
        voices = Voices(near, far, is_speech, tracks, [])
        is_pair = voices.overlap > CLEAN_OVERLAP
        voices.units = cut_units(tracks, is_pair, self.config)
        embed_units(voices.units, tracks, is_pair, samples, self.encoder)
        return voices


def heard_alone(voices: Voices, num_samples: int, config: EmbeddedConfig) -> dict[Stretch, F32]:
    """The embeddings of the units in which neither network hears anybody else, by where they lie in the sound, to the sample."""
    found = {}
    most = np.maximum(voices.near.overlap, voices.far.overlap) * voices.is_speech
    for u in voices.units:
        if u.is_alone and u.embedding is not None and most[u.low : u.high].max() <= config.overlap:
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
    never = np.full((len(units), len(units)), np.nan, np.float32)
    singles = [cluster_of(units, [i]) for i in range(len(units))]
    groups = join(singles, Bonds(units, never, same_block, 0.0), threshold)
    number = {i: k for k, group in enumerate(groups) for i in group.members}
    flat = iter(range(len(units)))
    return [[number[next(flat)] for _ in clusters] for clusters in blocks_of]
