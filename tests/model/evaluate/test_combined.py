"""Verse-Bench's AS and overall score, by scores whose combination is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from model.evaluate.combined import AS, BOUNDS, COMBINED, OPINIONS, combined_figure, overall_score
from model.evaluate.evaluate import EvalOptions, evaluate
from model.evaluate.metric import Metric
from model.evaluate.protocols import Rules
from model.evaluate.records import EvalItem, EvalSet, Reading, Report, Score
from model.evaluate.report import compare, write_report

AS_OF_THREE, OVERALL = COMBINED["versebench"]


def means(*, is_best: bool, **others: float) -> Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """Every part at its best or worst, but for some."""
    told = {name: bounds.best if is_best else bounds.worst for name, bounds in BOUNDS.items() if name != AS}
    told |= {name: end * is_best for name, end in OPINIONS.items()}
    return {name: np.array([value], float) for name, value in (told | others).items()}


def test_the_best_is_one_and_the_worst_is_none() -> None:
    assert overall_score(means(is_best=True)) == pytest.approx([1])
    assert overall_score(means(is_best=False)) == pytest.approx([0])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"clap": 0.5}, 1 - 0.5 * (1 - 2 * 0.5 / 1.5) - 0.2 * 0.5 / 7),
        ({"signed_desync_s": 0.5}, 1 - 0.5 * (1 - 2 * 0.5 / 1.5)),
        ({"signed_desync_s": -0.5}, 1.0),
        ({"signed_desync_s": 1.5}, 0.5),
        ({"musiq": 40.0}, 1 - 0.2 * 0.6 / 3 / 2),
        ({"audiobox_pc": 10.0}, 1 - 0.2 / 7),
        ({"wer_sensevoice": 0.2}, 1 - 0.1 * 0.2 / 2),
        ({"lse_c": 7.0}, 1 - 0.1 * 0.3 / 2),
    ],
)
def test_each_part_counts_as_much_as_its_owner_says(changed: Mapping[str, float], expected: float) -> None:
    assert overall_score(means(is_best=True, **changed)) == pytest.approx([expected])


def metric_of(name: str, values: Mapping[str, float]) -> Metric:
    """A metric that knows its values."""
    return Metric(
        name=name, doc=name, better="higher", model=name, sha256=name, crop="",
        read=lambda case: Reading(values.get(case.item.item_id), why="it has none"),
    )  # fmt: skip


def test_opinions_make_up_as_and_what_the_overall_score_lacks_is_named(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    for name in names[:2]:
        (tmp_path / f"{name}.wav").write_text(name)
    items = tuple(EvalItem(item_id=name) for name in names)
    read = {"aesthetic": {"a": 4.0, "b": 6.0}, "musiq": {"a": 60.0}, "maniqa": {"a": 0.2, "b": 0.6}}
    metrics = tuple(metric_of(name, values) for name, values in read.items())
    options = EvalOptions("versebench", Rules("r", metrics, combined=COMBINED["versebench"]))
    report, scores = evaluate(EvalSet("s", "list", items), tmp_path, tmp_path / "out", options, say=lambda _: None)
    figure = report.figures[-1]
    assert (figure.metric, figure.value) == ("as", pytest.approx((0.5 + 0.6 + 0.4) / 3))
    assert (figure.num_items, figure.num_missing, figure.num_unmeasured) == (2, 1, 1)
    assert figure.provenance.sha256 == "aesthetic,musiq,maniqa"
    assert any(note.startswith("no overall, which needs dino_identity, fd_pair_clap") for note in report.notes)
    assert combined_figure(AS_OF_THREE, report.figures[:2], scores, "versebench") is None


def test_the_interval_draws_items_with_all_their_parts(tmp_path: Path) -> None:
    """Opinions that cancel in every item leave nothing to chance, though each of them moves."""
    report, _ = evaluate_opinions(tmp_path, up=0.0)
    *alone, figure = report.figures
    assert alone[0].high - alone[0].low > 1
    assert (figure.low, figure.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_two_reports_are_compared_by_what_both_have(tmp_path: Path) -> None:
    for name, up in (("one", 0.0), ("better", 0.3), ("same", 0.0)):
        write_report(*evaluate_opinions(tmp_path / name, up), tmp_path / name)
    found = {
        name: {each.metric: each for each in compare(tmp_path / "one", tmp_path / name)} for name in ("better", "same")
    }
    better = found["better"]["as"]
    assert (better.first, better.second) == (pytest.approx(0.5), pytest.approx(0.6))
    assert (better.verdict, better.found.num_items) == ("better", 20)
    assert (better.found.low, better.found.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert found["same"]["as"].verdict == "no difference is sure"


def evaluate_opinions(folder: Path, up: float) -> tuple[Report, list[Score]]:
    """Twenty items whose opinions cancel but for `up`, which is on the third."""
    items = tuple(EvalItem(item_id=str(number)) for number in range(20))
    (folder / "made").mkdir(parents=True)
    for item in items:
        (folder / "made" / f"{item.item_id}.wav").write_text(item.item_id)
    rising = {item.item_id: 10 * at / 20 for at, item in enumerate(items)}
    parts = (rising, {name: 100 - 10 * value for name, value in rising.items()}, dict.fromkeys(rising, 0.5 + up))
    metrics = tuple(metric_of(name, values) for name, values in zip(OPINIONS, parts, strict=True))
    options = EvalOptions("versebench", Rules("r", metrics, combined=(AS_OF_THREE,)))
    return evaluate(EvalSet("s", "list", items), folder / "made", folder, options, say=lambda _: None)
