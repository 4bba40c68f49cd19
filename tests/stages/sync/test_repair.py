"""Sound that measures late is moved where it belongs, and nothing else is; what is written is measured again."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate

from pipeline.ask.find import find
from pipeline.ask.queries import Run
from pipeline.config import load_recipe, parse_recipe
from pipeline.demo import swapped_clip, talking_clip
from pipeline.execute.here import here
from pipeline.pack import make_sample, read_index
from pipeline.plan import make_plan
from pipeline.run import run
from pipeline.show.text import why_text
from schemas.errors import ItemError
from schemas.lines import marked
from schemas.records import Clip
from schemas.spans import Turn, Word
from schemas.stretches import Stretch
from schemas.timing import Span
from stages.base import Context
from stages.download.sources import expand_sources
from stages.sync.config import SyncRepair
from stages.sync.repair import Remeasure, Repair, repair_of, with_moved_sound
from stages.sync.result import Figures
from stages.timbre import reference_fields
from tests import rows
from tests.rows import struct_of

LATE_MS = 120.0
DRIFT_MS_PER_S = -8.0
DRIFTING_S = 16.0

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


def clip_of(structs: dict[str, Any], low: int, high: int) -> Clip:
    """The clip [low, high) in hundredths of a second, with the spans the clip stage would give it."""
    from stages.clip import Talk, spans_within

    span, talk = Span(low, high, 1, 100), Talk.of(structs, 0.3)
    spans = spans_within(span, talk.utterances, talk.overlaps, talk.language)
    references = [
        rows.reference(i, [float(i)], origin="same_asset" if i else "same_span", similarity=0.9 - 0.1 * i)
        for i in range(len(spans))
    ]
    active = [{"span_index": i, "status": "on_screen", "track": i, "score": 3.0} for i in range(len(spans))]
    quoted = " ".join(marked(span.text) for span in spans)
    measured = {
        "sync": struct_of("sync", **MEASURED, active=active),
        "timbre": reference_fields(references, len(spans)),
        "caption": struct_of("caption", engine="openai", model="m", text=quoted, num_lines=len(spans)),
        "picture": None,
        "audio": None,
    }
    return rows.clip(span, spans, measured, asset=rows.asset(structs))


CONFIGS = parse_recipe(
    {"name": "r", "stages": {name: {} for name in ("clip", "sync", "timbre", "caption")}}
).stage_configs()


def told(clip: Clip, column: str) -> dict[str, Any]:
    """What one stage measured on `clip`."""
    return dict(clip.structs[column] or {})


def test_annotations_follow_the_sound() -> None:
    """Moved 0.3 s earlier: the first utterance falls out, the second moves, a third comes in at the end."""
    asset = asset_of([("gone", 10.05, 10.4, "A"), ("stays", 12.0, 12.4, "B"), ("new", 15.05, 15.35, "A")])
    clip = clip_of(asset, 1000, 1500)
    assert [span["text"] for span in told(clip, "clip")["spans"]] == ["gone", "stays"]
    repaired = with_moved_sound(clip, Repair(300.0, 0.0), CONFIGS)
    moved = repaired.clip
    assert repaired.speech is not None
    assert [stretch.start_s for stretch in repaired.speech] == [pytest.approx(t) for t in (-0.25, 1.7, 4.75)]
    spans = told(moved, "clip")["spans"]
    assert [span["text"] for span in spans] == ["stays", "new"]
    assert (spans[0]["start_s"], spans[0]["end_s"]) == (pytest.approx(1.7), pytest.approx(2.1))
    assert spans[1]["words"][0]["end_s"] == pytest.approx(5.0)
    assert [(face["span_index"], face["track"]) for face in told(moved, "sync")["active"]] == [(0, 1), (1, None)]
    assert [(r["span_index"], r["embedding"]) for r in told(moved, "timbre")["references"]] == [(0, [1.0])]
    assert (told(moved, "timbre")["num_cross_utterance"], told(moved, "timbre")["num_missing"]) == (1, 1)
    assert told(moved, "timbre")["min_similarity"] == pytest.approx(0.8)
    assert told(moved, "caption")["engine"] == "template"
    assert told(moved, "caption")["text"].count("<S>") == told(moved, "caption")["num_lines"] == 2
    assert "<S>stays<E>" in told(moved, "caption")["text"]
    assert told(clip, "clip")["spans"][0]["text"] == "gone"  # the ledger's row is not touched


def test_a_caption_that_still_holds_is_kept() -> None:
    clip = clip_of(asset_of([("stays", 12.0, 12.4, "B")]), 1000, 1500)
    moved = with_moved_sound(clip, Repair(120.0, 0.0), CONFIGS).clip
    assert told(moved, "caption") == told(clip, "caption")
    assert told(moved, "clip")["spans"][0]["start_s"] == pytest.approx(1.88)


@given(
    st.floats(-1300, 1300),
    st.floats(-15, 15),
    st.lists(st.tuples(st.integers(900, 1600), st.integers(5, 60)), max_size=8),
)
def test_spans_never_leave_the_clip(shift_ms: float, drift: float, words: list[tuple[int, int]]) -> None:
    said = [(f"w{i}", a / 100, (a + n) / 100, "AB"[i % 2]) for i, (a, n) in enumerate(sorted(words))]
    clip = clip_of(asset_of(said), 1000, 1500)
    moved = with_moved_sound(clip, Repair(shift_ms, drift), CONFIGS).clip
    spans = told(moved, "clip")["spans"]
    for span in spans:
        assert 0 <= span["start_s"] <= span["end_s"] <= 5
        assert all(span["start_s"] <= word["start_s"] <= word["end_s"] <= span["end_s"] for word in span["words"])
    assert len(told(moved, "sync")["active"]) == len(spans) == told(moved, "caption")["text"].count("<S>")
    for reference in told(moved, "timbre")["references"]:
        old = told(clip, "clip")["spans"][int(reference["embedding"][0])]["text"].split()
        assert set(old) & set(spans[reference["span_index"]]["text"].split())


def test_drift_is_taken_out_around_the_middle() -> None:
    repair, span = Repair(100.0, 10.0), Span(10, 20, 1, 1)
    for at in (10.0, 13.7, 15.0, 20.0):
        late = 0.1 + 0.01 * (at - 15)
        assert repair.heard_at(at + late, span) == pytest.approx(at, abs=1e-9)


def measured_clip(path: Path, make_row: Any, context: Context) -> Clip:
    """A whole file as one clip, really measured, as packing gets it."""
    from stages.sync.config import SyncConfig
    from stages.sync.stage import Sync

    asset = make_row(path)
    span = rows.span_of_file(asset["probe"])
    own = rows.clip_struct(span, num_frames=asset["probe"]["num_frames"])
    stage = Sync(SyncConfig())
    stage.setup(context)
    (sync,) = stage.process([asset | {"clip": own}])
    of = rows.asset({name: asset[name] for name in ("download", "probe")})
    return rows.clip(span, structs={"clip": own, "sync": sync}, asset=of)


def test_a_repair_that_does_not_help_is_an_error(tmp_path: Path, make_row: Any, context: Context) -> None:
    """The ledger claims 400 ms; the clip is in sync. Moving it makes it worse, and that is found out."""
    plan = make_plan(load_recipe("quickstart", ["sync_repair.enabled=true"]))
    clip = measured_clip(talking_clip(tmp_path / "good.mp4", who="dan", seed=11).path, make_row, context)
    sync = clip.structs["sync"]
    assert sync is not None
    assert abs(sync["offset_ms"]) < 80
    context.configs = plan.recipe.stage_configs()
    remeasure = Remeasure(context)
    untouched = make_sample(clip, plan, context, remeasure)
    assert (untouched.report.applied_shift_ms, untouched.resync) == (0.0, None)
    late = {**clip.structs, "sync": {**sync, "offset_ms": 400.0, "finding": "shifted"}}
    with pytest.raises(ItemError, match="-400 ms") as caught:
        make_sample(replace(clip, structs=late), plan, context, remeasure)
    assert caught.value.reason == "sync_not_repaired"
    context.media.close()


@pytest.fixture(scope="module")
def repaired_run(demo_media: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(media, run): late, drifting and swapped clips through a run without Ray with repair on and gates wide open."""
    folder = tmp_path_factory.mktemp("repair")
    media, out = folder / "media", folder / "run"
    media.mkdir()
    shutil.copy(demo_media / "sound_late_120ms.mp4", media / "late.mp4")
    talking_clip(media / "drifting.mp4", LATE_MS, DRIFT_MS_PER_S, who="ben", duration_s=DRIFTING_S, seed=11)
    swapped_clip(media / "swapped.mp4", who="dan", duration_s=7.0, seed=4)
    chosen = (
        "sync_repair.enabled=true",
        "sync_repair.min_confidence=0",
        "gates.sync.offset_ms.abs_max=1500",
        "gates.sync.confidence.min=0",
        "stages.clip.max_s=16",
    )
    run(load_recipe("quickstart", chosen), expand_sources([str(media)]), str(out), here, quiet=True)
    return media, out


