"""Kept clips -> shards: deterministic assignment, exact cutting, tar + Arrow index, atomic publication, checksums.

Clips go into shards in the order of their ids, which are hashes: an unbiased shuffle that is the same on every run.
One shard is one unit of work with one ledger commit; the same clips give the same bytes.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.ledger import PACK_KIND, Ledger, asset_of, clip_of
from pipeline.plan import Plan, make_plan
from pipeline.splits import likenesses, split_assets
from pipeline.store import RunDir
from schemas import budget
from schemas.arrow_file import table_bytes, with_facts
from schemas.errors import ItemError
from schemas.fields import is_in_shard, pruned, values_at
from schemas.ids import digest
from schemas.records import SOURCE, Clip, Level, Verdict
from schemas.shard import CONTRACT_VERSION, INDEX, MEMBERS, SOUND_RATE_HZ, IndexRow
from schemas.shard_file import Manifest, ShardEntry, ShardFacts, ShardWriter, parse_index
from stages.base import Context
from stages.sync.repair import Remeasure, repaired_clip
from stages.sync.result import Figures

if TYPE_CHECKING:
    from stages.media.cutting import CutReport

FLAC_BYTES_PER_S = 120_000
"""Planning estimate for 48 kHz stereo speech in FLAC; only decides where a shard ends."""
MANIFEST = "index/manifest.json"


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written: its name and its clips, in order."""

    name: str
    split: str
    clips: list[Clip]
    unit_id: str


def plan_shards(ledger: Ledger, recipe: Recipe) -> list[ShardTask]:
    """The shards of a settled run, the same for the same ledger and recipe. A clip of bytes given twice is packed once."""
    assets = {
        row["source_id"]: asset_of(row)
        for row in ledger.settled(Level.ASSET).to_pylist()
        if row["verdict"]["status"] == "keep"
    }
    judged = ledger.settled(Level.CLIP, packed=False).to_pylist()
    clips: dict[str, Clip] = {}
    for row in sorted(judged, key=lambda row: (row["row_id"], row["source_id"])):
        if row["verdict"]["status"] == "keep":
            clips.setdefault(row["row_id"], clip_of(row, assets[row["source_id"]]))
    plan = make_plan(recipe)
    known = {str(asset.asset_id) for asset in assets.values()}
    sides = split_assets(known, recipe.pack.validation_fraction, likenesses(plan, assets.values(), clips.values()))
    tasks: list[ShardTask] = []
    for split in ("train", "validation"):
        members = [clip for clip in clips.values() if sides[str(clip.asset.asset_id)] == split]
        batch: list[Clip] = []
        size = 0.0
        for clip in members:
            estimate = _estimated_bytes(clip)
            if batch and size + estimate > recipe.pack.target_shard_mb * 1e6:
                tasks.append(_task(len(tasks), split, batch, recipe))
                batch, size = [], 0.0
            batch.append(clip)
            size += estimate
        if batch:
            tasks.append(_task(len(tasks), split, batch, recipe))
    return tasks


def _task(number: int, split: str, clips: list[Clip], recipe: Recipe) -> ShardTask:
    config = json.dumps([recipe.pack.model_dump(), recipe.sync_repair.model_dump()], sort_keys=True)
    name = f"{number:05d}"
    unit = f"pack:{name}:" + digest(CONTRACT_VERSION, *INDEX.names, config, *(clip.clip_id for clip in clips))
    return ShardTask(name, split, clips, unit)


def _estimated_bytes(clip: Clip) -> float:
    rate = clip.asset.num_bytes / max((clip.asset.duration_us or 0) / 1e6, 1e-3)
    return (rate + FLAC_BYTES_PER_S) * clip.duration_us / 1e6


