"""Ledgers of any size in the real schema, for measuring what questions cost: `python -m benchmarks.synthetic_ledger DIR`.

Rows come through the real writer, so that files are cut as those of a run are. Values are drawn at random, but the ledger is
sound: spans nest and adjoin, gates have decided what the measures say, a stage behind the deciding one was not reached,
some sources are errors and some have the same bytes as another.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import Recipe, load_recipe
from pipeline.ledger import Ledger, hash_column, ledger_schema
from pipeline.ledger_writer import LedgerWriter
from pipeline.plan import Plan, make_plan
from pipeline.run import write_facts
from pipeline.store import RunDir
from schemas import ids
from schemas.records import Level, Source

FPS = 25
SHOT_FRAMES, CLIP_FRAMES = 300, 125
"""Shots of 12 s and clips of 5 s: with two to a shot, a sixth is cut away."""
WORDS_PER_SPAN, SPANS_PER_CLIP, ITEMS, CURVE, EMBEDDING = 8, 2, 1, 41, 192
SHARE_OF_ERRORS, SHARE_OF_COPIES = 0.01, 0.02
FAILING = {
    "picture.brightness": 0.01,
    "audio.silence_ratio": 0.95,
    "sync.offset_ms": 400.0,
}
"""Measure -> a value that its gate of the quickstart recipe turns away; the rest of the clips pass every gate."""
PASSING = {
    "picture.picture_ratio": 1.0, "picture.brightness": 0.5, "picture.freeze_ratio": 0.0, "picture.damaged_ratio": 0.0,
    "picture.true_fps": 25.0, "audio.silence_ratio": 0.1, "audio.gap_ratio": 0.0, "audio.loudness_lufs": -20.0,
    "audio.clipping_ratio": 0.0, "audio.bandwidth_hz": 8000.0, "sync.confidence": 8.0, "sync.offset_ms": 20.0,
}  # fmt: skip
CUT_BYTES = (1_000_000, 2_000_000)
"""Range of the sizes of clips' media: 5 s at 2.4 Mbit/s."""
COPY = "duplicates.is_representative.equals"
LABELS = {"sync.kind": "speech", "sync.status": "measured", "audio.kind": "speech"}
Rows = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much a synthetic ledger holds."""

    num_clips: int
    shots_per_source: int = 5
    clips_per_shot: int = 2
    sources_per_commit: int = 1024
    share_of_copies: float = SHARE_OF_COPIES

    @property
    def num_sources(self) -> int:
        """Sources, so that there are at least `num_clips` clips."""
        return -(-self.num_clips // (self.shots_per_source * self.clips_per_shot))


def write(folder: str, size: Size, recipe: Recipe | None = None, seed: int = 0) -> Ledger:
    """A run directory without media or shards whose ledger has `size`; 1e5 clips take about a minute and 250 MB.

    `recipe` is quickstart, or that with stages taken out.
    """
    plan, directory = make_plan(recipe or load_recipe("quickstart")), RunDir(folder)
    rng = np.random.default_rng(seed)
    names = [f"https://example.org/{number:08d}.mp4" for number in range(size.num_sources)]
    sources = [Source(source_id=ids.source_id(name), uri=name, licence="CC0", metadata="{}") for name in names]
    with LedgerWriter(directory.url("ledger"), plan) as writer:
        write_facts(directory, plan, sources)
        for start in range(0, len(sources), size.sources_per_commit):
            part = sources[start : start + size.sources_per_commit]
            writer.add(part[0].source_id, _tables(plan, part, size, rng), is_there=False)
            writer.flush()
    return Ledger(directory.url("ledger"))


def _tables(plan: Plan, sources: list[Source], size: Size, rng: np.random.Generator) -> dict[str, pa.Table]:
    """Kind -> the rows of some sources."""
    num = len(sources)
    is_error = rng.random(num) < SHARE_OF_ERRORS
    is_copy = (rng.random(num) < size.share_of_copies) & ~is_error
    assets = _assets(plan, sources, is_error, is_copy, size, rng)
    tables = {Level.ASSET.value: assets}
    alive = np.flatnonzero(~is_error)
    above = {"source_id": _taken(assets["source_id"], alive), "asset_id": _taken(assets["asset_id"], alive)}
    turned_away = is_copy[alive]
    for level, per_parent, frames, stride in (
        (Level.SHOT, size.shots_per_source, SHOT_FRAMES, SHOT_FRAMES),
        (Level.CLIP, size.clips_per_shot, CLIP_FRAMES, SHOT_FRAMES // size.clips_per_shot),
    ):
        parents = np.repeat(np.arange(len(turned_away)), per_parent)
        above = {name: _taken(values, parents) for name, values in above.items()}
        turned_away = turned_away[parents]
        index = np.tile(np.arange(per_parent), len(parents) // per_parent)
        start = index * stride + (0 if level is Level.SHOT else above.pop("start_pts").to_numpy())
        rows = _children(level, above, index, start, frames)
        if level is Level.CLIP:
            rows |= _measures(plan, len(index), turned_away, rng)
        else:
            rows |= _verdicts(np.where(turned_away, "reject", "keep"), turned_away)
            above |= {"start_pts": pa.array(start), "row_id": rows["row_id"]}
        tables[level.value] = _filled(plan, level, rows, len(index), rng)
    return tables


def _assets(
    plan: Plan,
    sources: list[Source],
    is_error: NDArray[np.bool_],
    is_copy: NDArray[np.bool_],
    size: Size,
    rng: np.random.Generator,
) -> pa.Table:
    names = pa.array([source.source_id for source in sources])
    asset_ids = pa.array(
        [None if wrong else ids.asset_id(each.source_id) for each, wrong in zip(sources, is_error, strict=True)]
    )
    lengths = np.full(len(sources), size.shots_per_source * SHOT_FRAMES * 1_000_000 // FPS)
    cost = [{"stage": spec.name, "wall_s": 1.0, "cpu_s": 0.5, "rows": 10} for spec in plan.stages]
    rows: Rows = {
        "row_id": names,
        "source_id": names,
        "asset_id": asset_ids,
        "duration_us": pa.array(lengths, mask=is_error),
        "source.source_id": names,
        "source.uri": [source.uri for source in sources],
        "source.licence": [source.licence for source in sources],
        "source.metadata": [source.metadata for source in sources],
        "probe.duration_us": lengths,
        "probe.has_video": [True] * len(sources),
        "probe.has_audio": [True] * len(sources),
        "download.asset_id": asset_ids,
        "duplicates.group": names,
        "duplicates.num_alike": np.ones(len(sources), int),
        "duplicates.is_representative": pa.array(~is_copy),
        "passed": [plan.identity(len(plan.passes) - 1)] * len(sources),
        "cost": [cost] * len(sources),
        **_verdicts(np.select([is_error, is_copy], ["error", "reject"], "keep"), is_copy),
    }
    rows["verdict.reason"] = pa.array(
        np.select([is_error, is_copy], ["not_decodable", COPY], ""), mask=~(is_error | is_copy)
    )
    rows |= {hash_column(spec.name): ~is_error for spec in plan.at_level(Level.ASSET)}
    return _filled(plan, Level.ASSET, rows, len(sources), rng)


def _verdicts(status: NDArray[np.str_], is_copy: NDArray[np.bool_]) -> Rows:
    return {
        "verdict.status": status,
        "verdict.reason": pa.array(np.where(is_copy, COPY, ""), mask=~is_copy),
        "verdict.stage": pa.array(np.where(is_copy, "duplicates", ""), mask=~is_copy),
        "verdict.is_audit": np.zeros(len(status), bool),
        "verdict.failed_gates": [[COPY] if copied else [] for copied in is_copy],
    }


def _children(level: Level, above: Rows, index: NDArray[np.int64], start: NDArray[np.int64], frames: int) -> Rows:
    sources = above["source_id"].to_pylist()
    row_ids = pa.array([level.value[0] + ids.digest(*each) for each in zip(sources, start.tolist(), strict=True)])
    parent = above["asset_id"] if level is Level.SHOT else above["row_id"]
    length = np.full(len(index), frames * 1_000_000 // FPS)
    own = {
        f"{level}_id": row_ids, "parent_id": parent, "asset_id": above["asset_id"], "index": index, "start_pts": start,
        "end_pts": start + frames, "tb_num": np.ones(len(index), int), "tb_den": np.full(len(index), FPS),
        "asset_start_s": start / FPS, "asset_end_s": (start + frames) / FPS, "duration_us": length,
        "num_frames": np.full(len(index), frames), "is_transition": np.zeros(len(index), bool),
    }  # fmt: skip
    keys = {name: own[name] for name in ("parent_id", "asset_id", "duration_us")}
    return {"row_id": row_ids, "source_id": above["source_id"], **keys} | {
        f"{level}.{name}": values for name, values in own.items()
    }


def _measures(plan: Plan, num: int, is_copy: NDArray[np.bool_], rng: np.random.Generator) -> Rows:
    """What gates look at, and the verdicts that follow: three tenths of the clips are turned away, each by one gate."""
    measures = list(FAILING)
    decider = rng.choice([-1, 0, 1, 2], num, p=[0.7, 0.1, 0.1, 0.1])
    rows: Rows = {path: value + rng.normal(0, abs(value) / 50, num) for path, value in PASSING.items()}
    rows["picture.picture_ratio"] = np.ones(num)
    for at, path in enumerate(measures):
        rows[path] = np.where(decider == at, FAILING[path], rows[path])
    rows |= {path: [value] * num for path, value in LABELS.items()}
    digits = rng.bytes(32 * num).hex()
    rows |= {"cut.sha256": [digits[at : at + 64] for at in range(0, len(digits), 64)]}
    rows |= {"cut.bytes": rng.integers(*CUT_BYTES, num)}
    rejected = decider >= 0
    names = np.array([_check_on(plan, path) for path in measures])[np.maximum(decider, 0)]
    rows |= _verdicts(np.where(rejected | is_copy, "reject", "keep"), is_copy & ~rejected)
    rows["verdict.reason"] = pa.array(np.where(rejected, names, COPY), mask=~(rejected | is_copy))
    stages = np.array([path.split(".")[0] for path in measures])[np.maximum(decider, 0)]
    rows["verdict.stage"] = pa.array(np.where(rejected, stages, "duplicates"), mask=~(rejected | is_copy))
    order = [spec.name for spec in plan.at_level(Level.CLIP)]
    last = np.array([order.index(path.split(".")[0]) for path in measures] + [len(order)])[decider]
    return rows | {hash_column(name): last >= at for at, name in enumerate(order)}


def _check_on(plan: Plan, path: str) -> str:
    return next(check.name for check in plan.checks if check.path == path)


def _filled(plan: Plan, level: Level, rows: Rows, num: int, rng: np.random.Generator) -> pa.Table:
    """The rows with something in every other column of their level; null where `{stage}.hash` of `rows` says not reached."""
    rows = {"kind": [level.value] * num} | rows
    specs = {spec.column: spec for spec in plan.at_level(level)}
    splits = {hash_column(spec.name): spec.hash for spec in plan.stages if spec.is_split and spec.cls.level == level}
    fields, arrays = [], []
    for field in ledger_schema(plan):
        spec = specs.get(field.name.split(".")[0])
        looked = np.ones(num, bool)
        if spec is not None and not spec.is_split:
            looked = np.asarray(rows.get(hash_column(spec.name), looked))
        if field.name in splits:
            values: Any = [splits[field.name]] * num
        elif spec is not None and field.name == hash_column(spec.name):
            values = [None if spec.is_split else spec.hash] * num
        elif field.name in rows:
            values = rows[field.name]
        elif spec is not None:
            values = _drawn(field.type, num, rng)
        else:
            continue
        fields.append(field)
        array = values.cast(field.type) if isinstance(values, pa.Array) else pa.array(values, field.type)
        arrays.append(array if looked.all() else array.take(pa.array(np.arange(num), mask=~looked)))
    return pa.table(arrays, schema=pa.schema(fields))


def _drawn(kind: pa.DataType, num: int, rng: np.random.Generator) -> pa.Array:
    """`num` values of any type of the schema, drawn at random."""
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays([_drawn(field.type, num, rng) for field in kind], fields=list(kind))
    if pa.types.is_list(kind):
        most = _most_items(kind)
        counts = np.full(num, most) if pa.types.is_floating(kind.value_type) else rng.integers(0, most + 1, num)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, _drawn(kind.value_type, int(offsets[-1]), rng), type=kind)
    if pa.types.is_floating(kind):
        return pa.array(rng.normal(size=num), kind)
    if pa.types.is_integer(kind):
        return pa.array(rng.integers(0, 4, num), kind)
    if pa.types.is_boolean(kind):
        return pa.array(rng.random(num) < 0.5)
    return pa.array(np.array(["A", "B", "on_screen", "the quick brown fox"])[rng.integers(0, 4, num)])


def _most_items(kind: pa.DataType) -> int:
    if pa.types.is_floating(kind.value_type):
        return EMBEDDING if pa.types.is_float32(kind.value_type) else CURVE
    names = {field.name for field in kind.value_type} if pa.types.is_struct(kind.value_type) else set()
    if "words" in names:
        return SPANS_PER_CLIP
    return WORDS_PER_SPAN if names == {"text", "start_s", "end_s", "confidence"} else ITEMS


def _taken(values: Any, places: NDArray[np.int64]) -> pa.Array:
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return array.take(pa.array(places))


def main() -> None:
    """Writes one ledger and prints what lies on disk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--sources-per-commit", type=int, default=Size.sources_per_commit)
    given = parser.parse_args()
    size = Size(given.clips, sources_per_commit=given.sources_per_commit)
    ledger = write(given.folder, size)
    files = ledger.table.get_add_actions().num_rows
    print(json.dumps({"clips": given.clips, "sources": size.num_sources, "files": files}))


if __name__ == "__main__":
    main()
