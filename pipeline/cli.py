"""The `nava-curate` command. Each subcommand prints one screen; user mistakes print one sentence and what to do."""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands import about, near, pools, rights, scores
from pipeline.commands import clips as of_clips
from pipeline.commands.shared import (
    CacheOption,
    CpusOption,
    DropOption,
    JsonOption,
    RecipeArgument,
    RunArgument,
    SetOption,
    said,
    show,
)
from pipeline.show.screen import hms, plural, wrapped
from schemas.errors import NavaError
from schemas.machine import trouble_of

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help=(
        "Curates raw video into audio-visual shards.\n\n"
        "A first round: `nava-curate run quickstart --input VIDEOS --out RUN`, then `nava-curate stats RUN`, "
        "`nava-curate why CLIP --run RUN` and `nava-curate stats RUN --set gates.sync.confidence.min=2`."
    ),
)
for each in (of_clips.app, scores.app, pools.app, rights.app, near.app, about.app):
    app.add_typer(each)
INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells count it."""
SHOWN_GROUPS = 20

CURATE, ASK, CHECK = "Curate", "Look and ask", "Check"
"""Groups of commands in the help."""


@app.callback()
def options(
    is_version: Annotated[
        bool,
        typer.Option("--version", callback=about.tell_version, is_eager=True, help="versions of program and files"),
    ] = False,
) -> None:
    """Options before any command."""


@app.command(rich_help_panel=CURATE)
def plan(
    recipe: RecipeArgument,
    set_: SetOption = None,
    cpus: CpusOption = None,
    has_columns: Annotated[
        bool, typer.Option("--columns", help="also every column with type, unit and meaning")
    ] = False,
) -> None:
    """Prints workers, stages and gates; refuses what is miswired or cannot be scheduled."""
    from pipeline.config import load_recipe
    from pipeline.execute.cluster import local_cluster
    from pipeline.plan import make_plan, render

    cluster = local_cluster(cpus)
    text = render(make_plan(load_recipe(recipe, set_ or ()), cluster), cluster, has_columns=has_columns)
    show("\n".join(each for line in text.rstrip("\n").splitlines() for each in wrapped(line, " " * 6)))


@app.command(rich_help_panel=CURATE)
def run(
    recipe: RecipeArgument,
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            "-i",
            help="file, folder, glob, URL, store prefix or manifest (.jsonl .csv .parquet ...); repeatable",
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="run folder or object-store URL; the same command resumes it")
    ],
    set_: SetOption = None,
    address: Annotated[str | None, typer.Option(help="join a running Ray cluster, e.g. auto or HOST:6379")] = None,
    cpus: CpusOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="take only the first N sources")] = None,
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors", help="measure anew every source in which something ended as an error before packing"
        ),
    ] = False,
    in_process: Annotated[
        bool,
        typer.Option("--here", help="without Ray: one unit at a time in this process, stage time limits not enforced"),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
) -> None:
    """Curates inputs into RUN; ends in the balance sheet of hours."""
    from functools import partial

    from pipeline.config import load_recipe
    from pipeline.execute.here import here
    from pipeline.execute.on_ray import on_ray
    from pipeline.run import Opener
    from pipeline.run import run as execute
    from stages.download.sources import list_inputs

    chosen = load_recipe(recipe, set_ or ())
    listing = list_inputs(inputs)
    for note in listing.notes():
        said(note)
    opener: Opener = here if in_process else partial(on_ray, address=address, num_cpus=cpus)
    try:
        result = execute(
            chosen, listing.sources[:limit], out, opener,
            retry_errors=retry_errors, quiet=quiet, is_process=True, skipped=listing.skips.text(),
        )  # fmt: skip
    except KeyboardInterrupt:
        said(f"stopped: what {out} holds is whole, sources in flight are not in it; the same command goes on.")
        raise typer.Exit(INTERRUPTED) from None
    _tell_balance(out)
    if result.num_refused:
        said(f"{plural(result.num_refused, 'source')} refused: taken down, or on an opt-out list")
    print(f"{plural(result.num_shards, 'shard')} in {out}/shards; next: nava-curate stats {out}")


def _tell_balance(out: str) -> None:
    from pipeline.ask.queries import Run, balance
    from pipeline.show.text import balance_lines
    from schemas.records import Level

    sheet = balance(Run(out).ledger)
    show("\n".join(balance_lines(sheet)))
    clips, assets = sheet.clips, sheet.assets
    print(
        f"{plural(clips.get('keep', 0), Level.CLIP)} kept, {clips.get('reject', 0):,} rejected, "
        f"{plural(clips.get('error', 0), 'error')}; {plural(assets.get('error', 0), 'source')} with errors"
    )


@app.command(rich_help_panel=CURATE)
def status(
    run_uri: RunArgument,
    watch: Annotated[bool, typer.Option("--watch", help="refresh every two seconds until packed")] = False,
) -> None:
    """Settled sources, verdicts so far, rate and time left, read from the ledger from any terminal."""
    from pipeline.ask.queries import Run
    from pipeline.ask.status import status as ask
    from pipeline.show.text import status_text

    if watch and sys.stdout.isatty():
        from pipeline.show.watch import watched

        watched(lambda: ask(Run(run_uri)))
        return
    while True:
        found = ask(Run(run_uri))
        show(status_text(found))
        if not watch or found.packed is not None:
            return
        time.sleep(2)


@app.command(rich_help_panel=ASK)
def stats(
    run_uri: RunArgument,
    set_: SetOption = None,
    drop: DropOption = None,
    by: Annotated[
        str, typer.Option(metavar="FIELD", help="clips and hours by a field's values, e.g. language or source")
    ] = "",
    is_full: Annotated[bool, typer.Option("--full", help="also labels, histograms, all gates, cost per stage")] = False,
    as_json: JsonOption = False,
    cache: CacheOption = None,
) -> None:
    """Hours kept, rejected, in error and cut away; with --set or --drop, what other gates would do."""
    from pipeline.ask.queries import Run
    from pipeline.show import plain, text

    opened = Run(run_uri, cache, said)
    if set_ or drop:
        from pipeline.ask.what_if import what_if

        then = what_if(opened, set_ or (), drop or ())
        show(json.dumps(plain.what_if_plain(then), indent=1) if as_json else text.what_if_text(then))
    elif by:
        from pipeline.ask.clips import ClipLists
        from pipeline.ask.grouped import grouped

        found = grouped(ClipLists(opened), by)
        most = None if is_full else SHOWN_GROUPS
        show(json.dumps(plain.grouped_plain(found), indent=1) if as_json else text.grouped_text(found, most))
    else:
        from pipeline.ask.stats import stats as ask

        answer = ask(opened)
        told = text.stats_text if is_full else text.stats_screen
        show(json.dumps(plain.stats_plain(answer), indent=1) if as_json else told(answer))


@app.command(rich_help_panel=ASK)
def why(
    key: Annotated[
        str, typer.Argument(metavar="CLIP", help="clip, shot or asset id (or its beginning), or a file name")
    ],
    run_uri: Annotated[str, typer.Option("--run", "-r", help="folder or URL of the run")] = ".",
    is_all: Annotated[bool, typer.Option("--all", help="everything that every stage measured")] = False,
    as_json: JsonOption = False,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="also draw frames, waveform, words, turns and sync curve to this PNG"),
    ] = None,
    cache: CacheOption = None,
) -> None:
    """Why a clip was kept or not: every gate with value, bound and margin; with --all, everything that was measured."""
    from pipeline.ask.find import find
    from pipeline.ask.queries import Run
    from pipeline.show.plain import chain_plain
    from pipeline.show.text import why_text
    from pipeline.show.why import answer_text

    opened = Run(run_uri, cache, said)
    chain = find(opened, key)
    if figure is not None:
        from pipeline.show.figure import draw

        draw(chain, opened.plan, figure)
    if as_json:
        show(json.dumps(chain_plain(chain, opened.plan), indent=1))
    else:
        show(why_text(chain, opened.plan) if is_all else answer_text(chain, opened.plan))


@app.command(rich_help_panel=CHECK)
def replay(
    run_uri: RunArgument,
    stage: Annotated[str, typer.Option("--stage", help="stage to measure again with")],
    clip: Annotated[str, typer.Option("--clip", help="clip, shot or source id, or its beginning")],
) -> None:
    """Measures rows of RUN again with one stage of its recipe and prints what differs from the ledger; writes nothing."""
    from pipeline.ask.queries import Run
    from pipeline.replay import replay as measure_again
    from pipeline.show.text import replay_text

    found = measure_again(Run(run_uri), stage, clip)
    show(replay_text(stage, found))
    if found.differences:
        raise typer.Exit(1)


@app.command(rich_help_panel=CURATE)
def export(
    run_uri: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write")],
    form: Annotated[
        str, typer.Option("--format", help="nava, ltx2, musubi, diffusion-pipe, lhotse, hf, parquet or csv")
    ] = "nava",
    split: Annotated[str, typer.Option(help="train or validation")] = "train",
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="only the clips of a pool that `select` made")
    ] = None,
) -> None:
    """Writes the kept clips in the form of another program."""
    from pipeline.ask.queries import Run
    from pipeline.export import export as write

    done = write(Run(run_uri), out, form, split, pool)
    print(f"{plural(done.num_records, 'record')}, {hms(done.duration_s * 1e6, millis=True)} in {out}")


@app.command(rich_help_panel=CHECK)
def verify(
    run_uri: RunArgument,
    deep: Annotated[bool, typer.Option("--deep", help="decode every sample, not the first of each shard")] = False,
) -> None:
    """Checks every artefact: ledger, hours, cuts, shards against recipe and ledger; decodes a sample of each shard."""
    from pipeline.ask.queries import Run
    from pipeline.ask.verify import problems

    found = False
    for problem in problems(Run(run_uri), is_deep=deep):
        found = True
        show(f"problem: {problem}")
    if found:
        raise typer.Exit(1)
    print("sound: hours add up, every kept clip is packed once, checksums agree, samples decode")


@app.command(rich_help_panel=CHECK)
def calibrate(
    source: Annotated[str, typer.Argument(metavar="RUN", help="folder or URL of a run, or a folder of videos")],
    clips: Annotated[int, typer.Option(min=1, help="measure at most N clips, drawn at random")] = 40,
    seed: Annotated[int, typer.Option(help="another seed draws other clips")] = 0,
    max_false_keep: Annotated[
        float, typer.Option(min=0, max=1, help="share of wrong clips the recommended row may keep")
    ] = 0.05,
    include_rejected: Annotated[
        bool, typer.Option("--include-rejected", help="also clips of the run that only the sync gates turned away")
    ] = False,
    recipe: Annotated[str, typer.Option(help="recipe for a folder of videos; a run brings its own")] = "quickstart",
    set_: SetOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="also write everything measured to this file")
    ] = None,
) -> None:
    """Moves and exchanges the sound of your own clips, and prints what every sync threshold would keep and drop wrongly."""
    from pipeline.ask.calibrate import calibrate as measure
    from stages.sync.calibrate import Options
    from stages.sync.thresholds import text_of

    options = Options(clips, seed, max_false_keep, include_rejected)
    answer = measure(source, options, recipe, set_ or (), report=said)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(answer), indent=1) + "\n")
    print(text_of(answer))


@app.command(rich_help_panel=CURATE)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write")],
    seed: Annotated[int, typer.Option(help="another seed gives other clips")] = 0,
) -> None:
    """Writes demo media with known truth: synthetic speech, a photographed face that says it, exact cuts."""
    from pipeline.demo import write_demo

    print(write_demo(out, seed=seed))


@app.command(rich_help_panel=ASK)
def inspect(
    run_uri: RunArgument,
    others: Annotated[
        list[str] | None, typer.Option("--with", metavar="RUN", help="a run to compare with; repeatable")
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="folder of nava-train: which clips the model finds hard is told, too")
    ] = None,
    marks_file: Annotated[
        Path | None, typer.Option("--marks", metavar="FILE", help="where marks are kept (default: in the cache)")
    ] = None,
    host: Annotated[str, typer.Option(help="address to serve; any other than loopback needs a token")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="default: the first free one from 8470")] = None,
    cache: CacheOption = None,
) -> None:
    """Serves a local page over RUN: what was kept, what was dropped, why, and what another threshold would do."""
    from pipeline.inspector import needed

    needed()
    from pipeline.inspector.serve import serve
    from pipeline.inspector.session import Session

    serve(Session(run_uri, tuple(others or ()), cache, marks_file, training, said), host, port, show)


@app.command(rich_help_panel=ASK)
def report(
    run_uri: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write")] = Path("report.html"),
    media: Annotated[int, typer.Option(min=0, max=20, help="clips to put beside it, in a folder")] = 0,
    cache: CacheOption = None,
) -> None:
    """Writes RUN as one page that opens from disk without network: balance, gates, histograms, what-if."""
    from pipeline.inspector import needed

    needed()
    from pipeline.inspector.report import write_report
    from pipeline.inspector.session import Session

    written = write_report(Session(run_uri, cache=cache, report=said), out, media)
    show(f"{out}: {out.stat().st_size / 1e6:.1f} MB" + (f", {len(written) - 1} files beside it" if media else ""))


@app.command(rich_help_panel=ASK)
def marks(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="export, check, gates or suggest")],
    run_uri: RunArgument,
    marks_file: Annotated[
        Path | None, typer.Option("--marks", metavar="FILE", help="where they are kept (default: in the cache)")
    ] = None,
    cache: CacheOption = None,
) -> None:
    """Your marks of clips: exported, held against the verdicts of RUN, against its gates, or turned into bounds."""
    from pipeline.ask.marks import MarkFile, marks_file_of
    from pipeline.ask.queries import Run
    from pipeline.show.marks import marks_text

    opened = Run(run_uri, cache, said)
    text, is_sound = marks_text(
        action, opened, MarkFile(marks_file or marks_file_of(opened.dir.uri, opened.cache)).all()
    )
    show(text)
    if not is_sound:
        raise typer.Exit(1)


def main() -> Any:
    """Entry point: a NavaError, or trouble of the machine, prints without a traceback and exits with 2.

    What is left then is freed with the process: to look for cycles in it would be a fifth of what a question costs.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names are in any script, terminals need not be
            stream.reconfigure(errors="backslashreplace")
    try:
        return app()
    except (NavaError, OSError) as error:
        told = error if isinstance(error, NavaError) else trouble_of(error)
        if told is None:
            raise
        said(f"error: {told}")
        sys.exit(2)
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
