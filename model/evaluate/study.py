"""Makes a user study: pairs of samples without names, sides dealt evenly, an order for each rater, one page that works from disk.

study/  study.html  media/NAME.mp4  key.json (which sample is whose: not for raters)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from model.evaluate.sets import PICTURE_SUFFIXES
from model.evaluate.votes import Choice, Vote, read_votes
from schemas.errors import RecipeError
from schemas.files import whole_dir
from schemas.ids import digest

PAGE = Path(__file__).with_name("study.html")
PLACE = "/*STUDY*/"
"""Stands in the page where its data go."""
KEY = "key.json"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a rater is shown: two files of one case. `left` and `right` are names of systems."""

    trial: str
    case_id: str
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """Which samples are shown to whom, and in which order."""

    seed: int
    systems: tuple[str, ...]
    cases: tuple[str, ...]
    raters: Mapping[str, tuple[Trial, ...]]
    media: Mapping[str, str]
    """SYSTEM/CASE -> name of its file in the study."""


def plan_study(
    cases: Sequence[str], pairs: Sequence[tuple[str, str]], num_raters: int, num_per_rater: int, seed: int
) -> dict[str, tuple[Trial, ...]]:
    """Rater -> trials. All trials are shown equally often, give or take one, every pair as often either way round.

    Every rater gets `num_per_rater` different trials in an order drawn for them. Raises RecipeError for more than there are.
    """
    all_trials = [(case, pair) for case in cases for pair in pairs]
    if not 0 < num_per_rater <= len(all_trials):
        raise RecipeError(
            f"{num_per_rater} trials for a rater, of {len(all_trials)} there are.", remedy="Give fewer, or more cases."
        )
    random = np.random.default_rng(seed)
    order = random.permutation(len(all_trials))
    shown = np.zeros(len(all_trials), int)
    found: dict[str, tuple[Trial, ...]] = {}
    at = 0
    for rater in range(1, num_raters + 1):
        mine = []
        for _ in range(num_per_rater):
            which = int(order[at % len(all_trials)])
            case, pair = all_trials[which]
            turned = bool((shown[which] + np.flatnonzero(order == which)[0]) % 2)
            left, right = reversed(pair) if turned else pair
            mine.append(Trial(digest(seed, rater, case, *pair), case, left, right))
            shown[which] += 1
            at += 1
        user = f"user_{rater:02d}"
        found[user] = tuple(mine[each] for each in random.permutation(len(mine)))
    return found


def make_study(
    systems: Mapping[str, Path], out: Path, num_cases: int, num_raters: int, num_per_rater: int = 0, seed: int = 0
) -> StudyPlan:
    """Writes the study of `systems`, name -> folder of samples, over cases that all of them have.

    `num_per_rater` 0 shows everything to everybody. Raises RecipeError for fewer than two systems or cases in common.
    """
    if len(systems) < 2:
        raise RecipeError("a study compares two systems and more.", remedy="Give --system NAME=FOLDER for each.")
    there = {name: dict(_videos(folder)) for name, folder in systems.items()}
    common = sorted(set.intersection(*(set(each) for each in there.values())))
    if len(common) < num_cases:
        raise RecipeError(
            f"{len(common)} samples have the same name in all folders, {num_cases} are wanted.",
            remedy="Give fewer --cases, or generate what is missing.",
        )
    chosen = sorted(np.random.default_rng(seed).choice(common, num_cases, replace=False).tolist())
    pairs = list(combinations(sorted(systems), 2))
    raters = plan_study(chosen, pairs, num_raters, num_per_rater or num_cases * len(pairs), seed)
    media = {
        f"{name}/{case}": digest(seed, name, case) + there[name][case].suffix.lower()
        for name in systems
        for case in chosen
    }
    plan = StudyPlan(seed, tuple(sorted(systems)), tuple(chosen), raters, media)
    with whole_dir(out) as folder:
        (folder / "media").mkdir()
        for told, blind in media.items():
            name, _, case = told.partition("/")
            shutil.copyfile(there[name][case], folder / "media" / blind)
        (folder / KEY).write_text(json.dumps(asdict(plan), indent=1) + "\n", encoding="utf-8")
        (folder / "study.html").write_text(_page(plan), encoding="utf-8")
    return plan


def _videos(folder: Path) -> Iterator[tuple[str, Path]]:
    if not folder.is_dir():
        raise RecipeError(f"{folder} is no folder.", remedy="Give the folder with a system's samples.")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURE_SUFFIXES:
            yield path.relative_to(folder).with_suffix("").as_posix(), path


def _page(plan: StudyPlan) -> str:
    """The page, which knows files and trials and no names of systems."""
    shown = {
        user: [
            {
                "trial": each.trial,
                "left": plan.media[f"{each.left}/{each.case_id}"],
                "right": plan.media[f"{each.right}/{each.case_id}"],
            }
            for each in trials
        ]
        for user, trials in plan.raters.items()
    }
    return PAGE.read_text(encoding="utf-8").replace(PLACE, json.dumps(shown).replace("</", "<\\/"))


def open_votes(paths: Sequence[Path], study: Path | None = None) -> list[Vote]:
    """Votes of the release's form, or, with the study they belong to, those that its page gave: trial and choice.

    Of several votes of one rater on one trial the last counts. Raises RecipeError for trials that the study has not.
    """
    if study is None:
        return [vote for path in paths for vote in read_votes(path)]
    told = json.loads((study / KEY).read_text(encoding="utf-8"))
    trials = {each["trial"]: (user, Trial(**each)) for user, given in told["raters"].items() for each in given}
    found: dict[str, Vote] = {}
    for path in paths:
        for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            vote = json.loads(line)
            if vote.get("trial") not in trials:
                raise RecipeError(
                    f"{path}, line {at} is of no trial of {study}.", remedy="Give the votes of this study."
                )
            user, trial = trials[vote["trial"]]
            choice: Choice = vote["choice"]
            found[trial.trial] = Vote(user, trial.case_id, trial.left, trial.right, choice)
    if not found:
        raise RecipeError("there is no vote in these files.", remedy="Give the files that raters saved from the page.")
    return list(found.values())
