"""Scores the sync stage on known truth: shifted, swapped and untouched sound, staged turns, events, who is who by face.

    python -m benchmarks.quality_sync MEDIA_DIR [--json FILE]

MEDIA_DIR holds manifest.json in the form of the project's test media. Nobody is judged by coefficients fitted on them: for
every file the model is fitted anew without any clip that shares an origin or a speaker with it. Shifts and swaps are
made on the decoded sound, which is what muxing would give; both ends are trimmed to what picture and sound share, so no
padding gives an answer away. Errors are against "sync: original means 0"; the clips themselves may be off by a frame or two.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fit_sync import Example, Reader, fit_model, is_in_sync_talk, moves_of, people_of
from benchmarks.intervals import bootstrap_interval
from benchmarks.quality_sync_conditions import (
    DRIFTS_S_PER_S,
    SHORT_S,
    changes,
    drifting,
    parts,
    small_and_mirrored,
)
from pipeline.config import Packing
from schemas.spans import SpeechSpan
from schemas.stretches import Stretch
from stages.engines.face_identity import FaceEncoder
from stages.engines.phones import PhoneRecogniser
from stages.faces import track_rows
from stages.media.decoder import Waveform
from stages.sync.config import SyncConfig, SyncRepair
from stages.sync.film import SHIFTS_S, Film, Speech
from stages.sync.lips import DRIFT_FROM_S
from stages.sync.mouth import MouthEngine
from stages.sync.peaks import SURE
from stages.sync.repair import repair_of
from stages.sync.result import Figures, SyncResult

Array = NDArray[Any]
Item = dict[str, Any]

HARDER_SHIFTS_S = (-0.4, 0.4)
HARDER_SWAPS = 2
DRIFT_COLUMNS = ("drift_ms_per_s", "std_ms_per_s", "finding")
REPAIR_SHIFTS_S = (0.0, -0.6, -0.3, -0.12, 0.12, 0.3, 0.6)
LEAST_S = 3.0
ALWAYS = [Stretch(-1e9, 1e9)]
"""Somebody speaks throughout."""


@dataclass(frozen=True, kw_only=True)
class Staged(Film):
    """A film with its line of the manifest."""

    item: Item


class Judge:
    """Sync measurements by models that never met the people they judge."""

    def __init__(self, films: Sequence[Staged]) -> None:
        self.config = SyncConfig()
        self.phones = PhoneRecogniser()
        self.examples = [
            Example.of(film.name, people_of(film.item), film.seen, film.heard.sound, self.phones)
            for film in films
            if is_in_sync_talk(film.item)
        ]
        self.moves = moves_of(self.examples)
        self._engines: dict[frozenset[str], MouthEngine] = {}

    def engine(self, people: frozenset[str]) -> MouthEngine:
        """An engine fitted on all examples that share nobody with `people`."""
        strangers = frozenset(e.name for e in self.examples if not e.people & people)
        if strangers not in self._engines:
            model = fit_model([e for e in self.examples if e.name in strangers], self.moves)
            self._engines[strangers] = MouthEngine(self.config.max_offset_s, model, self.phones)
        return self._engines[strangers]

    def measure(
        self, film: Film, people: frozenset[str], spans: Sequence[SpeechSpan] = (), is_speech: bool = True
    ) -> SyncResult:
        """What the stage says of `film`; `spans` are on its asset clock."""
        heard = replace(film.heard, stretches=ALWAYS if is_speech else [], spans=spans)
        return replace(film, heard=heard).sync(self.engine(people), self.config)


def score_sync(media_dir: Path | str) -> Item:
    """Figures for talking clips, staged turns and events; intervals are 95 % bootstraps over clips.

    Takes about half the media's length plus ten seconds per model fitted.
    """
    media_dir = Path(media_dir)
    items = json.loads((media_dir / "manifest.json").read_text())["items"]
    wanted = [i for i in items if is_in_sync_talk(i) or _turns_in_view(i) or i.get("category") == "nonspeech"]
    with tempfile.TemporaryDirectory() as scratch:
        reader = Reader(Path(scratch))
        encoder = FaceEncoder.load()
        films = [film for film in (_read(reader, encoder, media_dir, item) for item in wanted) if film is not None]
        talk = [film for film in films if is_in_sync_talk(film.item) and film.duration_s >= LEAST_S - 0.05]
        small = [
            replace(film, seen=seen)
            for film in talk
            if (seen := small_and_mirrored(reader, media_dir / film.name, film.seen, Path(scratch))) is not None
        ]
        reader.context.media.close()
    judge = Judge(films)
    return {
        "talking": score_talk(judge, talk),
        "harder": score_harder(judge, talk, small),
        "drift": score_drift(judge, talk),
        "repair": score_repair(judge, talk),
        "active_face": score_active(judge, [film for film in films if _turns_in_view(film.item)]),
        "nonspeech": score_events(judge, [film for film in films if film.item.get("category") == "nonspeech"]),
        "faces": score_faces([film for film in films if is_in_sync_talk(film.item)], Packing().same_face),
    }


def _read(reader: Reader, encoder: FaceEncoder, media_dir: Path, item: Item) -> Staged | None:
    path = media_dir / item["path"]
    if not reader.context.media.probe(path, decode=False)["has_audio"]:
        return None
    seen, sound = reader.seen(path, encoder), reader.sound(path)
    heard = Speech(sound=Waveform(np.array(sound.samples), sound.rate_hz, sound.start))
    return Staged(name=item["path"], seen=seen, heard=heard, item=item)


def score_talk(judge: Judge, films: Sequence[Staged]) -> Item:
    """Offset errors over shifts, and how well in-sync clips are told from shifted and swapped ones."""
    rows: list[Item] = []
    for film in films:
        people = people_of(film.item)
        for shift_s in (0.0, *SHIFTS_S):
            made = film.under(film.heard, shift_s)
            rows.append(_row(judge.measure(made, people).figures, made, "shifted" if shift_s else "original", shift_s))
        for other in films:
            if not people_of(other.item) & people and other.duration_s >= LEAST_S - 0.05:
                made = film.under(other.heard, _start_gap_s(film, other))
                rows.append(_row(judge.measure(made, _people(film, other)).figures, made, "swapped", 0.0))
    long = [row for row in rows if row["length_s"] >= LEAST_S - 0.05]
    short = [row for row in rows if row["length_s"] < LEAST_S - 0.05]
    originals = [row for row in rows if row["kind"] == "original"]
    return {
        "original": _errors(originals),
        "shifted": _errors([row for row in long if row["kind"] != "swapped"]),
        "shifted_under_3_s": _errors([row for row in short if row["kind"] == "shifted"]),
        "by_shift_s": {
            f"{s:+g}": _errors([r for r in long if r["shift_s"] == s], with_intervals=False) for s in SHIFTS_S
        },
        "auc_shifted": _auc(originals, [row for row in long if row["kind"] == "shifted"]),
        "auc_swapped": _auc(originals, [row for row in long if row["kind"] == "swapped"]),
        "auc": _auc(originals, [row for row in long if row["kind"] != "original"]),
        "sure": _sure([row for row in long if row["kind"] != "swapped"]),
        "sure_original": _sure(originals),
        "sure_swapped": _mean([row["confidence"] >= SURE for row in long if row["kind"] == "swapped"]),
        "auc_confidence_swapped": _auc(originals, [r for r in long if r["kind"] == "swapped"], "confidence"),
        "roc": _roc(originals, [row for row in long if row["kind"] != "original"]),
        "coverage": _mean([row["offset_ms"] is not None for row in rows]),
        "within_two_std": _mean([r["error_ms"] <= 2 * r["std_ms"] for r in originals if r["std_ms"] is not None]),
        "clips": [_shown(row, ("clip", "offset_ms", "std_ms", "confidence", "agreement")) for row in originals],
    }


def score_harder(judge: Judge, films: Sequence[Staged], small: Sequence[Staged]) -> Item:
    """Errors, AUC and what a confidence of 4 is worth where it is harder, by what was done to the clips."""
    made = {name: [change(film) for film in films] for name, change in changes().items()}
    made |= {
        "small faces, mirrored": list(small),
        "stretches of 2 s": [part for film in films for part in parts(film, SHORT_S)],
    }
    out: Item = {}
    for name, changed in made.items():
        rows: list[Item] = []
        for number, film in enumerate(changed):
            people = people_of(film.item)
            for shift_s in (0.0, *HARDER_SHIFTS_S):
                version = film.under(film.heard, shift_s)
                kind = "shifted" if shift_s else "original"
                rows.append(_row(judge.measure(version, people).figures, version, kind, shift_s))
            others = [other for other in changed if not people_of(other.item) & people]
            for other in np.random.default_rng(number).permutation(np.array(others, object))[:HARDER_SWAPS]:
                version = film.under(other.heard, _start_gap_s(film, other))
                rows.append(_row(judge.measure(version, _people(film, other)).figures, version, "swapped", 0.0))
        right = [row for row in rows if row["kind"] != "swapped"]
        originals = [row for row in rows if row["kind"] == "original"]
        out[name] = _errors(right) | {
            "auc": _auc(originals, [row for row in rows if row["kind"] != "original"]),
            "sure": _sure(right),
            "sure_swapped": _mean([row["confidence"] >= SURE for row in rows if row["kind"] == "swapped"]),
        }
    return out


def score_drift(judge: Judge, films: Sequence[Staged]) -> list[Item]:
    """What is measured of sound that runs late by so much more every second, on clips long enough."""
    rows = []
    for film in films:
        for slope in DRIFTS_S_PER_S if film.duration_s >= DRIFT_FROM_S else ():
            found = judge.measure(drifting(film, slope), people_of(film.item)).figures
            told = (found.drift_ms_per_s, found.drift_std_ms_per_s, found.finding)
            rows.append(
                {"clip": film.name, "true_ms_per_s": 1000 * slope} | dict(zip(DRIFT_COLUMNS, told, strict=True))
            )
    return rows


def score_repair(judge: Judge, films: Sequence[Staged]) -> Item:
    """What `sync_repair` with its usual limits does to clips shifted by known amounts: who is moved, and what is left.

    `left_ms` are absolute offsets of the repaired clips, `unrepaired` counts those left alone. Without shift, `left_ms` is
    what repair does to clips in sync. Swapped sound must never be moved.
    """
    rule = SyncRepair(enabled=True)
    out: Item = {}
    for shift_s in REPAIR_SHIFTS_S:
        found = [
            repair_of(judge.measure(film.under(film.heard, shift_s), people_of(film.item)).figures, rule)
            for film in films
        ]
        left = [abs(1000 * shift_s - repair.shift_ms) for repair in found if repair is not None]
        out[f"{shift_s:+g}"] = {
            "repaired": len(left),
            "unrepaired": len(films) - len(left),
            "left_ms": {"median": float(np.median(left)), "worst": max(left)} if left else None,
        }
    swapped = [
        repair_of(judge.measure(film.under(other.heard, _start_gap_s(film, other)), _people(film, other)).figures, rule)
        for film in films
        for other in films
        if not people_of(other.item) & people_of(film.item)
    ]
    return out | {"swapped": {"num": len(swapped), "repaired": sum(repair is not None for repair in swapped)}}


def _start_gap_s(film: Staged, other: Staged) -> float:
    """How much later `film` begins than the sound of `other`."""
    return film.start_s - float(other.heard.sound.start)


def _people(film: Staged, other: Staged) -> frozenset[str]:
    return people_of(film.item) | people_of(other.item)


def _row(result: Figures, made: Film, kind: str, shift_s: float) -> Item:
    offset = result.offset_ms
    return {
        "clip": made.name,
        "kind": kind,
        "shift_s": shift_s,
        "length_s": made.duration_s,
        "offset_ms": offset,
        "std_ms": result.offset_std_ms,
        "error_ms": np.inf if offset is None else abs(offset - 1000 * shift_s),
        "confidence": -np.inf if result.confidence is None else result.confidence,
        "agreement": -np.inf if result.agreement is None else result.agreement,
    }


def _shown(row: Item, columns: Sequence[str]) -> Item:
    return {name: _known(row[name]) if isinstance(row[name], float) else row[name] for name in columns}


def _known(value: float) -> float | None:
    """None for what is not finite, such as a median of errors most of which could not be measured: JSON has no such number."""
    return float(value) if np.isfinite(value) else None


def _mean(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None


def _errors(rows: Sequence[Item], with_intervals: bool = True) -> Item:
    """Median and shares of the absolute error, with bootstrap intervals over clips; what was not measured is infinitely off."""
    if not rows:
        return {"num": 0}
    names = sorted({row["clip"] for row in rows})
    by_clip = {name: np.array([row["error_ms"] for row in rows if row["clip"] == name]) for name in names}
    every = np.concatenate(list(by_clip.values()))
    out: Item = {
        "num": len(every),
        "num_clips": len(names),
        "median_ms": _known(np.median(every)),
        "within_40_ms": float(np.mean(every <= 40)),
        "within_80_ms": float(np.mean(every <= 80)),
    }
    if with_intervals:

        def drawn(picked: Array) -> Array:
            return np.concatenate([by_clip[names[at]] for at in picked])

        ends = bootstrap_interval(lambda picked: float(np.median(drawn(picked))), len(names))
        out["median_ms_interval"] = ends and [_known(end) for end in ends]
        out["within_80_ms_interval"] = bootstrap_interval(
            lambda picked: float(np.mean(drawn(picked) <= 80)), len(names)
        )
    return out


def _sure(rows: Sequence[Item]) -> Item:
    """How many cases have a confidence of 4 and more, and how many of these are right, with bootstrap intervals over clips."""
    names = sorted({row["clip"] for row in rows})
    by_clip = [
        [(row["confidence"] >= SURE, row["error_ms"] <= 80) for row in rows if row["clip"] == name] for name in names
    ]

    def share(picked: Array) -> float:
        return float(np.mean([sure for at in picked for sure, _ in by_clip[at]]))

    def right(picked: Array) -> float:
        found = [is_right for at in picked for sure, is_right in by_clip[at] if sure]
        return float(np.mean(found)) if found else np.nan

    if not rows:
        return {"num": 0}
    every = np.arange(len(names))
    return {
        "num": len(rows),
        "share": share(every),
        "share_interval": bootstrap_interval(share, len(names)),
        "within_80_ms": _known(right(every)),
        "within_80_ms_interval": bootstrap_interval(right, len(names)),
    }


def _auc(positives: Sequence[Item], negatives: Sequence[Item], key: str = "agreement") -> float | None:
    """Chance that a clip in sync scores above one that is not, each clip weighing the same."""
    if not positives or not negatives:
        return None
    low = np.array([row[key] for row in negatives])
    wins = [np.mean(row[key] > low) + 0.5 * np.mean(row[key] == low) for row in positives]
    return float(np.mean(wins))


def _roc(positives: Sequence[Item], negatives: Sequence[Item]) -> list[Item]:
    """Kept in-sync and kept out-of-sync shares at thresholds on `agreement`; none without both."""
    if not positives or not negatives:
        return []
    high, low = (np.array([row["agreement"] for row in rows]) for rows in (positives, negatives))
    return [
        {"agreement_min": float(x), "kept_in_sync": float((high >= x).mean()), "kept_wrong": float((low >= x).mean())}
        for x in np.arange(1.0, 6.1, 0.5)
    ]


def _turns_in_view(item: Item) -> bool:
    turns = item["ground_truth"].get("speaker_turns") or []
    return item.get("category") in ("talking", "multishot") and len(turns) > 1


def score_active(judge: Judge, films: Sequence[Staged]) -> Item:
    """Share of staged turns given to the right face, or rightly to nobody in view.

    A turn counts for the side its speaker is named after ("left", "right"), or for the only face of its shot.
    """
    rows = []
    for film in films:
        people = people_of(film.item)
        for shot, turns in _shots(film):
            spans = [_span(turn) for turn in turns]
            faces = track_rows(shot.seen)
            for turn, active in zip(turns, judge.measure(shot, people, spans).active, strict=True):
                expected = "on_screen" if turn.get("on_screen", True) else "off_screen"
                is_right = active.status == expected
                if is_right and active.track is not None:
                    is_right = _side_of(faces[active.track], turn["speaker"])
                row = {"file": film.item["path"], "speaker": turn["speaker"], "expected": expected, **asdict(active)}
                rows.append(row | {"right": is_right})
    answered = [row for row in rows if row["status"] != "unknown"]
    return {
        "num_turns": len(rows),
        "accuracy": float(np.mean([row["right"] for row in rows])) if rows else None,
        "accuracy_answered": float(np.mean([row["right"] for row in answered])) if answered else None,
        "turns": rows,
    }


def _shots(film: Staged) -> Iterator[tuple[Staged, list[Item]]]:
    """Parts of a film between its true hard cuts, with the turns whose middle lies in them."""
    truth = film.item["ground_truth"]
    rate = next(s["fps"] for s in film.item["probe"]["streams"] if s["type"] == "video" and "fps" in s)
    marks = [film.start_s, *(film.start_s + cut / float(rate) for cut in truth.get("hard_cuts") or []), film.end_s]
    for low_s, high_s in pairwise(marks):
        turns = [t for t in truth["speaker_turns"] if low_s <= (t["start"] + t["end"]) / 2 < high_s]
        if turns:
            yield film.part(low_s, high_s), turns


def _span(turn: Item) -> SpeechSpan:
    return SpeechSpan(start_s=turn["start"], end_s=turn["end"], speaker=turn["speaker"], text=turn.get("text", ""))


def _side_of(face: Item, speaker: str) -> bool:
    centre = face["x"] + face["width"] / 2
    if speaker.startswith("left:"):
        return bool(centre < 0.5)
    return bool(centre > 0.5) if speaker.startswith("right:") else True


def score_events(judge: Judge, films: Sequence[Staged]) -> Item:
    """Offsets of clips without speech, untouched and shifted. Few and hard: read the rows, not the medians."""
    rows = []
    for film in films:
        for shift_s in (0.0, -0.4, 0.4):
            made = film.under(film.heard, shift_s)
            result = judge.measure(made, people_of(film.item), is_speech=False).figures
            rows.append(_row(result, made, "event", shift_s))
    columns = ("clip", "shift_s", "offset_ms", "std_ms", "confidence")
    return _errors(rows) | {"clips": [_shown(row, columns) for row in rows]}


def score_faces(films: Sequence[Staged], bound: float | None) -> Item:
    """Distances of the longest-seen faces of one person in two files, and of two people; errors at the split's bound.

    Without a bound the split compares no faces and makes no errors.
    """
    known = [
        (people_of(film.item), film.seen.faces[0].embedding)
        for film in films
        if film.seen.faces and film.seen.faces[0].embedding is not None
    ]
    same: list[float] = []
    different: list[float] = []
    for (people, one), (others, other) in combinations(known, 2):
        (same if people & others else different).append(float(np.linalg.norm(np.subtract(one, other))))
    return {
        "recognisable": [len(known), len(films)],
        "same": {
            "pairs": len(same),
            "farthest": max(same, default=None),
            "missed": None if bound is None else sum(d > bound for d in same),
        },
        "different": {
            "pairs": len(different),
            "nearest": min(different, default=None),
            "joined": None if bound is None else sum(d <= bound for d in different),
        },
        "bound": bound,
    }


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("media_dir", type=Path)
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    text = json.dumps(score_sync(options.media_dir), indent=1, default=float)
    if options.json:
        options.json.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
