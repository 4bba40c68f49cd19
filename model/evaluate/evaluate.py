"""Scores the samples of a set: every item by every metric, each figure with its interval and with how it came about."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from model.evaluate.combined import absent_parts, combined_figure
from model.evaluate.intervals import weighted_interval
from model.evaluate.measuring import measure_files
from model.evaluate.metric import Metric, SeenFile, SetMetric
from model.evaluate.protocols import Rules
from model.evaluate.records import (
    EvalCase,
    EvalItem,
    EvalSet,
    Figure,
    Protocol,
    Provenance,
    Reading,
    Report,
    Score,
)
from model.evaluate.sets import find_samples
from schemas.files import sha256_of
from schemas.ids import digest
from schemas.measured import MeasuredFile

READINGS = "readings.jsonl"


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """How to evaluate."""

    protocol: Protocol
    rules: Rules
    """The protocol's, and what local networks add to them."""
    workers: int = 1
    settings: tuple[str, ...] = ()
    """KEY=VALUE of the recipe that measures, such as stages.transcribe.whisperx.weights=FOLDER."""


def evaluate(
    given: EvalSet, generated: Path, out: Path, options: EvalOptions, say: Callable[[str], None] = print
) -> tuple[Report, list[Score]]:
    """The report on the samples in `generated` and all scores. Measurements are kept in `out` and taken up again from there.

    Raises RecipeError for inputs that are none, and ModelError where measuring breaks off.
    """
    rules = options.rules
    samples, ambiguous = find_samples(given, generated)
    say(f"{given.name} ({given.form}): {len(given.items)} items, {len(samples)} samples in {generated}")
    cases = _cases(given.items, samples, rules, out, options)
    apart = {
        settings: _measured_apart(cases, stages, settings, out / f"samples.{rules.key_of(settings)}", options)
        for settings, stages in rules.stages_apart.items()
    }
    memory = _Memory(out / READINGS)
    scores: list[Score] = []
    figures: list[Figure] = []
    for metric in rules.metrics:
        seen = apart.get(metric.settings, cases)
        of_metric = [_score(metric, case, memory) for case in seen if metric.applies(case.item)]
        if of_metric:
            of_metric = _balanced(of_metric) if metric.is_mean_of_subsets else of_metric
            scores += of_metric
            figures.append(_figure(metric, of_metric, _provenance(metric, seen, options.protocol)))
    figures += [_set_figure(each, cases, _provenance(each, cases, options.protocol)) for each in rules.sets]
    notes = _notes(cases, rules)
    for each in rules.combined:
        if (combined := combined_figure(each, figures, scores, options.protocol)) is not None:
            figures.append(combined)
        else:
            notes.append(f"no {each.name}, which needs {', '.join(absent_parts(each, figures))} besides")
    return (
        Report(
            set_name=given.name,
            set_form=given.form,
            protocol=options.protocol,
            generated=str(generated),
            num_items=len(given.items),
            missing=tuple(_name(case.item) for case in cases if case.sample is None),
            failed={_name(case.item): case.failure for case in cases if case.failure},
            ambiguous=ambiguous,
            figures=tuple(figures),
            notes=tuple(notes),
            settings=options.settings,
        ),
        scores,
    )


def _cases(
    items: Sequence[EvalItem], samples: Mapping[EvalItem, Path], rules: Rules, out: Path, options: EvalOptions
) -> list[EvalCase]:
    brought = {path for item in items for path in (item.voice, item.reference) if path is not None and path.is_file()}
    measured = partial(measure_files, workers=options.workers, settings=options.settings)
    made = measured(samples.values(), rules.stages, out / "samples")
    known = measured(brought, rules.recording_stages, out / "recordings")

    def of(found: Mapping[Path, MeasuredFile], path: Path | None) -> MeasuredFile | None:
        return None if path is None else found.get(path.absolute())

    cases = []
    for item in items:
        path = samples.get(item)
        told, failure = of(made, path), ""
        if path is not None and rules.stages:
            failure = "no media of a kind that is known" if told is None else told.error or ""
        cases.append(EvalCase(item, path, told, of(known, item.reference), of(known, item.voice), failure))
    return cases


def _measured_apart(
    cases: Sequence[EvalCase], stages: Sequence[str], settings: tuple[str, ...], folder: Path, options: EvalOptions
) -> list[EvalCase]:
    """The cases as `stages` measure their samples under settings of their own; recordings are not measured so."""
    samples = [case.sample for case in cases if case.sample is not None]
    made = measure_files(samples, stages, folder, workers=options.workers, settings=(*options.settings, *settings))
    seen = []
    for case in cases:
        told = None if case.sample is None else made.get(case.sample.absolute())
        failure = case.failure if told is None else told.error or ""
        seen.append(replace(case, made=told, failure=failure))
    return seen


