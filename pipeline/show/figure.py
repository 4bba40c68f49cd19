"""One picture that explains a clip: frames, waveform, words, turns, faces and the sync curve."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import LedgerError
from schemas.records import span_of

NUM_FRAMES = 8
RATE_HZ = 16_000
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, told apart with any colour vision; every lane carries its letter as well."""


def draw(chain: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Writes a PNG for the clip that `chain` leads to (see queries.find). Raises LedgerError if it is no clip."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    clip = [row for row in chain if row["kind"] != "pack"][-1]
    if clip["kind"] != "clip":
        raise LedgerError(f"{clip['row_id']} is no clip.", remedy="Give a clip id; `why SOURCE` lists them.")
    pictures, times, sound = _media(chain[0], clip)
    figure, axes = plt.subplots(4, 1, figsize=(13, 9), height_ratios=[3, 1.6, 1.4, 1.6], constrained_layout=True)
    duration = clip["duration_us"] / 1e6
    _frames(axes[0], pictures, times, duration)
    _waveform(axes[1], sound, clip, duration)
    _lanes(axes[2], clip, duration)
    _sync(axes[3], clip.get("sync") or {})
    verdict = clip["verdict"]
    reason = f": {verdict['message']}" if verdict["message"] else ""
    figure.suptitle(
        f"{clip['row_id']}  {verdict['status']}{reason}\n{Path(chain[0]['source']['uri']).name}", fontsize=11
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def _media(asset: Mapping[str, Any], clip: Mapping[str, Any]) -> tuple[list[Any], list[float], Any]:
    from stages.base import Context

    span = span_of(clip["clip"])
    with tempfile.TemporaryDirectory(prefix="nava-figure-") as folder:
        media = Context(Path(folder)).media
        path = media.localise(asset["download"]["path"])
        frames = media.frames(path, start=span.start, end=span.end, long_side_px=320)
        picks = np.unique(np.linspace(0, len(frames.images) - 1, NUM_FRAMES).round().astype(int))
        sound = media.audio(path, rate_hz=RATE_HZ).cut(span.start, span.end) if asset["probe"]["has_audio"] else None
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


def _waveform(axis: Any, sound: Any, clip: Mapping[str, Any], duration: float) -> None:
    axis.set_xlim(0, duration)
    axis.set_title("sound and words (colour = speaker)", loc="left", fontsize=9)
    if sound is None or not len(sound):
        axis.text(duration / 2, 0, "no sound", ha="center")
        return
    axis.plot(np.arange(len(sound)) / RATE_HZ, sound, linewidth=0.4, color="#666666")
    top = max(float(np.abs(sound).max()), 1e-3)
    axis.set_ylim(-top * 1.2, top * 1.9)
    for span in clip["clip"]["spans"] or []:
        colour = _colour(span["speaker"])
        for at, word in enumerate(span["words"] or []):
            axis.axvspan(word["start_s"], word["end_s"], color=colour, alpha=0.15)
            height = top * (1.15 if at % 2 else 1.5)
            axis.text(
                (word["start_s"] + word["end_s"]) / 2, height, word["text"], ha="center", fontsize=7, color=colour
            )


def _lanes(axis: Any, clip: Mapping[str, Any], duration: float) -> None:
    sync = clip.get("sync") or {}
    spans = clip["clip"]["spans"] or []
    speakers = sorted({str(span["speaker"]) for span in spans})
    faces = sync.get("faces") or []
    names = [*(f"speaker {name}" for name in speakers), *(f"face {face['track']}" for face in faces)]
    active = {item["span_index"]: item for item in sync.get("active") or []}
    for at, span in enumerate(spans):
        row = speakers.index(str(span["speaker"]))
        axis.barh(
            row, span["end_s"] - span["start_s"], left=span["start_s"], color=_colour(span["speaker"]), height=0.7
        )
        status = active.get(at, {}).get("status", "")
        label = (
            status
            + (f" face {active[at]['track']}" if status == "on_screen" else "")
            + (" overlap" if span["is_overlap"] else "")
        )
        axis.text(span["start_s"], row, label, fontsize=7, va="center", color="white")
    for at, face in enumerate(faces):
        axis.barh(
            len(speakers) + at, face["end_s"] - face["start_s"], left=face["start_s"], color="#999999", height=0.5
        )
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlim(0, duration)
    axis.invert_yaxis()
    axis.set_title("turns and faces", loc="left", fontsize=9)
    axis.set_xlabel("s on the clip clock", fontsize=8)


def _sync(axis: Any, sync: Mapping[str, Any]) -> None:
    lags, curve = sync.get("curve_lags_ms") or [], sync.get("curve") or []
    offset, spread = sync.get("offset_ms"), sync.get("offset_std_ms")
    if len(lags):
        axis.plot(lags, curve, color="#0072B2")
    if offset is not None:
        axis.axvline(offset, color="#D55E00")
        axis.axvspan(offset - (spread or 0), offset + (spread or 0), color="#D55E00", alpha=0.2)
    axis.axvspan(-40, 40, color="#009E73", alpha=0.12)
    known = (
        f"offset {offset:+.0f} ms, confidence {sync.get('confidence') or 0:.1f}"
        if offset is not None
        else sync.get("status", "not reached")
    )
    axis.set_title(f"sync: {known} (positive = sound late; green = within one audio latent)", loc="left", fontsize=9)
    axis.set_xlabel("lag, ms", fontsize=8)


def _colour(speaker: str | None) -> str:
    return COLOURS[(ord(speaker[0]) - ord("A")) % len(COLOURS)] if speaker else "#666666"
