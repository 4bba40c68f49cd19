"""One picture that explains a clip: frames, waveform, words, lanes of who and what when, and the curves behind figures."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.ask.find import Chain
from pipeline.plan import Plan, StageSpec
from schemas.errors import LedgerError
from schemas.fields import Show, resolve, roles_of, unit_of
from schemas.records import Clip, Level, Struct
from schemas.spans import SPEECH_RATE_HZ

LATENT_MS = 40
"""NAVA's audio token; sound and picture that differ by less are together as far as it can tell."""
NUM_FRAMES = 8
WIDTH = 13.0
"""Of the figure, in inches."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, told apart with any colour vision; every lane carries its letter as well."""


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
        raise LedgerError("the figure is drawn of one clip.", remedy="Give a clip id; `why SOURCE` lists them.")
    pictures, times, sound = _media(clip)
    curves = _shown(clip, plan, "curve")
    strip = WIDTH * pictures[0].shape[0] / (pictures[0].shape[1] * len(pictures))
    heights = [strip + 0.6, 1.9, 1.7, *(1.9 for _ in curves)]
    size = (WIDTH, sum(heights))
    figure, axes = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, constrained_layout=True)
    duration = clip.duration_us / 1e6
    _frames(axes[0], pictures, times, duration)
    _waveform(axes[1], sound, clip, duration)
    _lanes(axes[2], clip, plan, duration)
    for axis, curve in zip(axes[3:], curves, strict=True):
        _curve(axis, *curve)
    reason = f": {clip.verdict.message}" if clip.verdict.message else ""
    figure.suptitle(f"{clip.clip_id}  {clip.verdict.status}{reason}\n{Path(clip.asset.source.uri).name}", fontsize=11)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def _shown(clip: Clip, plan: Plan, how: Show) -> list[tuple[StageSpec, pa.Field, Struct]]:
    """(stage, field, the stage's struct) of every measured field of clips that is shown in this way."""
    found = []
    for spec in plan.at_level(Level.CLIP):
        struct = clip.structs.get(spec.column)
        found += [
            (spec, field, struct)
            for field in spec.cls.adds
            if struct is not None and roles_of(field).get("show") == how and struct[field.name] is not None
        ]
    return found


def _media(clip: Clip) -> tuple[list[Any], list[float], Any]:
    from stages.base import Context

    span = clip.span
    with tempfile.TemporaryDirectory(prefix="nava-figure-") as folder:
        media = Context(Path(folder)).media
        path = media.localise(clip.asset.path)
        frames = media.frames(path, start=span.start, end=span.end, long_side_px=320)
        picks = np.unique(np.linspace(0, len(frames.images) - 1, NUM_FRAMES).round().astype(int))
        sound = media.audio(path, rate_hz=SPEECH_RATE_HZ).cut(span.start, span.end) if clip.asset.has_audio else None
        return (
            [np.array(frames.images[at]) for at in picks],
            [frames.times_s[at] - float(span.start) for at in picks],
            sound,
        )


def _frames(axis: Any, pictures: Sequence[Any], times: Sequence[float], duration: float) -> None:
    axis.imshow(np.concatenate(pictures, axis=1))
    width = pictures[0].shape[1]
    axis.set_xticks([width * (at + 0.5) for at in range(len(pictures))], [f"{time:.2f} s" for time in times])
    axis.set_yticks([])
    axis.set_title(f"frames, {duration:.2f} s", loc="left", fontsize=9)


def _waveform(axis: Any, sound: Any, clip: Clip, duration: float) -> None:
    axis.set_xlim(0, duration)
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


def _lanes(axis: Any, clip: Clip, plan: Plan, duration: float) -> None:
    """A lane per speaker with the remarks on its spans, then a lane per other stretch."""
    remarks: dict[int, list[str]] = defaultdict(list)
    for _, field, struct in _shown(clip, plan, "span"):
        for item in struct[field.name]:
            remarks[item["span_index"]].append(_words(item, without={"span_index"}))
    lanes: list[str] = []

    def bar(lane: str, item: Mapping[str, Any], colour: str, text: str) -> None:
        if lane not in lanes:
            lanes.append(lane)
        row = lanes.index(lane)
        axis.barh(row, item["end_s"] - item["start_s"], left=item["start_s"], color=colour, height=0.7)
        axis.text(item["start_s"], row, text, fontsize=7, va="center", color="white")

    for at, span in enumerate(clip.own["spans"] or ()):
        text = " ".join([*remarks[at], *(["overlap"] if span["is_overlap"] else [])])
        bar(f"speaker {span['speaker']}", span, _colour(span["speaker"]), text)
    for spec, field, struct in _shown(clip, plan, "lane"):
        if spec.column != Level.CLIP:
            for at, item in enumerate(struct[field.name]):
                bar(f"{spec.column} {field.name} {at}", item, "#999999", "")
    axis.set_yticks(range(len(lanes)), lanes, fontsize=8)
    axis.set_xlim(0, duration)
    axis.invert_yaxis()
    axis.set_title("who and what when", loc="left", fontsize=9)
    axis.set_xlabel("s on the clip clock", fontsize=8)


def _words(item: Mapping[str, Any], without: set[str]) -> str:
    """The known names and numbers of a remark; scores are left to `why`."""
    return " ".join(
        str(value) if isinstance(value, str) else f"{name} {value}"
        for name, value in item.items()
        if name not in without and isinstance(value, str | int)
    )


def _curve(axis: Any, spec: StageSpec, field: pa.Field, struct: Struct) -> None:
    """A curve over its x values; numbers of the same struct in the unit of x are marked, with their deviation."""
    over = resolve(spec.cls.adds, roles_of(field)["over"])
    unit = unit_of(over)
    axis.plot(struct[over.name] or [], struct[field.name], color="#0072B2")
    told = []
    for other in spec.cls.adds:
        value = struct[other.name]
        if unit_of(other) == unit and roles_of(other).get("show") == "histogram" and value is not None:
            spread = struct.get(other.name.replace(f"_{unit}", f"_std_{unit}")) or 0.0
            axis.axvline(value, color="#D55E00")
            axis.axvspan(value - spread, value + spread, color="#D55E00", alpha=0.2)
            told.append(f"{other.name} {value:+.4g}")
        elif roles_of(other).get("show") in ("histogram", "label") and value is not None:
            told.append(f"{other.name} {value:.4g}" if isinstance(value, float) else f"{other.name} {value}")
    if unit == "ms":
        axis.axvspan(-LATENT_MS, LATENT_MS, color="#009E73", alpha=0.12)
    axis.set_title(f"{spec.name}: {', '.join(told)} (green: within one audio latent)", loc="left", fontsize=9)
    axis.set_xlabel(f"{over.name.removesuffix(f'_{unit}')}, {unit}", fontsize=8)


def _colour(speaker: str | None) -> str:
    return COLOURS[(ord(speaker[0]) - ord("A")) % len(COLOURS)] if speaker else "#666666"
