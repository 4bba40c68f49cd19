"""What a training did with a run's clips, read from the files that `nava-train` leaves: which clips the model finds hard.

`nava-train train` writes samples/*.parquet and metrics.jsonl, `nava-train plan --out` writes plan.json. The error of a sample
depends most of all on how noisy it was, so a clip's difficulty is its errors over the mean of all samples in the same tenth
of the noise level: 1 is as hard as others, 2 twice as hard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.ask.clips import ClipLists
from schemas.errors import LedgerError
from schemas.fields import roles_of
from schemas.records import Level

if TYPE_CHECKING:
    import polars as pl

TENTHS = 10
TIMESTEPS = 1000.0
"""Noise levels of the objective: `timestep` is 1000 sigma."""
ID_CHARS = 21
"""Characters of a clip's id; a window of a clip adds its number behind them."""
HARDEST = 60
LEAST_CLIPS = 3
"""Clips from which on a group or a measure is told."""
MOST_GROUPS = 20
MOST_LINES = 400
"""Points of a curve over steps."""


@dataclass(frozen=True)
class HardClip:
    """One clip that was trained on."""

    clip_id: str
    difficulty: float
    uses: int
    video_mse: float | None
    audio_mse: float | None


@dataclass(frozen=True)
class HardGroup:
    """Clips with one value of a label."""

    name: str
    difficulty: float
    num_clips: int


@dataclass(frozen=True)
class HardMeasure:
    """How the rank of a measure goes with the rank of difficulty: 1 rises with it, -1 falls, 0 has nothing to do with it."""

    path: str
    correlation: float
    num_clips: int


@dataclass(frozen=True)
class Trained:
    """What the files of a training say."""

    folder: str
    plan: dict[str, Any] | None
    """plan.json as it is; None where there is none."""
    steps: tuple[dict[str, Any], ...]
    """Lines of metrics.jsonl: step, loss, and how evenly ranks were busy."""
    num_samples: int
    num_clips: int
    num_unknown: int
    """Clips of the training that this run does not have."""
    hardest: tuple[HardClip, ...]
    labels: dict[str, tuple[HardGroup, ...]]
    measures: tuple[HardMeasure, ...]
    shards: tuple[tuple[str, int], ...]
    """(shard, samples drawn from it), most first."""


def trained(lists: ClipLists, folder: Path, shard_of: dict[str, str] | None = None) -> Trained:
    """The answer. Raises LedgerError where the folder holds none of the three files."""
    paths = sorted((folder / "samples").glob("*.parquet"))
    plan, steps = _json(folder / "plan.json"), _lines(folder / "metrics.jsonl")
    if not paths and plan is None and not steps:
        msg = f"{folder} holds neither samples/ nor plan.json nor metrics.jsonl."
        raise LedgerError(msg, remedy="Give the folder that `nava-train train --out` or `nava-train plan --out` wrote.")
    if not paths:
        return Trained(str(folder), plan, tuple(steps), 0, 0, 0, (), {}, (), ())
    clips, num_samples = _difficulties(paths)
    joined, known = _joined(lists, clips)
    shards: dict[str, int] = {}
    for clip_id, uses in clips.select("clip_id", "uses").iter_rows():
        name = (shard_of or {}).get(clip_id)
        if name is not None:
            shards[name] = shards.get(name, 0) + uses
    return Trained(
        folder=str(folder),
        plan=plan,
        steps=tuple(steps),
        num_samples=num_samples,
        num_clips=len(clips),
        num_unknown=len(clips) - known,
        hardest=tuple(
            HardClip(*row) for row in joined.head(HARDEST).select(*HardClip.__dataclass_fields__).iter_rows()
        ),
        labels=_labels(lists, joined),
        measures=_measures(lists, joined),
        shards=tuple(sorted(shards.items(), key=lambda item: (-item[1], item[0]))[:MOST_GROUPS]),
    )


