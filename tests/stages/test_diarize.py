"""Who speaks when: on voices mixed here with exact turns, on real meetings, and the parts one by one."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality_speech import compare_turns
from schemas.errors import RecipeError
from schemas.spans import SPEECH_RATE_HZ, Turn, overlaps
from schemas.stretches import Stretch, covered_s
from stages.base import Context
from stages.diarize.activity import active_runs, held, raised, regroup, stitch
from stages.diarize.activity import spoken as spoken_frames
from stages.diarize.cluster import Bonds, VoicePiece, cluster_of, join, likeness, place
from stages.diarize.embedded import (
    PAUSES,
    EmbeddedConfig,
    EmbeddedDiarizer,
    Voices,
    blocks,
    cut_units,
    draw_turns,
    heard_alone,
    name_across,
)
from stages.diarize.pyannote import PyannoteDiarizer
from stages.diarize.segmentation import FRAME_S, HOP, Kind, Segmentation, Windows
from stages.diarize.stage import Diarize, DiarizeConfig, name_by_appearance, pieces_of
from stages.engines.speakers import SpeakerEncoder, similarity, unit
from stages.engines.voice_memory import VoiceMemory
from tests.rows import asset_row, struct_of

RANDOM = np.random.default_rng(11)


@pytest.fixture(scope="module")
def engine() -> EmbeddedDiarizer:
    return EmbeddedDiarizer.load(EmbeddedConfig(), Context(Path()))


@pytest.fixture(scope="module")
def encoder(engine: EmbeddedDiarizer) -> SpeakerEncoder:
    return engine.encoder


def spoken(folder: Path, **chosen: Any) -> tuple[Path, np.ndarray, dict[str, Any]]:
    """A synthetic conversation: (file, samples at 16 kHz, truth)."""
    import soundfile

    from pipeline.demo.clips import turns_audio

    made = turns_audio(folder / f"talk{chosen.get('seed', 0)}.wav", **chosen)
    return made.path, soundfile.read(made.path, dtype="float32")[0], made.item["ground_truth"]


def true_turns(truth: dict[str, Any]) -> list[Turn]:
    return [Turn(t["speaker"], t["start"], t["end"], None) for t in truth["speaker_turns"]]


# --- whole engines ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_synthetic_voices_are_told_apart(engine: EmbeddedDiarizer, tmp_path: Path) -> None:
    _, samples, truth = spoken(tmp_path, num_speakers=2, num_turns=4, seed=1)
    turns = engine.turns(samples)
    score = compare_turns(true_turns(truth), turns, truth["uem"])
    assert score["speakers_found"] == 2
    assert score["der_0.25"] < 0.15
    assert all(0.5 <= t.confidence <= 1 for t in turns if t.confidence is not None)


@pytest.mark.slow
def test_one_voice_stays_one(engine: EmbeddedDiarizer, tmp_path: Path) -> None:
    _, samples, _ = spoken(tmp_path, num_speakers=1, num_turns=3, seed=3)
    assert {t.speaker for t in engine.turns(samples)} == {"0"}


@pytest.mark.parametrize("num_samples", [0, 100, SPEECH_RATE_HZ])
def test_silence_and_next_to_nothing(engine: EmbeddedDiarizer, num_samples: int) -> None:
    assert engine.turns(np.zeros(num_samples, np.float32)) == []


@pytest.mark.slow
def test_stage_returns_what_it_declares(tmp_path: Path, context: Any, engine: EmbeddedDiarizer) -> None:
    path, _, truth = spoken(tmp_path, num_speakers=2, num_turns=4, overlap=0.5, seed=4)
    stage = Diarize(DiarizeConfig())
    stage.ctx, stage.engine, stage.memory = context, engine, VoiceMemory.of(context)
    rows = [asset_row(path, probe=struct_of("probe", has_audio=flag)) for flag in (True, False)]
    found, nothing = stage.process(rows)
    assert isinstance(found, dict)
    assert set(found) == {field.name for field in Diarize.adds}
    assert [s["speaker"] for s in found["speakers"]] == ["A", "B"][: found["num_speakers"]]
    assert found["turns"][0]["speaker"] == "A"
    assert all(np.linalg.norm(s["embedding"]) == pytest.approx(1, abs=1e-4) for s in found["speakers"])
    assert max(t["end_s"] for t in found["turns"]) <= truth["uem"][1] + 1e-3
    assert nothing["num_speakers"] == 0  # type: ignore[index]
    pieces = Stretch.all_of(found["alone"])
    assert max(piece.duration_s for piece in pieces) <= engine.config.max_unit_s + FRAME_S
    assert not any(piece.overlap_s(both) > FRAME_S for piece in pieces for both in Stretch.all_of(found["overlaps"]))
    context.media.close()


@pytest.mark.slow
def test_windows_without_speech_are_not_listened_to(engine: EmbeddedDiarizer, tmp_path: Path) -> None:
    _, samples, _ = spoken(tmp_path, num_speakers=2, num_turns=2, seed=5)
    samples = np.concatenate([samples, np.zeros(12 * SPEECH_RATE_HZ, np.float32), samples])
    speech = engine.voice.stretches(samples, PAUSES)
    some, every = (engine.near.windows(samples, 1.0, s) for s in (speech, [Stretch(0, 1e3)]))
    is_heard = some.scores.any(axis=(1, 2))
    assert 5 < (~is_heard).sum() < len(is_heard) / 2
    np.testing.assert_allclose(some.scores[is_heard], every.scores[is_heard], atol=1e-3)
    is_speech = spoken_frames(speech, some.num_frames)
    loudest, truth = (stitch(windows).max(axis=1) * is_speech for windows in (some, every))
    np.testing.assert_allclose(loudest, truth, atol=1e-3)


def test_a_pipeline_that_names_no_pieces_has_its_turns_cut() -> None:
    turns = [Turn("A", 0, 7), Turn("B", 6, 8), Turn("A", 8, 8.3)]
    assert pieces_of(turns) == [Stretch(0, 3), Stretch(3, 6), Stretch(7, 8)]


@pytest.mark.slow
def test_real_two_speaker_recordings(media_dir: Path, engine: EmbeddedDiarizer, context: Any) -> None:
    import json

    items = {i["path"]: i for i in json.loads((media_dir / "manifest.json").read_text())["items"]}
    for name in ("multishot/dialog_with_silent_reaction_cutaway.mp4", "multispeaker/stereo_one_reader_per_channel.wav"):
        sound = context.media.audio(media_dir / name, rate_hz=SPEECH_RATE_HZ)
        turns = engine.turns(np.array(sound.samples))
        score = compare_turns(true_turns(items[name]["ground_truth"]), turns, (0, len(sound.samples) / SPEECH_RATE_HZ))
        assert (score["speakers_found"], score["der_0.25"] < 0.15) == (2, True), name
    context.media.close()


@pytest.mark.slow
def test_blocks_are_joined_by_voice(engine: EmbeddedDiarizer, tmp_path: Path) -> None:
    _, samples, truth = spoken(tmp_path, num_speakers=2, num_turns=10, seed=6)
    small = replace(engine, config=EmbeddedConfig(block_s=20))
    assert len(blocks([Stretch(0, 1)], len(samples), 20)) > 1
    score = compare_turns(true_turns(truth), small.turns(samples), truth["uem"])
    assert score["speakers_found"] == 2
    assert score["der_0.25"] < 0.2


@pytest.mark.slow
def test_a_local_pyannote_pipeline_runs(tmp_path: Path) -> None:
    _, samples, truth = spoken(tmp_path, num_speakers=2, num_turns=2, seed=7)
    (tmp_path / "config.yaml").write_text(
        "version: 4.0.0\n"
        "pipeline:\n  name: tests.stages.local_pyannote.LocalDiarization\n"
        "  params: {clustering: AgglomerativeClustering, segmentation_step: 0.25}\n"
        "params:\n  segmentation: {threshold: 0.44, min_duration_off: 0.3}\n"
        "  clustering: {method: complete, min_cluster_size: 1, threshold: 0.45}\n"
    )
    turns = PyannoteDiarizer.load(str(tmp_path), "cpu").hear(samples).turns
    missed = sum(t["end"] - t["start"] for t in truth["speaker_turns"]) - sum(
        covered_s(Stretch(t["start"], t["end"]), [f]) for t in truth["speaker_turns"] for f in turns
    )
    assert turns
    assert abs(missed) < 0.25 * sum(t["end"] - t["start"] for t in truth["speaker_turns"])


@pytest.mark.parametrize(("kind", "window_s"), [("near", 5), ("far", 10)])
@pytest.mark.slow
def test_the_networks_are_pyannotes_own_whose_filters_hear_the_sound_once(
    engine: EmbeddedDiarizer, tmp_path: Path, kind: Kind, window_s: int
) -> None:
    import torch

    from tests.stages.local_pyannote import pyannote_segmentation

    _, samples, _ = spoken(tmp_path, num_speakers=2, num_turns=3, seed=2)
    step, size = 30 * HOP, window_s * SPEECH_RATE_HZ
    sound = torch.from_numpy(np.tile(samples, 2)[: size + 2 * step] + np.float32(0.01))
    network: Segmentation = getattr(engine, kind)
    with torch.inference_mode():
        theirs = pyannote_segmentation(kind)(sound.unfold(0, size, step)[:, None])
        theirs = theirs if kind == "near" else theirs.exp()
        torch.testing.assert_close(network.network(sound, step), theirs, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_a_worker_starts_without_the_trainer_of_its_weights() -> None:
    """pyannote.audio brings lightning, which took two thirds of a worker's start."""
    code = (
        "import sys; from pathlib import Path; from stages.base import Context\n"
        "from stages.diarize.stage import Diarize, DiarizeConfig\n"
        "Diarize(DiarizeConfig()).setup(Context(Path()))\n"
        "print([name for name in ('pyannote', 'lightning', 'omegaconf') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.strip() == "[]"


def test_missing_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"diarize\.weights"):
        PyannoteDiarizer.load(str(tmp_path), "cpu")


