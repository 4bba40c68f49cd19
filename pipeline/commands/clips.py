"""Commands that go from a number to clips: `clips` lists them, `compare` holds two runs against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import CacheOption, JsonOption, RunArgument, said, show

app = typer.Typer()
ASK = "Look and ask"
SHOWN = 20
"""Clips of a list on a terminal; files and pipes get all."""
EVERYTHING = 1 << 40


@app.command(rich_help_panel=ASK)
def clips(
    run_uri: RunArgument,
    reason: Annotated[str, typer.Option(help="only clips that this gate or error settled, as `stats` names it")] = "",
    status: Annotated[str, typer.Option(help="keep, reject or error")] = "",
    source: Annotated[str, typer.Option(help="only clips of this source: id, or file name")] = "",
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="CONDITION", help="e.g. 'sync.confidence<4' or 'text~river'; repeatable"),
    ] = None,
    sort: Annotated[
        str, typer.Option(help="time; margin:GATE, nearest to its bound first; FIELD; or -FIELD, largest first")
    ] = "time",
    limit: Annotated[int | None, typer.Option(min=1, help="most clips (default: 20 on the screen, else all)")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="a table for other programs")] = False,
    as_json: JsonOption = False,
    as_ids: Annotated[bool, typer.Option("--ids", help="clip ids alone, one a line")] = False,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="also draw a picture of each clip listed to this file")
    ] = None,
    cache: CacheOption = None,
) -> None:
    """Lists clips: those of a reason, those that fulfil conditions, those nearest to a gate."""
    from pipeline.ask.clips import ClipLists, ClipQuestion
    from pipeline.ask.condition import parsed_conditions
    from pipeline.ask.queries import Run
    from pipeline.show.clips import checked, clips_csv, clips_plain, clips_text, sort_field

    opened = Run(run_uri, cache, said)
    lists = ClipLists(opened)
    conditions = tuple(each for text in where or () for each in parsed_conditions(text))
    most = limit or (EVERYTHING if as_csv or as_json or as_ids else SHOWN)
    asked = ClipQuestion(status, reason, source, conditions, sort_field(sort, opened.plan), limit=most)
    page = lists.page(checked(asked, lists))
    if sheet is not None:
        from pipeline.show.sheet import draw_sheet

        said(draw_sheet(opened, page.rows, sheet))
    if as_ids:
        show("\n".join(row.clip_id for row in page.rows))
    elif as_csv:
        show(clips_csv(page.rows))
    elif as_json:
        show(json.dumps(clips_plain(page), indent=1))
    else:
        show(clips_text(page, opened.dir.uri))


@app.command(rich_help_panel=ASK)
def compare(
    before: Annotated[str, typer.Argument(metavar="RUN_A", help="the run to compare with")],
    after: Annotated[str, typer.Argument(metavar="RUN_B", help="the run that is looked at")],
    as_json: JsonOption = False,
    cache: CacheOption = None,
) -> None:
    """Holds two runs against each other: hours that came and went, for which reason, and what differs in their recipes."""
    from dataclasses import asdict

    from pipeline.ask.clips import ClipLists
    from pipeline.ask.compare import compare as ask
    from pipeline.ask.queries import Run
    from pipeline.show.clips import comparison_text

    found = ask(*(ClipLists(Run(uri, cache, said)) for uri in (before, after)))
    show(json.dumps(asdict(found), indent=1) if as_json else comparison_text(found))
