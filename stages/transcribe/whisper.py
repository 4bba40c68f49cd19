"""Whisper in CTranslate2: sound is encoded once, and languages, text and the times of words are all read off that one answer.

Whisper was trained on 30 s, filled up with silence, and looks at all of them. Encoding them costs seven times as much as
encoding 10 s. So a short sound is encoded at its own length with a little silence behind it, and the encoder's answer to that
silence, over and over, stands for the rest of the 30 s: without it the decoder would say everything again and again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import SPEECH_RATE_HZ, Word
from stages.transcribe.words import continues

WINDOW_S = 30.0
"""What Whisper hears at once; it was trained on no other length."""
SILENCE_S = 4.0
"""Silence encoded behind a sound. One second gives the same text for nine sounds in ten and loops begin below it."""
FRAMES_PER_S = 50
"""Steps of the encoder's answer."""
SILENT = slice(-75, -10)
"""The steps that stand for silence. The last ones are unlike the others, and held they end sentences early: 26 % of words
wrong instead of 5 %."""
MEL_PER_S = 100
CONTEXT_TOKENS = 448
"""Longest text with its prompt that the decoder has positions for."""
UNSPOKEN = ("la",)
"""Latin, which Whisper takes mumbled words of any language for."""

Encoded = NDArray[Any]
"""[1500, width]: the encoder's answer to one window."""


@dataclass(frozen=True)
class Written:
    """What the network wrote for one window."""

    tokens: tuple[int, ...]
    text: str
    avg_logprob: float
    no_speech_prob: float

    @property
    def compression_ratio(self) -> float:
        """Bytes of the text over those of it packed, as Whisper's authors count it: above 2.4 it repeats itself."""
        data = self.text.encode()
        return len(data) / len(zlib.compress(data))


