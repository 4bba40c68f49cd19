"""What a metric is: of one sample a reading, of all of them a figure, and always how it came about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.evaluate.records import Better, EvalCase, EvalItem, Reading
from schemas.measured import MeasuredFile
from schemas.records import Struct

Vector = NDArray[np.float64]


def always(item: EvalItem) -> bool:
    """Applies to every item."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What every figure says of itself."""

    name: str
    doc: str
    unit: str = ""
    better: Better
    model: str
    stage: str = ""
    """Stage of the curation half that measures it; its hash stands in the provenance. Empty: read here, from the file."""
    settings: tuple[str, ...] = ()
    """KEY=VALUE that its stage is measured with, apart from what other metrics are measured with."""
    sha256: str = ""
    """Of the weights of a network that is read here."""
    decoder: str = "PyAV, by nava-curate score"
    crop: str
    is_mean_of_subsets: bool = False
    """Every part of the set counts alike, however many items it has; otherwise every item does."""
    is_as_published: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Described):
    """A figure that is the weighted mean of what is read of each sample."""

    read: Callable[[EvalCase], Reading]
    applies: Callable[[EvalItem], bool] = always
    """Whether the item is one that this metric is of; those it is not of are not counted as missing."""
    reads_recording: bool = False
    """Whether the same stage has to measure what the item brings along, its voice and its real recording."""


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A sample or a recording: where it lies, and what was measured of it, if anything was."""

    path: Path
    measured: MeasuredFile | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMetric(Described):
    """A figure of all samples at once, by what each of them and its reference is described with."""

    describe: Callable[[SeenFile], Vector | None]
    """A vector of one file; None where it has none."""
    distance: Callable[[Vector, Vector], float]
    """Of [n, d] samples and [m, d] references."""
    reads_recording: bool = True
    """As for `Metric`; where none is needed, samples stand in the place of references."""


def of_set3(item: EvalItem) -> bool:
    """Of a set without parts every item, of Verse-Bench the talks."""
    return item.subset in ("", "set3")


def has_text(item: EvalItem) -> bool:
    """Something is to be said."""
    return bool(item.text)


def has_voice(item: EvalItem) -> bool:
    """It is known whose voice is to be heard."""
    return item.voice is not None


def has_reference(item: EvalItem) -> bool:
    """There is a real recording."""
    return item.reference is not None


def of_columns(stage: str, column: str) -> Callable[[EvalCase], Reading]:
    """Reads the mean of a column over the clips of a sample, weighted by their length; clips without it are left out."""

    def read(case: EvalCase) -> Reading:
        clips = case.made.clips if case.made is not None else ()
        found = [
            (clip[stage][column], seconds_of(clip)) for clip in clips if (clip.get(stage) or {}).get(column) is not None
        ]
        return Reading(weighted_mean(found)) if found else Reading(None, why=f"no clip of it has {stage}.{column}")

    return read


def seconds_of(clip: Mapping[str, Struct]) -> float:
    """Length of a clip in seconds."""
    return float(clip["clip"]["duration_us"]) / 1e6


def weighted_mean(pairs: Sequence[tuple[float, float]]) -> float:
    """Of (value, weight) pairs, at least one."""
    values, weights = np.array(pairs, float).T
    return float(np.average(values, weights=weights))


def of_asset(stage: str, column: str) -> Callable[[EvalCase], Reading]:
    """Reads a column that was measured on the whole sample."""

    def read(case: EvalCase) -> Reading:
        value = (case.made.asset.get(stage) or {}).get(column) if case.made is not None else None
        return Reading(None, why=f"it has no {stage}.{column}") if value is None else Reading(float(value))

    return read
