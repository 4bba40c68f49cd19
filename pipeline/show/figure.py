"""One picture that explains a clip: frames, waveform, words, lanes of who and what when, curves with their gates, all gates."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ask.find import Chain
from pipeline.ask.gates_of import GateOf, gates_of
from pipeline.plan import Plan
from pipeline.show.clip_view import LATENT_MS, Curve, Lane, curves_of, lanes_of
from pipeline.show.screen import cut, signed, value
from schemas.errors import LedgerError
from schemas.records import Clip, Level
from schemas.spans import SPEECH_RATE_HZ

NUM_FRAMES = 6
WIDTH = 13.0
"""Of the figure, in inches."""
DPI = 100
FRAME_PX = 640
"""Long side to which frames are decoded: a mouth stays visible."""
TALLEST = 2.6
"""Of the strip of frames, in inches."""
LANE_ROW, GATE_ROW = 0.22, 0.17
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, told apart with any colour vision; every lane carries its letter as well."""
GREY, BAD = "#999999", "#D55E00"
PER_CHARACTER_S = 0.0065
"""Share of a lane's width that a character takes."""


def draw(chain: Chain, plan: Plan, out: Path) -> None:
    """Writes a PNG for the clip that `chain` leads to (see ask.find). Raises LedgerError if that is no clip.

    Lanes, remarks on spans and curves are drawn of every field whose role says so.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # words and names are text, dollar signs and all
    from matplotlib import pyplot as plt

    clip = chain.rows[-1]
    if not isinstance(clip, Clip) or len(chain.rows) > len(Level):
        ids = [row.clip_id for row in chain.rows if isinstance(row, Clip)]
        known = f"Give one of its clips: {', '.join(ids)}." if ids else "No clip was made out of it."
        raise LedgerError("the figure is drawn of one clip.", remedy=known)
    pictures, times, sound = _media(clip)
    gates, lanes = gates_of(clip, plan), lanes_of(chain, plan)
    curves = curves_of(clip, plan, gates)
    rows = max(1, sum(lane.num_rows for lane in lanes))
    strip = 0.0
    if pictures:
        strip = min(TALLEST, WIDTH * pictures[0].shape[0] / (pictures[0].shape[1] * len(pictures)))
    gate_height = GATE_ROW * (len(gates) + 2)
    heights = [strip + 0.2, 1.7, LANE_ROW * rows + 0.7, *(1.9 if curve.x else 0.6 for curve in curves), gate_height]
    size = (WIDTH, sum(heights) + 0.6)
    figure, axes = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, constrained_layout=True)
    duration = clip.duration_us / 1e6
    _frames(axes[0], pictures, times, duration)
    _waveform(axes[1], sound, clip, duration)
    _lanes(axes[2], lanes, duration)
    for axis, curve in zip(axes[3:-1], curves, strict=True):
        _curve(axis, curve)
    _gates(axes[-1], gates)
    reason = f": {clip.verdict.message}" if clip.verdict.message else ""
    figure.suptitle(f"{clip.clip_id}  {clip.verdict.status}{reason}\n{Path(clip.asset.source.uri).name}", fontsize=11)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=DPI)
    plt.close(figure)


def _media(clip: Clip) -> tuple[list[Any], list[float], Any]:
    """Frames from the middle of equal stretches of the clip, none where it has no picture, their times, and the sound at
    SPEECH_RATE_HZ."""
    from stages.base import Context

    span = clip.span
    with tempfile.TemporaryDirectory(prefix="nava-figure-") as folder:
        media = Context(Path(folder)).media
        path = media.localise(clip.asset.path)
        sound = media.audio(path, rate_hz=SPEECH_RATE_HZ).cut(span.start, span.end) if clip.asset.has_audio else None
        if not clip.asset.probe["has_video"]:
            return [], [], sound
        frames = media.frames(path, start=span.start, end=span.end, long_side_px=FRAME_PX)
        wanted = (np.arange(NUM_FRAMES) + 0.5) / NUM_FRAMES * float(span.duration) + float(span.start)
        picks = [int(np.abs(np.asarray(frames.times_s) - at).argmin()) for at in wanted]
        return (
            [np.array(frames.images[at]) for at in picks],
            [frames.times_s[at] - float(span.start) for at in picks],
            sound,
        )


def _frames(axis: Any, pictures: Sequence[Any], times: Sequence[float], duration: float) -> None:
    """Pictures on the time axis of the panels below, each over the stretch from whose middle it comes."""
    share = 1 / max(len(pictures), 1)
    for at, picture in enumerate(pictures):
        inset = axis.inset_axes((at * share, 0, share, 1))
        inset.imshow(picture)
        inset.axis("off")
    axis.set_xlim(0, duration)
    axis.set_xticks(times, [f"{time:.2f} s" for time in times], fontsize=8)
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def _waveform(axis: Any, sound: Any, clip: Clip, duration: float) -> None:
    axis.set_xlim(0, duration)
    axis.set_yticks([])
    axis.set_title("sound and words (colour = speaker)", loc="left", fontsize=9)
    if sound is None or not len(sound):
        axis.text(duration / 2, 0, "no sound", ha="center")
        return
    axis.plot(np.arange(len(sound)) / SPEECH_RATE_HZ, sound, linewidth=0.4, color="#666666")
    top = max(float(np.abs(sound).max()), 1e-3)
    axis.set_ylim(-top * 1.2, top * 1.9)
    for span in clip.own["spans"] or []:
        colour = _colour(span["speaker"])
        for at, word in enumerate(span["words"] or []):
            axis.axvspan(word["start_s"], word["end_s"], color=colour, alpha=0.15)
            height = top * (1.15 if at % 2 else 1.5)
            axis.text(
                (word["start_s"] + word["end_s"]) / 2, height, word["text"], ha="center", fontsize=7, color=colour
            )


def _lanes(axis: Any, lanes: Sequence[Lane], duration: float) -> None:
    """A lane per speaker, face and kind of stretch; what is said of a stretch stands in it as far as there is room."""
    top, ticks = 0, []
    for lane in lanes:
        ticks.append(top + (lane.num_rows - 1) / 2)
        for item in lane.items:
            row, length = top + item["row"], item["end_s"] - item["start_s"]
            colour = _colour(item.get("letter")) if lane.kind != "stretch" else GREY
            axis.barh(row, length, left=item["start_s"], color=colour, height=0.8, edgecolor="white")
            room = int(length / duration / PER_CHARACTER_S)
            told = item["note"] or item["text"]
            axis.text(
                item["start_s"] + 0.003 * duration, row, cut(told, room) if room > 2 else "",
                fontsize=7, va="center", color="white", clip_on=True,
            )  # fmt: skip
        top += lane.num_rows
    axis.set_yticks(ticks, [lane.name for lane in lanes], fontsize=8)
    axis.set_xlim(0, duration)
    axis.set_ylim(max(top, 1) - 0.5, -0.5)
    axis.set_title(
        "who and what when" if lanes else "nobody speaks, and nothing else was found", loc="left", fontsize=9
    )
    axis.set_xlabel("s on the clip clock", fontsize=8)


def _curve(axis: Any, curve: Curve) -> None:
    """A curve over its x values with what was found on it and what gates allow; in words alone where there is none."""
    axis.set_title(f"{curve.title}\n{curve.said}", loc="left", fontsize=9)
    if not curve.x:
        axis.axis("off")
        return
    axis.plot(curve.x, curve.y, color=COLOURS[0])
    if curve.unit == "ms":
        axis.axvspan(-LATENT_MS, LATENT_MS, color=COLOURS[2], alpha=0.15, label="one audio latent")
    for mark in curve.marks:
        spread = mark["spread"] or 0.0
        axis.axvline(mark["at"], color=BAD, label=mark["name"])
        axis.axvspan(mark["at"] - spread, mark["at"] + spread, color=BAD, alpha=0.2)
    for bound in curve.bounds:
        for edge in (bound["low"], bound["high"]):
            if edge is not None:
                axis.axvline(edge, color="black", linestyle="--", linewidth=1)
        axis.plot([], [], color="black", linestyle="--", linewidth=1, label=f"gate {bound['name']}")
    axis.legend(fontsize=7, loc="upper left")
    axis.set_xlabel(curve.unit, fontsize=8)


def _gates(axis: Any, gates: Sequence[GateOf]) -> None:
    """Every gate with value, bound, margin and outcome."""
    axis.axis("off")
    places = (0.0, 0.24, 0.36, 0.46, 0.58)
    rows = [("gate", "value", "bound", "margin", "")]
    rows += [
        (
            gate.check.name,
            value(gate.value) + ("" if gate.value is None or gate.unit in ("", "ratio") else f" {gate.unit}"),
            value(gate.check.bound),
            signed(gate.margin),
            gate.outcome,
        )
        for gate in gates
    ]
    for at, row in enumerate(rows):
        colour = BAD if row[-1] == "failed" else GREY if row[-1] in ("not reached", "not asked") else "black"
        for place, text in zip(places, row, strict=True):
            axis.text(place, 1 - (at + 0.5) / len(rows), text, fontsize=8, va="center", color=colour)


def _colour(speaker: str | None) -> str:
    return COLOURS[(ord(speaker[0]) - ord("A")) % len(COLOURS)] if speaker else GREY