def pack_shard(task: ShardTask, recipe: Recipe, run: RunDir) -> list[dict[str, Any]]:
    """Writes one shard and its index; returns the `pack` ledger rows of its clips, errors included.

    A clip that cannot be cut exactly settles as an error and is left out; nothing else is lost.
    """
    plan = make_plan(recipe)
    rows: list[dict[str, Any]] = []
    index: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="nava-pack-") as folder:
        context = Context(Path(folder), decoder=recipe.decoder, configs=recipe.stage_configs())
        remeasure = Remeasure(context)
        path = Path(folder, f"{task.name}.tar")
        with open(path, "wb") as file, ShardWriter(file, path.name, MEMBERS) as shard:
            for clip in task.clips:
                try:
                    sample = make_sample(clip, plan, context, remeasure)
                except ItemError as error:
                    rows.append(_pack_row(clip, task, None, error))
                    continue
                place = shard.add(clip.clip_id, sample.members)
                index.append(asdict(index_row(sample, task, plan)) | _measured(sample) | place.columns())
                rows.append(_pack_row(clip, task, sample, None))
        run.publish(path, f"shards/{task.name}.tar")
    facts = ShardFacts(shard.sha256, shard.num_bytes, task.split)
    table = pa.Table.from_pylist(index, schema=with_facts(INDEX, facts.to_metadata()))
    run.write(f"index/{task.name}.arrow", table_bytes(table))
    return rows


def write_manifest(run: RunDir, tasks: Sequence[ShardTask], recipe: Recipe) -> Manifest:
    """Publishes index/manifest.json over all shards and removes files of an earlier, larger plan."""
    shards = tuple(_entry(read_index(run, task.name), task.name) for task in tasks)
    num_samples = sum(shard.num_samples for shard in shards)
    manifest = Manifest(CONTRACT_VERSION, recipe.name, recipe.measure_hash(), num_samples, shards)
    run.write(MANIFEST, manifest.to_json())
    names = {task.name for task in tasks}
    for folder, suffix in (("shards", ".tar"), ("index", ".arrow")):
        for entry in run.names(folder):
            if entry.startswith(".") or (entry.endswith(suffix) and entry.removesuffix(suffix) not in names):
                run.remove(f"{folder}/{entry}")
    return manifest


def _entry(index: pa.Table, name: str) -> ShardEntry:
    facts = ShardFacts.of(index, f"index/{name}.arrow")
    duration_s = float(np.sum(index["duration_s"].to_numpy()))
    return ShardEntry(
        f"{name}.tar", f"{name}.arrow", facts.sha256, facts.num_bytes, facts.split, index.num_rows, duration_s
    )


def read_manifest(run: RunDir) -> Manifest:
    """The manifest of a run's shards. Raises LedgerError when it is not there, ShardError when it cannot be read."""
    return Manifest.from_json(run.read(MANIFEST))


def read_index(run: RunDir, name: str) -> pa.Table:
    """The Arrow index of one shard. Raises LedgerError when it is not there, ShardError when it cannot be read."""
    return parse_index(run.read(f"index/{name}.arrow"), f"index/{name}.arrow")


@dataclass(frozen=True)
class PackedClip:
    """One clip, cut, verified and ready for the tar."""

    clip: Clip
    """After a repair that of what is heard now."""
    members: dict[str, bytes]
    report: CutReport
    """Verified."""
    resync: Figures | None
    """Sync measured anew on the written file, if the sound was moved."""


def make_sample(clip: Clip, plan: Plan, context: Context, remeasure: Remeasure) -> PackedClip:
    """One clip's payload, its cut verified and its repair measured. Raises ItemError."""
    import soundfile

    from stages.media.cutting import CutOptions, cut_clip, cut_sound, verify_clip

    asset, media, recipe = clip.asset, context.media, plan.recipe
    source = media.localise(asset.path)
    span = clip.span
    repaired = repaired_clip(clip, recipe.sync_repair, context.configs)
    options = CutOptions(crf=recipe.pack.crf, allow_copy=recipe.pack.allow_copy)
    if repaired is not None:
        clip, taken = repaired.clip, repaired.repair
        options = replace(options, shift_ms=taken.shift_ms, drift_ppm=taken.drift_ms_per_s * 1e3)
    out = context.scratch_dir / f"{clip.clip_id}.mp4"
    report = verify_clip(out, cut_clip(source, span, out, options=options, decoder=media), decoder=media)
    resync = None if repaired is None else remeasure(out, repaired)
    sound = np.zeros((0, 2), np.float32)
    if asset.has_audio:
        sound = cut_sound(source, span, SOUND_RATE_HZ, options=options, decoder=media)
    flac = io.BytesIO()
    soundfile.write(flac, sound, SOUND_RATE_HZ, format="FLAC", subtype="PCM_16")
    vectors = io.BytesIO()
    np.save(vectors, timbre_matrix(clip, plan), allow_pickle=False)
    told = annotation(clip, plan) | _repair_columns(report, resync)
    record = json.dumps(told, sort_keys=True, ensure_ascii=False, allow_nan=False)
    members = {"mp4": out.read_bytes(), "flac": flac.getvalue(), "json": record.encode(), "npy": vectors.getvalue()}
    out.unlink()
    return PackedClip(clip, members, report, resync)


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
    """The .json member: all that was measured on the clip and its asset, as far as the fields' roles let it leave."""
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
            "measure_hash": recipe.measure_hash(),
            "stages": {name: cfg.model_dump(mode="json") for name, cfg in recipe.stage_configs().items()},
        },
    }