# --- parts -----------------------------------------------------------------------------------------------------------


WINDOW_FRAMES = 293


def windows_of(activity: np.ndarray, orders: list[tuple[int, ...]], step: int = 30) -> Windows:
    """Windows that see `activity` [T, 3] with local speakers shuffled as in `orders`."""
    first = np.arange(len(orders)) * step
    return Windows(
        np.stack([activity[f : f + WINDOW_FRAMES, list(order)] for f, order in zip(first, orders, strict=True)]),
        first,
        len(activity),
    )


def two_people() -> np.ndarray:
    activity = np.zeros((383, 3), np.float32)
    activity[20:160, 0] = activity[130:300, 1] = activity[310:370, 0] = 0.95
    return activity


def test_stitching_undoes_the_order_of_local_speakers() -> None:
    activity = two_people()
    tracks = stitch(windows_of(activity, [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)]))
    alike = (tracks[:, :, None] > 0.5) == (activity[:, None, :2] > 0.5)
    assert tracks.shape[1] == 2
    assert (alike.mean(axis=0).max(axis=0) > 0.97).all()


def test_regrouping_splits_two_people_held_for_one() -> None:
    activity = two_people()
    merged = activity.copy()
    merged[:, 0] = activity.max(axis=1)
    merged[:, 1] = 0
    seen = regroup(windows_of(merged, [(0, 1, 2)] * 4), activity[:, :2])
    alone_frames = (activity > 0.5).sum(axis=1) == 1
    assert ((seen > 0.5) == (activity[:, :2] > 0.5))[alone_frames].all()


