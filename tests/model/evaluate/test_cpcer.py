"""cpCER: known answers, all pairings tried out, and what a set says of who speaks."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.evaluate.cpcer import CPCER, read_cpcer, speaker_errors
from model.evaluate.protocols import PROTOCOLS
from model.evaluate.records import EvalCase, EvalItem, Reading, Utterance
from model.evaluate.sets import read_set, tagged_turns
from schemas.errors import RecipeError
from schemas.measured import MeasuredFile

ANN, BEN = "Open the box with care.", "It is empty."
ITEM = EvalItem(item_id="a", text=f"{ANN} {BEN}", turns=(Utterance("ann", ANN), Utterance("ben", BEN)), language="en")
NUM = len("open the box with care") + len("it is empty")


def heard(*said: tuple[str | None, str], item: EvalItem = ITEM, engine: str | None = "whisperx") -> EvalCase:
    """A sample of one clip in which that was heard."""
    spans = [{"speaker": speaker, "text": text} for speaker, text in said]
    made = MeasuredFile(
        uri="a.wav", made_by="m", asset={"transcribe": {"engine": engine}}, clips=({"clip": {"spans": spans}},)
    )
    return EvalCase(item, Path("a.wav"), made)


def test_known_answers() -> None:
    assert read_cpcer(heard(("A", ANN), ("B", BEN))) == Reading(0, NUM)
    assert read_cpcer(heard(("B", ANN), ("A", BEN))) == Reading(0, NUM), "labels are no names"
    assert read_cpcer(heard(("A", BEN), ("B", ANN))) == Reading(0, NUM), "nor is their order"
    assert read_cpcer(heard(("A", "Open the box"), ("B", BEN), ("A", "with care"))) == Reading(0, NUM)
    assert read_cpcer(heard(("A", "Open the bx with care"), ("B", BEN))) == Reading(1 / NUM, NUM)
    one = read_cpcer(heard(("A", ANN), ("A", BEN)))
    assert one.value == pytest.approx((len(" it is empty") + len("it is empty")) / NUM), (
        "too much of one, nothing of one"
    )
    assert read_cpcer(heard(("A", ANN), ("B", BEN), (None, "box"))).value == pytest.approx(3 / NUM)
    assert read_cpcer(heard()) == Reading(1, NUM), "silence is all characters missing"
    assert read_cpcer(heard(engine=None)).why == "it has no sound to listen to"
    made = heard().made
    assert made is not None
    assert read_cpcer(EvalCase(ITEM, Path("a.wav"), replace(made, clips=()))).why == "it has no clip"
    spoken = (Utterance("甲", "今天，天气好。"), Utterance("乙", "是的。"))
    chinese = EvalItem(item_id="c", text="今天，天气好。是的。", turns=spoken)
    assert read_cpcer(heard(("A", "今天天氣好"), ("B", "是的"), item=chinese)) == Reading(0, 7)


@pytest.mark.parametrize("seed", range(20))
def test_no_pairing_has_fewer_errors(seed: int) -> None:
    random = np.random.default_rng(seed)
    wanted, made = (
        ["".join(random.choice(list("abc "), random.integers(1, 12))).strip() for _ in range(random.integers(1, 5))]
        for _ in range(2)
    )
    num = max(len(wanted), len(made))
    rows, columns = (texts + [""] * (num - len(texts)) for texts in (wanted, made))
    tried = [sum(map(levenshtein, rows, order)) for order in permutations(columns)]
    assert speaker_errors(wanted, made) == (min(tried), sum(map(len, wanted)))


def levenshtein(one: str, other: str) -> int:
    """Fewest changes, by the table of all prefixes."""
    row = list(range(len(other) + 1))
    for at, left in enumerate(one, start=1):
        before, row[0] = row[0], at
        for to, right in enumerate(other, start=1):
            before, row[to] = row[to], min(row[to] + 1, row[to - 1] + 1, before + (left != right))
    return row[-1]


def test_pairings_agree_with_another_implementation() -> None:
    """What `meeteval.wer.cp_word_error_rate` of meeteval 0.4.3 says of the same, a character a word, run once by hand."""
    told = [
        (["hello there", "yes"], ["yes", "helo there", "uh"]),
        (["aab", "ab", "ba"], ["abab"]),
        (["xyz"], ["zyx", "x"]),
    ]
    assert [speaker_errors(*each) for each in told] == [(3, 14), (5, 7), (3, 3)]


def test_it_is_of_items_with_several_speakers_of_two_protocols() -> None:
    assert CPCER.applies(ITEM)
    assert not CPCER.applies(EvalItem(item_id="b", text="Well.", turns=(Utterance("ann", "Well."),)))
    assert not CPCER.applies(EvalItem(item_id="c", text="Well."))
    assert [name for name, rules in PROTOCOLS.items() if CPCER in rules.metrics] == ["own", "mova"]


def test_sets_say_who_says_what(tmp_path: Path) -> None:
    turns = [{"speaker": "ann", "text": ANN, "start": 0.4}, {"speaker": "ben", "text": BEN}]
    known = ITEM.turns

    def listed(rows: list[dict[str, Any]]) -> Path:
        (tmp_path / "list.json").write_text(json.dumps(rows))
        return tmp_path / "list.json"

    first, second = read_set(listed([{"id": "a", "turns": turns}, {"id": "b", "speech": "Well.", "turns": []}])).items
    assert (first.turns, first.text) == (known, f"{ANN} {BEN}")
    assert (second.turns, second.text) == ((), "Well.")
    with pytest.raises(RecipeError, match="item a: a turn without speaker or text"):
        read_set(listed([{"id": "a", "turns": [*turns, {"speaker": "ann"}]}]))
    (tmp_path / "set").mkdir()
    truth = {"transcript": f"{ANN} {BEN}", "speaker_turns": turns, "language": "en"}
    item = {"path": "two.mp4", "probe": {"streams": [1]}, "ground_truth": truth}
    (tmp_path / "set" / "manifest.json").write_text(json.dumps({"items": [item]}))
    assert read_set(tmp_path / "set").items[0].turns == known
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.wav").touch()
    (tmp_path / "plain" / "a.txt").write_text(f"[S01]{ANN}[S02] {BEN}\n")
    (plain,) = read_set(tmp_path / "plain").items
    assert [(turn.speaker, turn.text) for turn in plain.turns] == [("S01", ANN), ("S02", BEN)]
    assert plain.text == f"{ANN} {BEN}"
    assert tagged_turns(ANN) == ()
