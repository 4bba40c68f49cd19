"""`nava-curate score`: stages' measurements of single files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import SetOption, said

app = typer.Typer()


@app.command(rich_help_panel="Look and ask")
def score(
    files: Annotated[
        list[str], typer.Argument(metavar="FILES", help="media files, folders, globs or manifests of them")
    ],
    stages: Annotated[str, typer.Option("--stages", help="what to measure, such as transcribe,sync,audio")],
    out: Annotated[Path, typer.Option("--out", "-o", help="file of JSON lines; the same command goes on with it")],
    recipe: Annotated[str, typer.Option(help="whose settings the stages have")] = "quickstart",
    set_: SetOption = None,
    vectors: Annotated[
        bool, typer.Option("--vectors", help="also vectors of voices and faces, which are personal data")
    ] = False,
) -> None:
    """Measures files one by one in this process, without gates, run or shards: a line of JSON for each."""
    from pipeline.config import load_recipe
    from pipeline.score import score as measure
    from pipeline.score import scoring_recipe
    from stages.download.sources import list_inputs

    wanted = [name.strip() for name in stages.split(",") if name.strip()]
    chosen = scoring_recipe(load_recipe(recipe, set_ or ()), wanted)
    listing = list_inputs(files)
    for note in listing.notes():
        said(note)
    done = measure(chosen, listing.sources, out, with_vectors=vectors, report=said)
    print(f"{done.num_measured} files measured, {done.num_there} were there, {done.num_errors} with errors -> {out}")
