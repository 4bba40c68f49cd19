"""Sound that measures late is moved where it belongs, and nothing else is; what is written is measured again."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate

from pipeline.ask.queries import Run
from pipeline.config import load_recipe, parse_recipe
from pipeline.demo import swapped_clip, talking_clip
from pipeline.execute.here import here
from pipeline.pack import read_index
from pipeline.run import run
from schemas.errors import ItemError
from schemas.lines import marked
from schemas.spans import Turn, Word
from schemas.stretches import Stretch
from schemas.timing import Span
from stages.base import Context
from stages.download.sources import expand_sources
from stages.sync.config import SyncRepair
from stages.sync.repair import Repair, repair_of, with_moved_sound
from stages.sync.result import Figures
from stages.timbre import reference_fields
from tests import rows
from tests.rows import struct_of
from tests.stages.cut_rows import cut_stage, measured_clip

LATE_MS = 120.0
DRIFT_MS_PER_S = -10.0
DRIFTING_S = 12.0

MEASURED = {
    "kind": "speech",
    "engine": "mouth",
    "status": "measured",
    "finding": "shifted",
    "offset_ms": 120.0,
    "offset_std_ms": 20.0,
    "confidence": 8.0,
    "agreement": 1.0,
    "drift_ms_per_s": None,
    "drift_std_ms_per_s": None,
}
DRIFTING = {"finding": "drifting", "drift_ms_per_s": 6.0, "drift_std_ms_per_s": 1.5}


@pytest.mark.parametrize(
    ("sync", "expected"),
    [
        ({}, Repair(120.0, 0.0)),
        ({"offset_ms": -90.0, "finding": "in_sync"}, Repair(-90.0, 0.0)),
        (DRIFTING, Repair(120.0, 6.0)),
        (DRIFTING | {"offset_ms": 3.0}, Repair(3.0, 6.0)),
        ({"drift_ms_per_s": 4.0, "drift_std_ms_per_s": 3.0}, Repair(120.0, 0.0)),
        ({"offset_ms": 35.0}, None),
        ({"offset_std_ms": 70.0}, None),
        ({"confidence": 5.9}, None),
        ({"finding": "no_match"}, None),
        ({"finding": "unclear"}, None),
        ({"kind": "event"}, None),
        ({"kind": "none", "finding": None, "offset_ms": None, "confidence": None}, None),
    ],
)
def test_only_a_certain_offset_of_lips_is_repaired(sync: dict[str, Any], expected: Repair | None) -> None:
    found = Figures.of(MEASURED | sync)
    assert repair_of(found, SyncRepair(enabled=True)) == expected
    assert repair_of(found, SyncRepair(enabled=False)) is None
    assert repair_of(None, SyncRepair(enabled=True)) is None


def test_strangers_sound_stays_however_low_the_bar() -> None:
    rule = SyncRepair(enabled=True, min_confidence=0, min_offset_ms=0)
    for finding in ("no_match", "unclear"):
        assert repair_of(Figures.of(MEASURED | {"finding": finding}), rule) is None


def asset_of(words: list[tuple[str, float, float, str]]) -> dict[str, Any]:
    """What is measured on an asset that says `words` (text, start, end, speaker), each word a turn of its own."""
    said = [Word(text, start_s, end_s, 0.5).row() for text, start_s, end_s, _ in words]
    speech = [Stretch(start_s, end_s).row() for _, start_s, end_s, _ in words]
    turns = [Turn(speaker, start_s, end_s).row() for _, start_s, end_s, speaker in words]
    return {
        "transcribe": struct_of("transcribe", language="en", speech=speech, words=said),
        "diarize": struct_of("diarize", turns=turns, overlaps=[]),
    }


def row_of(structs: dict[str, Any], low: int, high: int) -> dict[str, Any]:
    """The row of the clip [low, high) in hundredths of a second, with the spans the clip stage would give it."""
    from stages.clip import Talk, spans_within

    span, talk = Span(low, high, 1, 100), Talk.of(structs, 0.3)
    spans = spans_within(span, talk.utterances, talk.overlaps)
    references = [
        rows.reference(i, [float(i)], origin="same_asset" if i else "same_span", similarity=0.9 - 0.1 * i)
        for i in range(len(spans))
    ]
    active = [{"span_index": i, "status": "on_screen", "track": i, "score": 3.0} for i in range(len(spans))]
    quoted = " ".join(marked(span.text) for span in spans)
    return {
        **structs,
        "clip": rows.clip_struct(span, spans),
        "sync": struct_of("sync", **MEASURED, active=active),
        "timbre": reference_fields(references, len(spans)),
        "caption": struct_of("caption", engine="openai", model="m", text=quoted, num_lines=len(spans)),
        "picture": None,
        "audio": None,
    }


CONFIGS = parse_recipe(
    {"name": "r", "stages": {name: {} for name in ("clip", "sync", "timbre", "caption")}}
).stage_configs()


def moved_to(row: dict[str, Any], repair: Repair) -> dict[str, Any]:
    """The row as it reads after the repair."""
    restated = with_moved_sound(row, repair, CONFIGS).restated
    return {**row, **{name: {**row[name], **said} for name, said in restated.items() if said is not None}}


def test_annotations_follow_the_sound() -> None:
    """Moved 0.3 s earlier: the first utterance falls out, the second moves, a third comes in at the end."""
    asset = asset_of([("gone", 10.05, 10.4, "A"), ("stays", 12.0, 12.4, "B"), ("new", 15.05, 15.35, "A")])
    clip = row_of(asset, 1000, 1500)
    assert [span["text"] for span in clip["clip"]["spans"]] == ["gone", "stays"]
    repaired, moved = with_moved_sound(clip, Repair(300.0, 0.0), CONFIGS), moved_to(clip, Repair(300.0, 0.0))
    assert repaired.speech is not None
    assert [stretch.start_s for stretch in repaired.speech] == [pytest.approx(t) for t in (-0.25, 1.7, 4.75)]
    spans = moved["clip"]["spans"]
    assert [span["text"] for span in spans] == ["stays", "new"]
    assert (spans[0]["start_s"], spans[0]["end_s"]) == (pytest.approx(1.7), pytest.approx(2.1))
    assert spans[1]["words"][0]["end_s"] == pytest.approx(5.0)
    assert [(face["span_index"], face["track"]) for face in moved["sync"]["active"]] == [(0, 1), (1, None)]
    assert [(r["span_index"], r["embedding"]) for r in moved["timbre"]["references"]] == [(0, [1.0])]
    assert (moved["timbre"]["num_cross_utterance"], moved["timbre"]["num_missing"]) == (1, 1)
    assert moved["timbre"]["min_similarity"] == pytest.approx(0.8)
    assert moved["caption"]["engine"] == "template"
    assert moved["caption"]["text"].count("<S>") == moved["caption"]["num_lines"] == 2
    assert "<S>stays<E>" in moved["caption"]["text"]
    assert clip["clip"]["spans"][0]["text"] == "gone"  # the ledger's row is not touched


def test_a_caption_that_still_holds_is_kept() -> None:
    clip = row_of(asset_of([("stays", 12.0, 12.4, "B")]), 1000, 1500)
    moved = moved_to(clip, Repair(120.0, 0.0))
    assert moved["caption"] == clip["caption"]
    assert moved["clip"]["spans"][0]["start_s"] == pytest.approx(1.88)


@given(
    st.floats(-1300, 1300),
    st.floats(-15, 15),
    st.lists(st.tuples(st.integers(900, 1600), st.integers(5, 60)), max_size=8),
)
def test_spans_never_leave_the_clip(shift_ms: float, drift: float, words: list[tuple[int, int]]) -> None:
    said = [(f"w{i}", a / 100, (a + n) / 100, "AB"[i % 2]) for i, (a, n) in enumerate(sorted(words))]
    clip = row_of(asset_of(said), 1000, 1500)
    moved = moved_to(clip, Repair(shift_ms, drift))
    spans = moved["clip"]["spans"]
    for span in spans:
        assert 0 <= span["start_s"] <= span["end_s"] <= 5
        assert all(span["start_s"] <= word["start_s"] <= word["end_s"] <= span["end_s"] for word in span["words"])
    assert len(moved["sync"]["active"]) == len(spans) == moved["caption"]["text"].count("<S>")
    for reference in moved["timbre"]["references"]:
        old = clip["clip"]["spans"][int(reference["embedding"][0])]["text"].split()
        assert set(old) & set(spans[reference["span_index"]]["text"].split())


def test_drift_is_taken_out_around_the_middle() -> None:
    repair, span = Repair(100.0, 10.0), Span(10, 20, 1, 1)
    for at in (10.0, 13.7, 15.0, 20.0):
        late = 0.1 + 0.01 * (at - 15)
        assert repair.heard_at(at + late, span) == pytest.approx(at, abs=1e-9)


@pytest.mark.slow
def test_a_repair_that_does_not_help_is_an_error(tmp_path: Path, make_row: Any, context: Context) -> None:
    """The row claims 400 ms; the clip is in sync. Moving it makes it worse, and that is found out."""
    clip = measured_clip(
        talking_clip(tmp_path / "good.mp4", who="dan", duration_s=4.0, seed=11).path, make_row, context
    )
    assert abs(clip["sync"]["offset_ms"]) < 80
    stage = cut_stage(context, tmp_path, {"sync_repair": {"enabled": True}})
    untouched = stage.measure(clip)
    assert (untouched["applied_shift_ms"], untouched["repaired_offset_ms"], untouched["restated"]) == (0.0, None, [])
    late = {**clip, "sync": {**clip["sync"], "offset_ms": 400.0, "finding": "shifted"}}
    with pytest.raises(ItemError, match="-400 ms") as caught:
        stage.measure(late)
    assert caught.value.reason == "sync_not_repaired"
    context.media.close()


@pytest.fixture(scope="module")
def repaired_run(demo_media: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(media, run): late, drifting and swapped clips through a run without Ray with repair on and gates wide open.

    What is said stands beside them: no recogniser need hear it.
    """
    folder = tmp_path_factory.mktemp("repair")
    media, out = folder / "media", folder / "run"
    media.mkdir()
    shutil.copy(demo_media / "sound_late_120ms.mp4", media / "late.mp4")
    drifting = talking_clip(media / "drifting.mp4", LATE_MS, DRIFT_MS_PER_S, who="ben", duration_s=DRIFTING_S, seed=11)
    swapped = swapped_clip(media / "swapped.mp4", who="dan", duration_s=7.0, seed=4)
    known = json.loads((demo_media / "manifest.json").read_text())["items"]
    (late,) = (item for item in known if item["path"] == "sound_late_120ms.mp4")
    for name, item in (("late", late), ("drifting", drifting.item), ("swapped", swapped.item)):
        (media / f"{name}.txt").write_text(item["ground_truth"]["transcript"])
    chosen = (
        "stages.cut.sync_repair.enabled=true",
        "stages.cut.sync_repair.min_confidence=0",
        "gates.sync.offset_ms.abs_max=1500",
        "gates.sync.confidence.min=0",
        f"stages.clip.max_s={DRIFTING_S:g}",
        "stages.shot_split.engine=content",
        "stages.transcribe.engine=align",
        "stages.transcribe.recogniser=pocketsphinx",
    )
    run(load_recipe("quickstart", chosen), expand_sources([str(media)]), str(out), here, quiet=True)
    return media, out


