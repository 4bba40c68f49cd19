"""Evaluations as a whole: what is counted, resumed, written, compared and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from model.cli import app
from model.evaluate.alignment import AV_ALIGN, event_agreement, of_lips, offset
from model.evaluate.evaluate import READINGS, EvalOptions, evaluate
from model.evaluate.likeness import OWN_SETS, face_distance, voice_similarity
from model.evaluate.measuring import WHOLE_SAMPLES
from model.evaluate.metric import Metric, of_asset, of_columns
from model.evaluate.page import write_page
from model.evaluate.protocols import PROTOCOLS, Rules, protocol_named, rules_here
from model.evaluate.published import beside, published_figures
from model.evaluate.records import EvalCase, EvalItem, Figure, Protocol, Provenance, Reading, Report, Score
from model.evaluate.report import compare, compared_text, read_report, report_text, write_report
from model.evaluate.sets import find_samples, read_set
from model.evaluate.words import OWN_WORDS, SEEDTTS_WORDS
from pipeline.config import load_recipe
from pipeline.demo.write import Encoding, encode
from schemas.errors import ModelError, RecipeError
from schemas.measured import MeasuredFile

ITEM = EvalItem(
    item_id="a", text="Open the box with care.", language="en", voice=Path("v.wav"), reference=Path("r.mp4")
)
QUIET: list[str] = []


def measured(clips: list[dict[str, Any]] | None = None, **asset: Any) -> MeasuredFile:
    """A file as `nava-curate score` tells of it."""
    return MeasuredFile(uri="x.mp4", made_by="m", asset=asset, clips=tuple(clips or ()))


def clip(seconds: float, **columns: Any) -> dict[str, Any]:
    return {"clip": {"duration_us": round(seconds * 1e6)}, **columns}


def lips(offset_ms: float, confidence: float = 6, kind: str = "speech", status: str = "measured") -> dict[str, Any]:
    return {"kind": kind, "status": status, "offset_ms": offset_ms, "confidence": confidence, "agreement": 2.0}


def case(made: MeasuredFile, **others: Any) -> EvalCase:
    return EvalCase(ITEM, Path("x.mp4"), made, **others)


def voices(*vectors: list[float]) -> MeasuredFile:
    told = [{"speaker": "A", "speech_s": 9.0 - at, "embedding": each} for at, each in enumerate(vectors)]
    return measured(diarize={"speakers": told, "num_speakers": len(told)})


def test_words_are_read_of_what_is_heard() -> None:
    heard = {"engine": "whisperx", "text": "open the box, care"}
    (wer, _), (by_item, by_half) = OWN_WORDS, SEEDTTS_WORDS
    assert wer.read(case(measured(transcribe=heard))) == Reading(1 / 5, 5)
    assert by_item.read(case(measured(transcribe=heard))) == Reading(1 / 5, 1)
    assert by_half.read(case(measured(transcribe=heard))) == Reading(1 / 5, 1)
    assert by_half.read(case(measured(transcribe=heard | {"text": "box"}))).why == "it is above 0.5"
    assert wer.read(case(measured(transcribe=heard | {"text": None}))) == Reading(1, 5), "silence is all words missing"
    assert wer.read(case(measured(transcribe={"engine": None, "text": None}))).why == "it has no sound to listen to"


def test_offsets_count_either_way_and_only_where_they_stand_out() -> None:
    clips = [clip(3, sync=lips(120)), clip(1, sync=lips(-40)), clip(9, sync=lips(900, confidence=1.2))]
    late = case(measured([*clips, clip(9, sync=lips(0, kind="event"))]))
    assert offset("speech")(late).value == pytest.approx(100)
    assert offset("speech", is_signed=True)(late).value == pytest.approx(80)
    assert offset("event")(late).value == 0
    assert offset("speech")(case(measured([clips[2]]))).why == "no offset stands out"
    assert of_lips("confidence")(case(measured([clip(2, sync=lips(0, status="no_face"))]))).why == "no_face"
    assert of_lips("confidence")(case(measured())).why == "it has no clip"


def test_events_are_read_where_nobody_speaks() -> None:
    def seen(agreement: float | None, kind: str = "event") -> dict[str, Any]:
        return clip(2, sync=lips(0, kind=kind), match={"onset_agreement": agreement})

    assert event_agreement(case(measured([seen(8.0), seen(4.0), seen(None), seen(0.0, "speech")]))).value == 6
    assert event_agreement(case(measured([seen(None)]))).why == "nothing is heard to begin"
    assert event_agreement(case(measured([seen(5.0, "speech")]))).why == "nothing in it is judged by event"


def test_voices_are_held_against_each_other_in_their_order() -> None:
    ann, ben = [1.0, 0.0], [0.0, 1.0]
    assert voice_similarity(case(voices(ann), voice=voices(ann))).value == pytest.approx(1)
    assert voice_similarity(case(voices(ben), voice=voices(ann))).value == pytest.approx(0)
    assert voice_similarity(case(voices(ann, ben), voice=voices(ann, ben))).value == pytest.approx(1)
    assert voice_similarity(case(voices(ben, ann), voice=voices(ann, ben))).value == pytest.approx(0)
    assert voice_similarity(case(voices(ann), voice=voices(ann, ben))).value == pytest.approx(9 / 17)
    assert voice_similarity(case(voices(), voice=voices(ann))).why == "no voice is heard in it"


def test_faces_and_columns() -> None:
    def faces(*tracks: tuple[float, list[float] | None]) -> MeasuredFile:
        told = [{"start_s": 0.0, "end_s": end_s, "embedding": each} for end_s, each in tracks]
        return measured([clip(4, faces={"tracks": told}, audio={"snr_db": 30.0}), clip(1, audio={"snr_db": 10.0})])

    made = case(faces((1, [0.0, 5.0]), (3, [3.0, 4.0]), (4, None)), reference=faces((2, [0.0, 0.0])))
    assert face_distance(made).value == pytest.approx(5)
    assert face_distance(replace(made, reference=None)).why == "no face is seen well in the real recording"
    assert of_columns("audio", "snr_db")(made).value == pytest.approx(26)
    assert of_columns("audio", "nothing")(made).why == "no clip of it has audio.nothing"


EVENTS_S = (0.52, 1.2, 1.88, 2.6, 3.4)
RATE_HZ = 48_000


def knocks(path: Path, late_s: float = 0.0) -> None:
    """A picture that jerks aside five times, each time with a click, or that much later."""
    encoding = Encoding(width_px=96, height_px=64)
    noise = (
        np.random.default_rng(0).integers(0, 255, (8, 20, 1)).repeat(8, 0).repeat(8, 1).repeat(3, 2).astype(np.uint8)
    )
    frames = [noise[:, 3 * sum(event <= at / 25 + 1e-6 for event in EVENTS_S) :][:, :96] for at in range(100)]
    sound = np.zeros(4 * RATE_HZ, np.float32)  # noise that sets in is an onset itself
    for event in EVENTS_S:
        sound[round((event + late_s) * RATE_HZ) :][:200] += 0.8
    encode(path, iter(frames), sound, encoding)


@pytest.fixture(scope="module")
def knocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of four, all of them knocks; `made` has one as it is, one 200 ms late, one broken, and one not at all."""
    root = tmp_path_factory.mktemp("knocks")
    for folder in ("set", "made"):
        (root / folder).mkdir()
    for name in ("exact", "late", "broken", "gone"):
        knocks(root / "set" / f"{name}.mp4")
    (root / "made" / "exact.mp4").write_bytes((root / "set" / "exact.mp4").read_bytes())
    (root / "made" / "broken.mp4").write_bytes(b"nothing of a film")
    knocks(root / "made" / "late.mp4", late_s=0.2)
    return root


