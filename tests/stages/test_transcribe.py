"""Words with times: the rules on what stands, alignment of given words, and each engine on real input."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import EngineError, ItemError, MachineError
from schemas.spans import SPEECH_RATE_HZ, Word
from schemas.stretches import Stretch, inside, merge
from stages.child import Child
from stages.engines.voice import VoiceActivity, VoiceConfig
from stages.transcribe.align import AlignEngine, cue_windows, fill_gaps, spoken_form, trim
from stages.transcribe.pocketsphinx import recogniser
from stages.transcribe.pronounce import guess_phones
from stages.transcribe.stage import TranscribeConfig, agreement
from stages.transcribe.transcripts import Cue, Transcript, find_transcripts, in_language, read_cues
from stages.transcribe.words import drop_loops, keep_spoken, spread, spread_within
from tests.stages.heard import row_for, run_stage
from tests.strategies import stretches


@pytest.fixture(scope="module")
def voice() -> VoiceActivity:
    return VoiceActivity.load()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, dict[str, Any]]:
    """A synthetic conversation with exact words: (file, samples at 16 kHz, truth)."""
    import soundfile

    from pipeline.demo.clips import turns_audio

    path = tmp_path_factory.mktemp("said") / "talk.wav"
    made = turns_audio(path, num_turns=2, seed=2)
    samples, _ = soundfile.read(path, dtype="float32")
    return path, samples, made.item["ground_truth"]


def words_of(text: str, step_s: float = 0.3) -> list[Word]:
    return [Word(t, i * step_s, (i + 0.9) * step_s, 0.5) for i, t in enumerate(text.split())]


# --- what stands -----------------------------------------------------------------------------------------------------


def test_words_off_speech_outside_and_in_loops_are_dropped_and_counted() -> None:
    speech = [Stretch(0.0, 3.0)]
    loop = [Word(w, 1 + i * 0.1, 1.08 + i * 0.1, None) for i, w in enumerate(("you know " * 5).split())]
    words = [
        Word("hello", 0.2, 0.6, 0.9),
        *loop,
        Word("thanks", 5.0, 5.5, 0.9),
        Word("late", 7.5, 8.4, None),
        Word("x", 9, 9.5, None),
    ]
    kept = keep_spoken(words, speech, 8.0, min_share=0.3, max_repeats=3)
    assert [w.text for w in kept.words] == ["hello", "you", "know"]
    assert (kept.num_repeated, kept.num_on_silence, kept.num_outside) == (8, 2, 1)
    assert kept.num_dropped + len(kept.words) == len(words)


def test_a_word_that_sticks_out_is_clipped_not_lost() -> None:
    kept = keep_spoken([Word("end", 1.5, 2.4, None)], [Stretch(1, 2)], 2.0, 0.3, 3)
    assert kept.words == [Word("end", 1.5, 2.0, None)]


def test_natural_repetition_stays() -> None:
    assert drop_loops(words_of("no no no it was very very good"), 3) == words_of("no no no it was very very good")


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=40), st.integers(1, 4))
def test_no_loop_survives(texts: list[str], max_repeats: int) -> None:
    left = [w.text for w in drop_loops(words_of(" ".join(texts)), max_repeats)]
    for index in range(len(left)):
        assert left[index : index + max_repeats + 1] != [left[index]] * (max_repeats + 1)
    assert set(left) == set(texts)


@given(
    st.lists(st.tuples(st.floats(-2, 12), st.floats(-1, 5)), max_size=20),
    st.lists(st.floats(0, 10), min_size=0, max_size=8),
)
def test_nothing_leaves_the_sound(times: list[tuple[float, float]], edges: list[float]) -> None:
    speech = [Stretch(a, b) for a, b in zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False)]
    words = [Word(str(i), start, start + length, None) for i, (start, length) in enumerate(times)]
    kept = keep_spoken(words, speech, 10.0, 0.3, 3)
    assert all(0 <= w.start_s < w.end_s <= 10 for w in kept.words)
    assert kept.num_dropped + len(kept.words) == len(words)


@given(
    st.lists(st.text("abc", min_size=1, max_size=9), max_size=12),
    stretches(),
    st.tuples(st.integers(0, 400), st.integers(0, 400)).map(sorted),
)
def test_no_word_is_lost_uncounted_wherever_a_window_lies(
    texts: list[str], speech: list[Stretch], ends: list[int]
) -> None:
    window, speech = Stretch(ends[0] / 16, ends[1] / 16), merge(speech)
    words = spread_within(texts, window, speech)
    assert [w.text for w in words] == texts
    kept = keep_spoken(words, speech, 30.0, 0.3, 99)
    assert kept.num_dropped + len(kept.words) == len(texts)
    if window.duration_s >= 0.02 * len(texts) and not inside(window, speech):
        assert kept.words == []


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=12))
def test_spread_words_lie_in_order_within_their_room(texts: list[str]) -> None:
    room = [Stretch(1.0, 2.5), Stretch(4.0, 5.0)]
    words = spread(texts, room)
    assert [w.text for w in words] == texts
    assert [w.start_s for w in words] == sorted(w.start_s for w in words)
    assert all(any(r.start_s - 1e-6 <= w.start_s <= w.end_s <= r.end_s + 1e-6 for r in room) for w in words)


# --- given transcripts -----------------------------------------------------------------------------------------------

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Hello,</i> [door slams] world!

2
00:01:02,000 --> 01:00:03,040
- It's me. (sighs)
♪ la la ♪
"""