@dataclass
class Whisper:
    """One network and its symbols. Sounds are mono at 16 kHz and no longer than WINDOW_S."""

    network: Any
    symbols: Any

    @classmethod
    def load(cls, folder: Path, device: str, compute_type: str) -> Whisper:
        """The network in `folder`, with one thread; 0.3 CPU-s for base, whose weights become bytes here."""
        import ctranslate2
        import tokenizers

        network = ctranslate2.models.Whisper(
            str(folder), device=device, compute_type=compute_type, inter_threads=1, intra_threads=1
        )
        return cls(network, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))

    @property
    def is_multilingual(self) -> bool:
        """Whether it knows other languages than English, and so can tell which it hears."""
        return bool(self.network.is_multilingual)

    def encode(self, sounds: Sequence[NDArray[np.float32]]) -> list[Encoded]:
        """The encoder's answer to each of `sounds`."""
        if self.network.device == "cuda":
            whole = [self._mel(sound, WINDOW_S) for sound in sounds]
            return list(np.array(self.network.encode(_stored(np.stack(whole)), to_cpu=True)))
        found = []
        for sound in sounds:
            length_s = min(WINDOW_S, len(sound) / SPEECH_RATE_HZ + SILENCE_S)
            answer = np.array(self.network.encode(_stored(self._mel(sound, length_s)[None])))[0]
            missing = round(WINDOW_S * FRAMES_PER_S) - len(answer)
            silence = answer[SILENT]
            found.append(
                np.concatenate([answer, *[silence] * (missing // len(silence)), silence[: missing % len(silence)]])
            )
        return found

    def _mel(self, sound: NDArray[np.float32], length_s: float) -> NDArray[np.float32]:
        from whisperx.audio import log_mel_spectrogram

        num = round(length_s * MEL_PER_S) // 2 * 2 * SPEECH_RATE_HZ // MEL_PER_S
        padded = np.zeros(num, np.float32)
        padded[: len(sound)] = sound[:num]
        return np.asarray(log_mel_spectrogram(padded, self.network.n_mels))

    def languages(self, encoded: Sequence[Encoded]) -> list[dict[str, float]]:
        """Probability of each language but UNSPOKEN in each window, most likely first. Only of a network that is multilingual."""
        found = []
        for each in self.network.detect_language(_stored(np.stack(encoded))):
            told = {token[2:-2]: float(probability) for token, probability in each if token[2:-2] not in UNSPOKEN}
            total = sum(told.values())
            found.append({language: probability / total for language, probability in told.items()})
        return found

    def write(self, encoded: Sequence[Encoded], language: str, beam_size: int, most_tokens: int) -> list[Written]:
        """What is said in each window, in `language`, in up to `most_tokens`."""
        tokenizer = self._tokenizer(language)
        prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
        results = self.network.generate(
            _stored(np.stack(encoded)),
            [prompt] * len(encoded),
            beam_size=beam_size,
            max_length=min(CONTEXT_TOKENS, len(prompt) + most_tokens),
            return_scores=True,
            return_no_speech_prob=True,
        )
        written = []
        for result in results:
            tokens = tuple(token for token in result.sequences_ids[0] if token < tokenizer.eot)
            num = len(result.sequences_ids[0])
            text = tokenizer.decode(list(tokens)).strip()
            written.append(Written(tokens, text, result.scores[0] * num / (num + 1), result.no_speech_prob))
        return written

    def tokens_of(self, text: str, language: str) -> tuple[int, ...]:
        """The tokens of a given text, as the network would write them."""
        return tuple(self._tokenizer(language).encode(f" {text.strip()}"))

    def times(
        self, encoded: Sequence[Encoded], tokens: Sequence[Sequence[int]], lengths_s: Sequence[float], language: str
    ) -> list[list[Word]]:
        """The words of each window with times from its start and probabilities, by where the decoder attends as it reads them."""
        tokenizer = self._tokenizer(language)
        asked = [index for index, each in enumerate(tokens) if each]
        found: list[list[Word]] = [[] for _ in tokens]
        if not asked:
            return found
        results = self.network.align(
            _stored(np.stack([encoded[index] for index in asked])),
            tokenizer.sot_sequence,
            [list(tokens[index]) for index in asked],
            [round(lengths_s[index] * MEL_PER_S) for index in asked],
        )
        for index, result in zip(asked, results, strict=True):
            found[index] = _timed(split_words(list(tokens[index]), tokenizer), result, lengths_s[index])
        return found

    def _tokenizer(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(self.symbols, self.is_multilingual, task="transcribe", language=language)


def _stored(array: NDArray[Any]) -> Any:
    import ctranslate2

    return ctranslate2.StorageView.from_array(np.ascontiguousarray(array))


def _timed(words: list[tuple[str, int]], result: Any, length_s: float) -> list[Word]:
    """`words` with their number of tokens, timed by the alignment (token, step of the encoder) in `result`."""
    pairs = np.array(result.alignments, np.int64)
    starts = pairs[np.flatnonzero(np.diff(pairs[:, 0], prepend=-1)), 1] / FRAMES_PER_S
    timed, first = [], 0
    for text, num in words:
        last = min(first + num, len(starts) - 1)
        start_s, end_s = float(starts[min(first, last)]), min(length_s, float(starts[last]))
        probability = float(np.mean(result.text_token_probs[first : first + num]))
        if any(character.isalnum() for character in text):
            timed.append(Word(text, start_s, max(start_s, end_s), min(1.0, probability)))
        first += num
    return timed


def split_words(tokens: list[int], tokenizer: Any) -> list[tuple[str, int]]:
    """Words of a text and how many of its `tokens` each has; together they have all of them."""
    words: list[tuple[str, int]] = []
    for piece, held in zip(*tokenizer.split_tokens_on_unicode(tokens), strict=True):
        if words and continues(words[-1][0], piece):
            words[-1] = (words[-1][0] + piece, words[-1][1] + len(held))
        else:
            words.append((piece, len(held)))
    return [(text.strip(), num) for text, num in words]