def test_overlap_is_kept() -> None:
    turns = draw_turns(two_people(), EmbeddedConfig())
    (overlap,) = overlaps(turns)
    assert (overlap.start_s, overlap.end_s) == pytest.approx((130 * FRAME_S, 160 * FRAME_S))


def voice_like(centre: np.ndarray, scatter: float) -> np.ndarray:
    return unit(centre + scatter * RANDOM.normal(size=256).astype(np.float32) / 16)


@pytest.mark.parametrize(("level", "pause_s", "num_turns"), [(0.4, 1.2, 1), (0.1, 0.8, 1), (0.1, 1.2, 2)])
def test_a_turn_ends_where_activity_falls_below_the_offset_for_longer_than_a_pause(
    level: float, pause_s: float, num_turns: int
) -> None:
    activity = np.full((round(3 / FRAME_S), 1), 0.9, np.float32)
    low, high = (round((1.5 + side * pause_s / 2) / FRAME_S) for side in (-1, 1))
    activity[low:high] = level
    turns = draw_turns(activity, EmbeddedConfig())
    assert len(turns) == num_turns
    assert max(turn.confidence or 0 for turn in turns) == pytest.approx(0.9)


@pytest.mark.parametrize(("pause_s", "speaks", "turns_of_first"), [(0.9, False, 1), (0.9, True, 2), (1.1, False, 2)])
def test_a_turn_is_held_over_a_pause_of_a_second_unless_somebody_speaks_in_it(
    pause_s: float, speaks: bool, turns_of_first: int
) -> None:
    activity = np.zeros((round(4 / FRAME_S), 2), np.float32)
    low, high = (round((2 + side * pause_s / 2) / FRAME_S) for side in (-1, 1))
    activity[:low, 0] = activity[high:, 0] = 0.9
    activity[low + 10 : high - 10, 1] = 0.9 * speaks
    turns = draw_turns(activity, EmbeddedConfig())
    assert Counter(turn.speaker for turn in turns) == Counter({"0": turns_of_first, "1": int(speaks)})