VTT = """WEBVTT

NOTE a comment

intro
00:01.000 --> 00:02.500 align:start
Hello, world!
"""


def test_subtitles_are_read() -> None:
    first, second = read_cues(SRT)
    assert first == Cue("Hello, world!", Stretch(1.0, 2.5))
    assert second == Cue("It's me. la la", Stretch(62.0, 3603.04))
    assert read_cues(VTT) == [first]
    assert read_cues("no cues at all") == []


def test_captions_that_roll_are_read_once() -> None:
    """As YouTube's own are: each line comes with times inside, then alone, then above the next one."""
    rolling = """WEBVTT
Kind: captions

00:00:00.080 --> 00:00:02.309 align:start position:0%
_
all<00:00:00.320><c> right</c>

00:00:02.309 --> 00:00:02.319 align:start position:0%
all right
_

00:00:02.319 --> 00:00:04.000 align:start position:0%
all right
here<00:00:02.520><c> we</c><00:00:02.800><c> are</c>
""".replace("_", " ")
    assert [cue.text for cue in read_cues(rolling)] == ["all right", "here we are"]


def test_sidecar_and_manifest_column_are_found(tmp_path: Path) -> None:
    clip = tmp_path / "a b.mp4"
    assert find_transcripts(str(clip), {}) == []
    (tmp_path / "a b.txt").write_text("from text")
    assert find_transcripts(str(clip), {"language": "en-GB"}) == [Transcript([Cue("from text")], "en")]
    (tmp_path / "a b.srt").write_text(SRT)
    assert find_transcripts(clip.as_uri(), {})[0].words[0] == "Hello,"
    assert find_transcripts(str(clip), {"transcript": "stated"}) == [Transcript([Cue("stated")])]
    assert find_transcripts("https://example.org/a%20b.mp4", {}) == []
    assert find_transcripts(str(tmp_path / "a b.txt"), {})[0].words[0] == "Hello,"


def test_files_as_yt_dlp_names_them_are_found_with_their_language(tmp_path: Path) -> None:
    names = ("talk.en-GB.srt", "talk.zh-Hans.vtt", "talk.iw.vtt", "talk.one.srt", "talk.f137.vtt", "talk.en.orig.vtt")
    for name in (*names, "talk.mp4.srt", "talking.en.vtt"):
        (tmp_path / name).write_text(SRT)
    found = find_transcripts(str(tmp_path / "talk.mp4"), {})
    assert [each.language for each in found] == ["en", "he", "zh"]
    assert in_language(found, "zh") is found[2]
    assert in_language(found, "fr") is None
    assert in_language(found, None) is found[0]
    (tmp_path / "talk.vtt").write_text(VTT)
    plain, *_ = find_transcripts(str(tmp_path / "talk.mp4"), {})
    assert plain == Transcript([Cue("Hello, world!", Stretch(1.0, 2.5))])
    assert in_language([*found, plain], "fr") is plain
    assert find_transcripts(str(tmp_path / "talk.mp4"), {"language": "zh"})[0].words == plain.words
    assert find_transcripts(str(tmp_path / "talk.en.mp4"), {}) == []