@pytest.fixture(scope="module")
def reported(knocked: Path) -> tuple[Report, list[Score]]:
    rules = Rules("peaks alone", (AV_ALIGN,))
    given = read_set(knocked / "set")
    found = evaluate(given, knocked / "made", knocked / "out", EvalOptions("mova", rules), say=QUIET.append)
    write_report(*found, knocked / "out")
    write_page(*found, find_samples(given, knocked / "made")[0], knocked / "out")
    return found


@pytest.mark.slow
def test_what_is_seen_and_heard_at_once_is_aligned_until_the_sound_is_late(
    reported: tuple[Report, list[Score]],
) -> None:
    value = {score.item_id: score.value for score in reported[1]}
    assert value["exact"] == 1
    assert value["late"] == 0


def test_what_is_missing_or_broken_is_counted_and_named(reported: tuple[Report, list[Score]]) -> None:
    report, scores = reported
    (figure,) = report.figures
    assert (figure.num_items, figure.num_missing, figure.num_failed, figure.num_unmeasured) == (2, 1, 0, 1)
    assert report.missing == ("gone",)
    broken = next(score for score in scores if score.item_id == "broken")
    assert broken.state == "unmeasured"
    assert "broken.mp4 holds no picture that can be decoded" in broken.why
    assert figure.low <= figure.value <= figure.high
    told = report_text(report)
    assert "missing: gone" in told
    assert "protocol mova" in told


