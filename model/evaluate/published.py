"""Figures that others have published, with their sources, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.evaluate.records import Figure
from schemas.recipe import parsed

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True, slots=True)
class PublishedFigure:
    """One number that somebody published."""

    protocol: str
    metric: str
    model: str
    value: float
    source: str


def published_figures() -> list[PublishedFigure]:
    """All that are known here."""
    return [
        PublishedFigure(each["protocol"], metric, each["model"], float(value), each["source"])
        for each in parsed(FILE.read_text(encoding="utf-8"))
        for metric, value in each["figures"].items()
    ]


def beside(figure: Figure) -> list[PublishedFigure]:
    """Those of the same metric of the same protocol; they compare only if `figure.provenance.is_as_published`."""
    if figure.provenance.protocol == "own":
        return []
    wanted = (figure.provenance.protocol, figure.metric)
    return [each for each in published_figures() if (each.protocol, each.metric) == wanted]
