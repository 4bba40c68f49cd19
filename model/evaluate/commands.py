"""`nava-train evaluate` and `nava-train study`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from model.evaluate.generating import Making

app = typer.Typer()

StageSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="of the stages that measure, e.g. stages.sync.engine=syncnet"),
]
ModelsOption = Annotated[
    Path | None,
    typer.Option(
        exists=True, help="folder of published networks (docs/evaluation.md), such as SyncNet, CLAP, VideoReward"
    ),
]
GenerateOption = Annotated[
    Path | None, typer.Option(exists=True, help="a checkpoint that makes the samples first, from the set's prompts")
]
CodecsOption = Annotated[
    Path | None, typer.Option(exists=True, help="with --generate: folder of frozen codecs (docs/checkpoints.md)")
]
TrainedOption = Annotated[
    list[Path] | None,
    typer.Option(exists=True, help="a run or pool that was trained on: was it held against SET? repeatable"),
]
CompareOption = Annotated[
    tuple[Path, Path] | None, typer.Option(help="instead: two reports of one set, the second against the first")
]
SampleSettings = Annotated[
    list[str] | None,
    typer.Option("--sample-set", metavar="KEY=VALUE", help="with --generate: of its recipe, e.g. prompt.seconds=4"),
]


@app.command()
def evaluate(
    given: Annotated[
        Path | None, typer.Argument(metavar="SET", help="Verse-Bench folder, meta.lst, .json list, or folder of media")
    ] = None,
    generated: Annotated[
        Path | None, typer.Option("--generated", "-g", help="folder of samples: NAME.mp4 or SUBSET/NAME.mp4")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder of the report; the same command resumes")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="own, seedtts, versebench or mova: whose definitions the figures have")
    ] = "own",
    models: ModelsOption = None,
    workers: Annotated[int, typer.Option(min=1, help="processes that measure; 1 GB and more each")] = 1,
    measure_with: StageSettings = None,
    generate: GenerateOption = None,
    codecs: CodecsOption = None,
    recipe: Annotated[str, typer.Option(help="with --generate: a packaged sample recipe, or a .yaml file")] = "release",
    sample_with: SampleSettings = None,
    trained_on: TrainedOption = None,
    compare: CompareOption = None,
) -> None:
    """Scores generated samples against a set: figures with intervals, each with its protocol, model and crop.

    `nava-train evaluate SET --generated SAMPLES --out REPORT` writes report.json, items.parquet and report.html.

    `--generate CHECKPOINT` first makes the samples that are not there, into SAMPLES or OUT/generated; all ranks under torchrun.

    `nava-train evaluate --compare REPORT_A REPORT_B` says which differences are sure.
    """
    from schemas.errors import RecipeError

    if compare is not None:
        from model.evaluate.report import compare as of_both
        from model.evaluate.report import compared_text

        print(compared_text(of_both(*compare)))
        return
    if given is None or out is None or (generated is None and generate is None):
        raise RecipeError(
            "SET, --out and --generated or --generate are needed, or --compare.",
            remedy="See nava-train evaluate --help.",
        )
    making = None
    if generate is not None:
        from model.evaluate.generating import Making
        from model.sampling.config import load_recipe

        config = load_recipe(recipe, sample_with or [])
        making = Making(generate, config if codecs is None else config.model_copy(update={"codecs": codecs}))
    places = (given, generated or out / "generated", out)
    measuring = _Measuring(protocol, models, workers, tuple(measure_with or ()))
    _evaluate(places, measuring, making, trained_on or ())


@app.command()
def study(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="make or score")],
    votes: Annotated[list[Path] | None, typer.Argument(metavar="VOTES", help="score: files of votes")] = None,
    system: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="make: samples of one system; repeatable")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="make: folder of the study")] = None,
    of_study: Annotated[
        Path | None,
        typer.Option("--study", help="score: the study that the votes were given in; none: the release's form"),
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="make: samples of the same name, drawn at random")] = 20,
    raters: Annotated[int, typer.Option(min=1, help="make: people")] = 20,
    per_rater: Annotated[int, typer.Option(min=0, help="make: pairs for each of them (0: all)")] = 0,
    seed: Annotated[int, typer.Option(help="make: another seed draws other cases and orders")] = 0,
) -> None:
    """A user study of pairs: `make` writes a page that works from disk, `score` says who is preferred and how surely.

    `nava-train study make --system ours=A --system ovi=B --out STUDY`; raters open study.html and send back a file each;
    `nava-train study score VOTES --study STUDY`. Intervals draw raters and cases anew, and sides are tested for bias.
    """
    from schemas.errors import RecipeError

    if action == "make":
        from model.evaluate.study import make_study

        if out is None:
            raise RecipeError("study make needs --out.", remedy="Name the folder to write.")
        folders = {name: Path(folder) for name, _, folder in (each.partition("=") for each in system or ())}
        plan = make_study(folders, out, cases, raters, per_rater, seed)
        trials = sum(len(each) for each in plan.raters.values())
        print(f"{trials} trials of {len(plan.cases)} cases for {len(plan.raters)} raters -> {out}/study.html")
    elif action == "score":
        from model.evaluate.study import open_votes
        from model.evaluate.votes import result_text, score_votes

        print(result_text(score_votes(open_votes(votes or (), of_study), seed)))
    else:
        raise RecipeError(f"study has no '{action}'.", remedy="Say make or score.")


@dataclass(frozen=True, slots=True)
class _Measuring:
    """How samples are measured, as it was given."""

    protocol: str
    models: Path | None
    workers: int
    settings: tuple[str, ...]


def _evaluate(
    places: tuple[Path, Path, Path], measuring: _Measuring, making: Making | None, trained_on: Sequence[Path]
) -> None:
    from model.evaluate.contamination import contamination_notes
    from model.evaluate.evaluate import EvalOptions
    from model.evaluate.evaluate import evaluate as score_samples
    from model.evaluate.page import write_page
    from model.evaluate.protocols import protocol_named, rules_here
    from model.evaluate.report import report_text, write_report
    from model.evaluate.sets import find_samples, read_set

    given, generated, out = places
    rules = rules_here(name := protocol_named(measuring.protocol), measuring.settings)
    if measuring.models is not None:
        from model.evaluate.local import with_local

        rules = with_local(rules, measuring.models, name)
    options = EvalOptions(name, rules, measuring.workers, measuring.settings)
    of_set, notes = read_set(given), contamination_notes(given, trained_on)
    if making is not None:
        from model.evaluate.generating import generate_samples

        if not generate_samples(of_set, given, making, generated, out / "prompts.jsonl", _said):
            return
    report, scores = score_samples(of_set, generated, out, options, say=_said)
    made = [] if making is None else [making.note()]
    report = replace(report, notes=(*made, *notes, *report.notes))
    write_report(report, scores, out)
    write_page(report, scores, find_samples(of_set, generated)[0], out)
    print(report_text(report))


def _said(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
