"""What evaluation is about: items of a set, samples made for them, scores, and figures that say how they came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from schemas.measured import MeasuredFile

State = Literal["measured", "missing", "failed", "unmeasured"]
"""A score: measured; its sample is missing; the sample cannot be measured at all; this metric found nothing to measure."""
Better = Literal["higher", "lower", "neither"]
Protocol = Literal["own", "versebench", "mova", "seedtts"]


@dataclass(frozen=True, slots=True)
class Utterance:
    """What one speaker says at a time."""

    speaker: str
    """Any name, the same for all that one of them says."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalItem:
    """One thing to generate, and what is known of it."""

    item_id: str
    """Name of the sample's file, without ending."""
    subset: str = ""
    """Part of the set, such as set1; also the folder of its samples, where they lie in folders."""
    prompt: str | None = None
    """Caption that the sample is made from."""
    text: str | None = None
    """What is to be said."""
    language: str | None = None
    """ISO 639-1 code of `text`."""
    turns: tuple[Utterance, ...] = ()
    """Who is to say what, in order, where that is known; `text` is all of it."""
    sounds: tuple[str, ...] = ()
    """What else is to be heard, in words."""
    voice: Path | None = None
    """Recording of the voice that is to speak."""
    first_frame: Path | None = None
    reference: Path | None = None
    """A real recording of the item."""


@dataclass(frozen=True, slots=True)
class EvalSet:
    """What is to be generated."""

    name: str
    form: str
    """How it is written down: versebench, seedtts, javis, manifest or folder."""
    items: tuple[EvalItem, ...]


@dataclass(frozen=True, slots=True)
class EvalCase:
    """An item with what was made for it, and what was measured of both."""

    item: EvalItem
    sample: Path | None
    """None: missing."""
    made: MeasuredFile | None = None
    reference: MeasuredFile | None = None
    voice: MeasuredFile | None = None
    failure: str = ""
    """Why nothing can be measured of the sample."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a metric says of one case: a value, or why there is none."""

    value: float | None
    weight: float = 1.0
    """Of the item in the figure, such as words to say; 1 where every item counts alike."""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A reading with the item and the metric it is of."""

    item_id: str
    subset: str
    metric: str
    state: State
    value: float | None = None
    weight: float = 1.0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How a figure comes about: two figures compare only where all of this is the same."""

    protocol: Protocol
    model: str
    """Network, engine or formula."""
    sha256: str = ""
    """Of the weights, or of versions and settings of the stages that measured; empty for a formula."""
    decoder: str = ""
    """Who decodes picture and sound: part of the metric."""
    crop: str = ""
    """What of picture and sound is looked at."""
    is_as_published: bool = False
    """Whether model, crop and arithmetic are those of the protocol's owner, so that published figures may stand beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a report."""

    metric: str
    unit: str
    better: Better
    value: float | None
    low: float | None
    """2.5 % end of the interval over items."""
    high: float | None
    num_items: int
    """Measured ones, which the value is of."""
    num_missing: int = 0
    num_failed: int = 0
    num_unmeasured: int = 0
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an evaluation came to."""

    set_name: str
    set_form: str
    protocol: Protocol
    generated: str
    num_items: int
    missing: tuple[str, ...]
    """Items without a sample."""
    failed: Mapping[str, str]
    """Item -> why its sample cannot be measured."""
    ambiguous: Mapping[str, str] = field(default_factory=dict)
    """Item -> which of several samples was taken."""
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    """KEY=VALUE by which stages measured otherwise than they do by themselves."""
