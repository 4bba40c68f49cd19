"""Whisper through whisperx's windows: the packaged multilingual weights on speech of known words, and models from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.generated_speech import SENTENCES, Spoken, spoken
from benchmarks.quality_words import matches
from schemas.errors import RecipeError
from schemas.spans import SPEECH_RATE_HZ, Hearing, joined
from schemas.stretches import Stretch, merge
from stages.base import Context
from stages.engines.voice import VoiceActivity, VoiceConfig
from stages.transcribe.align import spoken_form
from stages.transcribe.languages import likeliest, limits, pack, pieces_of, runs_of
from stages.transcribe.stage import TranscribeConfig
from stages.transcribe.transcripts import Cue, Transcript
from stages.transcribe.weights import whisper_folder
from stages.transcribe.whisper import WINDOW_S, split_words
from stages.transcribe.whisperx import WhisperxConfig, WhisperxEngine
from tests.stages.heard import row_for, run_stage
from tests.strategies import stretches

pytest_plugins = ("tests.stages.tiny_whisper",)


@pytest.fixture(scope="module")
def voice() -> VoiceActivity:
    return VoiceActivity.load()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """One for all tests: it keeps the networks."""
    return Context(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def engine(context: Context) -> WhisperxEngine:
    """The default: whisperx with the packaged base weights."""
    return WhisperxEngine.load(WhisperxConfig(), context)


def said(language: str, *numbers: int, seed: int = 0) -> Spoken:
    return spoken("test", [(language, SENTENCES[language][number]) for number in numbers], seed)


# --- windows and languages, without a network ------------------------------------------------------------------------


NOISE = np.random.default_rng(0).normal(0, 0.1, 40 * SPEECH_RATE_HZ).astype(np.float32)


@given(stretches(), st.integers(2, 20))
def test_windows_hold_all_speech_in_order_and_are_short_enough(speech: list[Stretch], longest_s: int) -> None:
    speech = merge(speech)
    windows = pack(speech, NOISE, float(longest_s))
    assert sum(s.duration_s for w in windows for s in w) == pytest.approx(sum(s.duration_s for s in speech))
    assert all(limits(window).duration_s <= longest_s + 1e-6 for window in windows)
    starts = [stretch.start_s for window in windows for stretch in window]
    assert starts == sorted(starts)


def test_windows_are_full_and_end_at_long_pauses() -> None:
    speech = [Stretch(0, 12), Stretch(13, 24), Stretch(25, 29), Stretch(30, 40), Stretch(44, 45)]
    windows = pack(speech, np.zeros(0, np.float32), WINDOW_S)
    assert [limits(window) for window in windows] == [Stretch(0, 29), Stretch(30, 40), Stretch(44, 45)]


def test_speech_without_a_pause_is_cut_where_it_is_quiet() -> None:
    samples = np.full(50 * SPEECH_RATE_HZ, 0.1, np.float32)
    samples[24 * SPEECH_RATE_HZ : round(24.2 * SPEECH_RATE_HZ)] = 0
    first, second = pack([Stretch(0, 50)], samples, WINDOW_S)
    assert first[0].end_s == second[0].start_s == pytest.approx(24.1, abs=0.1)


def test_pieces_hold_enough_speech_to_tell_a_language() -> None:
    window = tuple(Stretch(at, at + 1.6) for at in range(0, 14, 2))
    assert [len(piece) for piece in pieces_of(window)] == [2, 2, 3]
    assert pieces_of(window[:1]) == [window[:1]]


def test_one_doubtful_piece_changes_no_language_and_clear_ones_do() -> None:
    sure, doubtful = {"en": 0.99, "es": 0.01}, {"en": 0.3, "es": 0.7}
    spanish = {"en": 0.01, "es": 0.99}
    assert likeliest([sure, doubtful, sure]) == ["en", "en", "en"]
    assert likeliest([sure, spanish, spanish]) == ["en", "es", "es"]
    assert likeliest([doubtful]) == ["es"]
    assert likeliest([doubtful], first="en") == ["en"]
    assert runs_of(["en", "en", "es"]) == [("en", 0, 2), ("es", 2, 3)]


# --- words of any script ---------------------------------------------------------------------------------------------

TEXTS = {
    "en": "It's 3.5 km, isn't it? \"Yes,\" he said.",
    "es": "¿Qué hora es? Son las 10:30.",
    "zh": "今天iPhone 15很贵，不是吗？",
    "ja": "今日は「いい天気」ですね。",
    "th": "วันนี้อากาศดีมาก",
    "hi": "मेरी माँ रसोई में 3 रोटियाँ बना रही है।",
    "ar": "الطقس جميل اليوم، أليس كذلك؟",
    "he": "מזג האוויר יפה היום.",
    "ko": "오늘 날씨가 정말 좋네요.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_any_script_survives_being_written_in_tokens_and_split_into_words(
    engine: WhisperxEngine, language: str
) -> None:
    whisper, text = engine.whisper, TEXTS[language]
    tokens = whisper.tokens_of(text, language)
    words = split_words(list(tokens), whisper._tokenizer(language))
    assert sum(num for _, num in words) == len(tokens)
    assert joined(word for word, _ in words) == text
    assert all(any(c.isalnum() for c in word) for word, _ in words)
    if language not in ("zh", "ja", "th"):
        assert [word for word, _ in words] == text.split()


# --- the packaged weights --------------------------------------------------------------------------------------------


def heard_by(engine: WhisperxEngine, voice: VoiceActivity, sound: Spoken) -> Any:
    return engine.hear(sound.samples, voice.stretches(sound.samples, VoiceConfig()))


@pytest.mark.slow
def test_english_words_have_times_from_the_forced_aligner(engine: WhisperxEngine, voice: VoiceActivity) -> None:
    sound = said("en", 0, 3, seed=2)
    heard = heard_by(engine, voice, sound)
    (passage,) = heard.passages
    assert (passage.hearing.language, passage.hearing.words_from) == ("en", "pocketsphinx")
    assert passage.hearing.language_confidence > 0.8
    assert passage.hearing.avg_logprob > -0.5
    texts, wanted = ([spoken_form(word.text) for word in words] for words in (heard.words, sound.words))
    pairs = matches(wanted, texts)
    assert len(pairs) >= len(wanted) - 3
    errors = [abs(heard.words[found].end_s - sound.words[at].end_s) for at, found in pairs]
    assert np.quantile(errors, 0.9) < 0.15
    assert all(0 < word.confidence <= 1 for word in heard.words)


@pytest.mark.parametrize(("language", "voice_seed"), [("es", 0), ("de", 0), ("zh", 0)])
@pytest.mark.slow
def test_other_languages_are_told_and_written_as_themselves(
    engine: WhisperxEngine, voice: VoiceActivity, language: str, voice_seed: int
) -> None:
    sound = said(language, 3, 4, 5, seed=voice_seed)
    heard = heard_by(engine, voice, sound)
    assert {p.hearing.language for p in heard.passages} == {language}
    assert {p.hearing.words_from for p in heard.passages} == {"attention"}
    assert {p.hearing.language_from for p in heard.passages} == {"detected"}
    text, wanted = (joined(word.text for word in words) for words in (heard.words, sound.words))
    assert len(set(text) & set(wanted)) > len(set(wanted)) / 2
    assert all(a.start_s <= b.start_s for a, b in zip(heard.words, heard.words[1:], strict=False))


@pytest.mark.slow
def test_languages_that_change_are_parted_where_they_do(engine: WhisperxEngine, voice: VoiceActivity) -> None:
    sound = spoken("mixed", [(code, SENTENCES[code][number]) for code in ("en", "es") for number in (0, 1)], 0)
    change_s = sound.passages[2][0].start_s
    heard = heard_by(engine, voice, sound)
    assert [passage.hearing.language for passage in heard.passages] == ["en", "es"]
    assert heard.passages[0].end_s <= change_s <= heard.passages[1].end_s
    assert heard.passages[1].start_s == pytest.approx(change_s, abs=0.3)


def test_what_it_cannot_tell_it_is_not_sure_of(engine: WhisperxEngine, voice: VoiceActivity) -> None:
    """Hindi of the synthesiser, which the network takes for other languages: no bound of a recipe would believe it."""
    heard = heard_by(engine, voice, said("hi", 0, 1))
    assert all(passage.hearing.language_confidence < 0.5 for passage in heard.passages)


@pytest.mark.slow
def test_the_answer_does_not_depend_on_the_batch(engine: WhisperxEngine, voice: VoiceActivity) -> None:
    sound = said("es", 1)
    samples = np.concatenate([sound.samples, np.zeros(3 * SPEECH_RATE_HZ, np.float32), sound.samples])
    speech = voice.stretches(samples, VoiceConfig())
    one = WhisperxEngine(WhisperxConfig(batch_size=1), engine.whisper, engine.aligner, engine.aligners)
    together, alone = engine.hear(samples, speech), one.hear(samples, speech)
    assert len(together.passages) == 2
    assert [word.text for word in together.words] == [word.text for word in alone.words]


def test_without_speech_the_network_is_not_asked(engine: WhisperxEngine) -> None:
    samples = np.zeros(SPEECH_RATE_HZ, np.float32)
    assert engine.hear(samples, []).words == []
    assert engine.listen(samples, []) == Hearing()


def test_given_words_of_another_language_are_timed_by_attention(engine: WhisperxEngine, voice: VoiceActivity) -> None:
    sound = said("es", 1)
    text = sound.passages[0][2]
    speech = voice.stretches(sound.samples, VoiceConfig())
    spoken_in = engine.listen(sound.samples, speech)
    heard = engine.align(Transcript([Cue(text)], "es"), sound.samples, speech, 0.0, spoken_in)
    assert [word.text for word in heard.words] == text.split()
    assert {word.hearing.words_from for word in heard.words} == {"attention"}
    errors = [abs(a.end_s - b.end_s) for a, b in zip(heard.words, sound.words, strict=True)]
    assert np.median(errors) < 0.15
    far = engine.align(Transcript([Cue(text, Stretch(50, 60))], "es"), sound.samples, speech, 0.0, spoken_in)
    assert {word.hearing.words_from for word in far.words} == {"letters"}
    assert far.num_failed == 1


@pytest.mark.slow
def test_a_subtitle_in_another_language_than_is_spoken_is_not_believed(
    engine: WhisperxEngine, context: Any, tmp_path: Path
) -> None:
    import soundfile

    sound = said("en", 2)
    soundfile.write(tmp_path / "talk.wav", sound.samples, SPEECH_RATE_HZ)
    (tmp_path / "talk.es.srt").write_text("1\n00:00:00,500 --> 00:00:04,000\nNadie esperaba el tren.\n")
    found = run_stage(context, TranscribeConfig(), row_for(tmp_path / "talk.wav"))
    assert (found["engine"], found["language"]) == ("whisperx", "en")
    (tmp_path / "talk.en-GB.srt").write_text(f"1\n00:00:00,500 --> 00:00:04,500\n{sound.passages[0][2]}\n")
    found = run_stage(context, TranscribeConfig(), row_for(tmp_path / "talk.wav"))
    assert (found["engine"], found["text"]) == ("align", sound.passages[0][2])
    assert found["language_confidence"] > 0.5
    context.media.close()


@pytest.mark.slow
def test_two_engines_agree_on_what_both_hear(context: Any, media_dir: Path) -> None:
    path = media_dir / "speech" / "harvard_spk1_snt5.wav"
    found = run_stage(context, TranscribeConfig(second="pocketsphinx"), row_for(path))
    assert (found["engine"], found["language"], found["num_languages"]) == ("whisperx", "en", 1)
    assert found["agreement"] == 1
    assert found["on_silence_ratio"] == found["repeated_ratio"] == 0
    context.media.close()


# --- other weights ---------------------------------------------------------------------------------------------------


def test_weights_of_english_alone_hear_english_and_say_that_they_know_nothing_else(
    voice: VoiceActivity, tmp_path: Path
) -> None:
    engine = WhisperxEngine.load(WhisperxConfig(weights="tiny.en"), Context(tmp_path))
    heard = heard_by(engine, voice, said("en", 3, seed=2))
    (passage,) = heard.passages
    assert (passage.hearing.language, passage.hearing.language_from) == ("en", "engine")
    assert passage.hearing.language_confidence is None
    assert {"window", "listened"} <= {word.text for word in heard.words}


@pytest.mark.slow
def test_weights_from_a_folder(said_english: Spoken, tiny_whisper: Path, context: Any, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "talk.wav", said_english.samples, SPEECH_RATE_HZ)
    whisperx = WhisperxConfig(weights=str(tiny_whisper), beam_size=1, max_new_tokens=16)
    config = TranscribeConfig(engine="whisperx", whisperx=whisperx, max_repeats=99)
    found = run_stage(context, config, row_for(tmp_path / "talk.wav"))
    assert found["engine"] == "whisperx"
    assert found["words"]
    assert 0 < found["language_confidence"] <= 1
    assert all(0 <= w["start_s"] <= w["end_s"] for w in found["words"])
    context.media.close()


@pytest.fixture(scope="module")
def said_english() -> Spoken:
    return said("en", 0)


def test_an_aligner_from_a_folder(
    said_english: Spoken, tiny_whisper: Path, tiny_aligner: Path, voice: VoiceActivity, tmp_path: Path
) -> None:
    config = WhisperxConfig(
        weights=str(tiny_whisper),
        align_weights={"en": str(tiny_aligner)},
        language="en",
        beam_size=1,
        max_new_tokens=16,
    )
    engine = WhisperxEngine.load(config, Context(tmp_path))
    text = " ".join(word.text for word in said_english.words[:6])
    windows = [Stretch(0.3, 3.0), Stretch(0.3, 0.34), Stretch(1e4, 1e4 + 1)]
    words, *given_up = engine.aligners.times([text] * 3, windows, said_english.samples, "en")
    assert [w.text for w in words] == text.split()
    assert all(0.3 <= w.start_s <= w.end_s <= 3.05 for w in words)
    assert given_up == [None, None], "too much text for the sound, and behind its end"
    heard = heard_by(engine, voice, said_english)
    assert {(p.hearing.language, p.hearing.language_from) for p in heard.passages} == {("en", "stated")}
    assert {p.hearing.words_from for p in heard.passages} <= {"wav2vec2", "attention"}


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"transcribe\.whisperx\.weights is .* model\.bin"):
        whisper_folder(str(tmp_path))
    with pytest.raises(RecipeError, match=r"align_weights\.de"):
        WhisperxEngine.load(WhisperxConfig(align_weights={"de": str(tmp_path)}), Context(tmp_path))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nava").write_text("a file, where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RecipeError, match="Set XDG_CACHE_HOME"):
        whisper_folder("base")


def test_the_network_ends_a_short_sound_where_it_ends(engine: WhisperxEngine) -> None:
    """With the rest of the 30 s left out it says some sentences again and again."""
    (encoded,) = engine.whisper.encode([said("en", 1).samples])
    assert len(encoded) == 1500
    (written,) = engine.whisper.write([encoded], "en", 1, 100)
    assert written.text.lower().count("notebook") == 1
