"""Speech to text with Paraformer or SenseVoice, networks of FunASR exported to ONNX, from a local folder and by sherpa-onnx."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecipeError
from schemas.spans import SPEECH_RATE_HZ, Hearing, Word
from schemas.stretches import Stretch
from stages.base import StageConfig
from stages.engines.sessions import one_thread_session
from stages.transcribe.align import trim
from stages.transcribe.languages import limits, pack
from stages.transcribe.words import Heard, continues, spread_within

LONGEST_S = 30.0
"""What is heard at once: SenseVoice's authors give it no more."""
NUM_BANDS = 80
"""Mel bands of a frame, before frames are laid side by side; both networks' front end."""
TOKENS = "tokens.txt"
LANGUAGES = ("zh", "en", "ja", "ko", "yue")
"""Those SenseVoice tells, as it calls them."""
MARK = re.compile(r"<[^<>]+>")
"""Tokens that stand for no text, such as <unk> and <|BGM|>."""
GOES_ON = "@@"
"""How those of Paraformer's tokens end that the next one belongs to."""
Network = Literal["paraformer", "sense_voice_ctc"]
NUMBERS: Mapping[Network, tuple[str, ...]] = {
    "paraformer": (),
    "sense_voice_ctc": ("normalize_samples", "with_itn", "without_itn", "lang_auto", *(f"lang_{x}" for x in LANGUAGES)),
}
"""What an export says that it is -> the numbers that sherpa-onnx reads there besides those of both. It ends the whole process
where one is absent, so they are looked at before."""
EXPORT = "Point it to model.onnx or model.int8.onnx of Paraformer or SenseVoice as sherpa-onnx publishes them, beside tokens.txt."


class FunasrConfig(StageConfig):
    """Which network."""

    weights_path: str = ""
    """An ONNX export of Paraformer or SenseVoice for sherpa-onnx, such as model.int8.onnx; tokens.txt lies beside it."""
    writes_numbers: bool = False
    """Whether SenseVoice writes numbers as digits, and punctuation; Paraformer never does."""


@dataclass
class FunasrEngine:
    """Chinese that is heard better than Whisper base hears it; needs the extra `funasr` and a file from elsewhere.

    Paraformer hears Mandarin (and English words in it), SenseVoice also English, Japanese, Korean and Cantonese, of which it
    tells one for each stretch of up to 30 s. Neither gives probabilities. No published weights were ever run here: tests run
    networks of the same form that tell tones. sherpa-onnx says nothing where a network fails on a sound, so that stretches
    with neither words nor a language count as failed.
    """

    recogniser: Any
    network: Network

    @classmethod
    def load(cls, weights_path: str, writes_numbers: bool) -> FunasrEngine:
        """The engine, on one thread. Raises RecipeError without sherpa-onnx, and for files that it cannot run."""
        model, network = checked(weights_path)
        try:
            from sherpa_onnx import OfflineRecognizer
        except ImportError as error:
            raise RecipeError(
                f"stages.transcribe.engine is 'funasr', and sherpa-onnx cannot be imported: {error}.",
                remedy="pip install 'nava-engine[funasr]'.",
            ) from error
        tokens = str(model.parent / TOKENS)
        if network == "paraformer":
            return cls(OfflineRecognizer.from_paraformer(str(model), tokens), network)
        found = OfflineRecognizer.from_sense_voice(str(model), tokens, language="auto", use_itn=writes_numbers)
        return cls(found, network)

    def hear(self, samples: NDArray[np.float32], speech: list[Stretch]) -> Heard:
        """Words in the `speech` of mono `samples` at 16 kHz, in seconds from their start."""
        heard = Heard([], [])
        for window in pack(speech, samples, LONGEST_S):
            where = limits(window)
            low, high = (round(at_s * SPEECH_RATE_HZ) for at_s in (where.start_s, where.end_s))
            stream = self.recogniser.create_stream()
            stream.accept_waveform(SPEECH_RATE_HZ, np.ascontiguousarray(samples[low:high], np.float32))
            self.recogniser.decode_stream(stream)
            said = stream.result
            heard.num_failed += not said.tokens and not said.lang
            words = words_of(self._pieces(said.tokens))
            if len(said.timestamps) == len(said.tokens):
                starts_s = [where.start_s + said.timestamps[first] for _, first in words]
                laid = [
                    trim(Word(text, start_s, max(start_s, end_s)), speech)
                    for (text, _), (start_s, end_s) in zip(words, pairwise([*starts_s, where.end_s]), strict=True)
                ]
                heard.add(laid, self._hearing(said.lang, "peaks"))
            else:
                laid = spread_within([text for text, _ in words], where, speech)
                heard.add(laid, self._hearing(said.lang, "letters"))
        return heard

    def _pieces(self, tokens: Sequence[str]) -> list[str]:
        """Tokens with a space before each that begins a word, which SenseVoice's have."""
        if self.network != "paraformer":
            return list(tokens)
        pairs = pairwise(["", *tokens])
        return [("" if before.endswith(GOES_ON) else " ") + token.removesuffix(GOES_ON) for before, token in pairs]

    def _hearing(self, told: str, words_from: Literal["peaks", "letters"]) -> Hearing:
        if self.network == "paraformer":
            return Hearing(language="zh", language_from="engine", words_from=words_from)
        language = told.strip("<|>")
        if language not in LANGUAGES:
            return Hearing(words_from=words_from)
        return Hearing(language=language, language_from="detected", words_from=words_from)


