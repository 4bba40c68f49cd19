"""The media made for demo and tests is what its truth says: measured on the decoded files, not on what went in."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import correlate

from pipeline.demo import (
    Encoding,
    Made,
    ball_clip,
    cuts_clip,
    dialog_clip,
    flash_and_click,
    frame_number,
    swapped_clip,
    talking_clip,
    turns_audio,
    variable_rate,
    write_known_truth,
)
from pipeline.demo.demo_set import MAKERS
from pipeline.demo.face import PEOPLE, TalkingFace
from pipeline.demo.film import DemoFilm
from pipeline.demo.scenes import DrawnShot, Still
from pipeline.demo.sound import Line
from pipeline.demo.voice import SAMPLE_RATE_HZ, VOICES, _run_espeak, synthesise
from pipeline.demo.write import encode, turn_display

SENTENCE = "A big brown dog was asleep by the fire."


def pictures_of(path: Path) -> tuple[list[NDArray[np.uint8]], NDArray[np.float64]]:
    """RGB pictures and their times in seconds."""
    with av.open(str(path)) as container:
        frames = [
            (frame.to_ndarray(format="rgb24"), frame.pts * frame.time_base) for frame in container.decode(video=0)
        ]
    return [picture for picture, _ in frames], np.array([float(at) for _, at in frames])


def sound_of(path: Path) -> NDArray[np.float64]:
    """First channel on the container clock: sample n is heard at n / 48000 s, gaps filled with silence."""
    with av.open(str(path)) as container:
        frames = [(float(frame.pts * frame.time_base), frame.to_ndarray()) for frame in container.decode(audio=0)]
    start = round(frames[0][0] * SAMPLE_RATE_HZ)
    joined = np.concatenate([np.atleast_2d(samples)[0] for _, samples in frames]).astype(np.float64)
    scale = 1.0 if frames[0][1].dtype.kind == "f" else float(np.iinfo(frames[0][1].dtype).max)
    return np.concatenate([np.zeros(max(start, 0)), joined[max(-start, 0) :] / scale])


def lag_samples(sound: NDArray[np.float64], wanted: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Where `wanted` begins in `sound`, in samples with fractions by a parabola, and the correlation there."""
    score = correlate(sound, wanted, "valid", method="fft")
    best = int(np.argmax(score))
    quality = score[best] / np.sqrt(np.sum(sound[best : best + len(wanted)] ** 2) * np.sum(np.square(wanted)))
    if not 0 < best < len(score) - 1:
        return float(best), float(quality)
    before, at, after = score[best - 1 : best + 2]
    return best + float((before - after) / (2 * (before - 2 * at + after))), float(quality)


