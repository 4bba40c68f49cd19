"""A report as one page that opens from disk: figures with intervals and provenance, and samples to play, worst first."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from model.evaluate.published import beside
from model.evaluate.records import EvalItem, Report, Score
from schemas.files import write_whole

PAGE = Path(__file__).with_name("page.html")
PLACE = "/*REPORT*/"
"""Stands in the page where its data go."""


def write_page(report: Report, scores: Sequence[Score], samples: Mapping[EvalItem, Path], out: Path) -> None:
    """Writes report.html into `out`. Samples stay where they are: the page has their paths, relative to itself."""
    items = [
        {
            "id": item.item_id,
            "subset": item.subset,
            "text": item.text,
            "prompt": item.prompt,
            "file": os.path.relpath(samples[item], out) if item in samples else None,
        }
        for item in samples
    ]
    published = {each.metric: [asdict(one) for one in beside(each)] for each in report.figures}
    told = {
        "report": asdict(report),
        "items": items,
        "scores": [asdict(each) for each in scores],
        "published": {metric: each for metric, each in published.items() if each},
    }
    data = json.dumps(told, ensure_ascii=False).replace("</", "<\\/")
    write_whole(out / "report.html", PAGE.read_text(encoding="utf-8").replace(PLACE, data).encode())
