"""Commands about the program itself: versions, recipes, stages, the machine, and the schema of recipes."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipeline.commands.shared import JsonOption, show

app = typer.Typer()
ABOUT = "About the program"


def tell_version(is_asked: bool) -> None:
    """Prints versions and ends the program, if that is asked."""
    if is_asked:
        from pipeline.show.catalogue import versions_text

        show(versions_text())
        raise typer.Exit


@app.command(rich_help_panel=ABOUT)
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="print this one, as YAML to start from")] = None,
) -> None:
    """The recipes that ship; one of them as YAML."""
    from pipeline.show.catalogue import recipe_text, recipes_text

    show(recipe_text(name) if name else recipes_text())


@app.command(rich_help_panel=ABOUT)
def stages(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="one stage with its columns and settings")
    ] = None,
) -> None:
    """The stages there are, with their engines; one of them with columns, settings and gates."""
    from pipeline.show.catalogue import stage_text, stages_text

    show(stage_text(name) if name else stages_text())


@app.command(rich_help_panel=ABOUT)
def doctor(as_json: JsonOption = False) -> None:
    """What this machine has of what recipes need: libraries, weights, graphics cards, memory and room on the disk."""
    from dataclasses import asdict

    from pipeline.ask.doctor import examined
    from pipeline.show.catalogue import doctor_text

    found = examined()
    show(json.dumps([asdict(each) for each in found], indent=1) if as_json else doctor_text(found))
    if any(each.is_needed and not each.is_there for each in found):
        raise typer.Exit(1)


@app.command(rich_help_panel=ABOUT)
def schema(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="recipe: keys, types and defaults of a recipe's YAML")],
) -> None:
    """JSON Schema of a file, for editors: the first line of a recipe says where it lies."""
    from pipeline.show.catalogue import schema_of

    show(json.dumps(schema_of(what), indent=1))
