"""`nava-curate decontaminate`: clips of a run that are near an evaluation set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import JsonOption, RunArgument, said, show

app = typer.Typer()


@app.command(rich_help_panel="Check")
def decontaminate(
    run_uri: RunArgument,
    against: Annotated[
        list[str],
        typer.Option("--against", metavar="SET", help="a run, or media as --input takes them; repeatable for media"),
    ],
    by: Annotated[
        str, typer.Option(metavar="WAYS", help="which of seen, heard, said and voice are compared")
    ] = "seen,heard,said,voice",
    work: Annotated[
        Path | None, typer.Option(metavar="DIR", help="where media of SET are measured (default: in the cache)")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Marks clips of RUN that are near an item of SET by what is seen, heard or said, or by voice; `select` leaves them out."""
    from pipeline.ask.queries import Run
    from pipeline.decontaminate import can_compare, is_run, measured_set, near
    from pipeline.near_marks import write_near
    from pipeline.show.near import near_plain, near_text
    from schemas.errors import RecipeError
    from schemas.held_against import WAYS, HeldAgainst
    from schemas.ids import digest
    from schemas.recipe import nearest
    from stages.download.places import is_local, path_of

    ways = tuple(way for way in WAYS if way in {each.strip() for each in by.split(",")})
    if unknown := {each.strip() for each in by.split(",")} - set(WAYS):
        raise RecipeError(f"--by {sorted(unknown)[0]} is not known.", remedy=nearest(sorted(unknown)[0], WAYS))
    run, name = Run(run_uri), ",".join(against)
    if len(against) == 1 and is_run(against[0]):
        items = Run(against[0], run.cache)
    else:
        out = work or run.cache / "against" / digest(*against, run.recipe.measure_hash())
        said(f"measuring {name} into {out}")
        items = measured_set(run, against, str(out))
    found = near(run, items, ways)
    compared = tuple(way for way in ways if can_compare(run.plan, way) and can_compare(items.plan, way))
    places = tuple(str(path_of(each).absolute()) if is_local(each) else each for each in against)
    write_near(run.dir, found, HeldAgainst(name=name, places=places, ways=compared))
    lacking: dict[str, str] = {
        way: each.dir.uri for way in ways for each in (run, items) if not can_compare(each.plan, way)
    }
    show(json.dumps(near_plain(run, found), indent=1) if as_json else near_text(run, found, lacking))
