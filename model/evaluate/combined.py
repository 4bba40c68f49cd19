"""Figures that others make up: Verse-Bench's AS, the mean of three opinions of pictures, and its overall score of all it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model.evaluate.distances import SMALLEST
from model.evaluate.intervals import Paired, draws, interval_of
from model.evaluate.metric import Described, Vector
from model.evaluate.records import Figure, Protocol, Provenance, Score

Readings = Mapping[tuple[tuple[str, str], str], tuple[float, float]]
"""((subset, item), part) -> (value, weight)."""
Means = Mapping[str, Vector]
"""Part -> its mean [n], of one set of items or of many that were drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined(Described):
    """A figure of other figures of the same report."""

    parts: tuple[str, ...]
    """Metrics that are all needed."""
    combine: Callable[[Means], Vector]


def combined_figure(
    metric: Combined, figures: Sequence[Figure], scores: Sequence[Score], protocol: Protocol
) -> Figure | None:
    """The figure with its interval, for which items are drawn and all parts are of the same draw; None where a part has none."""
    found = {figure.metric: figure for figure in figures if figure.metric in metric.parts and figure.value is not None}
    if set(found) != set(metric.parts):
        return None
    value, *drawn = _drawn(metric, _readings(metric, scores))
    low, high = _interval(np.array(drawn)) or (None, None)
    states = {(each.subset, each.item_id, each.state) for each in scores if each.metric in metric.parts}
    count = Counter(state for *_, state in states)
    weights = dict.fromkeys(part for each in found.values() for part in each.provenance.sha256.split(","))
    return Figure(
        metric=metric.name, unit=metric.unit, better=metric.better, value=float(value), low=low, high=high,
        num_items=count["measured"], num_missing=count["missing"], num_failed=count["failed"],
        num_unmeasured=count["unmeasured"],
        provenance=Provenance(
            protocol=protocol, model=metric.model, crop=metric.crop, decoder=metric.decoder, sha256=",".join(weights),
        ),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CombinedPair:
    """A combined figure of two reports, over what both have measured of each item."""

    first: float
    second: float
    found: Paired | None
    num_first_only: int
    num_second_only: int
    """Items of which only one of them has anything."""


def combined_pair(metric: Combined, one: Sequence[Score], other: Sequence[Score]) -> CombinedPair | None:
    """The figure of two lists of scores, paired: every draw is of the same items. None where a part has no item in both."""
    first, second = (_readings(metric, scores) for scores in (one, other))
    shared = sorted(first.keys() & second.keys())
    if {part for _, part in shared} != set(metric.parts):
        return None
    before, after = (_drawn(metric, {key: held[key] for key in shared}) for held in (first, second))
    interval = _interval(after[1:] - before[1:])
    items, alone = ({item for item, _ in keys} for keys in (first, second))
    paired = Paired(float(after[0] - before[0]), *interval, len({item for item, _ in shared})) if interval else None
    return CombinedPair(float(before[0]), float(after[0]), paired, len(items - alone), len(alone - items))


def _readings(metric: Combined, scores: Sequence[Score]) -> Readings:
    return {
        ((each.subset, each.item_id), each.metric): (each.value, each.weight)
        for each in scores
        if each.metric in metric.parts and each.value is not None
    }


def _drawn(metric: Combined, readings: Readings) -> Vector:
    """The figure [1 + draws]: of all items, then of items drawn anew; not a number where a part has no item in a draw."""
    row = {item: at for at, item in enumerate(sorted({item for item, _ in readings}))}
    held = {name: np.zeros((len(row), 2)) for name in metric.parts}
    for (item, part), (value, weight) in readings.items():
        held[part][row[item]] = value * weight, weight
    drawn = np.concatenate([np.arange(len(row))[None], draws(len(row))])
    sums = {name: pairs[drawn].sum(1) for name, pairs in held.items()}
    with np.errstate(invalid="ignore"):
        return metric.combine({name: each[:, 0] / each[:, 1] for name, each in sums.items()})


def _interval(drawn: Vector) -> tuple[float, float] | None:
    """The middle 95 % of what is a number; None where half of it is none."""
    values = drawn[np.isfinite(drawn)]
    return interval_of(values) if len(values) > len(drawn) / 2 else None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What counts as best and as worst of a figure; what is beyond counts as either."""

    best: float
    worst: float

    def share(self, value: Vector) -> Vector:
        """0 at the worst to 1 at the best."""
        return np.clip((value - self.worst) / (self.best - self.worst), 0.0, 1.0)


AS = "as"
OPINIONS = {"aesthetic": 10.0, "musiq": 100.0, "maniqa": 1.0}
"""Opinion of pictures -> the end of its scale."""
BOUNDS: Mapping[str, Bounds] = {
    AS: Bounds(1, 0), "dino_identity": Bounds(1, 0), "fd_pair_clap": Bounds(0, 3), "kl_passt": Bounds(0, 4),
    "clap": Bounds(1, 0), "audiobox_ce": Bounds(10, 1), "audiobox_cu": Bounds(10, 1), "audiobox_pc": Bounds(1, 10),
    "audiobox_pq": Bounds(10, 1), "wer_sensevoice": Bounds(0, 1), "lse_c": Bounds(10, 0), "signed_desync_s": Bounds(0, 1),
}  # fmt: skip
"""Verse-Bench's twelve figures by their names here: AS, ID, FD, KL, CS, CE, CU, PC, PQ, WER, LSE-C, AV-A."""
PARTS = (
    (0.2, (AS, "dino_identity")),
    (0.2, ("fd_pair_clap", "kl_passt", "clap", "audiobox_ce", "audiobox_cu", "audiobox_pc", "audiobox_pq")),
    (0.1, ("wer_sensevoice", "lse_c")),
)
"""What the means of pictures, of sound, of words and lips count in the overall score."""
JOINT = 0.5
"""What the harmonic mean of CS and AV-A counts."""


def mean_opinion(means: Means) -> Vector:
    """AS: the mean of the three opinions of pictures, each as a share of its scale."""
    return np.asarray(np.mean([means[name] / end for name, end in OPINIONS.items()], axis=0))


def overall_score(means: Means) -> Vector:
    """Verse-Bench's overall score, 0 to 1: half the harmonic mean of CS and AV-A, the rest means of what concerns one side.

    Sound that is early has a negative AV-A and counts as perfect, as the owner computes it.
    """
    given = {AS: mean_opinion(means), **{name: means[name] for name in BOUNDS if name != AS}}
    share = {name: bounds.share(given[name]) for name, bounds in BOUNDS.items()}
    sound, timing = share["clap"], share["signed_desync_s"]
    joint = 2 * sound * timing / np.maximum(sound + timing, SMALLEST)
    return np.asarray(JOINT * joint + sum(part * np.mean([share[name] for name in of], axis=0) for part, of in PARTS))


OF_PARTS = "as its parts"
COMBINED: Mapping[Protocol, tuple[Combined, ...]] = {
    "versebench": (
        Combined(
            name=AS, doc="mean of three opinions of pictures, 0 to 1", better="higher", parts=tuple(OPINIONS),
            combine=mean_opinion, model="mean of aesthetic / 10, musiq / 100 and maniqa", decoder=OF_PARTS, crop=OF_PARTS,
        ),
        Combined(
            name="overall", doc="Verse-Bench's score of all its figures, 0 to 1", better="higher",
            parts=(*OPINIONS, *(name for name in BOUNDS if name != AS)), combine=overall_score,
            model="half CS with AV-A, 0.2 pictures, 0.2 sound, 0.1 words and lips, each between its bounds",
            decoder=OF_PARTS, crop=OF_PARTS,
        ),
    ),
}  # fmt: skip


def absent_parts(metric: Combined, figures: Sequence[Figure]) -> list[str]:
    """The parts that have no value."""
    return [
        name for name in metric.parts if not any(each.metric == name and each.value is not None for each in figures)
    ]
