"""Whether metrics tell known changes apart, and nothing else: `python -m benchmarks.quality_evaluation DIR --json FILE`.

Talking clips and one of a bouncing ball are made, and again with the sound 120 and 600 ms late, spoken by another voice, and with
the picture encoded coarsely. Each is evaluated by protocol `own` against the untouched ones, as a user would. A metric tells a
change where the difference of its items is sure (95 %) and larger than anybody would overlook (`TOLERANCE`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model.evaluate.evaluate import EvalOptions, evaluate
from model.evaluate.intervals import paired
from model.evaluate.protocols import rules_here
from model.evaluate.records import Report, Score
from model.evaluate.report import columns, number, write_report
from model.evaluate.sets import read_set
from pipeline.demo import Encoding, ball_clip
from pipeline.demo.film import DemoFilm, write_film
from pipeline.demo.scenes import DrawnShot, Talking
from pipeline.demo.sound import Shift, lines_in, room_noise
from pipeline.demo.truth import Made
from pipeline.demo.voice import synthesise

LENGTH_S = 5.0
SPOKEN = {"ann": "dan", "ben": "cat", "dan": "ann"}
"""Whose face and text -> whose voice instead."""
ROUNDS = 2
FINE = Encoding(width_px=320, height_px=240)
COARSE = replace(FINE, quality=36)
TOLERANCE = {
    "wer": 0.02, "cer": 0.02, "voice_similarity": 0.05, "num_voices": 0.2, "face_distance": 0.1, "lip_offset_ms": 40.0,
    "lip_confidence": 1.0, "lip_agreement": 1.0, "event_offset_ms": 40.0, "event_agreement": 1.0, "av_align": 0.05,
    "picture_sharpness": 20.0,
    "picture_brightness": 0.01, "picture_flicker": 0.001, "picture_motion": 0.002, "picture_freeze_ratio": 0.02,
    "picture_ssim": 0.02, "sound_loudness_lufs": 1.0, "sound_snr_db": 1.0, "sound_clipping_ratio": 0.001,
    "sound_bandwidth_hz": 1000.0, "sound_silence_ratio": 0.05, "fd_voice": 0.1,
    "picture_brisque": 3.0, "picture_blur": 0.02, "picture_noise": 0.5, "picture_blockiness": 0.05,
    "sound_rms_db": 1.0, "dnsmos_p808": 0.2, "sound_mos_overall": 0.2, "sound_mos_speech": 0.2, "sound_mos_background": 0.2,
}  # fmt: skip
"""What a figure may move without anybody caring, in its unit."""
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "same": {},
    "late120": {"offset_ms": 120.0},
    "late600": {"offset_ms": 600.0},
    "voice": {"is_other_voice": True},
    "coarse": {"encoding": COARSE},
}


def write_clips(
    folder: Path, change: str, offset_ms: float = 0.0, is_other_voice: bool = False, encoding: Encoding = FINE
) -> None:
    """The clips of one change into `folder`/`change`; manifest.json beside those that are untouched."""
    out = folder / change
    out.mkdir(parents=True, exist_ok=True)
    made: list[Made] = []
    for seed, (who, other) in enumerate([*SPOKEN.items()] * ROUNDS, start=20):
        lines = lines_in(who, 0.4, LENGTH_S - 1.0, seed)
        if is_other_voice:
            lines = [replace(line, speech=synthesise(line.speech.text, other, seed=seed)) for line in lines]
        shot = DrawnShot(Talking([who], encoding.width_px, encoding.height_px, seed), encoding.frames_in(LENGTH_S), who)
        film = DemoFilm([shot], lines, Shift(offset_ms), room_noise(LENGTH_S, 30.0, seed))
        made.append(write_film(out / f"{who}_{seed}.mp4", film, encoding, "talking", f"{who} speaks", {"cuts": []}))
    made += [ball_clip(out / f"ball_{seed}.mp4", offset_ms, LENGTH_S, encoding, seed) for seed in range(ROUNDS)]
    (out / "manifest.json").write_text(json.dumps({"set": change, "items": [each.item for each in made]}) + "\n")


def run(folder: Path) -> dict[str, Any]:
    """Metric -> change -> figures, of all changes; what is there already is not made or measured again."""
    reports: dict[str, tuple[Report, list[Score]]] = {}
    for change, how in CHANGES.items():
        if not (folder / "clips" / change / "manifest.json").exists():
            write_clips(folder / "clips", change, **how)
        given, rules = read_set(folder / "clips" / "same"), rules_here("own")
        out = folder / "reports" / change
        reports[change] = evaluate(given, folder / "clips" / change, out, EvalOptions("own", rules), _said)
        write_report(*reports[change], out)
    figures = [figure.metric for figure in reports["same"][0].figures]
    return {metric: _of_metric(metric, reports) for metric in figures}


def _of_metric(metric: str, reports: Mapping[str, tuple[Report, list[Score]]]) -> dict[str, Any]:
    before = {
        score.item_id: score for score in reports["same"][1] if score.metric == metric and score.value is not None
    }
    found: dict[str, Any] = {}
    for change, (report, scores) in reports.items():
        figure = next(each for each in report.figures if each.metric == metric)
        pairs = [
            (before[score.item_id].value, score.value, score.weight)
            for score in scores
            if score.metric == metric and score.value is not None and score.item_id in before
        ]
        first, second, weights = np.array(pairs, float).reshape(-1, 3).T
        held = paired(first, second, weights)
        found[change] = {
            "value": figure.value,
            "items": figure.num_items,
            "moves": (second - first).tolist(),
            "is_told": bool(held is not None and held.is_sure and abs(held.difference) > TOLERANCE[metric]),
        }
    return found


def table(found: Mapping[str, Any]) -> str:
    """Figures by metric and change; a star where the change is told."""
    rows = [("metric", *CHANGES)]
    for metric, by_change in found.items():
        cells = [f"{number(each['value'])}{' *' if each['is_told'] else ''}" for each in by_change.values()]
        rows.append((metric, *cells))
    return "\n".join(columns(rows))


def _said(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where clips and reports go; taken up again from there")
    parser.add_argument("--json", type=Path, dest="json_path", help="also write all figures to this file")
    given = parser.parse_args()
    found = run(given.folder)
    if given.json_path:
        given.json_path.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