def test_of_two_who_pause_at_once_one_holds_the_turn() -> None:
    assert [own.tolist() for own in held([np.array([[0, 40], [60, 90]])] * 2, 30)] == [[[0, 90]], [[0, 40], [60, 90]]]


@pytest.mark.parametrize("hears_two", ["near", "far"])
def test_where_one_network_hears_two_nobody_is_alone(hears_two: str) -> None:
    voice = unit(np.ones(256, np.float32))
    units = [VoicePiece(0, low, low + 50, 50 * FRAME_S, 50 * FRAME_S, voice, is_alone=True) for low in (60, 120)]
    heard = dict.fromkeys(("near", "far"), windows_of(0 * two_people(), [(0, 1, 2)] * 4))
    heard[hears_two] = windows_of(two_people(), [(0, 1, 2)] * 4)
    everywhere = np.ones(383, np.float32)
    voices = Voices(heard["near"], heard["far"], everywhere, everywhere[:, None], units)
    (alone,) = heard_alone(voices, 383 * HOP, EmbeddedConfig())
    assert (alone.start_s, alone.end_s) == pytest.approx((60 * FRAME_S, 110 * FRAME_S))


def test_what_never_reaches_the_onset_is_no_turn() -> None:
    assert not draw_turns(np.full((200, 1), 0.45, np.float32), EmbeddedConfig())


def piece(embedding: np.ndarray | None, low: int = 0, high: int = 60, track: int = 0, **told: Any) -> VoicePiece:
    length_s = (high - low) * FRAME_S
    return VoicePiece(track, low, high, length_s, **{"clean_s": length_s, "embedding": embedding} | told)


def alone_of(unit_: VoicePiece) -> Any:
    return cluster_of([unit_], [0])


def bonds_of(units: list[VoicePiece], apart: np.ndarray | None = None, weight: float = 0.0) -> Bonds:
    never = np.full((len(units), len(units)), np.nan, np.float32)
    return Bonds(units, never if apart is None else apart, np.zeros_like(never), weight)


def test_brief_stretches_of_one_voice_need_not_sound_as_alike_as_long_ones() -> None:
    voice = unit(RANDOM.normal(size=256).astype(np.float32))
    other = unit(0.8 * voice + 0.6 * unit(RANDOM.normal(size=256).astype(np.float32)))
    brief, long = (likeness(*(alone_of(piece(e, clean_s=s)) for e in (voice, other))) for s in (0.8, 9.0))
    assert brief > long


def test_what_the_network_saw_decides_between_like_voices() -> None:
    voice = unit(RANDOM.normal(size=256).astype(np.float32))
    units = [piece(voice_like(voice, 0.4), i * 100, i * 100 + 90, track=i) for i in range(4)]
    singles = [cluster_of(units, [i]) for i in range(4)]
    assert len(join(singles, bonds_of(units), 0.7)) == 1
    apart = np.array([[(i % 2) != (j % 2) for j in range(4)] for i in range(4)], np.float32)
    groups = join(singles, bonds_of(units, apart, 0.9), 0.7)
    assert sorted(sorted(g.members) for g in groups) == [[0, 2], [1, 3]]


