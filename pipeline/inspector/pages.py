"""Pages as plain data: what their templates show and what their `.json` twins answer. Pure functions on a session."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from pipeline.ask.clips import ClipPage, ClipQuestion
from pipeline.ask.compare import compare
from pipeline.ask.condition import parsed_conditions
from pipeline.ask.marks import LEAST, gate_marks
from pipeline.ask.sources import SourceLists
from pipeline.ask.stats import clip_checks
from pipeline.ask.training import trained
from pipeline.inspector.session import RunView, Session
from pipeline.inspector.shown import plural
from pipeline.show.clip_view import clip_view
from pipeline.show.plain import stats_plain
from pipeline.show.screen import address
from pipeline.show.text import outdated_line
from schemas.errors import LedgerError
from schemas.fields import doc_of
from schemas.recipe import nearest
from schemas.records import Asset, Clip, Level, Shot

SCHEMA = 1
"""Of every `.json` twin; keys may be gained, never changed."""
MOST_DRAWN = 2_000
"""Shots and clips of one source that its page shows."""
Answer = dict[str, Any]


def head(session: Session, view: RunView) -> Answer:
    """What every page knows of its run."""
    return {
        "schema": SCHEMA,
        "run": address(view.run.dir.uri),
        "recipe": view.run.recipe.name,
        "ledger_version": view.version,
        "others": [address(other.run.dir.uri) for other in session.others.values()],
    }


def overview(session: Session, view: RunView) -> Answer:
    """Where the hours went, counts, checks, gates, labels, costs, and how far the run is."""
    stats, status = view.stats, view.status
    plain = stats_plain(stats)
    places = _places(view)
    return {
        **head(session, view),
        **{name: value for name, value in plain.items() if name not in ("run", "recipe")},
        "bars": _bars(plain["hours"]["exact_us"], places),
        "checks": _checks_of_run(view),
        "gates": [{**gate, "doc": places["docs"].get(gate["gate"].rpartition(".")[0], "")} for gate in plain["gates"]],
        "progress": {
            "settled": status.num_settled,
            "sources": status.num_sources,
            "left": status.num_left,
            "is_settled": status.num_left == 0,
            "outdated": status.num_outdated,
            "quiet_s": status.quiet_s,
            "units_per_s": status.units_per_s,
            "packed": status.packed,
        },
        "marks": marks_summary(session, view),
    }


def _places(view: RunView) -> Answer:
    """Where a reason leads: to clips, or to sources where none of them got as far; and what gated fields mean."""

    def made() -> Answer:
        codes = view.lists.spine["reason"].cast(str).unique().to_list()
        docs = {path: doc_of(field) for level in Level for path, field in view.run.plan.fields(level)}
        return {"reasons": {reason for reason in codes if reason}, "docs": docs}

    return view.once("places", made)


def _bars(us: Mapping[str, Any], places: Answer) -> list[Answer]:
    """The lines of the balance, each with the address of what it counts."""
    bars = [{"name": "kept", "kind": "keep", "us": us["kept"], "href": "/clips?status=keep"}]
    if us["cut_away"]:
        bars.append({"name": "cut away", "kind": "rest", "us": us["cut_away"], "href": "/sources?sort=lost"})
    for kind, book in (("reject", "rejected"), ("error", "errors")):
        for reason, spent in sorted(us[book].items(), key=lambda item: (-item[1], item[0])):
            page = "clips" if reason in places["reasons"] else "sources"
            doc = places["docs"].get(reason.rpartition(".")[0], "")
            bars.append({"name": reason, "kind": kind, "us": spent, "href": f"/{page}?reason={reason}", "doc": doc})
    return [{"doc": "", **bar} for bar in bars]


def _checks_of_run(view: RunView) -> list[Answer]:
    """What can be said at once of the soundness of a run; `verify` looks at the rest."""
    difference, status = view.stats.sheet.difference_us, view.status
    packed = status.packed
    return [
        {
            "name": "hours add up",
            "outcome": "passed" if not difference else "failed",
            "said": "in = kept + cut away + rejected + errors, to the microsecond"
            if not difference
            else f"{difference} \u00b5s are booked nowhere: run nava-curate verify",
        },
        {
            "name": "every source settled",
            "outcome": "passed" if not status.num_left else "not run",
            "said": "all passes done"
            if not status.num_left
            else outdated_line(status.num_outdated)
            if status.num_outdated
            else f"{plural(status.num_left, 'step')} of sources left",
        },
        {
            "name": "kept clips packed",
            "outcome": "not run"
            if packed is None
            else "passed"
            if packed[0] == status.clips.get("keep", 0)
            else "failed",
            "said": "no shards yet"
            if packed is None
            else f"{plural(packed[0], Level.CLIP)} in {plural(packed[1], 'shard')}",
        },
        {
            "name": "checksums and samples",
            "outcome": "not run",
            "said": f"nava-curate verify {shlex.quote(address(view.run.dir.uri))}",
        },
    ]


def marks_summary(session: Session, view: RunView) -> Answer:
    """How many clips are marked how, and what that says of gates."""
    marks = session.marks.all()
    counts = {name: sum(mark.opinion == name for mark in marks.values()) for name in ("good", "bad", "unsure")}
    told = counts["good"] + counts["bad"]
    gates = [asdict(each) for each in gate_marks(view.run, marks)] if told >= LEAST else []
    return {"counts": counts, "least": LEAST, "gates": gates, "file": str(session.marks.path)}


# --- clips


def question_of(given: Mapping[str, str]) -> ClipQuestion:
    """The question in an address. Raises LedgerError for a condition that is none."""
    return ClipQuestion(
        status=given.get("status", ""),
        reason=given.get("reason", ""),
        source=given.get("source", ""),
        conditions=parsed_conditions(given.get("where", "")),
        sort=given.get("sort", "") or ClipQuestion.sort,
        after=given.get("after", ""),
    )


def clips(session: Session, view: RunView, given: Mapping[str, str]) -> Answer:
    """One page of clips."""
    question = question_of(given)
    page: ClipPage = view.lists.page(question)
    marks = session.marks.all()
    checks = [check.path for check in clip_checks(view.run.plan) if check.operator in ("min", "max", "abs_max")]
    return {
        **head(session, view),
        "given": {
            name: given[name] for name in ("status", "reason", "source", "where", "sort", "view") if given.get(name)
        },
        "found": page.num_found,
        "found_us": page.found_us,
        "all": page.num_all,
        "facets": {name: [list(each) for each in values] for name, values in page.facets.items()},
        "rows": [
            {
                **asdict(row),
                "source": address(row.source),
                "mark": marks[row.clip_id].opinion if row.clip_id in marks else None,
            }
            for row in page.rows
        ],
        "fields": list(page.rows[0].values) if page.rows else [],
        "next_after": page.next_after,
        "margins": list(dict.fromkeys(checks)),
    }


def all_clips(view: RunView, given: Mapping[str, str], most: int) -> list[Answer]:
    """Every clip that is found, as flat rows."""
    rows = view.lists.page(replace(question_of(given), after="", limit=most)).rows
    return [
        {**{k: v for k, v in asdict(row).items() if k != "values"}, **row.values, "source": address(row.source)}
        for row in rows
    ]


def one_clip(session: Session, view: RunView, clip_id: str, given: Mapping[str, str]) -> Answer:
    """The page of a clip; `given` is the list it was opened from."""
    view.clip(clip_id)
    question = question_of({name: value for name, value in given.items() if name != "after"})
    before, behind = view.lists.neighbours(question, clip_id)
    mark = session.marks.all().get(clip_id)
    kept = view.packed is not None and view.packed.find(clip_id, ()) is not None
    run = shlex.quote(address(view.run.dir.uri))
    stage = view.clip(clip_id).verdict.stage or next(iter(view.run.recipe.ordered_gates()), "")
    return {
        **head(session, view),
        **view.lately(f"view {clip_id}", lambda: clip_view(view.chain(clip_id), view.run.plan)),
        "is_packed": kept,
        "previous": before,
        "next": behind,
        "given": {name: value for name, value in given.items() if value and name != "after"},
        "mark": None if mark is None else {"opinion": mark.opinion, "note": mark.note},
        "commands": [
            f"nava-curate why {clip_id} --run {run}",
            f"nava-curate replay {run} --stage {stage} --clip {clip_id}",
        ],
    }


# --- sources


def source_lists(view: RunView) -> SourceLists:
    """The sources of a view, read once."""
    return view.once("sources", lambda: SourceLists(view.lists))


def sources(session: Session, view: RunView, given: Mapping[str, str]) -> Answer:
    """One page of sources."""
    after = given.get("after", "0")
    if not after.isdigit():
        raise LedgerError(f"'{after}' is no place in the list.", remedy="Begin again with the first page.")
    page = source_lists(view).page(
        text=given.get("text", ""),
        status=given.get("status", ""),
        reason=given.get("reason", ""),
        sort=given.get("sort", "") or "name",
        after=int(after),
    )
    return {
        **head(session, view),
        **asdict(page),
        "rows": [{**asdict(row), "uri": address(row.uri)} for row in page.rows],
        "reasons": [list(each) for each in page.reasons],
        "given": {name: given[name] for name in ("text", "status", "reason", "sort") if given.get(name)},
        "all": page.num_all,
    }


def one_source(session: Session, view: RunView, source_id: str) -> Answer:
    """A source with its shots and clips in time order, on one time line."""
    chain = view.chain(source_id)
    asset = chain.rows[0]
    assert isinstance(asset, Asset)
    shots = [row for row in chain.rows if isinstance(row, Shot)]
    found = [row for row in chain.rows if isinstance(row, Clip)]
    return {
        **head(session, view),
        "source_id": asset.source_id,
        "asset_id": asset.asset_id,
        "source": address(asset.source.uri),
        "also": [address(uri) for uri in chain.also],
        "licence": asset.source.licence,
        "metadata": asset.source.metadata,
        "duration_us": asset.duration_us,
        "verdict": asset.verdict.row(),
        "num_shots": len(shots),
        "num_clips": len(found),
        "kept_us": sum(row.duration_us for row in found if row.verdict.status == "keep"),
        "shots": [_stretch(row, row.shot_id) for row in shots[:MOST_DRAWN]],
        "clips": [_stretch(row, row.clip_id) for row in found[:MOST_DRAWN]],
    }


def _stretch(row: Shot | Clip, row_id: str) -> Answer:
    own = row.structs[Level.SHOT if isinstance(row, Shot) else Level.CLIP] or {}
    return {
        "id": row_id,
        "start_s": float(row.span.start),
        "end_s": float(row.span.end),
        "duration_us": row.duration_us,
        "status": row.verdict.status,
        "reason": row.verdict.reason,
        "message": row.verdict.message,
        "is_transition": bool(own.get("is_transition")),
        "text": " ".join(span["text"] for span in own.get("spans") or ()),
    }


# --- shards


def shards(session: Session, view: RunView) -> Answer:
    """The shards that the manifest names, and whether their files have the size it says."""
    packed = view.packed
    rows = []
    for shard in packed.manifest.shards if packed else ():
        entry = view.run.dir.entry(f"shards/{shard.name}")
        state = "missing" if entry is None else "whole" if entry.num_bytes == shard.num_bytes else "damaged"
        rows.append({**asdict(shard), "state": state})
    by_split: dict[str, dict[str, float]] = {}
    for row in rows:
        sums = by_split.setdefault(row["split"], {"shards": 0, "samples": 0, "us": 0.0, "num_bytes": 0})
        sums["shards"] += 1
        sums["samples"] += row["num_samples"]
        sums["us"] += row["duration_s"] * 1e6
        sums["num_bytes"] += row["num_bytes"]
    manifest = None if packed is None else {"recipe": packed.manifest.recipe, "embedder": packed.manifest.embedder}
    return {**head(session, view), "manifest": manifest, "rows": rows, "splits": by_split}


def one_shard(session: Session, view: RunView, name: str) -> Answer:
    """What one shard holds: clips, lengths, sizes of pictures, languages. Raises LedgerError with the nearest name."""
    packed = view.packed
    known = {shard.name.removesuffix(".tar"): shard for shard in packed.manifest.shards} if packed else {}
    if packed is None or name not in known:
        raise LedgerError(f"no shard '{name[:80]}'.", remedy=nearest(name, known))
    import polars as pl

    index = pl.DataFrame(packed.index(name))
    seconds = pl.col("duration_s").sum()
    size = pl.format("{} x {}", "width_px", "height_px")
    spread = {
        title: [list(row) for row in index.group_by(by).agg(pl.len(), seconds).sort("len", descending=True).iter_rows()]
        for title, by in (("language", pl.col("language")), ("size", size), ("speakers", pl.col("num_speakers")))
    }
    columns = ["clip_id", "duration_s", "width_px", "height_px", "fps", "language", "num_speakers", "sample_bytes"]
    return {
        **head(session, view),
        **asdict(known[name]),
        "spread": spread,
        "rows": index.select(columns).head(MOST_DRAWN).to_dicts(),
    }


# --- compare


def comparison(session: Session, view: RunView, given: Mapping[str, str]) -> Answer:
    """This run against another one that was named at the start."""
    by_name = {address(other.run.dir.uri): other for other in session.others.values()}
    answer: Answer = {**head(session, view), "other": None, "given": dict(given)}
    if not by_name:
        return answer
    name = given.get("other") or next(iter(by_name))
    if name not in by_name:
        raise LedgerError(f"'{name}' was not named at the start.", remedy=nearest(name, by_name))
    found = view.once(f"compare {name} {by_name[name].version}", lambda: compare(by_name[name].lists, view.lists))
    told = asdict(found)
    told["recipe_diff"] = told.pop("recipe")
    return {**answer, "other": name, **told}


# --- training


def training(session: Session, view: RunView) -> Answer:
    """What a training did with these clips, where one was named at the start."""
    answer: Answer = {**head(session, view), "training": None}
    if session.training is None:
        return answer
    folder = session.training
    newest = max((path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()), default=0)
    told = view.once(f"training {newest}", lambda: trained(view.lists, folder, shards_of(view)))
    return {**answer, "training": asdict(told)}


def shards_of(view: RunView) -> dict[str, str]:
    """Clip -> its shard, of all packed clips."""
    packed = view.packed
    if packed is None:
        return {}
    names = [shard.name.removesuffix(".tar") for shard in packed.manifest.shards]
    return {clip: name for name in names for clip in packed.index(name)["clip_id"].to_pylist()}
