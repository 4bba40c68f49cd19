"""The inspector as one file that opens from disk without network: what `nava-curate report` writes.

Scripts, styles and data lie inside it. Histograms are drawn by the same code as on the page, and stand there as SVG for
readers without scripts. What-if works on clips as codes of 8 bits: bounds move in steps, at which the answer is exact for the
clips that are there.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.ask.clips import ClipQuestion
from pipeline.ask.measures import ORDERED, Measures
from pipeline.inspector import measures_view, pages
from pipeline.inspector.charts import filled, histogram_spec, svg, time_unit
from pipeline.inspector.media import PICTURE, MediaShelf, packed_blob
from pipeline.inspector.session import RunView, Session
from pipeline.inspector.shown import FILTERS
from schemas.errors import MediaError
from schemas.files import write_whole
from schemas.verdict import Check

STATIC = Path(__file__).parent / "static"
STEPS = 253
"""Positions of a bound, less one; codes 0 to 254 are values on them."""
FIXED = 255
"""Code of a clip that a gate turns away whatever its bound."""
MOST_CLIPS = 100_000
DATA_BYTES = 1_000_000
"""Of the clips' codes in the file, compressed, as text: fewer clips are taken until they fit."""
OPEN, STUCK = 1, 2
"""Bits of a clip's state: some gate was not reached; no gate brings it back."""
TEN_MS = 10_000


def write_report(session: Session, out: Path, num_media: int = 0) -> list[Path]:
    """Writes the report, and beside it up to `num_media` clips with their posters; returns all files."""
    view = session.view
    folder = out.with_name(f"{out.stem}_files")
    shown = _with_media(session, view, folder, num_media) if num_media else []
    text = rendered(session, view, shown, folder.name)
    write_whole(out, text.encode())
    return [out, *(folder / name for each in shown for name in each["files"])]


def rendered(session: Session, view: RunView, shown: Sequence[dict[str, Any]], folder: str) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("pipeline.inspector"), autoescape=select_autoescape(default=True), trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(FILTERS)
    overview, measures = pages.overview(session, view), measures_view.measures(session, view, {})
    table = view.measures
    unit = [time_unit(max([*axis["all_us"][:-1], 1])) for axis in measures["axes"]]
    charts = [
        svg(filled(axis["edges"], measures["histograms"][axis["path"]][:-1], axis["all_us"][:-1], _bounds(axis), per))
        for axis, (_, per) in zip(measures["axes"], unit, strict=True)
    ]
    data = {**packed_clips(table), "axes": measures["axes"], "spec": histogram_spec(), "kept_now": measures["kept_now"]}
    return environment.get_template("report.html").render(
        page="report",
        is_report=True,
        style=Markup((STATIC / "style.css").read_text()),
        scripts=[Markup(each) for each in scripts()],
        axes=list(zip(measures["axes"], map(Markup, charts), strict=True)),
        data=data,
        shown=shown,
        folder=folder,
        **overview,
        kept_now=measures["kept_now"],
    )


def scripts() -> list[str]:
    """Classic scripts: Vega, and the page's own module of histograms with what the report adds, without its exports."""
    modules = ((STATIC / name).read_text() for name in ("histogram.js", "report.js"))
    own = "\n".join(re.sub(r"^(?:export (?=(?:async )?function)|import .*$)", "", text, flags=re.M) for text in modules)
    bundle = (STATIC / "vendor" / "charts.js").read_text()
    return [_inside(bundle), _inside(f"(() => {{\n{own}\n}})();")]


