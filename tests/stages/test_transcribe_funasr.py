"""Paraformer and SenseVoice by sherpa-onnx: networks in their form that tell tones, whose words are therefore known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.generated_speech import spoken
from schemas.errors import RecipeError
from schemas.spans import SPEECH_RATE_HZ, joined
from schemas.stretches import Stretch
from stages.transcribe.funasr import FunasrConfig, FunasrEngine, words_of
from stages.transcribe.stage import TranscribeConfig
from tests.stages.heard import row_for, run_stage
from tests.stages.tiny_funasr import HIGH_HZ, LOW_HZ, tones, write_export

SPEECH = [Stretch(1.0, 3.0), Stretch(9.0, 9.02)]
"""The tones lie in the first; the second is shorter than a window of any network."""
SOUND = tones((HIGH_HZ, 1.2, 1.6), (LOW_HZ, 1.9, 2.5), (LOW_HZ, 5.0, 6.0), length_s=10.0)


def test_sense_voice_says_what_is_heard_where_and_in_which_language(tmp_path: Path) -> None:
    model = write_export(tmp_path, "sense_voice_ctc", "好", "你")
    heard = FunasrEngine.load(str(model), False).hear(SOUND, SPEECH)
    assert [word.text for word in heard.words] == ["你", "好"], "the tone outside of speech is not asked for"
    assert [word.start_s for word in heard.words] == pytest.approx([1.2, 1.9], abs=0.08)
    assert heard.words[-1].end_s <= SPEECH[0].end_s
    (passage,) = heard.passages
    told = passage.hearing
    assert (told.language, told.language_from, told.words_from) == ("zh", "detected", "peaks")
    assert heard.num_failed == 0


def test_paraformer_joins_what_belongs_together(tmp_path: Path) -> None:
    model = write_export(tmp_path / "chinese", "paraformer", "好", "你")
    heard = FunasrEngine.load(str(model), False).hear(SOUND, SPEECH)
    assert heard.num_failed == 1, "the second is too short for it, of which sherpa-onnx gives no sign"
    assert joined(word.text for word in heard.words) == "你好"
    assert all(SPEECH[0].start_s <= word.start_s < word.end_s <= SPEECH[0].end_s for word in heard.words)
    (passage,) = heard.passages
    told = passage.hearing
    assert (told.language, told.language_from, told.words_from) == ("zh", "engine", "letters")
    model = write_export(tmp_path / "english", "paraformer", "lo", "hel@@")
    heard = FunasrEngine.load(str(model), False).hear(SOUND, SPEECH[:1])
    assert [word.text for word in heard.words] == ["hello"]


def test_numbers_are_written_as_asked(tmp_path: Path) -> None:
    model = write_export(tmp_path, "sense_voice_ctc", "好", "二")
    heard = FunasrEngine.load(str(model), True).hear(SOUND, SPEECH)
    assert [word.text for word in heard.words] == ["2", "好"]


def test_words_end_at_spaces_and_after_each_character_of_chinese() -> None:
    pieces = ["，", "你", "好", "。", " we", "ll", " done", "2", "0", "年", "。", "<|BGM|>", " <unk>"]
    words = words_of(pieces)
    assert [text for text, _ in words] == ["，你", "好。", "well", "done20", "年。"]
    assert [first for _, first in words] == [0, 2, 4, 6, 9]
    assert words_of(["。", " "]) == []


def test_the_stage_hears_with_it(context: Any, tmp_path: Path) -> None:
    import soundfile

    talk = spoken("test", [("en", "The window is open.")], 0)
    soundfile.write(tmp_path / "talk.wav", talk.samples, SPEECH_RATE_HZ)
    funasr = FunasrConfig(weights_path=str(write_export(tmp_path, "sense_voice_ctc", "好", "你")))
    found = run_stage(context, TranscribeConfig(engine="funasr", funasr=funasr), row_for(tmp_path / "talk.wav"))
    assert (found["engine"], found["language"]) == ("funasr", "zh")
    assert set(found["text"]) == {"你", "好"}, "a voice has both frequencies"
    context.media.close()


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("好\n", "in line 1 no symbol"),
        ("<blank> 0\n好 2\n", "no symbol of number 1; the network knows 11"),
        ("".join(f"t{at} {at}\n" for at in range(11)), "no symbol </s>"),
    ],
)
def test_tokens_that_do_not_fit_are_named(tmp_path: Path, lines: str, why: str) -> None:
    model = write_export(tmp_path, "paraformer", "好", "你")
    (tmp_path / "tokens.txt").write_text(lines)
    with pytest.raises(RecipeError, match=rf"tokens\.txt has .*{why}"):
        FunasrEngine.load(str(model), False)


def test_files_that_would_end_the_process_are_refused_before(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"funasr\.weights_path is empty"):
        FunasrEngine.load("", False)
    with pytest.raises(RecipeError, match=r"funasr\.weights_path is .* there is no file .*Point it to model\.onnx"):
        FunasrEngine.load(str(tmp_path), False)
    model = write_export(tmp_path, "sense_voice_ctc", "好", "你", lang_ko="", neg_mean="0,1")
    with pytest.raises(RecipeError, match="has it wrong: lang_ko"):
        FunasrEngine.load(str(model), False)
    model = write_export(tmp_path, "sense_voice_ctc", "好", "你", neg_mean="0,1", inv_stddev="one")
    with pytest.raises(RecipeError, match="has it wrong: neg_mean, inv_stddev"):
        FunasrEngine.load(str(model), False)
    model = write_export(tmp_path, "sense_voice_ctc", "好", "你", model_type="zipformer")
    with pytest.raises(RecipeError, match="says it is 'zipformer', expected paraformer, sense_voice_ctc"):
        FunasrEngine.load(str(model), False)
    for content in (b"<html>", b""):
        model.write_bytes(content)
        with pytest.raises(RecipeError, match="no network that ONNX Runtime reads"):
            FunasrEngine.load(str(model), False)
    (tmp_path / "tokens.txt").unlink()
    with pytest.raises(RecipeError, match=r"there is no file .*tokens\.txt"):
        FunasrEngine.load(str(model), False)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_export(tmp_path, "paraformer", "好", "你")
    monkeypatch.setitem(sys.modules, "sherpa_onnx", None)
    with pytest.raises(RecipeError, match=r"sherpa-onnx cannot be imported.*nava-engine\[funasr\]"):
        FunasrEngine.load(str(model), False)
