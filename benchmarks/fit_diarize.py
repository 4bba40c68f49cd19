"""Chooses the embedded diarizer's settings on meetings mixed from single voices, none of which it is judged on.

    python -m benchmarks.fit_diarize SHARED_DIR [--meetings 32] [--json FILE]

SHARED_DIR holds the folders media and media2 of the project's test media; the voices are those of
`benchmarks.meetings.FIT`. Prints the logistic regression behind `stages.diarize.cluster.likeness`, and DER (collar 0.25), recall
of overlap and how often the number of people is right, over thresholds of likeness and of overlap.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.meetings import FIT, Meeting, flite_voices, meetings, voices_of
from benchmarks.quality_speech import compare_turns
from schemas.spans import SPEECH_RATE_HZ
from stages.base import Context
from stages.diarize.activity import spoken
from stages.diarize.cluster import MAX_BREVITY, cluster_of
from stages.diarize.embedded import PAUSES, EmbeddedConfig, EmbeddedDiarizer, Voices, draw_turns, group
from stages.diarize.segmentation import FRAME_S
from stages.engines.speakers import unit
from stages.engines.voice import VoiceActivity

SEED = 7
THRESHOLDS = (0.64, 0.68, 0.7, 0.72, 0.74, 0.78, 0.82)
OVERLAPS = (0.25, 0.35, 0.45)
PURE = 0.85
"""Share of a unit that one person alone says, from which it stands for them in the regression."""


@dataclass(frozen=True)
class Listened:
    """A meeting and what the networks hear in it."""

    meeting: Meeting
    voices: Voices


def listen(made: Sequence[Meeting]) -> list[Listened]:
    """All of `made` as the diarizer's networks hear them: the part that takes time."""
    engine = EmbeddedDiarizer.load(EmbeddedConfig(), Context(Path()))
    return [Listened(m, engine.listen(m.samples, engine.voice.stretches(m.samples, PAUSES))) for m in made]


def sweep(heard: Sequence[Listened], configs: Sequence[EmbeddedConfig]) -> list[dict[str, Any]]:
    """DER, recall of overlap and right numbers of people over all meetings, one row per configuration."""
    rows = []
    for config in configs:
        scores = [
            compare_turns(
                one.meeting.turns,
                draw_turns(group(one.voices, config)[0], config),
                (0.0, len(one.meeting.samples) / SPEECH_RATE_HZ),
            )
            for one in heard
        ]
        rows.append(
            {
                "threshold": config.threshold,
                "overlap": config.overlap,
                "der_collar_0.25": sum(s["errors_0.25"] for s in scores) / sum(s["total_0.25"] for s in scores),
                "overlap_recall": sum(s["overlap_found_s"] for s in scores)
                / max(sum(s["overlap_s"] for s in scores), 1e-9),
                "right_number_of_speakers": sum(s["speakers"] == s["speakers_found"] for s in scores),
                "meetings": len(scores),
            }
        )
    return rows


def said_alone(one: Listened) -> tuple[list[str], NDArray[np.float64]]:
    """(people, seconds [U, people] of each unit in which one of them alone speaks)."""
    people = sorted({turn.speaker for turn in one.meeting.turns})
    num_frames = len(one.voices.tracks)
    speaks = np.stack(
        [spoken([turn for turn in one.meeting.turns if turn.speaker == name], num_frames) for name in people], axis=1
    )
    alone = speaks * (speaks.sum(axis=1) == 1)[:, None]
    return people, np.array([alone[u.low : u.high].sum(axis=0) * FRAME_S for u in one.voices.units])


def likeness_pairs(heard: Sequence[Listened], draws: int = 6) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(cosine, brevity) [n, 2] of pairs of clusters, each of units of one voice, within meetings; is it the same?"""
    rng = np.random.default_rng(0)
    told: list[tuple[float, float]] = []
    same: list[bool] = []
    for one in heard:
        units = one.voices.units
        _, seconds = said_alone(one)
        who = {
            i: int(seconds[i].argmax())
            for i, u in enumerate(units)
            if u.embedding is not None and not u.is_mixed and seconds[i].max() > PURE * max(seconds[i].sum(), 0.4)
        }
        for _ in range(draws):
            clusters = []
            for name in sorted(set(who.values())):
                own = rng.permutation([i for i in who if who[i] == name])
                for part in np.array_split(own, rng.integers(1, len(own) + 1)):
                    clusters.append((name, cluster_of(units, part.tolist())))
            for (a, first), (b, second) in combinations(clusters, 2):
                cosine = float(unit(first.vector) @ unit(second.vector))
                told.append((cosine, min(1 / first.clean_s + 1 / second.clean_s, MAX_BREVITY)))
                same.append(a == b)
    return np.array(told), np.array(same)


def fit_likeness(told: NDArray[np.float64], same: NDArray[np.bool_]) -> dict[str, float]:
    """The logistic regression of `same` on `told`: weight of the cosine, brevity in cosines, threshold, share of pairs right."""
    from scipy.optimize import minimize

    table = np.column_stack([told, np.ones(len(told))])
    sign = np.where(same, 1.0, -1.0)

    def loss(weights: NDArray[np.float64]) -> float:
        return float(np.logaddexp(0, -sign * (table @ weights)).mean() + 1e-5 * (weights**2).sum())

    cosine, brevity, offset = minimize(loss, np.zeros(3), method="BFGS").x
    right = float(((table @ [cosine, brevity, offset] > 0) == same).mean())
    return {
        "weight": float(cosine),
        "brevity_s": float(brevity / cosine),
        "threshold": float(-offset / cosine),
        "right": right,
        "pairs": len(same),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder with media and media2")
    parser.add_argument("--meetings", type=int, default=32, help="meetings to make (default 32, some five minutes)")
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    options = parser.parse_args(arguments)
    voices = voices_of(options.shared, FIT, VoiceActivity.load()) | flite_voices()
    heard = listen(meetings(voices, range(options.meetings), SEED))
    fitted = fit_likeness(*likeness_pairs(heard))
    base = EmbeddedConfig()
    rows = sweep(
        heard,
        [base.model_copy(update={"threshold": t}) for t in THRESHOLDS]
        + [base.model_copy(update={"overlap": o}) for o in OVERLAPS],
    )
    print(f"{len(voices)} voices, {options.meetings} meetings\n\n{json.dumps(fitted)}\n")
    print("| threshold | overlap | DER | right number | overlap recall |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['threshold']:.2f} | {row['overlap']:.2f} | {100 * row['der_collar_0.25']:.1f} % "
            f"| {row['right_number_of_speakers']} of {row['meetings']} | {100 * row['overlap_recall']:.0f} % |"
        )
    if options.json:
        options.json.write_text(json.dumps({"likeness": fitted, "sweep": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
