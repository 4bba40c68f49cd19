"""Rows and stages for tests of cutting: whole files as one clip, really measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config import load_recipe
from schemas.records import span_fields
from schemas.timing import Span
from stages.base import Context
from stages.cut import Cut, CutConfig
from stages.sync.config import SyncConfig
from stages.sync.stage import Sync


def cut_stage(context: Context, folder: Path, settings: dict[str, Any] | None = None) -> Cut:
    """The stage, ready, which leaves clips in `folder`/cuts."""
    context.configs = load_recipe("quickstart").stage_configs()
    context.cuts_dir, context.hashes = str(folder / "cuts"), {"cut": "made"}
    stage = Cut(CutConfig.model_validate(settings or {}))
    stage.setup(context)
    return stage


def whole_clip(path: Path, make_row: Any) -> dict[str, Any]:
    """A file as one clip in which nothing is said."""
    asset: dict[str, Any] = make_row(path)
    probe = asset["probe"]
    span = Span(probe["video_start_pts"], probe["video_end_pts"], probe["tb_num"], probe["tb_den"])
    clip = span_fields(span) | {"clip_id": "c0123", "spans": [], "num_frames": probe["num_frames"]}
    return {**asset, "clip": clip, "sync": None, "timbre": None, "caption": None}


def measured_clip(path: Path, make_row: Any, context: Context) -> dict[str, Any]:
    """The same, its sync measured."""
    row = whole_clip(path, make_row)
    stage = Sync(SyncConfig())
    stage.setup(context)
    return {**row, "sync": stage.measure(row)}
