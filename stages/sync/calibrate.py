"""How often the sync gate would be wrong on the user's own clips: `nava-curate calibrate`.

Every sampled clip is measured as it is, under its own sound moved by known amounts, and under the sound of other clips.
Untouched clips are taken to be in sync: what a threshold drops of them is its false drop; what it keeps of the others is
its false keep. Nothing is written to the run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

import stages
from pipeline.ask.queries import Run
from pipeline.config import Recipe, load_recipe, parse_recipe
from pipeline.store import RunDir
from schemas.errors import ItemError, RecipeError
from schemas.recipe import apply_overrides
from schemas.records import span_fields, span_of
from schemas.spans import SPEECH_RATE_HZ, SpeechSpan
from schemas.stretches import Stretch
from schemas.timing import Span
from stages.base import Context
from stages.download.sources import expand_sources
from stages.sync.thresholds import Case, by_class, rates_of

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


def calibrate(
    source: str,
    options: Options = Options(),
    recipe: str = "quickstart",
    overrides: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Error rates of every threshold by kind of sound, for a run or a folder of videos; documented in docs/quality.md.

    A run brings its own recipe; `recipe` is for folders. Costs about half a second per second of clip on one core with
    the embedded engine. Raises RecipeError if there is nothing to measure.
    """
    run = Run(source) if RunDir(source).exists("recipe.yaml") else None
    chosen = load_recipe(recipe, overrides) if run is None else parse_recipe(apply_overrides(run.raw_recipe, overrides))
    if "sync" not in chosen.stages:
        raise RecipeError(f"recipe {chosen.name} has no stage sync.", remedy="Add `sync: {}` to its stages.")
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="nava-calibrate-") as folder:
        context = Context(Path(folder), settings=chosen.decoder.model_dump(), configs=chosen.stage_configs())
        try:
            if run is not None:
                clips = clips_of_run(run, options)
            else:
                clips = list(islice(clips_of_folder(source, context, options, skipped), options.num_clips))
            if not clips:
                remedy = "Give a finished run with kept clips, or a folder of videos of 3 s and more."
                raise RecipeError(f"{source} holds no clip with picture and sound.", remedy=remedy)
            clips.sort(key=lambda clip: (clip["asset_id"], clip["clip"]["start_pts"]))  # an asset is decoded once
            cases = measure_cases(clips, chosen, context, options, skipped, report)
        finally:
            context.media.close()
    passed = {} if run is None or options.include_rejected else run.recipe.gates.get("sync", {})
    return {
        "source": source,
        "engine": chosen.stage_configs()["sync"].model_dump()["engine"],
        "num_clips": len(clips),
        "seed": options.seed,
        "passed_gates": {name: gate.model_dump(exclude_defaults=True) for name, gate in passed.items()},
        "skipped": skipped,
        "classes": [rates_of(*item, options.max_false_keep) for item in by_class(cases)],
    }


def clips_of_run(run: Run, options: Options) -> list[dict[str, Any]]:
    """A random sample of a run's clips that have sound, each with its asset row."""
    assets = {row["asset_id"]: row for row in run.ledger.settled("asset").to_pylist()}
    clips = [
        row | {"asset": assets[row["asset_id"]], "name": row["row_id"]}
        for row in run.ledger.settled("clip", packed=False).to_pylist()
        if assets[row["asset_id"]]["probe"]["has_audio"]
        and (row["verdict"]["status"] == "keep" or (options.include_rejected and _is_rejected_by_sync(row["verdict"])))
    ]
    order = np.random.default_rng(options.seed).permutation(len(clips))
    return [clips[at] for at in order[: options.num_clips]]


def _is_rejected_by_sync(verdict: dict[str, Any]) -> bool:
    failed = verdict["failed_gates"] or ()
    return verdict["status"] == "reject" and bool(failed) and all(name.startswith("sync.") for name in failed)