def faces_in(picture: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """Boxes of OpenCV's Haar frontal detector."""
    detector = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")  # type: ignore[attr-defined]
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return [tuple(box) for box in detector.detectMultiScale(grey, 1.1, 4, minSize=(50, 50))]  # type: ignore[misc]


def mouth_of(picture: NDArray[np.uint8], box: list[int]) -> float:
    """How much of the lower face is dark inside: grows with the opening of the mouth."""
    left, top, width, height = box
    part = picture[top + int(0.55 * height) : top + int(0.92 * height), left + width // 4 : left + 3 * width // 4]
    return float(np.mean(part.mean(axis=2) < 0.5 * np.median(part.mean(axis=2))))


@pytest.mark.parametrize("voice", VOICES)
def test_speech_says_every_word_in_order_and_repeats(voice: str) -> None:
    speech = synthesise(SENTENCE, voice)
    again = synthesise.__wrapped__(SENTENCE, voice)
    assert np.array_equal(speech.samples, again.samples)
    assert [word.text for word in speech.words] == SENTENCE.rstrip(".").split()
    edges = [edge for word in speech.words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert 0 <= edges[0] <= 0.001
    assert edges[-1] == pytest.approx(speech.duration_s, abs=0.001)


def test_speech_differs_by_seed_and_refuses_other_alphabets() -> None:
    assert len(synthesise(SENTENCE, seed=1).samples) != len(synthesise(SENTENCE, seed=2).samples)
    with pytest.raises(ValueError, match="ASCII"):
        synthesise("Grüße")


def test_a_failed_synthesis_says_what_the_child_said() -> None:
    with pytest.raises(RuntimeError, match=r"'hello' failed: it ended with status 1: eSpeak NG has no voice 'nobody'"):
        _run_espeak("hello", "nobody", 150, 50)


def test_words_are_heard_where_their_times_say() -> None:
    """A comma makes a pause between two words; the sound must be silent there and nowhere inside the words."""
    speech = synthesise("Good morning, my friend.")
    pause = slice(
        *(round(at * SAMPLE_RATE_HZ) for at in (speech.words[1].end_s + 0.03, speech.words[2].start_s - 0.02))
    )
    assert pause.stop - pause.start > 0.05 * SAMPLE_RATE_HZ
    assert np.sqrt(np.mean(speech.samples[pause] ** 2)) < 0.05 * np.sqrt(np.mean(speech.samples**2))
    assert np.max(speech.opening[pause]) < 0.5
    for word in speech.words:
        part = speech.samples[round(word.start_s * SAMPLE_RATE_HZ) : round(word.end_s * SAMPLE_RATE_HZ)]
        assert np.sqrt(np.mean(part**2)) > 0.02, word


def test_mouth_track_follows_the_sound() -> None:
    speech = synthesise(SENTENCE)
    step = SAMPLE_RATE_HZ // 100
    loudness = np.sqrt(np.mean(speech.samples[: len(speech.samples) // step * step].reshape(-1, step) ** 2, axis=1))
    opening = speech.opening[::step][: len(loudness)]
    assert np.corrcoef(loudness, opening)[0, 1] > 0.5
    assert speech.opening.min() >= 0
    assert speech.opening.max() <= 1


@pytest.mark.parametrize("who", PEOPLE)
def test_face_is_found_and_its_mouth_opens(who: str) -> None:
    face = TalkingFace(who, 320, 240)
    dark = []
    for opening in (0.0, 0.35, 0.7, 1.0):
        picture = face.at(0.5, opening, 0.0)
        assert picture.shape == (240, 320, 3)
        (box,) = faces_in(picture)
        left, top, width, height = face.face_box_px
        centre_x, centre_y = box[0] + box[2] / 2, box[1] + box[3] / 2
        assert abs(centre_x - left - width / 2) < 0.25 * width
        assert abs(centre_y - top - height / 2) < 0.25 * height
        dark.append(mouth_of(picture, list(face.face_box_px)))
    assert dark == sorted(dark)
    assert dark[-1] > dark[0] + 0.05


@pytest.mark.parametrize(
    ("offset_ms", "encoding"),
    [(0.0, Encoding(fps=Fraction(30_000, 1001))), (120.0, Encoding()), (-200.0, Encoding(fps=Fraction(24)))],
)
@pytest.mark.slow
def test_talking_clip_has_exactly_the_stated_offset(tmp_path: Path, offset_ms: float, encoding: Encoding) -> None:
    made = talking_clip(tmp_path / "clip.mp4", offset_ms, duration_s=4.0, encoding=encoding, seed=5)
    truth = made.item["ground_truth"]
    pictures, times_s = pictures_of(made.path)
    assert len(pictures) == truth["num_frames"] == encoding.frames_in(4.0)
    assert times_s == pytest.approx(np.arange(len(pictures)) / float(encoding.fps), abs=1e-9)
    turn = truth["speaker_turns"][0]
    speech = synthesise(turn["text"], turn["speaker"], seed=5)
    at, quality = lag_samples(sound_of(made.path), speech.samples)
    assert quality > 0.9
    assert at / SAMPLE_RATE_HZ == pytest.approx(turn["start"], abs=0.0002)
    seen = np.array([mouth_of(picture, truth["shots"][0]["faces"]["ann"]) for picture in pictures])
    score = {
        shift: _agreement(seen, times_s, speech.opening, turn["start"] + shift / 1000) for shift in range(-400, 401, 10)
    }
    assert max(score, key=score.__getitem__) == pytest.approx(-offset_ms, abs=20)
    assert max(score.values()) > 0.8


def _agreement(seen: NDArray[np.float64], times_s: NDArray[np.float64], opening: Any, start_s: float) -> float:
    known = np.interp(times_s - start_s, np.arange(len(opening)) / SAMPLE_RATE_HZ, opening, left=0, right=0)
    return float(np.corrcoef(seen, known)[0, 1])


@pytest.mark.slow
def test_drift_stretches_the_sound_as_stated(tmp_path: Path) -> None:
    made = talking_clip(tmp_path / "drift.mp4", drift_ms_per_s=25, duration_s=7, seed=1, who="dan")
    sound = sound_of(made.path)
    turns = made.item["ground_truth"]["speaker_turns"]
    assert len(turns) >= 2
    for turn in turns:
        speech = synthesise(turn["text"], "dan", seed=1).samples
        slow = np.interp(np.arange(0, len(speech), 1 / 1.025), np.arange(len(speech)), speech)
        at, quality = lag_samples(sound, slow)
        assert quality > 0.9
        assert at / SAMPLE_RATE_HZ == pytest.approx(turn["start"], abs=0.0002)
        assert turn["end"] - turn["start"] == pytest.approx(len(slow) / SAMPLE_RATE_HZ, abs=0.0002)


def test_swapped_clip_says_other_words_than_its_lips(tmp_path: Path) -> None:
    made = swapped_clip(tmp_path / "swapped.mp4", 4.0, seed=5)
    turn = made.item["ground_truth"]["speaker_turns"][0]
    speech = synthesise(turn["text"], turn["speaker"], seed=5)
    at, _ = lag_samples(sound_of(made.path), speech.samples)
    assert at / SAMPLE_RATE_HZ == pytest.approx(turn["start"], abs=0.0002)
    pictures, times_s = pictures_of(made.path)
    seen = np.array([mouth_of(picture, made.item["ground_truth"]["shots"][0]["faces"]["ann"]) for picture in pictures])
    assert _agreement(seen, times_s, speech.opening, turn["start"]) < 0.5


@pytest.mark.slow
def test_cuts_lie_on_the_stated_frames(tmp_path: Path) -> None:
    made = cuts_clip(tmp_path / "cuts.mp4", 7, kinds=("cut", "dissolve", "fade"), shot_frames=(15, 30), seed=3)
    truth = made.item["ground_truth"]
    pictures, _ = pictures_of(made.path)
    assert len(pictures) == truth["num_frames"]
    kinds = {soft["type"] for soft in truth["soft_transitions"]}
    assert truth["hard_cuts"]
    assert {"dissolve", "fade_out_to_black", "black", "fade_in_from_black"} == kinds
    small = np.array([cv2.resize(picture, (32, 24), interpolation=cv2.INTER_AREA) for picture in pictures], np.float32)
    change = np.concatenate([[0], np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))])
    assert {int(at) for at in np.argsort(change)[-len(truth["hard_cuts"]) :]} == set(truth["hard_cuts"])
    for soft in truth["soft_transitions"]:
        inside = small[soft["first_frame"] : soft["last_frame"] + 1].mean(axis=(1, 2, 3))
        if soft["type"] == "black":
            assert inside.max() < 3
        elif soft["type"] == "fade_out_to_black":
            assert inside[0] > inside[-1]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("plain.mp4", Encoding()),
        ("ntsc.mp4", Encoding(fps=Fraction(30_000, 1001))),
        ("late.mp4", Encoding(sound_start_s=0.4803)),
        ("vfr.mp4", variable_rate(4.0, 1)),
        ("vfr.mkv", variable_rate(4.0, 2, Encoding(audio_codec="flac"))),
        ("film.mkv", Encoding(fps=Fraction(24))),
        ("opus.webm", Encoding(video_codec="libvpx", audio_codec="libopus")),
    ],
)
def test_flash_and_click_coincide_to_the_sample(tmp_path: Path, name: str, encoding: Encoding) -> None:
    made = flash_and_click(tmp_path / name, 4.0, encoding, seed=7)
    truth = made.item["ground_truth"]
    pictures, times_s = pictures_of(made.path)
    assert [frame_number(picture) for picture in pictures] == list(range(truth["num_frames"]))
    assert times_s == pytest.approx(np.array(truth["frame_times_s"]), abs=1e-6)
    bright = [index for index, picture in enumerate(pictures) if picture[60:].mean() > 200]
    assert bright == [event["frame"] for event in truth["events"]]
    sound = sound_of(made.path)
    for event in truth["events"]:
        if event["time_s"] < encoding.sound_start_s + 0.02:
            continue
        begin = event["sample"] - 480
        at, _ = lag_samples(sound[begin : event["sample"] + 1000], np.ones(96))
        assert abs(at - 480) < 1, event
    assert len(bright) >= 5


def test_ball_is_on_the_ground_when_it_knocks(tmp_path: Path) -> None:
    made = ball_clip(tmp_path / "ball.mp4", offset_ms=80, duration_s=4, encoding=Encoding(fps=Fraction(50)), seed=2)
    pictures, times_s = pictures_of(made.path)
    lowest = []
    for picture in pictures:
        wide = picture.astype(int)
        is_ball = (wide[..., 0] - wide[..., 2] > 80) & (wide[..., 0] > 150)
        lowest.append(np.nonzero(is_ball.any(axis=1))[0].max())
    sound = sound_of(made.path)
    assert len(made.item["ground_truth"]["events"]) >= 4
    for event in made.item["ground_truth"]["events"]:
        near = np.abs(times_s - event["seen_s"]) < 0.2
        lowest_at_s = times_s[near][np.argmax(np.array(lowest)[near])]
        assert abs(lowest_at_s - event["seen_s"]) <= 0.04
        onset = round(event["sound_onset_s"] * SAMPLE_RATE_HZ)
        assert event["sound_onset_s"] - event["seen_s"] == pytest.approx(0.08, abs=1e-6)
        assert np.abs(sound[onset : onset + 200]).max() > 10 * np.abs(sound[onset - 400 : onset - 100]).max()


@pytest.mark.slow
def test_dialog_stages_every_turn_as_asked(tmp_path: Path) -> None:
    made = dialog_clip(tmp_path / "dialog.mp4", 3, ("off_screen", "both", "alone"), Encoding(320, 240), seed=2)
    truth = made.item["ground_truth"]
    assert [turn["on_screen"] for turn in truth["speaker_turns"]] == [False, True, True]
    assert [set(shot["faces"]) for shot in truth["shots"]] == [set(), {"ann", "ben"}, {"ann"}]
    pictures, _ = pictures_of(made.path)
    assert [len(faces_in(pictures[shot["first"] + 5])) for shot in truth["shots"]] == [0, 2, 1]


def test_turns_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    made = turns_audio(tmp_path / "talk.wav", 3, 6, overlap=0.5, snr_db=40, seed=4)
    truth = made.item["ground_truth"]
    with av.open(str(made.path)) as container:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]) / 32768
    assert len(samples) / 16_000 == pytest.approx(truth["uem"][1], abs=1e-3)
    assert {turn["speaker"] for turn in truth["speaker_turns"]} == {"ann", "ben", "cat"}
    assert truth["overlaps"]
    is_speech = np.zeros(len(samples), bool)
    for turn in truth["speaker_turns"]:
        is_speech[round(turn["start"] * 16_000) : round(turn["end"] * 16_000)] = True
    assert np.sqrt(np.mean(samples[~is_speech] ** 2)) < 0.05 * np.sqrt(np.mean(samples[is_speech] ** 2))
    with pytest.raises(ValueError, match="voices exist"):
        turns_audio(tmp_path / "many.wav", 9)


