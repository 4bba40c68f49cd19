"""How often the sync gate would be wrong on the user's own clips: what `nava-curate calibrate` measures.

Every clip is measured as it is, under its own sound moved by known amounts, and under the sound of other clips.
Untouched clips are taken to be in sync: what a threshold drops of them is its false drop; what it keeps of the others is
its false keep. `stages.sync.thresholds` counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from schemas.errors import ItemError
from schemas.records import Clip
from schemas.spans import SPEECH_RATE_HZ, SpeechSpan
from schemas.stretches import Stretch
from schemas.timing import Span
from stages.base import Context
from stages.engines.voice import VoiceActivity, VoiceConfig
from stages.faces import faces_of
from stages.sound.events import EventNetwork
from stages.sound.stage import described, heard_in
from stages.sync.config import SyncConfig
from stages.sync.film import CONTEXT_S, SHIFTS_S, Film, Speech
from stages.sync.stage import Sync
from stages.sync.thresholds import Case, CaseKind

NUM_SWAPS = 3
"""Other clips whose sound is laid under each clip."""
WINDOW_S = (3.0, 10.0)
"""Shortest and longest stretch taken from a file that no run has cut into clips."""


@dataclass(frozen=True)
class Options:
    """How much is measured, and what the recommendation aims at."""

    num_clips: int = 40
    seed: int = 0
    max_false_keep: float = 0.05
    """The recommended row drops least among those that keep at most this share of wrong clips."""
    include_rejected: bool = False
    """Of a run, also clips that only the sync gates turned away; then some untouched clips are truly out of sync."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A clip to calibrate on."""

    name: str
    asset: str
    """What its file is told from others by; sound is exchanged between assets."""
    path: str
    """Where the file lies: `download.path`."""
    span: Span
    speech: Sequence[Stretch] | None = None
    """Where the asset has speech, on its clock; None if nobody looked."""
    spans: Sequence[SpeechSpan] = ()
    """What is said in the clip, on the clip clock."""
    sound_kind: str | None = None
    """`sound.kind`; None if it was not measured."""

    @classmethod
    def of(cls, clip: Clip) -> Sampled:
        """A clip that a run has measured."""
        told = (clip.asset.structs.get("transcribe") or {}).get("speech")
        return cls(
            name=clip.clip_id,
            asset=str(clip.asset.asset_id),
            path=clip.asset.path,
            span=clip.span,
            speech=None if told is None else Stretch.all_of(told),
            spans=SpeechSpan.all_of(clip.own["spans"]),
            sound_kind=(clip.structs.get("sound") or {}).get("kind"),
        )


