"""Votes of a user study: who is preferred and how sure that is, whether sides were, and strengths of all systems together.

A vote is a line of JSON in the release's form: user_id, left_model, right_model, choice (left, right or tie), case_id; its
ours_side is not needed. Votes of one rater, and on one case, go together: intervals draw raters and cases, not votes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from model.evaluate.intervals import interval_of
from model.evaluate.metric import Vector
from schemas.errors import RecipeError

Choice = Literal["left", "right", "tie"]
DRAWS = 1_000
STRENGTH_DRAWS = 200
"""Of Bradley-Terry, which is fitted anew each time."""
BIAS_LEVEL = 0.01
"""Chance below which sides are said to matter."""
RIDGE = 1e-3
"""Pull of strengths towards 0: a system that never wins has a strength then, and others hardly feel it."""


@dataclass(frozen=True, slots=True)
class Vote:
    """What one rater said of one pair."""

    user_id: str
    case_id: str
    left_model: str
    right_model: str
    choice: Choice


@dataclass(frozen=True, slots=True)
class Preference:
    """Shares of votes for, between and against `first` when it met `second`, each with its interval."""

    first: str
    second: str
    num_votes: int
    win: float
    tie: float
    lose: float
    win_interval: tuple[float, float]
    lose_interval: tuple[float, float]
    lead_interval: tuple[float, float]
    """Of win less lose."""

    @property
    def preferred(self) -> str:
        """Who is surely preferred; nothing where nobody is."""
        low, high = self.lead_interval
        return self.first if low > 0 else self.second if high < 0 else ""


@dataclass(frozen=True, slots=True)
class SideBias:
    """How often the left one was chosen among votes that chose, and how likely votes are if sides do not matter."""

    num_votes: int
    left_share: float
    p_value: float
    log_odds: float
    """Of the left side for equal systems, from the fit of all votes."""

    @property
    def is_flagged(self) -> bool:
        """Whether sides seem to matter."""
        return self.p_value < BIAS_LEVEL


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What votes came to."""

    num_votes: int
    num_raters: int
    num_cases: int
    preferences: tuple[Preference, ...]
    side: SideBias
    strengths: Mapping[str, tuple[float, float, float]]
    """System -> Bradley-Terry strength in logits, mean 0, and the ends of its interval."""


def read_votes(path: Path) -> list[Vote]:
    """The votes in a file of JSON lines in the release's form. Raises RecipeError with the line of the first that is none."""
    votes = []
    for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            vote = Vote(*(str(told[name]) for name in Vote.__dataclass_fields__))  # type: ignore[arg-type]
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"{path}, line {at} is no vote: {error!r}.",
                remedy="A vote names rater, case, both systems and choice: see docs/evaluation.md.",
            ) from None
        if vote.choice not in get_args(Choice):
            raise RecipeError(f"{path}, line {at}: choice '{vote.choice}'.", remedy="Choices are left, right and tie.")
        votes.append(vote)
    if not votes:
        raise RecipeError(f"{path} holds no vote.", remedy="Give the votes of a study.")
    return votes


def score_votes(votes: Sequence[Vote], seed: int = 0) -> StudyResult:
    """Preferences of every pair that met, side bias, and strengths."""
    weights = _cluster_weights(votes, DRAWS, seed)
    models = sorted({name for vote in votes for name in (vote.left_model, vote.right_model)})
    met = {frozenset((vote.left_model, vote.right_model)) for vote in votes}
    preferences = [_preference(votes, weights, *pair) for pair in combinations(models, 2) if frozenset(pair) in met]
    fitted, _ = bradley_terry(votes, models)
    drawn = np.array([bradley_terry(votes, models, each)[0] for each in weights[:STRENGTH_DRAWS] if each.any()])
    ends = [interval_of(drawn[:, at]) for at in range(len(models))]
    return StudyResult(
        num_votes=len(votes),
        num_raters=len({vote.user_id for vote in votes}),
        num_cases=len({vote.case_id for vote in votes}),
        preferences=tuple(preferences),
        side=side_bias(votes, models),
        strengths={name: (float(fitted[at]), *ends[at]) for at, name in enumerate(models)},
    )


def _cluster_weights(votes: Sequence[Vote], num_draws: int, seed: int) -> Vector:
    """How often each vote counts [draws, votes] when raters and cases are both drawn with replacement."""
    random = np.random.default_rng(seed)
    weights = np.ones((num_draws, len(votes)))
    for names in ([vote.user_id for vote in votes], [vote.case_id for vote in votes]):
        known, of_vote = np.unique(names, return_inverse=True)
        times = random.multinomial(len(known), np.full(len(known), 1 / len(known)), size=num_draws)
        weights *= times[:, of_vote]
    return weights