def test_spelling_to_sound() -> None:
    assert guess_phones("ship") == "SH IH P"
    assert guess_phones("42") == "F AO R T IY T UW"
    assert guess_phones("e5") == "IY F AY V"
    assert guess_phones("1813") == "EY T IY N TH ER T IY N"
    assert guess_phones("1905") == "N AY N T IY N OW F AY V"
    assert guess_phones("2026") == "T UW TH AW Z AH N D T W EH N T IY S IH K S"
    assert guess_phones("007") == "Z IH R OW Z IH R OW S EH V AH N"
    assert guess_phones("大家") is None
    assert guess_phones("5大") is None
    assert spoken_form("“Don’t!”") == "don't"
    assert spoken_form("है।") == "है"


def test_windows_of_cues_stay_out_of_their_neighbours() -> None:
    cues = [Cue("a", Stretch(1, 2)), Cue("b", Stretch(2.2, 3)), Cue("c", Stretch(9, 10))]
    assert [(window.start_s, window.end_s) for window in cue_windows(cues, 0.5, 8.0)] == [
        pytest.approx((0.0, 1.7)),
        pytest.approx((1.5, 3.0)),
        pytest.approx((8.0, 8.0)),
    ]


def test_words_do_not_reach_into_pauses() -> None:
    speech = [Stretch(0, 2), Stretch(2.4, 4)]
    assert trim(Word("say", 1.9, 2.9, None), speech) == Word("say", 2.4, 2.9, None)
    assert trim(Word("lost", 2.1, 2.3, None), speech) == Word("lost", 2.1, 2.3, None)


def test_words_without_sound_form_lie_between_their_neighbours() -> None:
    words = fill_gaps(["a", "大", "b"], [(1.0, 1.2), None, (1.8, 2.0)], Stretch(0, 3))
    assert words[1] == Word("大", pytest.approx(1.2), pytest.approx(1.8), None)


def test_given_words_are_timed_to_a_few_frames(
    said: tuple[Path, np.ndarray, dict[str, Any]], voice: VoiceActivity, tmp_path: Path
) -> None:
    _, samples, truth = said
    wanted = truth["words"]
    text = " ".join(w["word"] for w in wanted)
    speech = voice.stretches(samples, VoiceConfig())
    heard = AlignEngine(tmp_path).align(Transcript([Cue(text)]), samples, speech, 0.0)
    assert [w.text for w in heard.words] == text.split()
    errors = [abs(w.start_s - t["start"]) for w, t in zip(heard.words, wanted, strict=True)]
    assert np.median(errors) < 0.06
    assert np.quantile(errors, 0.9) < 0.2
    assert all(w.confidence is None for w in heard.words)
    assert list(tmp_path.iterdir()) == []


def test_unknown_words_do_not_spoil_the_others(said: tuple[Path, np.ndarray, dict[str, Any]], tmp_path: Path) -> None:
    _, samples, truth = said
    texts = [w["word"] for w in truth["words"]]
    texts.insert(3, "大家好")
    heard = AlignEngine(tmp_path).align(Transcript([Cue(" ".join(texts))]), samples, [Stretch(0, 99)], 0.0)
    assert [w.text for w in heard.words] == texts
    assert abs(heard.words[5].start_s - truth["words"][4]["start"]) < 0.1


