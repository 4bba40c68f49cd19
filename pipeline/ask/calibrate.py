"""`calibrate`: what every sync threshold would keep and drop wrongly of a run's clips, or of a folder of videos.

Which clips are measured is decided here; `stages.sync.calibrate` measures them. Nothing is written to the run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.ask.queries import STATUS, Run
from pipeline.config import load_recipe, parse_recipe
from pipeline.ledger import asset_of, clip_of
from pipeline.store import RunDir
from schemas.errors import RecipeError
from schemas.recipe import apply_overrides
from schemas.records import HAS_AUDIO, Level
from stages.base import Context
from stages.download.places import is_local, path_of
from stages.download.sources import expand_sources
from stages.sync.calibrate import Options, Sampled, clips_of_files, measure_cases
from stages.sync.config import SyncConfig
from stages.sync.stage import Sync
from stages.sync.thresholds import Calibration, by_class, rates_of


def calibrate(
    source: str,
    options: Options = Options(),
    recipe: str = "quickstart",
    overrides: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> Calibration:
    """Error rates of every threshold by kind of sound, for a run or a folder of videos; documented in docs/quality.md.

    A run brings its own recipe; `recipe` is for folders. Raises RecipeError if there is nothing to measure.
    """
    run = Run(source) if RunDir(source).exists("recipe.yaml") else None
    chosen = load_recipe(recipe, overrides) if run is None else parse_recipe(apply_overrides(run.raw_recipe, overrides))
    configs = chosen.stage_configs()
    config = configs.get(Sync.name)
    if not isinstance(config, SyncConfig):
        raise RecipeError(f"recipe {chosen.name} has no stage sync.", remedy="Add `sync: {}` to its stages.")
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="nava-calibrate-") as folder:
        context = Context(Path(folder), decoder=chosen.decoder, configs=configs)
        try:
            if run is not None:
                clips = clips_of_run(run, options)
            else:
                files = [str(path_of(row.uri)) if is_local(row.uri) else row.uri for row in expand_sources([source])]
                clips = list(islice(clips_of_files(files, context, options, skipped), options.num_clips))
            if not clips:
                remedy = "Give a finished run with kept clips, or a folder of videos of 3 s and more."
                raise RecipeError(f"{source} holds no clip with picture and sound.", remedy=remedy)
            cases = measure_cases(clips, config, context, options.seed, skipped, report)
        finally:
            context.media.close()
    passed = {} if run is None or options.include_rejected else run.recipe.gates.get(Sync.name, {})
    return Calibration(
        source=source,
        engine=config.engine,
        num_clips=len(clips),
        seed=options.seed,
        passed_gates={name: gate.model_dump(exclude_defaults=True) for name, gate in passed.items()},
        skipped=skipped,
        classes=[rates_of(*item, options.max_false_keep) for item in by_class(cases)],
    )


def clips_of_run(run: Run, options: Options) -> list[Sampled]:
    """A random sample of a run's clips that have sound, each once however often its bytes were given.

    They were kept or, if asked for, turned away by sync alone.
    """
    import polars as pl

    wanted = pl.col(STATUS) == "keep"
    if options.include_rejected:
        failed = pl.col("verdict.failed_gates")
        by_sync = failed.list.eval(pl.element().str.starts_with(f"{Sync.name}.")).list.all() & (failed.list.len() > 0)
        wanted |= (pl.col(STATUS) == "reject") & by_sync
    has_sound = run.ledger.scan(Level.ASSET).filter(pl.col(HAS_AUDIO)).select("source_id")
    clips = run.ledger.scan(Level.CLIP).filter(wanted).select("row_id", "source_id")
    found = clips.join(has_sound, on="source_id", how="semi").group_by("row_id").agg(pl.col("source_id").min())
    candidates = found.sort("row_id").collect(engine="streaming")
    order = np.random.default_rng(options.seed).permutation(len(candidates))
    chosen = candidates[order[: options.num_clips].tolist()]
    sources = pl.col("source_id").is_in(chosen["source_id"].to_list())
    assets = {row["source_id"]: asset_of(run.plan, row) for row in run.ledger.rows(Level.ASSET, sources)}
    rows = run.ledger.rows(Level.CLIP, sources & pl.col("row_id").is_in(chosen["row_id"].to_list()))
    by_place = {(row["row_id"], row["source_id"]): row for row in rows}
    return [Sampled.of(clip_of(run.plan, by_place[key], assets[key[1]])) for key in chosen.iter_rows()]