def test_recordings_that_are_not_there_are_said(knocked: Path, tmp_path: Path) -> None:
    meta = tmp_path / "meta.lst"
    meta.write_text("exact|said before|voices/gone.wav|to say\n")
    rules = Rules("peaks alone", (AV_ALIGN,))
    report, _ = evaluate(
        read_set(meta), knocked / "made", tmp_path / "out", EvalOptions("own", rules), say=QUIET.append
    )
    assert report.notes == (f"1 recordings that the set names are not there, such as {tmp_path}/voices/gone.wav",)


def test_readings_are_taken_up_again_for_the_same_bytes_alone(
    knocked: Path, reported: tuple[Report, list[Score]], tmp_path: Path
) -> None:
    lines = (knocked / "out" / READINGS).read_text().splitlines()
    exact = next(score.value for score in reported[1] if score.item_id == "exact")
    told = [json.loads(line) for line in lines]
    changed = [each | {"value": 0.123} if each["value"] == exact else each for each in told]
    (tmp_path / READINGS).write_text("".join(json.dumps(each) + "\n" for each in changed) + '{"key": "cut o')
    rules = Rules("peaks alone", (AV_ALIGN,))
    again = evaluate(
        read_set(knocked / "set"), knocked / "made", tmp_path, EvalOptions("mova", rules), say=QUIET.append
    )
    assert {score.item_id: score.value for score in again[1]}["exact"] == 0.123, "not measured again"


def test_a_report_is_read_as_it_was_written(knocked: Path, reported: tuple[Report, list[Score]]) -> None:
    assert read_report(knocked / "out") == reported
    assert pq.read_table(knocked / "out" / "items.parquet").num_rows == 4
    page = (knocked / "out" / "report.html").read_text()
    assert '"file": "../made/exact.mp4"' in page
    assert "MOVA 360p" in page, "the published figure of the same protocol"
    with pytest.raises(RecipeError, match="holds no report"):
        read_report(knocked)


def scored(out: Path, values: dict[str, float], **told: Any) -> None:
    """A report of one metric with these values."""
    how = Provenance(protocol="own", model=told.get("model", "m"))
    figure = Figure(
        metric="wer", unit="ratio", better="lower", value=float(np.mean(list(values.values()))), low=None, high=None,
        num_items=len(values), provenance=how,
    )  # fmt: skip
    report = Report(
        set_name=told.get("set_name", "s"), set_form="folder", protocol="own", generated="g", num_items=len(values),
        missing=(), failed={}, figures=(figure,),
    )  # fmt: skip
    scores = [
        Score(item_id=name, subset="", metric="wer", state="measured", value=each) for name, each in values.items()
    ]
    write_report(report, scores, out)