def caption_of(clip: Clip, plan: Plan) -> str:
    """The text the clip is trained with: its caption, or where it has none what is said in it."""
    written = [text for text in plan.values("text", clip.structs) if text]
    return written[0] if written else " ".join(span["text"] for span in clip.own["spans"] or ())


def index_row(sample: PackedClip, task: ShardTask, plan: Plan) -> IndexRow:
    """What the index says of one sample itself."""
    clip = sample.clip
    probe, own = clip.asset.probe, clip.own
    duration_s = clip.duration_us / 1e6
    cost = budget.clip_budget(
        duration_s=duration_s,
        height_px=probe["height_px"],
        width_px=probe["width_px"],
        has_audio=probe["has_audio"],
        text_tokens=budget.estimated_text_tokens(caption_of(clip, plan)),
    )
    spans = own["spans"] or []
    return IndexRow(
        clip_id=clip.clip_id,
        shard=f"{task.name}.tar",
        duration_s=duration_s,
        num_frames=own["num_frames"],
        fps=own["num_frames"] / duration_s,
        width_px=probe["width_px"],
        height_px=probe["height_px"],
        has_video=probe["has_video"],
        has_audio=probe["has_audio"],
        has_speech=bool(own["has_speech"]),
        num_speakers=own["num_speakers"],
        source=clip.asset.source_id,
        language=spans[0]["language"] if spans else None,
        split=task.split,
        video_tokens=cost.video_tokens,
        audio_tokens=cost.audio_tokens,
        text_tokens=cost.text_tokens,
        train_flops=cost.train_flops,
    )


def _measured(sample: PackedClip) -> dict[str, Any]:
    """The columns `CUT` of a written clip."""
    return _cut_columns(sample.report) | _repair_columns(sample.report, sample.resync)


def _cut_columns(report: CutReport) -> dict[str, Any]:
    return {
        "cut_mode": report.mode,
        "cut_start_error_us": report.start_error_us,
        "cut_sound_error_samples": report.sound_error_samples,
        "cut_duration_error_us": report.duration_error_us,
    }


def _repair_columns(report: CutReport, found: Figures | None) -> dict[str, Any]:
    return {
        "applied_shift_ms": report.applied_shift_ms,
        "applied_drift_ms_per_s": report.applied_drift_ppm / 1e3,
        "repaired_offset_ms": found and found.offset_ms,
        "repaired_offset_std_ms": found and found.offset_std_ms,
        "repaired_drift_ms_per_s": found and found.drift_ms_per_s,
        "repaired_confidence": found and found.confidence,
    }


def _pack_row(clip: Clip, task: ShardTask, sample: PackedClip | None, error: ItemError | None) -> dict[str, Any]:
    verdict = Verdict("keep", stage=PACK_KIND)
    if error is not None:
        verdict = Verdict("error", f"{PACK_KIND}.{error.reason}", str(error), PACK_KIND)
    pack = {"shard": f"{task.name}.tar"} | ({} if sample is None else _measured(sample))
    return {"kind": PACK_KIND, "row_id": clip.clip_id, "parent_id": clip.clip_id, "source_id": clip.asset.source_id,
            "asset_id": clip.asset.asset_id, "duration_us": clip.duration_us, "verdict": verdict.row(), "pack": pack}  # fmt: skip