def packed(out: Path, name: str) -> tuple[dict[str, Any], dict[str, Any], np.ndarray[Any, Any]]:
    """(index row, annotation, sound) of the one clip of source `name`."""
    opened = Run(str(out))
    sources = {row["source_id"]: row["source"]["uri"] for row in opened.ledger.settled("asset").to_pylist()}
    (row,) = [r for r in read_index(opened.dir, "00000").to_pylist() if sources[r["source"]].endswith(name)]
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
            assert told[name] == row[name]
        chain = find(Run(str(out)), row["clip_id"])
        assert [step["kind"] for step in chain] == ["asset", "shot", "clip", "pack"]
        assert chain[-1]["pack"]["repaired_offset_ms"] == row["repaired_offset_ms"]
        assert f"applied_shift_ms={row['applied_shift_ms']:.4g}" in why_text(chain, Run(str(out)).plan)
        before = [clip for clip in Run(str(out)).ledger.settled("clip").to_pylist() if clip["row_id"] == row["clip_id"]]
        was, now = (spans[0]["words"][-1]["start_s"] for spans in (before[0]["clip"]["spans"], told["clip"]["spans"]))
        assert was - now == pytest.approx(row["applied_shift_ms"] / 1000, abs=1e-4)

    def test_a_linear_drift_is_taken_out(self, repaired_run: tuple[Path, Path]) -> None:
        media, out = repaired_run
        row, _, sound = packed(out, "drifting.mp4")
        assert row["duration_s"] == pytest.approx(DRIFTING_S)
        assert row["applied_drift_ms_per_s"] == pytest.approx(DRIFT_MS_PER_S, abs=2.5)
        assert abs(row["repaired_offset_ms"]) < 25
        assert abs(row["repaired_drift_ms_per_s"]) < 3
        for at in (1.0, 6.5, 12.0):
            taken_out = lag_s(media / "drifting.mp4", sound, at, at + 3)
            true_lag = (LATE_MS + DRIFT_MS_PER_S * (at + 1.5)) / 1000
            assert taken_out == pytest.approx(true_lag, abs=0.06)

    def test_sound_of_other_words_stays(self, repaired_run: tuple[Path, Path]) -> None:
        _, out = repaired_run
        row, told, _ = packed(out, "swapped.mp4")
        assert told["sync"]["finding"] in ("no_match", "unclear")
        assert (row["applied_shift_ms"], row["repaired_offset_ms"]) == (0.0, None)