def clips_of_folder(
    folder: str, context: Context, options: Options, skipped: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Stretches of files in the form of a run's clips, an equal number per file, files in random order.

    Speech is found by voice activity. Files are not cut at shot changes: for edited films, curate first. `skipped` is
    told which files could not be used, and why.
    """
    from stages.engines.voice import VoiceActivity, VoiceConfig

    files = [source.uri for source in expand_sources([folder])]
    order = np.random.default_rng(options.seed).permutation(len(files))
    voice, kind = VoiceActivity.load(), stages.load("audio")(stages.load("audio").Config())
    kind.setup(context)
    for at in order:
        path = Path(files[at])
        try:
            probe = context.media.probe(path, decode=False)
            if not (probe["has_video"] and probe["has_audio"]):
                skipped[str(path)] = "It has no picture." if probe["has_audio"] else "It has no sound."
                continue
            sound = context.media.audio(path, rate_hz=SPEECH_RATE_HZ, mono=True)
        except ItemError as error:
            skipped[str(path)] = str(error)
            continue
        begin = float(sound.start)
        speech = [
            {"start_s": begin + s.start_s, "end_s": begin + s.end_s}
            for s in voice.stretches(sound.samples, VoiceConfig())
        ]
        asset = {"download": {"path": str(path)}, "probe": probe, "transcribe": {"speech": speech}}
        windows = _windows(Span(probe["video_start_pts"], probe["video_end_pts"], probe["tb_num"], probe["tb_den"]))
        for number, span in enumerate(windows[: -(-options.num_clips // len(files))]):
            clip: dict[str, Any] = span_fields(span) | {"spans": []}
            (audio,) = kind.process([asset | {"clip": clip}])
            if not isinstance(audio, ItemError):
                yield {
                    "name": f"{path}#{number}",
                    "asset_id": str(path),
                    "clip": clip,
                    "asset": asset,
                    "audio": audio,
                }


def _windows(whole: Span) -> list[Span]:
    """Equal stretches of at most ten seconds; none if the file is shorter than three."""
    least, most = WINDOW_S
    count = int(np.ceil(float(whole.duration) / most))
    if whole.duration < least:
        return []
    marks = np.linspace(whole.start_pts, whole.end_pts, count + 1).round().astype(int).tolist()
    return [Span(a, b, whole.num, whole.den) for a, b in pairwise(marks)]


def measure_cases(
    clips: Sequence[dict[str, Any]],
    recipe: Recipe,
    context: Context,
    options: Options,
    skipped: dict[str, str],
    report: Callable[[str], None],
) -> list[Case]:
    """One case per measurement; `skipped` is told which clips could not be decoded, and why."""
    from stages.sync.film import Film

    stage = stages.load("sync")(recipe.stage_configs()["sync"])
    stage.setup(context)
    random = np.random.default_rng(options.seed)
    heard = _sounds(clips, context, skipped)
    cases: list[Case] = []
    started = time.monotonic()
    for number, clip in enumerate(clips, 1):
        name = clip["name"]
        if name in heard:
            try:
                path, span = context.asset_path(clip["asset"]), span_of(clip["clip"])
                seen = stage.watch.look(path, span, crop_px=stage.engine.crop_px)
                film = Film(name=name, seen=seen, heard=heard[name])
                donors = _donors(clip, clips, heard, random)
                cases += _cases_of(film, donors, stage, (clip.get("audio") or {}).get("kind"))
            except ItemError as error:
                skipped[name] = str(error)
        left_s = (time.monotonic() - started) / number * (len(clips) - number)
        report(f"{number}/{len(clips)} clips measured, {left_s:.0f} s left")
    return cases


def _row(clip: dict[str, Any]) -> dict[str, Any]:
    asset = clip["asset"]
    return {"clip": clip["clip"], **{name: asset.get(name) for name in ("download", "probe", "transcribe")}}


def _sounds(clips: Sequence[dict[str, Any]], context: Context, skipped: dict[str, str]) -> dict[str, Any]:
    """The sound in and around each clip with its words, by clip name."""
    from stages.sync.film import CONTEXT_S, Speech

    heard: dict[str, Any] = {}
    for clip in clips:
        row, span = _row(clip), span_of(clip["clip"])
        start_s, end_s = float(span.start), float(span.end)
        try:
            sound = context.media.audio(context.asset_path(row))
        except ItemError as error:
            skipped[clip["name"]] = str(error)
            continue
        told = (row["transcribe"] or {}).get("speech")
        spans = [said.moved(start_s) for said in SpeechSpan.all_of(clip["clip"]["spans"])]
        stretches = None if told is None else Stretch.all_of(told)
        whole = Speech(sound=sound, stretches=stretches, spans=spans)
        heard[clip["name"]] = whole.cut(start_s - CONTEXT_S, end_s + CONTEXT_S)
    return heard


def _donors(
    clip: dict[str, Any], clips: Sequence[dict[str, Any]], heard: dict[str, Any], random: np.random.Generator
) -> list[tuple[Any, float]]:
    """(sound, its clip's start on its own clock) of clips of other assets and the same kind of sound."""
    kind = (clip.get("audio") or {}).get("kind")
    others = [
        other
        for other in clips
        if other["name"] in heard
        and other["asset_id"] != clip["asset_id"]
        and (other.get("audio") or {}).get("kind") == kind
    ]
    chosen = random.permutation(len(others))[:NUM_SWAPS]
    return [(heard[others[at]["name"]], float(span_of(others[at]["clip"]).start)) for at in chosen]


def _cases_of(film: Any, donors: Sequence[tuple[Any, float]], stage: Any, audio_kind: str | None) -> list[Case]:
    from stages.sync.film import SHIFTS_S

    made = [("untouched", 0.0, film.under(film.heard, 0.0))]
    made += [("shifted", shift_s, film.under(film.heard, shift_s)) for shift_s in SHIFTS_S]
    made += [("swapped", 0.0, film.under(sound, film.start_s - start_s)) for sound, start_s in donors]
    cases = []
    for kind, shift_s, version in made:
        found = version.sync(stage.engine, stage.config).struct() if len(version.seen.times_s) else {}
        case = {"clip": film.name, "kind": kind, "shift_s": shift_s, "audio_kind": audio_kind}
        case |= {key: found.get(key) for key in ("status", "offset_ms", "offset_std_ms", "confidence", "finding")}
        cases.append(case | {"sync_kind": found.get("kind")})
    return [case | {"sync_kind": cases[0]["sync_kind"]} for case in cases]