def test_who_speaks_at_the_same_time_is_somebody_else() -> None:
    ann, bob = (unit(RANDOM.normal(size=256).astype(np.float32)) for _ in range(2))
    units = [
        piece(ann, 0, 200),
        piece(unit(ann + 0.2 * bob), 100, 180, track=1, is_mixed=True),
        piece(None, 210, 225, track=0),
        piece(unit(0.3 * ann + bob), 300, 380, track=1, is_mixed=True),
    ]
    clusters = [cluster_of(units, [0])]
    assert place(units, clusters, FRAME_S) == {0: 0, 1: 1, 2: 0, 3: 1}
    assert clusters[1].members == [1]


def test_nobody_is_invented_for_a_breath_under_a_known_voice() -> None:
    units = [piece(unit(RANDOM.normal(size=256).astype(np.float32)), 0, 200), piece(None, 100, 115, track=1)]
    clusters = [cluster_of(units, [0])]
    assert place(units, clusters, FRAME_S) == {0: 0}
    assert len(clusters) == 1


def test_a_track_is_cut_where_another_falls_in_or_stops() -> None:
    """There its local speaker may become another person."""
    tracks = np.zeros((600, 2), np.float32)
    tracks[:500, 0] = tracks[200:300, 1] = 0.9
    is_pair = np.zeros(600, bool)
    is_pair[400:460] = True
    units = cut_units(tracks, is_pair, EmbeddedConfig(max_unit_s=2.0))
    found = {track: [(u.low, u.high) for u in units if u.track == track] for track in (0, 1)}
    assert found[0] == [(0, 100), (100, 200), (200, 300), (300, 400), (400, 460), (460, 500)]
    assert found[1] == [(200, 300)]


def test_as_many_speak_as_voices_are_heard() -> None:
    activity = np.array([[0.9, 0.3, 0.2], [0.9, 0.3, 0.2], [0.4, 0.1, 0.0], [0.9, 0.0, 0.0]], np.float32)
    found = raised(activity, np.array([1, 1, 1, 1], bool), np.array([0, 1, 0, 1], bool)) > 0.5
    assert found.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]]


def test_windows_lie_where_the_networks_look(engine: EmbeddedDiarizer, tmp_path: Path) -> None:
    """Both hear a voice that sets in after 4 s where it does, wherever their windows begin."""
    _, samples, _ = spoken(tmp_path, num_speakers=1, num_turns=1, seed=9)
    first = np.flatnonzero(np.abs(samples) > 0.02)[0]
    samples = np.concatenate([np.zeros(4 * SPEECH_RATE_HZ - first, np.float32), samples])
    for network in (engine.near, engine.far):
        windows = network.windows(samples, 1.0, [Stretch(0, 1e3)])
        heard = np.flatnonzero(windows.speech > 0.5)
        assert heard[0] * FRAME_S == pytest.approx(4.0, abs=0.08)
        assert not np.any(windows.overlap > 0.5)


def test_two_speakers_of_one_block_never_become_one() -> None:
    voice = unit(RANDOM.normal(size=256).astype(np.float32))
    first = [
        alone_of(piece(voice, 0, 300)),
        alone_of(piece(voice, 0, 300)),
    ]
    second = [alone_of(piece(voice, 0, 300))]
    (a, b), (c,) = name_across([first, second], 0.72)
    assert a != b
    assert c in (a, b)


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.floats(0, 50), st.floats(0.01, 5)), max_size=15))
def test_names_follow_first_appearance(given_turns: list[tuple[str, float, float]]) -> None:
    turns = name_by_appearance([Turn(s, a, a + d, None) for s, a, d in given_turns])
    seen = list(dict.fromkeys(t.speaker for t in turns))
    assert seen == ["A", "B", "C"][: len(seen)]
    assert [t.start_s for t in turns] == sorted(t.start_s for t in turns)
    for overlap in overlaps(turns):
        middle = (overlap.start_s + overlap.end_s) / 2
        assert len({t.speaker for t in turns if t.start_s <= middle <= t.end_s}) >= 2