def words_of(pieces: Sequence[str]) -> list[tuple[str, int]]:
    """Words of a text and the first of its `pieces` each has; marks such as <unk> and lonely punctuation are none."""
    words: list[tuple[str, int]] = []
    for at, piece in enumerate(pieces):
        if MARK.fullmatch(piece.strip()):
            continue
        if words and continues(words[-1][0], piece):
            words[-1] = (words[-1][0] + piece, words[-1][1])
        else:
            words.append((piece, at))
    return [(text.strip(), first) for text, first in words if any(each.isalnum() for each in text)]


def checked(weights_path: str) -> tuple[Path, Network]:
    """An export and which network it is. Raises RecipeError where sherpa-onnx could not run it, which would end the process."""
    import onnxruntime.capi.onnxruntime_pybind11_state as failures

    model = Path(weights_path).expanduser()
    tokens = model.parent / TOKENS
    if missing := next((path for path in (model, tokens) if not path.is_file()), None):
        where = f"'{model}', and there is no file '{missing}'" if weights_path else "empty"
        raise RecipeError(f"stages.transcribe.funasr.weights_path is {where}.", remedy=EXPORT)
    unreadable = (
        failures.Fail, failures.InvalidArgument, failures.InvalidGraph, failures.InvalidProtobuf, failures.NotImplemented
    )  # fmt: skip
    try:
        told = one_thread_session(model).get_modelmeta().custom_metadata_map
    except unreadable as error:
        raise RecipeError(f"{model} is no network that ONNX Runtime reads: {error}.", remedy=EXPORT) from error
    network = next((each for each in NUMBERS if each == told.get("model_type")), None)
    if network is None:
        kinds = ", ".join(NUMBERS)
        raise RecipeError(f"{model} says it is '{told.get('model_type', '')}', expected {kinds}.", remedy=EXPORT)
    numbers = ("vocab_size", "lfr_window_size", "lfr_window_shift", *NUMBERS[network])
    bad = [name for name in numbers if not told.get(name, "").isdecimal()]
    if not bad:
        expected = NUM_BANDS * int(told["lfr_window_size"])
        bad = [name for name in ("neg_mean", "inv_stddev") if _num_values(told.get(name, "")) != expected]
    if bad:
        raise RecipeError(
            f"{model} lacks metadata that sherpa-onnx needs, or has it wrong: {', '.join(bad)}.", remedy=EXPORT
        )
    _check_tokens(tokens, int(told["vocab_size"]), network)
    return model, network


def _check_tokens(path: Path, num: int, network: Network) -> None:
    """Raises RecipeError unless every line is a symbol and its number, and all of `num` numbers are there."""
    symbols: dict[int, bytes | None] = {}
    for at, line in enumerate(path.read_bytes().rstrip().split(b"\n"), 1):
        found = re.fullmatch(rb"(?:(\S+)\s+|\s*)(\d+)\s*", line)
        if found is None:
            raise RecipeError(f"{path} has in line {at} no symbol and its number.", remedy=EXPORT)
        symbols[int(found[2])] = found[1]
    if lacking := sorted(set(range(num)) - set(symbols)):
        raise RecipeError(f"{path} has no symbol of number {lacking[0]}; the network knows {num}.", remedy=EXPORT)
    if network == "paraformer" and b"</s>" not in symbols.values():
        raise RecipeError(f"{path} has no symbol </s>, by which Paraformer ends.", remedy=EXPORT)


def _num_values(text: str) -> int | None:
    """How many numbers `text` holds, separated by commas; None where something else is among them."""
    try:
        return len([float(each) for each in text.split(",")])
    except ValueError:
        return None