def _inside(script: str) -> str:
    """A script that may stand inside an element of a page."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _bounds(axis: dict[str, Any]) -> list[float]:
    found: list[float] = []
    for gate in axis["gates"]:
        if gate["operator"] in ORDERED:
            found += [-gate["bound"], gate["bound"]] if gate["operator"] == "abs_max" else [gate["bound"]]
    low, high = axis["edges"][0], axis["edges"][-1]
    return [each for each in found if low - (high - low) <= each <= high + (high - low)]


def packed_clips(table: Measures) -> dict[str, Any]:
    """Lengths, states, bins and gate codes of a sample of clips, as base64 of deflated columns."""
    rows = np.arange(len(table.us))
    rng = np.random.default_rng(0)
    num = min(len(rows), MOST_CLIPS)
    gates = [gate for gate in table.gates if gate.check.operator in ORDERED]
    looked_at = [gate.read() for gate in gates]
    steps = [gate_steps(gate.check, values) for gate, values in zip(gates, looked_at, strict=True)]
    while True:
        chosen = rows if num == len(rows) else np.sort(rng.choice(len(rows), num, replace=False))
        state = _state(table, chosen)
        columns = [np.minimum(table.us[chosen] // TEN_MS, 65_535).astype("<u2").tobytes(), state.tobytes()]
        columns += [codes[chosen].tobytes() for codes in table.codes.values()]
        for gate, values, (low, step) in zip(gates, looked_at, steps, strict=True):
            codes = coded(gate.check, values[chosen], ~np.isnan(values[chosen]), low, step)
            columns.append(np.where(gate.fixed[chosen], FIXED, codes).astype(np.uint8).tobytes())
        compressor = zlib.compressobj(9, wbits=-15)
        text = base64.b64encode(compressor.compress(b"".join(columns)) + compressor.flush()).decode()
        if len(text) <= DATA_BYTES or num < 1_000:
            break
        num = num * 9 // 10
    return {
        "clips": text,
        "num_clips": len(chosen),
        "num_all": len(rows),
        "all_us": int(table.us.sum()),
        "measures": list(table.codes),
        "moved": [
            {
                "name": gate.check.name,
                "operator": gate.check.operator,
                "bound": gate.check.bound,
                "low": low,
                "step": step,
            }
            for gate, (low, step) in zip(gates, steps, strict=True)
        ],
    }


def _state(table: Measures, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Bits of what no slider of the report changes: errors, gates without an order, gates that were not reached."""
    stuck = table.is_stuck[rows].copy()
    is_open = np.zeros(len(rows), bool)
    for gate in table.gates:
        is_open |= gate.unreached[rows]
        stuck |= gate.errors[rows]
        if gate.check.operator not in ORDERED:
            stuck |= gate.fixed[rows]
    return np.asarray(is_open * OPEN + stuck * STUCK, np.uint8)


def gate_steps(check: Check, values: NDArray[np.float64]) -> tuple[float, float]:
    """(lowest bound, step) such that the recipe's bound is one of the steps, and measured values lie between them."""
    known = np.abs(values[np.isfinite(values)]) if check.operator == "abs_max" else values[np.isfinite(values)]
    ends = [*np.percentile(known, (1, 99)), check.bound] if len(known) else [check.bound]
    low, high = float(min(ends)), float(max(ends))
    if check.operator == "abs_max":
        low = 0.0
    step = (high - low) / STEPS or abs(check.bound) / STEPS or 1 / STEPS
    return float(check.bound - round((check.bound - low) / step) * step), step


def coded(
    check: Check, values: NDArray[np.float64], looks: NDArray[np.bool_], low: float, step: float
) -> NDArray[np.float64]:
    """Codes 0 to 254: on step k a lower bound keeps codes of at least k, an upper one codes of at most k. NaN is never kept."""
    values = np.abs(values) if check.operator == "abs_max" else values
    with np.errstate(over="ignore", invalid="ignore"):
        place = (values - low) / step
        nearest = np.rint(place)
        place = np.where(np.abs(place - nearest) < 1e-9, nearest, place)
    if check.operator == "min":
        codes = np.where(np.isnan(place), 0, np.clip(np.floor(place), 0, STEPS + 1))
        codes = np.where(np.isnan(place) | (place < 0), -1, codes)
        always = STEPS + 1
    else:
        codes = np.where(np.isnan(place), STEPS + 1, np.clip(np.ceil(place), 0, STEPS + 1))
        always = 0
    kept = np.where(looks, codes, always)
    return np.where(kept < 0, FIXED, kept)


def _with_media(session: Session, view: RunView, folder: Path, num_media: int) -> list[dict[str, Any]]:
    """Clips and posters as files: kept and rejected ones in turn, as far as their media can be had."""
    folder.mkdir(parents=True, exist_ok=True)
    shelf = MediaShelf(session.folder / "media")
    half = ClipQuestion(status="keep", limit=num_media), ClipQuestion(status="reject", limit=num_media)
    kept, rejected = (view.lists.page(question).rows for question in half)
    turns = [row for pair in zip(kept, rejected, strict=False) for row in pair]
    turns += [*kept[len(rejected) :], *rejected[len(kept) :]]
    shown: list[dict[str, Any]] = []
    for row in turns:
        if len(shown) == num_media:
            break
        clip = view.clip(row.clip_id)
        try:
            poster = shelf.poster(clip, view).result().read_bytes()
            blob = packed_blob(view, clip.clip_id, PICTURE) or shelf.blob(shelf.cut(clip, PICTURE, view).result())
        except MediaError:
            continue
        names = [f"{clip.clip_id}.jpg", f"{clip.clip_id}.{PICTURE}"]
        write_whole(folder / names[0], poster)
        write_whole(folder / names[1], b"".join(blob.read(0, blob.num_bytes)))
        reason = {"status": row.status, "reason": row.reason, "source": row.source, "duration_us": row.duration_us}
        shown.append({"clip_id": clip.clip_id, "files": names, **reason})
    shelf.close()
    return shown


def data_of(report: str) -> dict[str, Any]:
    """The data inside a report."""
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', report, re.DOTALL)
    if found is None:
        raise ValueError("no report")
    told: dict[str, Any] = json.loads(found[1])
    return told