@given(st.lists(st.floats(0, 1), max_size=80))
def test_runs_are_what_is_active(activity: list[float]) -> None:
    inside = np.zeros(len(activity), bool)
    for low, high in active_runs(np.array(activity, np.float32), 0.5, 0.5):
        assert low < high
        inside[low:high] = True
    assert (inside == (np.array(activity, np.float32) >= 0.5)).all()


@given(st.lists(st.floats(0, 1, width=32), max_size=80))
def test_runs_reach_from_onset_down_to_the_offset(given: list[float]) -> None:
    activity = np.array(given, np.float32)
    runs = active_runs(activity, 0.5, 0.35)
    assert all(activity[low:high].min() >= 0.35 and activity[low:high].max() >= 0.5 for low, high in runs)
    strict = active_runs(activity, 0.5, 0.5)
    assert all(any(low <= a and b <= high for low, high in runs) for a, b in strict)


def test_blocks_cover_everything_and_end_in_pauses() -> None:
    speech = [Stretch(i * 10 + 1, i * 10 + 9) for i in range(30)]
    found = blocks(speech, 300 * SPEECH_RATE_HZ, 60.0)
    assert found[0][0] == 0
    assert found[-1][1] == 300 * SPEECH_RATE_HZ
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert all(
        covered_s(Stretch(high / SPEECH_RATE_HZ - 0.01, high / SPEECH_RATE_HZ + 0.01), speech) == 0
        for _, high in found[:-1]
    )


# --- voices ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_embedding_agrees_with_its_package(encoder: SpeakerEncoder, tmp_path: Path) -> None:
    from resemblyzer import VoiceEncoder
    from resemblyzer.audio import normalize_volume

    _, samples, _ = spoken(tmp_path, num_speakers=1, num_turns=1, seed=8)
    resemblyzer = encoder.resemblyzer
    loud = normalize_volume(samples, -30, increase_only=False)
    theirs = VoiceEncoder("cpu", verbose=False).embed_utterance(loud, rate=2.5)
    assert similarity(resemblyzer.embed([samples])[0], theirs) > 0.995
    ours = encoder.embed(samples)
    assert ours is not None
    assert similarity(unit(ours[:256]), theirs) > 0.995
    assert np.linalg.norm(ours[256:]) == pytest.approx(np.sqrt(0.5), abs=1e-3)
    assert encoder.embed(samples[: SPEECH_RATE_HZ // 4]) is None
    assert encoder.embed(np.zeros(SPEECH_RATE_HZ, np.float32)) is None


def test_embedding_ignores_loudness(encoder: SpeakerEncoder, tmp_path: Path) -> None:
    _, samples, _ = spoken(tmp_path, num_speakers=1, num_turns=1, seed=9)
    loud, quiet = encoder.embed(samples), encoder.embed(samples * np.float32(0.05))
    assert loud is not None
    assert quiet is not None
    assert similarity(loud, quiet) > 0.999


def test_speech_too_short_for_any_voice_gives_no_turns_rather_than_an_error(engine: EmbeddedDiarizer) -> None:
    """0.3 s of a voice at the end of silence: the voice activity pass hears it, no embedding can be taken from it."""
    from scipy.signal import resample_poly

    from pipeline.demo.voice import synthesise

    spoken = synthesise("yes", "ann").samples
    short = resample_poly(spoken, 16000, 22050)[:4800]
    samples = np.concatenate([np.zeros(60_000), short]).astype(np.float32)
    assert engine.turns(samples) == [] or len({turn.speaker for turn in engine.turns(samples)}) == 1


@pytest.mark.parametrize("first", [-12, -10, -9, 4, 9, 10, 11, 12])
def test_a_window_that_sees_nothing_of_the_sound_adds_nothing(first: int) -> None:
    """The last of a sound may begin a frame past its end: the network's first frame is that of half a window in."""
    windows = Windows(np.ones((1, 10, 3), np.float32), np.array([first]), num_frames=10)
    seen = sum(0 <= at < 10 for at in range(first, first + 10))
    assert windows.speech.sum() == windows.overlap.sum() == seen
