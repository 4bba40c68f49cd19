"""Speech to text as whisperx does it: voice activity packed into windows, batches of them, then words from an aligner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.errors import EngineError
from schemas.spans import SPEECH_RATE_HZ, Hearing, Word, WordsFrom, joined
from schemas.stretches import Stretch, inside
from stages.base import Context, StageConfig
from stages.transcribe.align import ENGLISH, AlignEngine, cue_windows, trim
from stages.transcribe.languages import Window, likeliest, limits, pack, pieces_of, runs_of
from stages.transcribe.transcripts import Cue, Transcript
from stages.transcribe.wav2vec2 import Wav2Vec2
from stages.transcribe.weights import whisper_folder
from stages.transcribe.whisper import WINDOW_S, Encoded, Whisper
from stages.transcribe.words import Heard, spread_within

F32 = NDArray[np.float32]

BLOCK = 16
"""Windows held at once, 3 MB each for base, and among which changes of language are told apart from doubts."""


class WhisperxConfig(StageConfig):
    """Where the weights lie and how they are run."""

    weights: str = "base"
    """base or tiny.en, which come in packages, or a folder of a CTranslate2 Whisper model: model.bin, config.json,
    tokenizer.json and its vocabulary."""
    align_weights: dict[str, str] = Field(default_factory=dict)
    """Language code -> folder of a wav2vec2 CTC model, which then times the words of that language."""
    device: str = "cpu"
    """cpu or cuda."""
    compute_type: str = "int8"
    """CTranslate2 arithmetic: int8 on CPUs, float16 on GPUs."""
    batch_size: int = Field(default=8, ge=1)
    """Windows decoded at once."""
    language: str = ""
    """ISO 639-1 code; empty = detected, with its probability, wherever it changes."""
    beam_size: int = Field(default=5, ge=1)
    """Hypotheses kept while decoding."""
    max_new_tokens: int = Field(default=440, ge=1)
    """Longest text of one window; Whisper has positions for 448 with the prompt. Hindi takes four tokens a character."""


@dataclass(frozen=True)
class Listened:
    """A window whose language is known."""

    window: Window
    encoded: Encoded
    hearing: Hearing

    @property
    def limits(self) -> Stretch:
        """From its first to its last stretch of speech."""
        return limits(self.window)


@dataclass
class WhisperxEngine:
    """The strong engine: 99 languages with the packaged base weights; large-v3 from a folder hears better still.

    With base, 9 % of words on short English recordings are wrong (most of them spelled letters), where pocketsphinx has 30 %.
    """

    config: WhisperxConfig
    whisper: Whisper
    aligner: AlignEngine
    """For English."""
    aligners: Wav2Vec2

    @classmethod
    def load(cls, config: WhisperxConfig, ctx: Context) -> WhisperxEngine:
        """The engine with its models. Raises RecipeError where weights are missing, incomplete or others."""
        aligners = Wav2Vec2.load(config.align_weights, config.device, ctx.scratch_dir)
        whisper = ctx.model(Whisper.load, whisper_folder(config.weights), config.device, config.compute_type)
        return cls(config, whisper, AlignEngine(ctx.scratch_dir), aligners)

    def hear(self, samples: F32, speech: list[Stretch]) -> Heard:
        """Words in mono `samples` at 16 kHz, in seconds from their start; without speech the network is not asked."""
        heard = Heard([], [])
        windows = pack(speech, samples, WINDOW_S)
        before = None
        for first in range(0, len(windows), BLOCK):
            listened = self._listen(windows[first : first + BLOCK], samples, before)
            before = listened[-1].hearing.language
            self._write(listened, samples, speech, heard)
        return heard

    def listen(self, samples: F32, speech: list[Stretch]) -> Hearing:
        """The language of the window with most speech of the first BLOCK; unknown without speech."""
        windows = pack(speech, samples, WINDOW_S)[:BLOCK]
        if not windows:
            return Hearing()
        longest = max(windows, key=lambda window: sum(stretch.duration_s for stretch in window))
        return self._hearings(self.whisper.encode([_cut(samples, limits(longest))]))[0]

    def align(self, given: Transcript, samples: F32, speech: list[Stretch], start_s: float, spoken: Hearing) -> Heard:
        """The words of a given transcript, in seconds from the start of `samples`, which is `start_s` on the asset clock.

        Its language is that which it states, else what is `spoken`. English goes to the forced aligner, which raises
        EngineError where nothing fits; in other languages cues of up to 30 s are timed by attention.
        """
        hearing = given.stated if given.language not in (None, spoken.language) else spoken
        if hearing.language in (ENGLISH, None) or not speech:
            return self.aligner.align(given, samples, speech, start_s, hearing)
        heard = Heard([], [])
        windows = cue_windows(given.cues, start_s, len(samples) / SPEECH_RATE_HZ)
        for cue, window in zip(given.cues, windows, strict=True):
            words = self._attended(cue.text, window, samples, speech, hearing.language)
            source: WordsFrom = "letters" if words is None else "attention"
            heard.num_failed += words is None
            laid = spread_within(cue.text.split(), window, speech) if words is None else words
            heard.add(laid, replace(hearing, words_from=source))
        return heard

    def _attended(
        self, text: str, window: Stretch, samples: F32, speech: list[Stretch], language: str
    ) -> list[Word] | None:
        """The words of a given `text` in `window` by attention; None where nobody speaks there or it is too long."""
        spoken = inside(window, speech)
        where = limits(spoken) if spoken else window
        if not spoken or where.duration_s > WINDOW_S:
            return None
        tokens = self.whisper.tokens_of(text, language)
        (words,) = self.whisper.times(
            self.whisper.encode([_cut(samples, where)]), [tokens], [where.duration_s], language
        )
        return [trim(word.moved(where.start_s), speech) for word in words]

    def _hearings(self, encoded: Sequence[Encoded]) -> list[Hearing]:
        """What is known of the language of each window."""
        if self.config.language:
            return [Hearing(language=self.config.language, language_from="stated")] * len(encoded)
        if not self.whisper.is_multilingual:
            return [Hearing(language=ENGLISH, language_from="engine")] * len(encoded)
        found = []
        for probabilities in self.whisper.languages(encoded):
            language, probability = next(iter(probabilities.items()))
            found.append(Hearing(language=language, language_confidence=probability, language_from="detected"))
        return found

    def _listen(self, windows: Sequence[Window], samples: F32, before: str | None) -> list[Listened]:
        """`windows` with the language of each, parted where it changes; `before` is what was spoken before them."""
        encoded = self.whisper.encode([_cut(samples, limits(window)) for window in windows])
        if self.config.language or not self.whisper.is_multilingual:
            return [Listened(*each) for each in zip(windows, encoded, self._hearings(encoded), strict=True)]
        pieces = [pieces_of(window) for window in windows]
        wholes = self.whisper.languages(encoded)
        parts = [self._piece_languages(own, whole, samples) for own, whole in zip(pieces, wholes, strict=True)]
        path = iter(likeliest([each for own in parts for each in own], before))
        found: list[Listened] = []
        for window, own, answer, whole in zip(windows, pieces, encoded, wholes, strict=True):
            runs = runs_of([next(path) for _ in own])
            if len(runs) == 1:
                found.append(Listened(window, answer, _detected(runs[0][0], whole)))
                continue
            parted = [tuple(stretch for piece in own[low:high] for stretch in piece) for _, low, high in runs]
            answers = self.whisper.encode([_cut(samples, limits(part)) for part in parted])
            for (language, _, _), part, own_answer, told in zip(
                runs, parted, answers, self.whisper.languages(answers), strict=True
            ):
                found.append(Listened(part, own_answer, _detected(language, told)))
        return found

    def _piece_languages(
        self, pieces: Sequence[Window], whole: Mapping[str, float], samples: F32
    ) -> list[Mapping[str, float]]:
        """Probabilities of the languages in each piece of a window, of which those as a `whole` are known."""
        if len(pieces) == 1:
            return [whole]
        return list(self.whisper.languages(self.whisper.encode([_cut(samples, limits(piece)) for piece in pieces])))

    def _write(self, listened: Sequence[Listened], samples: F32, speech: list[Stretch], heard: Heard) -> None:
        """Adds to `heard` what is said in each window."""
        told: dict[int, tuple[list[Word], Hearing]] = {}
        for language in dict.fromkeys(str(each.hearing.language) for each in listened):
            own = [at for at, each in enumerate(listened) if each.hearing.language == language]
            for first in range(0, len(own), self.config.batch_size):
                batch = own[first : first + self.config.batch_size]
                told |= zip(batch, self._write_batch([listened[at] for at in batch], language), strict=True)
            self._align([listened[at].limits for at in own], own, told, language, samples, speech)
        for at in sorted(told):
            words, hearing = told[at]
            heard.add([trim(word, speech) for word in words], hearing)

    def _write_batch(self, listened: Sequence[Listened], language: str) -> list[tuple[list[Word], Hearing]]:
        """The words of each window, timed by attention, and how they were heard."""
        encoded = [each.encoded for each in listened]
        written = self.whisper.write(encoded, language, self.config.beam_size, self.config.max_new_tokens)
        lengths_s = [each.limits.duration_s for each in listened]
        timed = self.whisper.times(encoded, [each.tokens for each in written], lengths_s, language)
        return [
            (
                [word.moved(each.limits.start_s) for word in words],
                replace(
                    each.hearing,
                    words_from="attention",
                    no_speech_prob=text.no_speech_prob,
                    avg_logprob=text.avg_logprob,
                    compression_ratio=text.compression_ratio,
                ),
            )
            for each, text, words in zip(listened, written, timed, strict=True)
        ]

    def _align(
        self,
        windows: Sequence[Stretch],
        at: Sequence[int],
        told: dict[int, tuple[list[Word], Hearing]],
        language: str,
        samples: F32,
        speech: list[Stretch],
    ) -> None:
        """Gives the words `told` of `windows` better times, where an aligner knows the `language` and they fit."""
        texts = [joined(word.text for word in told[index][0]) for index in at]
        source: WordsFrom
        if language in self.aligners.models:
            found, source = self.aligners.times(texts, windows, samples, language), "wav2vec2"
        elif language == ENGLISH:
            found, source = self._aligned_english(texts, windows, samples, speech), "pocketsphinx"
        else:
            return
        for index, words in zip(at, found, strict=True):
            before, hearing = told[index]
            if words:
                sure = [word.confidence for word in before] if len(before) == len(words) else [None] * len(words)
                better = [
                    replace(word, confidence=own or word.confidence) for word, own in zip(words, sure, strict=True)
                ]
                told[index] = better, replace(hearing, words_from=source)

    def _aligned_english(
        self, texts: Sequence[str], windows: Sequence[Stretch], samples: F32, speech: list[Stretch]
    ) -> list[list[Word] | None]:
        cues = [Cue(text, window) for text, window in zip(texts, windows, strict=True)]
        wider = cue_windows(cues, 0.0, len(samples) / SPEECH_RATE_HZ)
        try:
            return self.aligner.times(cues, wider, samples, speech)
        except EngineError:
            return [None] * len(texts)


def _detected(language: str, probabilities: Mapping[str, float]) -> Hearing:
    return Hearing(language=language, language_confidence=probabilities[language], language_from="detected")


def _cut(samples: F32, where: Stretch) -> F32:
    low, high = (round(at_s * SPEECH_RATE_HZ) for at_s in (where.start_s, where.end_s))
    return np.asarray(samples[low:high], np.float32)
