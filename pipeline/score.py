"""Measures single files with chosen stages, without gates, run folder or ledger: `nava-curate score`.

Every file is measured to the end, and what was measured is a line of JSON (`schemas.measured`), written when the file is done:
a command that was stopped goes on with what is missing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import stages
from pipeline.config import Recipe, parse_recipe
from pipeline.execute.here import here
from pipeline.execute.lease import Lease
from pipeline.ledger import structs_of
from pipeline.plan import Plan, make_plan
from pipeline.store import RunDir
from schemas.errors import RecipeError
from schemas.fields import is_private, pruned
from schemas.files import write_whole
from schemas.ids import digest
from schemas.leaves import nested
from schemas.measured import MeasuredFile, read_measured
from schemas.recipe import nearest
from schemas.records import VERDICT, Level, Source, Struct, Verdict
from stages.base import Collect, Split
from stages.download.places import is_local, path_of


@dataclass(frozen=True)
class Scored:
    """How scoring ended."""

    num_measured: int
    num_there: int
    """Files that the output held already, unchanged and measured in the same way."""
    num_errors: int


def score(
    recipe: Recipe,
    sources: Sequence[Source],
    out: Path,
    *,
    with_vectors: bool = False,
    report: Callable[[str], None] = print,
) -> Scored:
    """Measures `sources` with a recipe of `scoring_recipe` and leaves one line each in `out`, in their order of arrival.

    Fields that say they are private, vectors of voices and faces, are left out unless `with_vectors`. Raises RecipeError
    where nothing is to be measured.
    """
    if not sources:
        raise RecipeError("no files to score were found.", remedy="Give media files, folders, globs or a manifest.")
    plan = make_plan(recipe)
    made_by = digest(plan.identity(0), with_vectors)
    there = {each.uri: each for each in read_measured(out) if each.made_by == made_by and _is_unchanged(each)}
    kept = [there[source.uri] for source in sources if source.uri in there]
    write_whole(out, "".join(f"{each.line()}\n" for each in kept).encode())
    todo = [source for source in sources if source.uri not in there]
    num_errors = 0
    with (
        tempfile.TemporaryDirectory(prefix="nava-score-") as folder,
        out.open("a", encoding="utf-8") as lines,
        here(plan, RunDir(folder)) as executor,
    ):
        found: dict[str, list[Mapping[str, Any]]] = {}
        for settled in executor.carry(Lease(0, tuple(todo))):
            if settled.is_head:
                continue
            rows = settled.rows()
            clips = rows[Level.CLIP].to_pylist() if Level.CLIP in rows else []
            found.setdefault(settled.source_id, []).extend(clips)
            if settled.is_done:
                told = _told(plan, rows[Level.ASSET], found.pop(settled.source_id), made_by, with_vectors=with_vectors)
                lines.write(f"{told.line()}\n")
                lines.flush()
                num_errors += told.error is not None
                report(f"{told.uri}: {told.error or 'measured'}")
    return Scored(len(todo), len(kept), num_errors)


def scoring_recipe(recipe: Recipe, wanted: Sequence[str]) -> Recipe:
    """`recipe` cut down to the stages `wanted` and those they read; without gates, so that nothing is turned away.

    A stage that the recipe lacks is added with its defaults. Raises RecipeError for a name that is no stage, and for
    stages that look at a whole run or leave media behind.
    """
    for name in wanted:
        if name not in stages.CATALOG:
            raise RecipeError(f"there is no stage '{name}'.", remedy=nearest(name, stages.CATALOG))
        if issubclass(stages.load(name), Collect):
            raise RecipeError(f"stage '{name}' compares a whole run.", remedy="Use nava-curate run and stats for that.")
    given = recipe.model_dump(mode="json")
    chain = [name for name in stages.CATALOG if name in recipe.stages or name in wanted]
    needed, columns = set(wanted), set()
    for name in reversed(chain):
        cls = stages.load(name)
        column = cls.children if issubclass(cls, Split) else name
        if name in needed or column in columns:
            needed.add(name)
            config = cls.Config.model_validate(given["stages"].get(name) or {})
            columns |= {path.partition(".")[0] for path in cls.reads_with(config)} | {cls.level}
    parts = {name: given["stages"].get(name) or {} for name in chain if name in needed}
    resources = {name: each for name, each in given["resources"].items() if name in parts}
    chosen = parse_recipe(given | {"stages": parts, "gates": {}, "resources": resources}, recipe.name)
    if (cutter := make_plan(chosen).cutter) is not None:
        raise RecipeError(f"stage '{cutter.name}' writes media.", remedy="Use nava-curate run for that.")
    return chosen


def _is_unchanged(measured: MeasuredFile) -> bool:
    """Whether a local file still is what was measured; others are taken to be."""
    if measured.error is not None:
        return False
    if not is_local(measured.uri) or measured.mtime_ns is None:
        return True
    path = path_of(measured.uri)
    if not path.exists():
        return False
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (measured.num_bytes, measured.mtime_ns)


def _told(
    plan: Plan, asset: pa.Table, clips: Sequence[Mapping[str, Any]], made_by: str, *, with_vectors: bool
) -> MeasuredFile:
    (row,) = asset.to_pylist()
    verdict = Verdict.of(nested("verdict", row, VERDICT))
    structs = _shown(plan, Level.ASSET, row, with_vectors=with_vectors)
    fetched: Struct = next((each for each in structs.values() if each is not None and "sha256" in each), {})
    return MeasuredFile(
        uri=row["source.uri"],
        sha256=fetched.get("sha256"),
        num_bytes=fetched.get("bytes"),
        mtime_ns=fetched.get("mtime_ns"),
        made_by=made_by,
        stages={spec.name: spec.hash for spec in plan.stages},
        error=(verdict.message or verdict.reason) if verdict.status == "error" else None,
        asset=structs,
        clips=tuple(_shown(plan, Level.CLIP, each, with_vectors=with_vectors) for each in clips),
    )


def _shown(plan: Plan, level: Level, row: Mapping[str, Any], *, with_vectors: bool) -> dict[str, Any]:
    structs = structs_of(plan, level, row)
    if with_vectors:
        return structs
    kinds = {spec.column: spec.cls.adds for spec in plan.at_level(level)}
    return {
        column: pruned(each, kinds[column], lambda field: not is_private(field)) for column, each in structs.items()
    }