def packed(out: Path, name: str) -> tuple[dict[str, Any], dict[str, Any], np.ndarray[Any, Any]]:
    """(index row, annotation, sound) of the one clip of source `name`."""
    opened = Run(str(out))
    sources = dict(opened.ledger.scan("asset").select("source_id", "source.uri").collect().iter_rows())
    names = [entry.removesuffix(".arrow") for entry in opened.dir.names("index") if entry.endswith(".arrow")]
    found = [row for each in names for row in read_index(opened.dir, each).to_pylist()]
    (row,) = [each for each in found if sources[each["source"]].endswith(name)]
    with tarfile.open(out / "shards" / row["shard"]) as tar:
        members = {key: tar.extractfile(f"{row['clip_id']}.{key}").read() for key in ("json", "flac")}  # type: ignore[union-attr]
    return row, json.loads(members["json"]), soundfile.read(io.BytesIO(members["flac"]), always_2d=True)[0][:, 0]


def lag_s(media: Path, sound: np.ndarray[Any, Any], low_s: float, high_s: float) -> float:
    """How much later the source's own sound has what `sound` has between two instants."""
    from stages.media.decoder import Decoder

    decoder = Decoder(media.parent / "scratch")
    source = np.array(decoder.audio(media, rate_hz=48_000).samples)
    decoder.close()
    low, high, reach = round(low_s * 48_000), round(high_s * 48_000), 24_000
    curve = correlate(source[low - reach : high + reach], sound[low:high], "valid", method="fft")
    return float((int(np.argmax(curve)) - reach) / 48_000)


