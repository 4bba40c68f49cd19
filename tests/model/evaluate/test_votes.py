"""Studies: dealt evenly, scored as simulated raters voted, and a bias of sides is told from a preference."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import choix
import numpy as np
import pytest
from typer.testing import CliRunner

from model.cli import app
from model.evaluate.study import Trial, make_study, open_votes, plan_study
from model.evaluate.votes import Choice, Vote, bradley_terry, read_votes, score_votes, side_bias
from schemas.errors import RecipeError

CASES = [f"case_{at:02d}" for at in range(20)]
SYSTEMS = ("mova", "ours", "ovi")
PAIRS = [("mova", "ours"), ("mova", "ovi"), ("ours", "ovi")]
STRENGTH = {"ours": 1.0, "ovi": 0.0, "mova": 0.0}


def voted(raters: dict[str, tuple[Trial, ...]], side: float = 0.0, tie: float = 0.1, seed: int = 0) -> list[Vote]:
    """Votes of raters who follow `STRENGTH`, and the left side by `side` logits."""
    random = np.random.default_rng(seed)
    votes = []
    for user, trials in raters.items():
        for each in trials:
            chance = 1 / (1 + np.exp(-(STRENGTH[each.left] - STRENGTH[each.right] + side)))
            choice: Choice = "tie" if random.random() < tie else "left" if random.random() < chance else "right"
            votes.append(Vote(user, each.case_id, each.left, each.right, choice))
    return votes


@pytest.mark.parametrize(("raters", "per_rater"), [(20, 60), (10, 12), (7, 11)])
def test_trials_and_sides_are_dealt_evenly(raters: int, per_rater: int) -> None:
    dealt = plan_study(CASES, PAIRS, raters, per_rater, seed=3)
    trials = [each for given in dealt.values() for each in given]
    assert len({each.trial for each in trials}) == len(trials) == raters * per_rater
    shown = Counter((each.case_id, *sorted((each.left, each.right))) for each in trials)
    assert max(shown.values()) - min(shown.values() if len(shown) == 60 else [0]) <= 1
    turned = Counter((each.case_id, *sorted((each.left, each.right)), each.left < each.right) for each in trials)
    assert all(abs(turned[*key, True] - turned[*key, False]) <= 1 for key in shown)
    for given in dealt.values():
        assert len({(each.case_id, frozenset((each.left, each.right))) for each in given}) == per_rater
    assert plan_study(CASES, PAIRS, raters, per_rater, seed=3) == dealt
    assert plan_study(CASES, PAIRS, raters, per_rater, seed=4) != dealt


def test_a_preference_is_found_and_no_other() -> None:
    found = score_votes(voted(plan_study(CASES, PAIRS, 20, 60, seed=0)))
    assert {(each.first, each.second): each.preferred for each in found.preferences} == {
        ("mova", "ours"): "ours",
        ("mova", "ovi"): "",
        ("ours", "ovi"): "ours",
    }
    assert not found.side.is_flagged
    value, low, high = found.strengths["ours"]
    assert low < value < high
    assert value - found.strengths["ovi"][0] == pytest.approx(1.0 * 0.9, abs=0.3), "a tie is half a win"


def test_a_side_bias_is_flagged_and_is_no_preference() -> None:
    found = score_votes(voted(plan_study(CASES, PAIRS, 20, 60, seed=0), side=0.8))
    assert found.side.is_flagged
    assert found.side.log_odds == pytest.approx(0.8 * 0.9, abs=0.25)
    assert [each.preferred for each in found.preferences] == ["ours", "", "ours"]


def test_sides_are_seldom_accused_wrongly() -> None:
    dealt = plan_study(CASES, PAIRS, 6, 10, seed=0)
    values = [side_bias(voted(dealt, tie=0.2, seed=seed), SYSTEMS).p_value for seed in range(200)]
    assert 0.005 <= np.mean(np.array(values) < 0.05) <= 0.1
    assert np.mean(np.array(values) < 0.5) == pytest.approx(0.5, abs=0.12)


def test_votes_of_one_rater_go_together() -> None:
    """Ten copies of a vote are no ten raters: intervals stay as wide."""
    dealt = plan_study(CASES, [("ours", "ovi")], 4, 20, seed=1)
    few = voted(dealt, seed=2)
    (once,) = score_votes(few).preferences
    (often,) = score_votes(few * 10).preferences
    assert often.lead_interval == pytest.approx(once.lead_interval, abs=0.05)
    low, high = once.lead_interval
    assert high - low > 2 * 1.96 * np.sqrt(1 / len(few)) * 0.5


def test_strengths_agree_with_another_implementation() -> None:
    random = np.random.default_rng(5)
    votes = [
        Vote("u", f"c{at}", "ac"[at % 2], "cb"[at % 2], "left" if random.random() < 0.7 else "right")
        for at in range(200)
    ] + [Vote("u", f"c{at}", "b", "c", "left" if at % 3 else "right") for at in range(60)]
    turned = [
        Vote(
            vote.user_id, vote.case_id, vote.right_model, vote.left_model, "right" if vote.choice == "left" else "left"
        )
        for vote in votes
    ]
    both = votes + turned  # every pair both ways round: no side is left to explain anything
    strengths, side = bradley_terry(both, ["a", "b", "c"])
    place = {"a": 0, "b": 1, "c": 2}
    wins = [
        (place[v.left_model], place[v.right_model])
        if v.choice == "left"
        else (place[v.right_model], place[v.left_model])
        for v in both
    ]
    assert side == pytest.approx(0, abs=1e-3)
    assert strengths == pytest.approx(choix.opt_pairwise(3, wins), abs=5e-3)


def test_the_release_form_is_read(tmp_path: Path) -> None:
    line = {
        "user_id": "user_01",
        "left_model": "ovi",
        "right_model": "nava",
        "choice": "right",
        "ours_side": "right",
        "case_id": "7",
    }
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(line) + "\n\n" + json.dumps(line | {"choice": "tie"}) + "\n")
    assert read_votes(path) == [
        Vote("user_01", "7", "ovi", "nava", "right"),
        Vote("user_01", "7", "ovi", "nava", "tie"),
    ]
    for wrong, said in [({"choice": "both"}, "line 3: choice 'both'"), ({"case_id": None}, None)]:
        path.write_text(path.read_text().split("\n")[0] + "\n\n" + json.dumps(line | wrong) + "\n")
        if said:
            with pytest.raises(RecipeError, match=said):
                read_votes(path)
    path.write_text("{}\n")
    with pytest.raises(RecipeError, match="line 1 is no vote"):
        read_votes(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("systems")
    for name in SYSTEMS:
        (root / name).mkdir()
        for case in CASES:
            (root / name / f"{case}.mp4").write_bytes(f"{name} {case}".encode())
    return {name: root / name for name in SYSTEMS}


def test_a_study_is_blind_and_its_votes_are_understood(folders: dict[str, Path], tmp_path: Path) -> None:
    plan = make_study(folders, tmp_path / "study", 20, 20)
    page = (tmp_path / "study" / "study.html").read_text()
    assert not [name for name in (*SYSTEMS, *CASES) if name in page]
    for told, blind in plan.media.items():
        assert (tmp_path / "study" / "media" / blind).read_bytes().decode() == told.replace("/", " ")
    lines = [
        json.dumps({"user_id": user, "trial": each.trial, "choice": "left" if each.left == "ours" else "right"})
        for user, trials in plan.raters.items()
        for each in trials
    ]
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join([lines[0].replace("right", "tie").replace("left", "tie"), *lines]) + "\n")
    votes = open_votes([path], tmp_path / "study")
    assert len(votes) == 20 * 60, "the last vote on a trial counts"
    assert all((vote.choice == "left") == (vote.left_model == "ours") for vote in votes)
    answer = CliRunner().invoke(app, ["study", "score", str(path), "--study", str(tmp_path / "study")])
    assert answer.exit_code == 0, answer.output
    assert "ours against ovi: win 100.0%" in answer.output


def test_too_few_cases_are_said(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="20 samples have the same name in all folders, 30 are wanted"):
        make_study(folders, tmp_path / "study", 30, 20)
    assert not (tmp_path / "study").exists()