def clips_of_files(
    files: Sequence[str], context: Context, options: Options, skipped: dict[str, str]
) -> Iterator[Sampled]:
    """Stretches of files that no run has cut, an equal number per file, files in random order.

    Speech is found by voice activity. Files are not cut at shot changes: for edited films, curate first. `skipped` is
    told which files could not be used, and why.
    """
    voice = VoiceActivity.load()
    for at in np.random.default_rng(options.seed).permutation(len(files)):
        try:
            yield from _clips_of_file(files[at], voice, context, -(-options.num_clips // len(files)), skipped)
        except ItemError as error:
            skipped[files[at]] = str(error)


def _clips_of_file(
    file: str, voice: VoiceActivity, context: Context, most: int, skipped: dict[str, str]
) -> Iterator[Sampled]:
    path = Path(file)
    probe = context.media.probe(path, decode=False)
    if not (probe["has_video"] and probe["has_audio"]):
        skipped[file] = "It has no picture." if probe["has_audio"] else "It has no sound."
        return
    sound, network = context.media.audio(path, rate_hz=SPEECH_RATE_HZ, mono=True), context.model(EventNetwork.load)
    speech = [part.moved(float(sound.start)) for part in voice.stretches(sound.samples, VoiceConfig())]
    whole = Span(probe["video_start_pts"], probe["video_end_pts"], probe["tb_num"], probe["tb_den"])
    for number, span in enumerate(_windows(whole)[:most]):
        samples = sound.cut(span.start, span.end)
        heard = heard_in(network.probabilities(samples), [part.moved(-float(span.start)) for part in speech])
        kind = described(heard, samples, num_speakers=1)["kind"]
        yield Sampled(name=f"{file}#{number}", asset=file, path=file, span=span, speech=speech, sound_kind=kind)


def _windows(whole: Span) -> list[Span]:
    """Equal stretches of at most ten seconds; none if the file is shorter than three."""
    least, most = WINDOW_S
    count = int(np.ceil(float(whole.duration) / most))
    if whole.duration < least:
        return []
    marks = np.linspace(whole.start_pts, whole.end_pts, count + 1).round().astype(int).tolist()
    return [Span(a, b, whole.num, whole.den) for a, b in pairwise(marks)]


def measure_cases(
    clips: Sequence[Sampled],
    config: SyncConfig,
    context: Context,
    seed: int,
    skipped: dict[str, str],
    report: Callable[[str], None],
) -> list[Case]:
    """One case per measurement; `skipped` is told which clips could not be decoded, and why.

    Faces are looked for as `context.configs` says. About half a second per second of clip on one core with the
    embedded engine.
    """
    clips = sorted(clips, key=lambda clip: (clip.asset, clip.span.start_pts))  # an asset is decoded once
    stage = Sync(config)
    stage.setup(context)
    random = np.random.default_rng(seed)
    heard = _sounds(clips, context, skipped)
    cases: list[Case] = []
    started = time.monotonic()
    for number, clip in enumerate(clips, 1):
        if clip.name in heard:
            try:
                seen = faces_of(context, context.media.localise(clip.path), clip.span, crop_px=stage.engine.crop_px)
                film = Film(name=clip.name, seen=seen, heard=heard[clip.name])
                cases += _cases_of(film, _donors(clip, clips, heard, random), stage, clip.sound_kind)
            except ItemError as error:
                skipped[clip.name] = str(error)
        left_s = (time.monotonic() - started) / number * (len(clips) - number)
        report(f"{number}/{len(clips)} clips measured, {left_s:.0f} s left")
    return cases


def _sounds(clips: Sequence[Sampled], context: Context, skipped: dict[str, str]) -> dict[str, Speech]:
    """The sound in and around each clip with its words, by clip name."""
    heard: dict[str, Speech] = {}
    for clip in clips:
        start_s, end_s = float(clip.span.start), float(clip.span.end)
        try:
            sound = context.media.audio(context.media.localise(clip.path))
        except ItemError as error:
            skipped[clip.name] = str(error)
            continue
        whole = Speech(sound=sound, stretches=clip.speech, spans=[span.moved(start_s) for span in clip.spans])
        heard[clip.name] = whole.cut(start_s - CONTEXT_S, end_s + CONTEXT_S)
    return heard


def _donors(
    clip: Sampled, clips: Sequence[Sampled], heard: Mapping[str, Speech], random: np.random.Generator
) -> list[tuple[Speech, float]]:
    """(sound, its clip's start on its own clock) of clips of other assets and the same kind of sound."""
    others = [
        other
        for other in clips
        if other.name in heard and other.asset != clip.asset and other.sound_kind == clip.sound_kind
    ]
    chosen = random.permutation(len(others))[:NUM_SWAPS]
    return [(heard[others[at].name], float(others[at].span.start)) for at in chosen]


def _cases_of(film: Film, donors: Sequence[tuple[Speech, float]], stage: Sync, sound_kind: str | None) -> list[Case]:
    made: list[tuple[CaseKind, float, Film]] = [("untouched", 0.0, film.under(film.heard, 0.0))]
    made += [("shifted", shift_s, film.under(film.heard, shift_s)) for shift_s in SHIFTS_S]
    made += [("swapped", 0.0, film.under(sound, film.start_s - start_s)) for sound, start_s in donors]
    found = [
        version.sync(stage.engine, stage.config).figures if len(version.seen.times_s) else None
        for _, _, version in made
    ]
    rests_on = None if found[0] is None else found[0].kind
    return [
        Case.of(figures, clip=film.name, kind=kind, shift_s=shift_s, sound_kind=sound_kind, sync_kind=rests_on)
        for figures, (kind, shift_s, _) in zip(found, made, strict=True)
    ]