@pytest.mark.slow
@pytest.mark.xdist_group("repair")
@pytest.mark.timeout(900)
class TestRun:
    """What a whole run packs."""

    @pytest.mark.slow
    def test_a_constant_offset_is_taken_out(self, repaired_run: tuple[Path, Path]) -> None:
        media, out = repaired_run
        row, told, sound = packed(out, "late.mp4")
        assert row["applied_shift_ms"] == pytest.approx(LATE_MS, abs=45)
        assert row["applied_drift_ms_per_s"] == 0
        assert lag_s(media / "late.mp4", sound, 2, 5) == pytest.approx(row["applied_shift_ms"] / 1000, abs=2 / 48_000)
        assert abs(row["repaired_offset_ms"]) < 25 < abs(told["sync"]["offset_ms"])
        assert row["repaired_confidence"] > 4
        assert row["cut_sound_error_samples"] == 0
        for name in ("applied_shift_ms", "applied_drift_ms_per_s", "repaired_offset_ms", "repaired_confidence"):
            assert told["cut"][name] == row[name]
        (before,) = Run(str(out)).ledger.rows("clip", pl.col("row_id") == row["clip_id"])
        assert before["cut.repaired_offset_ms"] == row["repaired_offset_ms"]
        was, now = (spans[0]["words"][-1]["start_s"] for spans in (before["clip.spans"], told["clip"]["spans"]))
        assert was - now == pytest.approx(row["applied_shift_ms"] / 1000, abs=1e-4)

    def test_a_linear_drift_is_taken_out(self, repaired_run: tuple[Path, Path]) -> None:
        media, out = repaired_run
        row, _, sound = packed(out, "drifting.mp4")
        assert row["duration_s"] == pytest.approx(DRIFTING_S)
        assert row["applied_drift_ms_per_s"] == pytest.approx(DRIFT_MS_PER_S, abs=2.5)
        assert abs(row["repaired_offset_ms"]) < 25
        assert abs(row["repaired_drift_ms_per_s"]) < 3
        for at in (1.0, 4.5, 8.0):
            taken_out = lag_s(media / "drifting.mp4", sound, at, at + 3)
            true_lag = (LATE_MS + DRIFT_MS_PER_S * (at + 1.5)) / 1000
            assert taken_out == pytest.approx(true_lag, abs=0.06)

    def test_sound_of_other_words_stays(self, repaired_run: tuple[Path, Path]) -> None:
        _, out = repaired_run
        row, told, _ = packed(out, "swapped.mp4")
        assert told["sync"]["finding"] in ("no_match", "unclear")
        assert (row["applied_shift_ms"], row["repaired_offset_ms"]) == (0.0, None)
