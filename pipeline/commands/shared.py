"""What commands have in common: arguments, options, and how an answer is printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.show.screen import drawable
from schemas.printable import printable

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file, or the name of a shipped recipe")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="folder or URL that `run --out` wrote")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override one recipe key, e.g. gates.sync.confidence.min=2"),
]
DropOption = Annotated[
    list[str] | None, typer.Option("--drop", metavar="GATE", help="leave one gate away, e.g. sync.confidence.min")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(help="folder of the cache that questions go to (default: nava in $XDG_CACHE_HOME or ~/.cache)"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable answer on stdout")]
CpusOption = Annotated[int | None, typer.Option(min=1, help="CPUs of the private Ray runtime (default: all)")]


def said(line: str) -> None:
    """Prints a remark beside the answer."""
    print(printable(line), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Prints an answer. Names and words in it come from outside: what a terminal would act on stands there as its escape."""
    print(drawable(printable(text), sys.stdout.encoding), flush=True)
