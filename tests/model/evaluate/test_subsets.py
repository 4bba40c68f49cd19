"""Figures of sets that have parts: every item alike, or every part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.evaluate.evaluate import EvalOptions, evaluate
from model.evaluate.metric import Metric, SetMetric
from model.evaluate.protocols import Rules, of_subsets
from model.evaluate.records import EvalItem, EvalSet, Protocol, Reading

SIZES = {"set1": 3, "set2": 2}


@pytest.mark.parametrize(("protocol", "mean", "spread"), [("own", 0.6, 4.0), ("mova", 0.5, 1.5)])
def test_mova_takes_means_of_the_sets_parts(tmp_path: Path, protocol: Protocol, mean: float, spread: float) -> None:
    """Three samples of set1 measure 1 and lie at 0, 1 and 2; two of set2 measure 0 and lie at 3 and 4."""
    items: list[EvalItem] = []
    for subset, count in SIZES.items():
        (tmp_path / subset).mkdir()
        for number in range(count):
            at = len(items)
            (tmp_path / subset / f"{number}.wav").write_text(str(at))
            items.append(EvalItem(item_id=str(number), subset=subset))
    items.append(EvalItem(item_id="missing", subset="set2"))
    clap = Metric(
        name="clap", doc="clap", better="higher", model="m", crop="all",
        read=lambda case: Reading(float(case.item.subset == "set1")),
    )  # fmt: skip
    inception = SetMetric(
        name="is_panns", doc="spread", better="higher", model="m", crop="all", reads_recording=False,
        describe=lambda seen: np.array([float(seen.path.read_text())]), distance=lambda made, _: float(np.ptp(made)),
    )  # fmt: skip
    rules = Rules("r", of_subsets([clap], protocol), of_subsets([inception], protocol))
    options = EvalOptions(protocol, rules)
    report, scores = evaluate(
        EvalSet("s", "list", tuple(items)), tmp_path, tmp_path / "out", options, say=lambda _: None
    )
    of_items, of_sets = report.figures
    assert (of_items.value, of_sets.value) == (pytest.approx(mean), pytest.approx(spread))
    assert (of_items.num_items, of_items.num_missing) == (5, 1)
    crop = "all; mean over sets" if protocol == "mova" else "all"
    assert {each.provenance.crop for each in report.figures} == {crop}
    weights = {each.subset: each.weight for each in scores if each.value is not None}
    assert weights == pytest.approx({"set1": 1 / 3, "set2": 1 / 2} if protocol == "mova" else {"set1": 1, "set2": 1})