def test_a_transcript_that_cannot_fit_is_an_error(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).normal(0, 0.05, SPEECH_RATE_HZ // 2).astype(np.float32)
    with pytest.raises(EngineError) as caught:
        AlignEngine(tmp_path).align(Transcript([Cue("far too many words " * 20)]), sound, [Stretch(0, 0.5)], 0.0)
    assert caught.value.reason == "transcript_mismatch"


def test_stage_uses_the_sidecar(said: tuple[Path, np.ndarray, dict[str, Any]], context: Any, tmp_path: Path) -> None:
    path, _, truth = said
    text = " ".join(w["word"] for w in truth["words"])
    found = run_stage(context, TranscribeConfig(recogniser="pocketsphinx"), row_for(path, {"transcript": text}))
    assert (found["engine"], found["text"], found["num_dropped_words"]) == ("align", text, 0)
    with pytest.raises(ItemError, match="no transcript"):
        run_stage(context, TranscribeConfig(engine="align", recogniser="pocketsphinx"), row_for(path))
    context.media.close()


def test_words_given_for_a_silent_file_are_dropped_and_counted(context: Any, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "silent.wav", np.zeros(2 * SPEECH_RATE_HZ), SPEECH_RATE_HZ)
    found = run_stage(
        context,
        TranscribeConfig(recogniser="pocketsphinx"),
        row_for(tmp_path / "silent.wav", {"transcript": "nobody says this"}),
    )
    assert (found["words"], found["num_dropped_words"], found["num_on_silence"]) == ([], 3, 3)
    context.media.close()


@pytest.mark.slow
def test_a_second_engine_tells_a_right_transcript_from_a_changed_one(media_dir: Path, context: Any) -> None:
    path = media_dir / "speech" / "harvard_spk1_snt4.wav"
    config = TranscribeConfig(recogniser="pocketsphinx", second="pocketsphinx")
    heard = run_stage(context, TranscribeConfig(engine="pocketsphinx"), row_for(path))
    right, wrong = (
        run_stage(context, config, row_for(path, {"transcript": text}))
        for text in (heard["text"], heard["text"].replace("down", "through"))
    )
    assert heard["agreement"] is None
    assert right["agreement"] == 1
    assert 0.5 < wrong["agreement"] < 1
    context.media.close()


def test_agreement_counts_common_words_in_order() -> None:
    assert agreement(["The", "cat", "sat."], ["the", "cat", "has", "sat"]) == pytest.approx(6 / 7)
    assert agreement(["a"], []) == 0
    assert agreement([], ["..."]) is None


def test_no_sound_means_no_words(context: Any) -> None:
    config = TranscribeConfig(recogniser="pocketsphinx")
    found = run_stage(context, config, row_for(Path("none.mp4"), has_audio=False))
    assert (found["words"], found["speech"], found["engine"]) == ([], [], None)


# --- recognisers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pocketsphinx_hears_most_of_a_real_sentence(media_dir: Path, context: Any) -> None:
    path = media_dir / "speech" / "harvard_spk1_snt4.wav"
    found = run_stage(context, TranscribeConfig(engine="pocketsphinx"), row_for(path))
    assert {"runs", "down", "the", "middle"} <= set(found["text"].split())
    assert (found["language"], found["language_confidence"]) == ("en", None)
    assert {passage["language_from"] for passage in found["passages"]} == {"engine"}
    assert all(0 <= w["confidence"] <= 1 for w in found["words"])
    context.media.close()


def test_a_crash_of_the_recogniser_costs_one_job(tmp_path: Path) -> None:
    samples = np.zeros(SPEECH_RATE_HZ, np.float32)
    with recogniser(samples, tmp_path, timeout_s=60) as worker:
        assert worker.ask("known", words=["hello", "zzqx"]) == {"unknown": ["zzqx"]}
        child = worker._child
        assert child is not None
        os.kill(child.pid, signal.SIGSEGV)
        assert worker.ask("known", words=["hello"]) is None
        assert worker.failure == "was ended by signal 11"
        assert worker.ask("known", words=["hello"]) == {"unknown": []}
        last = worker._child
    assert last is not None
    assert last.exit_status is not None
    assert list(tmp_path.iterdir()) == []


def test_a_recogniser_that_is_killed_from_outside_is_replaced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recogniser(np.zeros(1, np.float32), tmp_path, timeout_s=60) as worker:
        assert worker.ask("known", words=["zzqx"]) == {"unknown": ["zzqx"]}
        assert worker._child is not None
        os.kill(worker._child.pid, signal.SIGKILL)
        assert worker.ask("known", words=["zzqx"]) == {"unknown": ["zzqx"]}
        ask = Child.ask

        def killed_first(child: Child, *request: Any) -> Any:
            os.kill(child.pid, signal.SIGKILL)
            return ask(child, *request)

        monkeypatch.setattr(Child, "ask", killed_first)
        with pytest.raises(MachineError, match="signal 9"):
            worker.ask("known", words=["zzqx"])


def test_a_hang_of_the_recogniser_costs_one_job(tmp_path: Path) -> None:
    with recogniser(np.zeros(1, np.float32), tmp_path, timeout_s=60) as worker:
        assert worker.ask("known", words=[]) == {"unknown": []}
        assert worker._child is not None
        os.kill(worker._child.pid, signal.SIGSTOP)
        worker.timeout_s = 0.2
        began = time.monotonic()
        assert worker.ask("known", words=[]) is None
        assert worker._child is None
        assert time.monotonic() - began < 60
