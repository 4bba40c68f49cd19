"""Whether what was trained on was held against the set that is evaluated: the record of `nava-curate decontaminate`, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import yaml

from schemas.arrow_file import read_facts, read_table
from schemas.errors import RecipeError, ShardError
from schemas.held_against import CONTAMINATED, WAYS, HeldAgainst, held_against
from schemas.pool import CLIPS_FILE, RULES_FILE, clips_in

UNKNOWN = (
    "whether what was trained on holds items of this set is not known: name the runs or pools with --trained-on, after "
    "nava-curate decontaminate RUN --against SET"
)


def contamination_notes(given: Path, trained_on: Sequence[Path]) -> list[str]:
    """A sentence for each run or pool that was trained on. Raises RecipeError for a folder that is neither."""
    return [_note(given.absolute(), folder) for folder in trained_on] or [UNKNOWN]


def _note(given: Path, folder: Path) -> str:
    run, in_pool = _run_of(folder)
    path = run / CONTAMINATED
    try:
        facts, rows = (read_facts(path), read_table(path).to_pylist()) if path.is_file() else ({}, [])
    except pa.ArrowInvalid as error:
        raise RecipeError(f"{path} is no record of decontamination: {error}.", remedy="Decontaminate again.") from error
    known = {each.name: each for each in held_against(facts)}
    ours = [each for each in known.values() if _is_of(each, given)]
    if not ours:
        others = sorted({*known, *(row["set"] for row in rows)})
        told = f"was held against {', '.join(others)}, not against this set" if others else "was held against no set"
        return f"trained on {folder}, which {told}: whether it holds items of this one is not known"
    names, compared = {each.name for each in ours}, {way for each in ours for way in each.ways}
    ways, lacking = ([way for way in WAYS if (way in compared) is told] for told in (True, False))
    by = ", ".join(ways) + (f" and not by {', '.join(lacking)}" if lacking else "")
    whole = any(_is_whole(each, given) for each in ours)
    what = "this set" if whole else f"a part of this set alone, {', '.join(sorted(names))},"
    near = [row for row in rows if row["set"] in names and (in_pool is None or row["clip_id"] in in_pool)]
    num = len({row["clip_id"] for row in near})
    found = ", ".join(f"{way} {count}" for way, count in sorted(Counter(row["by"] for row in near).items()))
    where = (
        "clips of the pool"
        if in_pool is not None
        else "clips of the run, which pools leave out unless asked to keep them,"
    )
    of_these = f" ({found})" if found else ""
    return f"trained on {folder}, which was held against {what} by {by}: {num} {where} are near an item{of_these}"


def _run_of(folder: Path) -> tuple[Path, set[str] | None]:
    """(the run of a run or pool, the pool's clips or None for a whole run)."""
    if not (folder / RULES_FILE).is_file():
        if not (folder / "recipe.yaml").is_file():
            raise RecipeError(
                f"{folder} is neither a run nor a pool.",
                remedy="Give --trained-on a folder that nava-curate run or select wrote.",
            )
        return folder, None
    told = yaml.safe_load((folder / RULES_FILE).read_text(encoding="utf-8"))
    try:
        return Path(told["run"]), set(
            clips_in((folder / CLIPS_FILE).read_bytes(), str(folder / CLIPS_FILE)).to_pylist()
        )
    except (KeyError, TypeError, OSError, ShardError) as error:
        raise RecipeError(f"{folder} is no whole pool: {error}.", remedy="Select it again.") from error


def _home(given: Path) -> Path:
    return given if given.is_dir() else given.parent


def _is_whole(held: HeldAgainst, given: Path) -> bool:
    """Whether a set held against is the one evaluated, or a folder above it."""
    return any(_home(given).is_relative_to(each) or given == Path(each) for each in held.places)


def _is_of(held: HeldAgainst, given: Path) -> bool:
    """The same, or a part of it."""
    return _is_whole(held, given) or any(Path(each).is_relative_to(_home(given)) for each in held.places)