def _difficulties(paths: Sequence[Path]) -> tuple[pl.DataFrame, int]:
    """clip_id, difficulty, uses, video_mse, audio_mse of every clip, and the number of samples."""
    import polars as pl

    rows = pl.concat([pl.scan_parquet(path) for path in paths], how="vertical_relaxed")
    tenth = (pl.col("timestep") * (TENTHS / TIMESTEPS)).floor().clip(0, TENTHS - 1).alias("tenth")
    errors = ("video_mse", "audio_mse")
    over = [(pl.col(name) / pl.col(name).mean().over(tenth)).alias(f"{name} over") for name in errors]
    per_sample = rows.with_columns(clip_id=pl.col("clip_id").str.slice(0, ID_CHARS)).with_columns(over)
    per_sample = per_sample.with_columns(difficulty=pl.mean_horizontal(f"{name} over" for name in errors))
    clips = per_sample.group_by("clip_id").agg(
        pl.col("difficulty").mean(), uses=pl.len(), **{name: pl.col(name).mean() for name in errors}
    )
    found = clips.sort("difficulty", "clip_id", descending=[True, False], nulls_last=True).collect()
    return found, int(found["uses"].sum())


def _joined(lists: ClipLists, clips: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The clips that the run has, with their places in the spine, hardest first."""
    places = lists.spine.with_row_index("row").select("row", "row_id", "asset_at").unique("row_id", keep="first")
    found = clips.join(places, left_on="clip_id", right_on="row_id", how="inner", maintain_order="left")
    return found, len(found)


def _groups(values: pl.Series, difficulty: pl.Series) -> tuple[HardGroup, ...]:
    import polars as pl

    frame = pl.DataFrame({"name": values.cast(pl.String).fill_null("not measured"), "difficulty": difficulty})
    sums = frame.group_by("name").agg(pl.col("difficulty").mean(), pl.len()).filter(pl.col("len") >= LEAST_CLIPS)
    ordered = sums.sort("difficulty", "name", descending=[True, False]).head(MOST_GROUPS)
    return tuple(HardGroup(*row) for row in ordered.iter_rows())


def _labels(lists: ClipLists, joined: pl.DataFrame) -> dict[str, tuple[HardGroup, ...]]:
    """Difficulty by every label of clips, and by source."""
    fields = lists.run.plan.fields(Level.CLIP)
    paths = [path for path, field in fields if roles_of(field).get("show") == "label" and path in lists.known]
    found = {path: _groups(lists.column(path).gather(joined["row"]), joined["difficulty"]) for path in paths}
    found["source"] = _groups(lists.column("source").gather(joined["row"]), joined["difficulty"])
    return {path: groups for path, groups in found.items() if groups}


def _measures(lists: ClipLists, joined: pl.DataFrame) -> tuple[HardMeasure, ...]:
    """Every measured number of clips by how much it goes with difficulty, strongest first."""
    import polars as pl

    found = []
    for path, _ in lists.run.plan.fields(Level.CLIP):
        kind = lists.known.get(path)
        if kind is None or not kind.is_float():
            continue
        frame = pl.DataFrame({"x": lists.column(path).gather(joined["row"]), "y": joined["difficulty"]})
        frame = frame.filter(pl.col("x").is_finite() & pl.col("y").is_finite())
        if len(frame) >= LEAST_CLIPS and frame["x"].n_unique() > 1:
            told = frame.select(pl.corr("x", "y", method="spearman")).item()
            if told is not None and math.isfinite(told):
                found.append(HardMeasure(path, float(told), len(frame)))
    return tuple(sorted(found, key=lambda each: (-abs(each.correlation), each.path))[:MOST_GROUPS])


def _json(path: Path) -> dict[str, Any] | None:
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        return told
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LedgerError(f"{path} is not JSON: {error}.", remedy="Run the training again.") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    """step, loss, imbalance, stall and tokens per second of every line that has a step, thinned evenly."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise LedgerError(f"{path} is not JSON lines: {error}.", remedy="Mend or remove the line.") from error
    kept = ("step", "loss", "loss_video", "loss_audio", "imbalance", "padding", "stall", "tokens_per_s")
    told = [{name: line.get(name) for name in kept} for line in lines if "step" in line and "loss" in line]
    return told[:: max(1, -(-len(told) // MOST_LINES))]