def test_turned_phone_clip_is_upright_after_rotation(tmp_path: Path) -> None:
    face = TalkingFace("ann", 240, 320)
    path = tmp_path / "phone.mp4"
    encode(path, (np.rot90(face.at(index / 25, 0, 0)) for index in range(5)), None, Encoding(320, 240))
    turn_display(path, 1)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    stored = frame.to_ndarray(format="rgb24")
    assert frame.rotation == -90
    assert not faces_in(stored)
    assert len(faces_in(np.ascontiguousarray(np.rot90(stored, -1)))) == 1
    with pytest.raises(ValueError, match="track header"):
        turn_display(write_known_truth(tmp_path, "turns", num_turns=1).path, 1)


def test_nobody_speaks_on_screen_unseen() -> None:
    film = DemoFilm([DrawnShot(Still("coffee.png", 64, 48), 100)], [Line(0.4, "ann", synthesise(SENTENCE))])
    with pytest.raises(ValueError, match="ann speaks on screen"):
        film.check(Encoding(64, 48))


@pytest.fixture
def demo_set(demo_media: Path) -> Path:
    """The manifest of the demo's files, which are written once for all tests. Who uses it is marked `slow`."""
    return demo_media / "manifest.json"


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        ("talking", {"duration_s": 3}),
        ("cuts", {"num_shots": 4, "kinds": ("dissolve", "cut"), "shot_frames": (10, 15)}),
        (
            "ball",
            {"duration_s": 2, "suffix": ".webm", "encoding": Encoding(video_codec="libvpx", audio_codec="libopus")},
        ),
        ("turns", {"num_turns": 3}),
        ("flash_and_click", {"duration_s": 2, "suffix": ".mkv"}),
    ],
)
@pytest.mark.slow
def test_media_repeat_byte_for_byte(tmp_path: Path, kind: str, chosen: dict[str, Any]) -> None:
    synthesise.cache_clear()
    first = write_known_truth(tmp_path / "first", kind, 11, **chosen)
    synthesise.cache_clear()
    second = write_known_truth(tmp_path / "second", kind, 11, **chosen)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.item == second.item
    assert first.item["sha256"] != write_known_truth(tmp_path / "other", kind, 12, **chosen).item["sha256"]


