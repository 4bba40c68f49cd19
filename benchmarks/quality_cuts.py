"""Cuts at random frames, and what came out of them: errors of time, loss and cost, for copied and re-encoded clips.

    python -m benchmarks.quality_cuts [MEDIA_DIR] [--cuts 2000] [--json FILE]

Generated files number their pictures, so that what was written is compared with the truth and not with the cutter's own
plan. MEDIA_DIR adds real files, where the plan is compared and the loss against the asset's frames is taken.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.demo.clips import CUT_ENCODINGS, flash_and_click, frame_number
from schemas.errors import MediaError
from schemas.timing import Span
from stages.media.cutting import CutReport, cut_clip, verify_clip
from stages.media.decoder import Decoder, DecoderConfig, Frames

NUMBERS_PX = (96, 48)
LOSS_LONG_SIDE_PX = 640
LONGEST_S = 6.0
ERRORS = ("start_error_us", "frame_error_us", "duration_error_us", "sound_error_samples")


def score_cuts(media_dir: Path | str | None = None, num_cuts: int = 200, seed: int = 0) -> dict[str, Any]:
    """Figures of `num_cuts` cuts of generated files, and of two per real file. A cut costs about 0.2 s."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        decoder = Decoder(Path(folder) / "scratch", DecoderConfig(timeout_s=300.0))
        generated = list(_generated(Path(folder), decoder, num_cuts, rng))
        real = [] if media_dir is None else list(_real(Path(media_dir), Path(folder), decoder, rng))
        decoder.close()
    result = {"generated": {**_summary(generated), "wrong_pictures": sum(cut["wrong_pictures"] for cut in generated)}}
    if real:
        result["real"] = _summary(real)
    return result


def _generated(folder: Path, decoder: Decoder, num_cuts: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Cuts of every encoding in turn; `wrong_pictures` counts numbers that are not those asked for."""
    assets = {}
    for name, encoding in CUT_ENCODINGS.items():
        path = flash_and_click(folder / name, 4.0, encoding, seed=3).path
        frames = decoder.frames(path, size=NUMBERS_PX)
        assets[path] = frames, [frame_number(image) for image in frames.images]
    for number in range(num_cuts):
        path = list(assets)[number % len(assets)]
        frames, numbers = assets[path]
        first, last = sorted(rng.choice(len(numbers) + 1, 2, replace=False).tolist())
        cut, _ = _cut(path, _span(frames, first, last), folder / "clip.mp4", decoder)
        if cut["mode"] != "failed":
            written = decoder.frames(folder / "clip.mp4", size=NUMBERS_PX)
            seen = [frame_number(image) for image in written.images]
            cut["wrong_pictures"] = int(seen != numbers[first:last])
        yield {"wrong_pictures": 0, **cut}


def _real(media_dir: Path, folder: Path, decoder: Decoder, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Two cuts of every file that decodes, with the peak signal-to-noise ratio of what was written."""
    for item in json.loads((media_dir / "manifest.json").read_text())["items"]:
        path = media_dir / item["path"]
        try:
            frames = decoder.frames(path, long_side_px=LOSS_LONG_SIDE_PX, format="gray", end=Fraction(60))
        except MediaError:
            continue
        for _ in range(2 if len(frames.pts) > 1 else 0):
            first = int(rng.integers(len(frames.pts)))
            latest = int(np.searchsorted(frames.times_s, frames.times_s[first] + LONGEST_S))
            last = int(rng.integers(first + 1, max(latest, first + 1) + 1))
            cut, report = _cut(path, _span(frames, first, last), folder / "real.mp4", decoder)
            is_comparable = not frames.is_damaged.any()  # damaged frames come out otherwise after every seek
            if report is not None and report.mode == "encode" and is_comparable:
                written = decoder.frames(folder / "real.mp4", long_side_px=LOSS_LONG_SIDE_PX, format="gray")
                cut["psnr_db"] = _psnr_db(frames.images[first:last], written.images)
            yield {"file": item["path"], **cut}


def _span(frames: Frames, first: int, last: int) -> Span:
    ends = [*frames.pts.tolist(), frames.end_pts]
    return Span(ends[first], ends[last], frames.num, frames.den)


def _cut(path: Path, span: Span, out: Path, decoder: Decoder) -> tuple[dict[str, Any], CutReport | None]:
    try:
        report = verify_clip(out, cut_clip(path, span, out, decoder=decoder), decoder=decoder)
    except MediaError as error:
        return {"mode": "failed", "reason": error.reason}, None
    errors = {name: getattr(report, name) for name in ERRORS}
    return {"mode": report.mode, **errors, "cpu_s": report.cpu_s, "duration_s": float(report.duration)}, report


def _psnr_db(planned: np.ndarray, written: np.ndarray) -> float | None:
    """Of two uint8 [n, h, w], over all frames; None where the sizes differ (odd sizes lose a row or column)."""
    if planned.shape != written.shape:
        return None
    noise = np.mean([np.square(a.astype(float) - b).mean() for a, b in zip(planned, written, strict=True)])
    return float(10 * np.log10(255**2 / max(noise, 1e-6)))


def _summary(cuts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts by mode, the largest errors, processor seconds per second of clip, loss."""
    result: dict[str, Any] = {"cuts": len(cuts), "modes": dict(Counter(cut["mode"] for cut in cuts))}
    result["failures"] = dict(
        Counter(f"{cut.get('file', '')} {cut['reason']}".strip() for cut in cuts if "reason" in cut)
    )
    done = [cut for cut in cuts if "reason" not in cut]
    result["largest"] = {
        name: max((abs(cut[name]) for cut in done if cut[name] is not None), default=None) for name in ERRORS
    }
    for mode in ("copy", "encode"):
        chosen = [cut for cut in done if cut["mode"] == mode]
        if chosen:
            length_s = sum(cut["duration_s"] for cut in chosen)
            result[f"{mode}_cpu_s_per_s"] = sum(cut["cpu_s"] for cut in chosen) / length_s
    losses = [cut["psnr_db"] for cut in done if cut.get("psnr_db") is not None]
    if losses:
        result["encode_psnr_db"] = {"median": float(np.median(losses)), "lowest": min(losses)}
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", nargs="?", type=Path, help="folder with manifest.json, for real files besides")
    parser.add_argument("--cuts", type=int, default=2000, help="cuts of generated files (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    text = json.dumps(score_cuts(arguments.media, arguments.cuts, arguments.seed), indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
