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
from benchmarks.quality_sync_conditions import DRIFTS_S_PER_S, drifting, made_harder, small_and_mirrored
from benchmarks.quality_sync_figures import auc, errors, mean, roc, row_of, shown, sure
from pipeline.config import Packing
from schemas.spans import SpeechSpan
from schemas.stretches import Stretch
from stages.engines.face_identity import FaceEncoder
from stages.engines.phones import PhoneRecogniser
from stages.faces import track_rows
from stages.media.waveform import Waveform
from stages.sync.config import SyncConfig, SyncRepair
from stages.sync.film import SHIFTS_S, Film, Speech
from stages.sync.lips import DRIFT_FROM_S
from stages.sync.mouth import MouthEngine
from stages.sync.peaks import SURE
from stages.sync.repair import repair_of
from stages.sync.result import SyncResult

Array = NDArray[Any]
Item = dict[str, Any]

HARDER_SHIFTS_S = (-0.4, 0.4)
HARDER_SWAPS = 2
DRIFT_COLUMNS = ("drift_ms_per_s", "std_ms_per_s", "finding")
REPAIR_SHIFTS_S = (0.0, -0.6, -0.3, -0.12, 0.12, 0.3, 0.6)
LEAST_S = 3.0
CHOSEN_ON = "talking/grid_"
"""Clips on which `stages.sync.mouth.SURE_HEIGHT` was chosen; figures called `others` are of all but these."""
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
            rows.append(
                row_of(judge.measure(made, people).figures, made, "shifted" if shift_s else "original", shift_s)
            )
        for other in films:
            if not people_of(other.item) & people and other.duration_s >= LEAST_S - 0.05:
                made = film.under(other.heard, _start_gap_s(film, other))
                rows.append(row_of(judge.measure(made, _people(film, other)).figures, made, "swapped", 0.0))
    others = [row for row in rows if not row["clip"].startswith(CHOSEN_ON)]
    return _talk_figures(rows) | {"others": _talk_figures(others)}


def _talk_figures(rows: Sequence[Item]) -> Item:
    long = [row for row in rows if row["length_s"] >= LEAST_S - 0.05]
    short = [row for row in rows if row["length_s"] < LEAST_S - 0.05]
    originals, shifted, swapped = (
        [row for row in long if row["kind"] == kind] for kind in ("original", "shifted", "swapped")
    )
    return {
        "original": errors(originals),
        "shifted": errors(originals + shifted),
        "shifted_under_3_s": errors([row for row in short if row["kind"] == "shifted"]),
        "by_shift_s": {
            f"{s:+g}": errors([r for r in long if r["shift_s"] == s], with_intervals=False) for s in SHIFTS_S
        },
        "auc_shifted": auc(originals, shifted),
        "auc_swapped": auc(originals, swapped),
        "auc": auc(originals, shifted + swapped),
        "sure": sure(originals + shifted),
        "sure_original": sure(originals),
        "sure_swapped": mean([row["confidence"] >= SURE for row in swapped]),
        "auc_confidence_swapped": auc(originals, swapped, "confidence"),
        "roc": roc(originals, shifted + swapped),
        "coverage": mean([row["offset_ms"] is not None for row in rows]),
        "within_two_std": mean([r["error_ms"] <= 2 * r["std_ms"] for r in originals if r["std_ms"] is not None]),
        "clips": [shown(row, ("clip", "offset_ms", "std_ms", "confidence", "agreement")) for row in originals],
    }


def score_harder(judge: Judge, films: Sequence[Staged], small: Sequence[Staged]) -> Item:
    """Errors, AUC and what a confidence of 4 is worth where it is harder, by what was done to the clips."""
    made = made_harder(films) | {"small faces, mirrored": list(small)}
    out: Item = {}
    for name, changed in made.items():
        rows: list[Item] = []
        for number, film in enumerate(changed):
            people = people_of(film.item)
            for shift_s in (0.0, *HARDER_SHIFTS_S):
                version = film.under(film.heard, shift_s)
                kind = "shifted" if shift_s else "original"
                rows.append(row_of(judge.measure(version, people).figures, version, kind, shift_s))
            others = [other for other in changed if not people_of(other.item) & people]
            for other in np.random.default_rng(number).permutation(np.array(others, object))[:HARDER_SWAPS]:
                version = film.under(other.heard, _start_gap_s(film, other))
                rows.append(row_of(judge.measure(version, _people(film, other)).figures, version, "swapped", 0.0))
        right = [row for row in rows if row["kind"] != "swapped"]
        originals = [row for row in rows if row["kind"] == "original"]
        out[name] = errors(right) | {
            "auc": auc(originals, [row for row in rows if row["kind"] != "original"]),
            "sure": sure(right),
            "sure_swapped": mean([row["confidence"] >= SURE for row in rows if row["kind"] == "swapped"]),
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
            rows.append(row_of(result, made, "event", shift_s))
    columns = ("clip", "shift_s", "offset_ms", "std_ms", "confidence")
    return errors(rows) | {"clips": [shown(row, columns) for row in rows]}


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
