"""What a shard says of a clip: the .json, the .npy and the row of the index, from the ledger's rows alone."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.plan import Plan
from schemas import budget
from schemas.cut_file import RESTATED
from schemas.fields import is_in_shard, pruned, values_at
from schemas.records import SOURCE, Clip, Level, Struct
from schemas.shard import CONTRACT_VERSION, CUT_MEASURES, IndexRow, cut_column


def as_cut(clip: Clip, plan: Plan) -> Clip:
    """The clip as it was cut: where its cutting moved the sound, with what is said of the sound since."""
    (after,) = cut_of(clip, plan).get(RESTATED) or [{}]
    now = {column: {**(clip.structs.get(column) or {}), **said} for column, said in after.items() if said is not None}
    return replace(clip, structs={**clip.structs, **now})


def cut_of(clip: Clip, plan: Plan) -> Struct:
    """The struct of the stage that cut the clip. Raises KeyError where none did."""
    cutter = plan.cutter
    found = None if cutter is None else clip.structs.get(cutter.column)
    if found is None:
        raise KeyError(f"{clip.clip_id} was not cut")
    return found


def told_members(clip: Clip, plan: Plan) -> dict[str, bytes]:
    """The members that are written down here; `clip` as it was cut."""
    record = json.dumps(annotation(clip, plan), sort_keys=True, ensure_ascii=False, allow_nan=False)
    vectors = io.BytesIO()
    np.save(vectors, timbre_matrix(clip, plan), allow_pickle=False)
    return {"json": record.encode(), "npy": vectors.getvalue()}


def timbre_matrix(clip: Clip, plan: Plan) -> NDArray[np.float32]:
    """float32 [num_spans, dim]: the reference embedding of each span, zeros where there is none."""
    references = [
        item
        for _, path in plan.meaning("reference")
        for item in values_at(clip.structs, path.rpartition(".")[0])
        if item["embedding"]
    ]
    dim = max((len(item["embedding"]) for item in references), default=0)
    matrix = np.zeros((len(clip.own["spans"] or ()), dim), np.float32)
    for item in references:
        matrix[item["span_index"]] = item["embedding"]
    return matrix


def annotation(clip: Clip, plan: Plan) -> dict[str, Any]:
    """The .json member: all that was measured on the clip and its asset, as far as the fields' roles let it leave.

    Gates and resources have no part in it: a shard stays what it is when only they change.
    """
    asset, recipe = clip.asset, plan.recipe
    measured: dict[str, Any] = {}
    for level, structs in ((Level.ASSET, asset.structs), (Level.CLIP, clip.structs)):
        for spec in plan.at_level(level):
            found = structs.get(spec.column)
            if found is not None and any(is_in_shard(field) for field in spec.cls.adds):
                measured[spec.column] = pruned(found, spec.cls.adds, is_in_shard)
    source = asset.source.row()
    return {
        **measured,
        "contract_version": CONTRACT_VERSION,
        "clip_id": clip.clip_id,
        "source": {each.name: source[each.name] for each in SOURCE},
        "asset_id": asset.asset_id,
        "provenance": {
            "recipe": recipe.name,
            "hashes": {spec.name: spec.hash for spec in plan.stages},
            "stages": {spec.name: spec.config.model_dump(mode="json") for spec in plan.stages},
        },
    }


def caption_of(clip: Clip, plan: Plan) -> str:
    """The text the clip is trained with: its caption, or where it has none what is said in it."""
    written = [text for text in plan.values("text", clip.structs) if text]
    return written[0] if written else " ".join(span["text"] for span in clip.own["spans"] or ())


def index_columns(clip: Clip, plan: Plan, shard: str, split: str) -> dict[str, Any]:
    """What the index says of one sample, but where it lies; `clip` as it was cut."""
    cut, cutter = cut_of(clip, plan), plan.cutter
    assert cutter is not None
    measures = {cut_column(field.name): cut[field.name] for field in CUT_MEASURES}
    identity = {"cut_hash": cutter.hash, "cut_sha256": cut["sha256"]}
    return {**asdict(_index_row(clip, cut, plan, shard, split)), **measures, **identity}


def _index_row(clip: Clip, cut: Mapping[str, Any], plan: Plan, shard: str, split: str) -> IndexRow:
    probe, own = clip.asset.probe, clip.own
    duration_s = clip.duration_us / 1e6
    cost = budget.clip_budget(
        duration_s=duration_s,
        height_px=cut["height_px"],
        width_px=cut["width_px"],
        has_audio=probe["has_audio"],
        text_tokens=budget.estimated_text_tokens(caption_of(clip, plan)),
    )
    spans = own["spans"] or []
    return IndexRow(
        clip_id=clip.clip_id,
        shard=shard,
        duration_s=duration_s,
        num_frames=cut["num_frames"],
        fps=cut["num_frames"] / duration_s,
        width_px=cut["width_px"],
        height_px=cut["height_px"],
        has_video=probe["has_video"],
        has_audio=probe["has_audio"],
        has_speech=bool(own["has_speech"]),
        num_speakers=own["num_speakers"],
        source=clip.asset.source_id,
        language=spans[0]["language"] if spans else None,
        split=split,
        video_tokens=cost.video_tokens,
        audio_tokens=cost.audio_tokens,
        text_tokens=cost.text_tokens,
        train_flops=cost.train_flops,
    )