class _Memory:
    """Readings that were taken here, by what they are of: the bytes and texts that go in, metric, model and crop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Reading] = {}
        self._sha256: dict[Path, str] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.endswith("}"):
                    told = json.loads(line)
                    key = told.pop("key")
                    self._known[key] = Reading(**told)

    def read(self, metric: Metric, case: EvalCase) -> Reading:
        """What `metric` reads of `case`, or read of the same before."""
        if metric.stage:
            return metric.read(case)
        item = case.item
        brought = (case.sample, item.reference, item.voice, item.first_frame)
        parts = [self._bytes_of(path) for path in brought]
        key = digest(
            metric.name, metric.model, metric.sha256, metric.crop, item.prompt, item.text, *item.sounds, *parts
        )
        if key not in self._known:
            found = self._known[key] = metric.read(case)
            told = {"key": key, "value": found.value, "weight": found.weight, "why": found.why}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(told) + "\n")
        return self._known[key]

    def _bytes_of(self, path: Path | None) -> str:
        """SHA-256 of a file, read once; empty where there is none."""
        if path is None or not path.is_file():
            return ""
        if path not in self._sha256:
            self._sha256[path] = sha256_of(path)[0]
        return self._sha256[path]


def _score(metric: Metric, case: EvalCase, memory: _Memory) -> Score:
    named = partial(Score, item_id=case.item.item_id, subset=case.item.subset, metric=metric.name)
    if case.sample is None:
        return named(state="missing", why="there is no sample")
    if case.failure:
        return named(state="failed", why=case.failure)
    found = memory.read(metric, case)
    if found.value is None:
        return named(state="unmeasured", why=found.why)
    return named(state="measured", value=found.value, weight=found.weight)


def _balanced(scores: Sequence[Score]) -> list[Score]:
    """The same with weights by which the parts of the set count alike."""
    weight_of = {
        subset: sum(each.weight for each in scores if each.subset == subset and each.value is not None)
        for subset in {each.subset for each in scores}
    }
    return [replace(each, weight=each.weight / (weight_of[each.subset] or 1.0)) for each in scores]


def _figure(metric: Metric, scores: Sequence[Score], provenance: Provenance) -> Figure:
    measured = [(each.value, each.weight) for each in scores if each.value is not None]
    values, weights = np.array(measured, float).reshape(-1, 2).T
    interval = weighted_interval(values, weights) if weights.sum() > 0 else None
    count = {state: sum(each.state == state for each in scores) for state in ("missing", "failed", "unmeasured")}
    return Figure(
        metric=metric.name, unit=metric.unit, better=metric.better,
        value=float(np.average(values, weights=weights)) if weights.sum() > 0 else None,
        low=interval[0] if interval else None, high=interval[1] if interval else None, num_items=len(measured),
        num_missing=count["missing"], num_failed=count["failed"], num_unmeasured=count["unmeasured"], provenance=provenance,
    )  # fmt: skip


def _set_figure(metric: SetMetric, cases: Sequence[EvalCase], provenance: Provenance) -> Figure:
    """Of the items of which both sides have a vector. Without interval: drawing items twice is no other set of samples."""
    pairs = [
        (case.item.subset if metric.is_mean_of_subsets else "", one, other)
        for case in cases
        if case.sample is not None and not case.failure
        if (recording := _recording(case) if metric.reads_recording else SeenFile(case.sample, case.made)) is not None
        if (one := metric.describe(SeenFile(case.sample, case.made))) is not None
        if (other := metric.describe(recording)) is not None
    ]
    values = []
    for subset in sorted({subset for subset, *_ in pairs}):
        sides = [both for of, *both in pairs if of == subset]
        if len(sides) > 1:
            made, real_vectors = (np.stack(side) for side in zip(*sides, strict=True))
            values.append(metric.distance(made, real_vectors))
    value = float(np.mean(values)) if values else None
    num_missing, num_failed = sum(case.sample is None for case in cases), sum(bool(case.failure) for case in cases)
    return Figure(
        metric=metric.name, unit=metric.unit, better=metric.better, value=value, low=None, high=None, num_items=len(pairs),
        num_missing=num_missing, num_failed=num_failed, num_unmeasured=len(cases) - len(pairs) - num_missing - num_failed,
        provenance=provenance,
    )  # fmt: skip


def _recording(case: EvalCase) -> SeenFile | None:
    """The real recording of an item, or that of its voice."""
    for path, measured in ((case.item.reference, case.reference), (case.item.voice, case.voice)):
        if path is not None and path.is_file():
            return SeenFile(path, measured)
    return None


def _provenance(metric: Metric | SetMetric, cases: Iterable[EvalCase], protocol: Protocol) -> Provenance:
    hashes = {case.made.stages[metric.stage] for case in cases if case.made and metric.stage in case.made.stages}
    return Provenance(
        protocol=protocol,
        model=metric.model,
        sha256=metric.sha256 or ",".join(sorted(hashes)),
        decoder=metric.decoder,
        crop=metric.crop,
        is_as_published=metric.is_as_published,
    )


def _name(item: EvalItem) -> str:
    return f"{item.subset}/{item.item_id}" if item.subset else item.item_id


def _notes(cases: Sequence[EvalCase], rules: Rules) -> list[str]:
    notes = [f"not measured of this protocol: {rules.absent}"] if rules.absent else []
    if rules.by_models:
        notes.append(f"measured only by networks in a folder that --models names: {rules.by_models}")
    named = {path for case in cases for path in (case.item.voice, case.item.reference) if path is not None}
    gone = sorted(str(path) for path in named if not path.is_file())
    if gone:
        notes.append(f"{len(gone)} recordings that the set names are not there, such as {gone[0]}")
    leaks = [case for case in cases if case.voice and case.reference and case.voice.sha256 == case.reference.sha256]
    if leaks:
        notes.append(
            f"in {len(leaks)} items the voice that is given is the recording of the very words: its similarity also holds "
            "how the words were said"
        )
    copies = sum(
        case.made is not None and case.reference is not None and case.made.sha256 == case.reference.sha256
        for case in cases
    )
    if copies:
        notes.append(f"{copies} samples are the bytes of the real recording")
    return notes