@pytest.mark.slow
def test_demo_manifest_has_the_form_of_the_real_one(demo_set: Path, media_dir: Path) -> None:
    ours, real = json.loads(demo_set.read_text()), json.loads((media_dir / "manifest.json").read_text())
    assert set(real) <= set(ours)
    assert {"rights", "licence", "repo", "path"} <= set(ours["items"][0]["origin"][0])
    for item in ours["items"]:
        assert set(item) == set(real["items"][0])
        assert item["category"] in {other["category"] for other in real["items"]}
        for turn in item["ground_truth"].get("speaker_turns", []):
            assert set(turn) == {"speaker", "start", "end", "text", "on_screen"}


@pytest.mark.slow
def test_demo_files_are_as_the_manifest_describes_them(demo_set: Path) -> None:
    items = {item["path"]: item for item in json.loads(demo_set.read_text())["items"]}
    sources = [json.loads(line) for line in (demo_set.parent / "sources.jsonl").read_text().splitlines()]
    assert [source["uri"] for source in sources] == list(items)
    assert all(source["licence"] for source in sources)
    for name, item in items.items():
        content = (demo_set.parent / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == item["sha256"]
    assert not items["not_a_video.mp4"]["probe"]["readable_by_ffprobe"]
    night = demo_set.parent / "dark_and_silent.mp4"
    assert np.max(np.abs(sound_of(night))) == 0
    assert np.mean(pictures_of(night)[0]) < 20


@pytest.mark.slow
def test_demo_interview_shows_who_speaks(demo_set: Path) -> None:
    """In every turn the speaker's mouth moves; in the shared shot the other one's stays shut."""
    (item,) = (item for item in json.loads(demo_set.read_text())["items"] if item["path"] == "interview_hard_cuts.mp4")
    truth = item["ground_truth"]
    pictures, times_s = pictures_of(demo_set.parent / item["path"])
    shots = truth["shots"]
    assert [shot["first"] for shot in shots[1:]] == truth["hard_cuts"]
    for turn, shot in zip(truth["speaker_turns"], shots, strict=True):
        during = np.nonzero((times_s >= turn["start"]) & (times_s < turn["end"]))[0]
        assert shot["first"] <= during[0]
        assert during[-1] <= shot["last"]
        for who, box in shot["faces"].items():
            moves = np.std([mouth_of(pictures[index], box) for index in during])
            assert (moves > 0.02) == (who == turn["speaker"]), (turn["text"], who, moves)


@pytest.mark.parametrize(
    "name", ["recording_cut_off.mp4", "no_audio_track.mp4", "too_short.mp4", "phone_rotated_vfr.mp4"]
)
def test_odd_demo_files_are_odd_as_stated(tmp_path: Path, name: str) -> None:
    made: Made = dict(MAKERS)[name](tmp_path / name, 1)
    streams = made.item["probe"].get("streams", [])
    if name == "recording_cut_off.mp4":
        assert made.item["probe"]["error"]
    elif name == "no_audio_track.mp4":
        assert [stream["type"] for stream in streams] == ["video"]
    elif name == "too_short.mp4":
        assert made.item["probe"]["duration_s"] == pytest.approx(0.8, abs=0.05)
    else:
        _, times_s = pictures_of(made.path)
        assert np.ptp(np.diff(times_s)) > 0.03
        turn = made.item["ground_truth"]["speaker_turns"][0]
        speech = synthesise(turn["text"], turn["speaker"], seed=8)
        at, quality = lag_samples(sound_of(made.path), speech.samples)
        assert quality > 0.9
        assert at / SAMPLE_RATE_HZ == pytest.approx(turn["start"], abs=0.0002)
        assert streams[1]["start_s"] == pytest.approx(0.25 - 1024 / SAMPLE_RATE_HZ, abs=0.001)


@pytest.mark.slow
def test_the_copy_holds_the_same_bytes(demo_set: Path, tmp_path: Path) -> None:
    copy = dict(MAKERS)["copy_of_sound_late.mp4"](tmp_path / "copy.mp4", 0)
    assert copy.path.read_bytes() == (demo_set.parent / "sound_late_600ms.mp4").read_bytes()


def test_unknown_kind_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="flash_and_click"):
        write_known_truth(tmp_path, "cartoon")