def _preference(votes: Sequence[Vote], weights: Vector, first: str, second: str) -> Preference:
    outcomes = np.array([_outcome(vote, first, second) for vote in votes])
    is_theirs = ~np.isnan(outcomes)
    held, times = outcomes[is_theirs], weights[:, is_theirs]
    times = times[times.sum(axis=1) > 0]
    drawn = {sign: (times * (held == sign)).sum(axis=1) / times.sum(axis=1) for sign in (1, -1)}
    return Preference(
        first=first, second=second, num_votes=len(held), win=float(np.mean(held == 1)), tie=float(np.mean(held == 0)),
        lose=float(np.mean(held == -1)), win_interval=interval_of(drawn[1]), lose_interval=interval_of(drawn[-1]),
        lead_interval=interval_of(drawn[1] - drawn[-1]),
    )  # fmt: skip


def _outcome(vote: Vote, first: str, second: str) -> float:
    """1 where `first` was preferred to `second`, -1 the other way, 0 for a tie; NaN for other pairs."""
    if {vote.left_model, vote.right_model} != {first, second}:
        return np.nan
    if vote.choice == "tie":
        return 0.0
    chosen = vote.left_model if vote.choice == "left" else vote.right_model
    return 1.0 if chosen == first else -1.0


def side_bias(votes: Sequence[Vote], models: Sequence[str]) -> SideBias:
    """Whether the side helps to explain votes besides who was on it: likelihood ratio of strengths with and without it."""
    from scipy.stats import chi2

    num_left, num = sum(vote.choice == "left" for vote in votes), sum(vote.choice != "tie" for vote in votes)
    (with_side, least), (_, without) = (_fitted(votes, models, None, has_side=has_side) for has_side in (True, False))
    p_value = float(chi2.sf(max(0.0, 2 * (without - least)), df=1))
    return SideBias(num, num_left / num if num else 0.5, p_value, float(with_side[-1]))


def bradley_terry(
    votes: Sequence[Vote], models: Sequence[str], weights: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], float]:
    """(strengths in logits [models], mean 0; log-odds of the left side) of greatest likelihood; a tie is half a win each."""
    found, _ = _fitted(votes, models, weights, has_side=True)
    return found[:-1] - found[:-1].mean(), float(found[-1])


def _fitted(
    votes: Sequence[Vote], models: Sequence[str], weights: NDArray[np.float64] | None, *, has_side: bool
) -> tuple[NDArray[np.float64], float]:
    """(strengths and the side's log-odds [models + 1], negative log-likelihood there)."""
    from scipy.optimize import minimize

    place = {name: at for at, name in enumerate(models)}
    left = np.array([place[vote.left_model] for vote in votes])
    right = np.array([place[vote.right_model] for vote in votes])
    won = np.array([{"left": 1.0, "right": 0.0, "tie": 0.5}[vote.choice] for vote in votes])
    times = np.ones(len(votes)) if weights is None else weights

    def loss(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        strength, side = at[:-1], at[-1] * has_side
        lead = strength[left] - strength[right] + side
        chance = 1 / (1 + np.exp(-lead))
        value = float(np.sum(times * (np.logaddexp(0, lead) - won * lead))) + RIDGE * float(at @ at) / 2
        pull = times * (chance - won)
        slope = np.bincount(left, pull, len(models)) - np.bincount(right, pull, len(models))
        return value, np.append(slope, pull.sum() * has_side) + RIDGE * at

    found = minimize(loss, np.zeros(len(models) + 1), jac=True, method="L-BFGS-B")
    return found.x, float(found.fun)


def result_text(found: StudyResult) -> str:
    """The result as text."""
    lines = [f"{found.num_votes} votes of {found.num_raters} raters on {found.num_cases} cases", ""]
    for each in found.preferences:
        sure = f"{each.preferred} is preferred" if each.preferred else "no preference is sure"
        low, high = each.lead_interval
        lines.append(
            f"{each.first} against {each.second}: win {each.win:.1%}, tie {each.tie:.1%}, lose {each.lose:.1%} of "
            f"{each.num_votes}; lead {each.win - each.lose:+.1%} ({low:+.1%} .. {high:+.1%}): {sure}"
        )
    lines += ["", "Bradley-Terry strengths, logits:"]
    for name, (value, low, high) in sorted(found.strengths.items(), key=lambda each: -each[1][0]):
        lines.append(f"  {name}  {value:+.3f} ({low:+.3f} .. {high:+.3f})")
    side = found.side
    told = "BIASED: do not trust close results" if side.is_flagged else "no bias seen"
    lines += ["", f"left chosen in {side.left_share:.1%} of {side.num_votes} (p = {side.p_value:.2g}): {told}"]
    return "\n".join(lines)