def test_reports_are_compared_item_by_item(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    items = {f"i{at}": float(each) for at, each in enumerate(random.uniform(0, 1, 30))}
    scored(tmp_path / "one", items | {"alone": 9.0})
    scored(tmp_path / "better", {name: each - 0.1 + 0.02 * random.standard_normal() for name, each in items.items()})
    scored(tmp_path / "same", {name: each + 0.02 * random.standard_normal() for name, each in items.items()})
    scored(tmp_path / "other", items, model="another network")
    (better,), (same,), (other,) = (compare(tmp_path / "one", tmp_path / name) for name in ("better", "same", "other"))
    assert (better.verdict, better.found.num_items) == ("better", 30)
    assert (better.num_first_only, better.num_second_only) == (1, 0), "what one lacks is said"
    assert better.found.difference == pytest.approx(-0.1, abs=0.02)
    assert same.verdict == "no difference is sure"
    assert other.verdict == "not comparable: model"
    assert "better" in compared_text([better])
    told = CliRunner().invoke(app, ["evaluate", "--compare", str(tmp_path / "one"), str(tmp_path / "same")])
    assert told.exit_code == 0
    assert "no difference is sure" in told.output
    scored(tmp_path / "elsewhere", items, set_name="another")
    with pytest.raises(RecipeError, match=r"is of set_name s, .* of another"):
        compare(tmp_path / "one", tmp_path / "elsewhere")


def test_a_distance_of_sets_is_of_items_that_both_have() -> None:
    (metric,) = OWN_SETS
    assert metric.reads_recording
    vectors = np.random.default_rng(1).standard_normal((6, 4))
    assert metric.distance(vectors, vectors) == pytest.approx(0, abs=1e-6)


def test_optional_packages_add_to_the_own_protocol_alone() -> None:
    assert rules_here("seedtts") is PROTOCOLS["seedtts"]
    assert "dnsmos_p808" in {each.name for each in rules_here("mova").all}
    names = {each.name for each in rules_here("own").all}
    assert names - {each.name for each in PROTOCOLS["own"].all} >= {"dnsmos_p808", "picture_brisque"}
    with patch("model.evaluate.protocols.find_spec", lambda _: None):
        assert "for want of brisque" in rules_here("own").absent


@pytest.mark.parametrize("protocol", ["own", "versebench"])
def test_figures_of_lips_name_what_held_them(protocol: Protocol) -> None:
    settings = ("stages.sync.engine=syncnet", "stages.sync.weights_path=/w/syncnet_v2.model", "stages.sync.device=cpu")
    models = {each.name: each.model for each in rules_here(protocol, settings).metrics if each.stage == "sync"}
    before = {each.name: each.model for each in rules_here(protocol, settings[2:]).metrics if each.stage == "sync"}
    changed = {name for name in models if models[name] != before[name]}
    assert changed == set(models) - {"event_offset_ms"}
    assert {models[name] for name in changed} == {"SyncNet in syncnet_v2.model, by stage sync"}


def test_protocols_never_share_a_figure() -> None:
    assert protocol_named("seedtts") == "seedtts"
    with pytest.raises(RecipeError, match="no protocol 'seedtt'"):
        protocol_named("seedtt")
    for name, rules in PROTOCOLS.items():
        names = [each.name for each in rules.all]
        assert len(set(names)) == len(names)
        assert name == "own" or rules.absent, "what of the owner's protocol is not measured is said"
    known = {(each.protocol, each.metric, each.model) for each in published_figures()}
    assert ("nava_table", "sync_c", "NAVA (6.3B)") in known
    local = {"desync_s", "ib", "lse_c", "lse_d", "clap", "is_panns"}
    measured_here = {each.name for each in rules_here("mova").all} | local
    assert not {metric for protocol, metric, _ in known if protocol == "mova"} - measured_here
    for protocol in ("own", "seedtts"):
        figure = Figure(
            metric="wer", unit="", better="lower", value=0.1, low=None, high=None, num_items=1,
            provenance=Provenance(protocol=protocol, model="m"),
        )  # fmt: skip
        assert {each.protocol for each in beside(figure)} == ({"seedtts"} if protocol == "seedtts" else set())


def test_speech_is_rated_where_the_recipe_leaves_that_out() -> None:
    rated = [load_recipe("quickstart", told).stage_configs()["sound"] for told in ((), WHOLE_SAMPLES)]
    assert [each.model_dump()["rate_speech"] for each in rated] == [False, True]


@pytest.mark.slow
def test_samples_are_measured_by_the_other_command(tmp_path: Path) -> None:
    """As processes: what it says of a file is a score, what it cannot read has failed, and a wrong setting ends all."""
    import soundfile

    for name, num in (("long", 32_000), ("short", 8_000), ("broken", 0)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(num + 1), 16_000)
    (tmp_path / "made").mkdir()
    for name in ("long", "short"):
        (tmp_path / "made" / f"{name}.wav").write_bytes((tmp_path / f"{name}.wav").read_bytes())
    (tmp_path / "made" / "broken.wav").write_bytes(b"no sound at all")
    length = Metric(
        name="length_us", doc="length", better="neither", read=of_asset("probe", "duration_us"), model="m", stage="probe",
        crop="all",
    )  # fmt: skip
    options = EvalOptions("own", Rules("length alone", (length,)))
    report, scores = evaluate(read_set(tmp_path), tmp_path / "made", tmp_path / "out", options, say=QUIET.append)
    assert {each.item_id: each.value for each in scores if each.value} == {"long": 2_000_062, "short": 500_062}
    assert list(report.failed) == ["broken"]
    (figure,) = report.figures
    assert (figure.num_items, figure.num_failed) == (2, 1)
    assert len(figure.provenance.sha256) == 20, "the hash of the stage that measured"
    with pytest.raises(ModelError, match="nava-curate score ended with 2"):
        evaluate(
            read_set(tmp_path), tmp_path / "made", tmp_path / "out", replace(options, settings=("stages.probe.x=1",)),
            say=QUIET.append,
        )  # fmt: skip
