"""A pool as files: written, read again, and told as text."""

from __future__ import annotations

import yaml

from pipeline.ask.clips import ClipLists
from pipeline.ask.queries import US_PER_HOUR, Run
from pipeline.pools.choose import Selection, choose
from pipeline.pools.pool_rules import PoolRules
from pipeline.store import RunDir
from schemas.errors import RecipeError
from schemas.pool import CLIPS_FILE, RULES_FILE, clips_bytes
from schemas.recipe import parsed, validated


def select(run: Run, out: str, rules: PoolRules | None = None) -> Selection:
    """Makes or renews a pool: `rules`, or where none are given those that it has.

    Raises RecipeError where there are neither, and where `out` holds something else; LedgerError for unknown fields.
    """
    folder = RunDir(out)
    has_rules = folder.exists(RULES_FILE)
    if not has_rules and folder.entries("."):
        raise RecipeError(f"{out} is no pool, and not empty.", remedy="Give another --out.")
    if rules is None:
        rules = read_rules(folder)
    found = choose(ClipLists(run), rules)
    if not len(found.clips):
        raise RecipeError(
            f"no clip of {run.dir.uri} fulfils {', '.join(rules.query) or 'anything'}.", remedy="Ask for less."
        )
    folder.write(CLIPS_FILE, clips_bytes(found.clips["clip_id"].to_arrow()))
    told = {
        "rules": rules.model_dump(mode="json"),
        "run": run.dir.uri,
        "num_clips": len(found.clips),
        "hours": round(found.us / US_PER_HOUR, 6),
    }
    folder.write(RULES_FILE, yaml.safe_dump(told, sort_keys=False, allow_unicode=True).encode())
    return found


def read_rules(folder: RunDir) -> PoolRules:
    """The rules of a pool. Raises RecipeError where there is none."""
    if not folder.exists(RULES_FILE):
        raise RecipeError(f"{folder.uri} has no rules yet.", remedy="Give --rules, --query, --hours or --balance.")
    told = parsed(folder.read(RULES_FILE))
    return validated(PoolRules, told.get("rules") if isinstance(told, dict) else told, folder.url(RULES_FILE), "rules")
