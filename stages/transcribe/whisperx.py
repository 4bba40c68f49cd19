"""Speech to text with whisperx: batched Whisper in CTranslate2, then word times from a wav2vec2 aligner."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.errors import RecipeError
from schemas.spans import SPEECH_RATE_HZ, Word
from schemas.stretches import Stretch
from stages.base import StageConfig
from stages.engines.voice import VoiceActivity, VoiceConfig
from stages.transcribe.words import MIN_WORD_S, Heard, spread_within


class WhisperxConfig(StageConfig):
    """Where the weights lie and how they are run."""

    weights: str = ""
    """Folder of a CTranslate2 Whisper model: model.bin, config.json, vocabulary.json, tokenizer.json."""
    align_weights: dict[str, str] = Field(default_factory=dict)
    """Language code -> folder of a wav2vec2 CTC model. Without one, words are spread over their segment by length."""
    device: str = "cpu"
    """cpu or cuda."""
    compute_type: str = "int8"
    """CTranslate2 arithmetic: int8 on CPUs, float16 on GPUs."""
    batch_size: int = 8
    """Thirty-second chunks decoded at once."""
    language: str = ""
    """ISO 639-1 code; empty = detected on each asset, with its probability."""
    beam_size: int = 5
    """Hypotheses kept while decoding."""
    max_new_tokens: int = 224
    """Longest text of one chunk: half of Whisper's 448-token context, its own default."""


@dataclass
class WhisperxEngine:
    """The strong engine: large-v3 has a word error of a few percent on clean English and speaks about 99 languages.

    Needs local weights; nothing is fetched. Its own code for loading, batching, language detection and alignment was run here
    on a tiny random model that the tests make; the published weights were not available, so no quality figure is given.
    """

    config: WhisperxConfig
    pipeline: Any
    aligners: dict[str, tuple[Any, dict[str, Any]]]

    @classmethod
    def load(
        cls, config: WhisperxConfig, voice: VoiceActivity, voice_config: VoiceConfig, scratch_dir: Path
    ) -> WhisperxEngine:
        """The engine with its models. Raises RecipeError when a weights folder is missing or incomplete."""
        _require(config.weights, ("model.bin", "config.json", "tokenizer.json"), "transcribe.whisperx.weights")
        for language, folder in config.align_weights.items():
            _require(folder, ("config.json",), f"transcribe.whisperx.align_weights.{language}")
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
        from stages.engines.torchaudio_shim import make_torchaudio_importable

        make_torchaudio_importable()
        import whisperx

        _provide_sentence_splitter(scratch_dir)
        pipeline = whisperx.load_model(
            config.weights,
            config.device,
            compute_type=config.compute_type,
            language=config.language or None,
            vad_model=_vad_for_whisperx(voice, voice_config),
            asr_options={"beam_size": config.beam_size, "max_new_tokens": config.max_new_tokens},
            threads=1,
        )
        aligners = {
            language: whisperx.load_align_model(language, config.device, model_name=folder, model_cache_only=True)
            for language, folder in config.align_weights.items()
        }
        return cls(config, pipeline, aligners)

    def hear(self, samples: NDArray[np.float32], speech: list[Stretch]) -> Heard:
        """Words in mono `samples` at 16 kHz, in seconds from their start; without `speech` the model is not asked."""
        if not speech:
            return Heard([], None, None)
        language, probability = self._language(samples, speech)
        answer = self.pipeline.transcribe(np.array(samples), batch_size=self.config.batch_size, language=language)
        segments = [s for s in answer["segments"] if s["text"].strip()]
        aligned = self._align(segments, samples, language) if language in self.aligners else [[] for _ in segments]
        words = [found or _spread(segment, speech) for segment, found in zip(segments, aligned, strict=True)]
        return Heard([word for found in words for word in found], language, probability)

    def _language(self, samples: NDArray[np.float32], speech: list[Stretch]) -> tuple[str, float | None]:
        if self.config.language:
            return self.config.language, None
        first = int(speech[0].start_s * SPEECH_RATE_HZ)
        language, probability, _ = self.pipeline.model.detect_language(audio=np.array(samples[first:]))
        return language, float(probability)

    def _align(self, segments: list[dict[str, Any]], samples: NDArray[np.float32], language: str) -> list[list[Word]]:
        """The words of each segment; none of one that the aligner gives up, as it does where text is too long for its sound."""
        import whisperx

        model, about = self.aligners[language]
        sound = np.array(samples)
        found: list[list[Word]] = []
        for segment in segments:
            aligned = whisperx.align([segment], model, about, sound, self.config.device)
            found.append([word for part in aligned["segments"] for word in _timed(part)])
        return found


def _timed(segment: dict[str, Any]) -> list[Word]:
    """The words of a segment as whisperx gives them; one that it could not place lies between its neighbours."""
    found, words = segment["words"], []
    for index, word in enumerate(found):
        if "start" in word:
            score = float(word["score"]) if "score" in word else None
            words.append(Word(word["word"], word["start"], word["end"], score))
            continue
        before = max((w["end"] for w in found[:index] if "end" in w), default=segment["start"])
        after = min((w["start"] for w in found[index + 1 :] if "start" in w), default=segment["end"])
        words.append(Word(word["word"], before, max(after, before + MIN_WORD_S), None))
    return words


def _spread(segment: dict[str, Any], speech: list[Stretch]) -> list[Word]:
    """The words of a segment by their length alone, as sure as the whole of it."""
    confidence = min(1.0, math.exp(segment["avg_logprob"]))
    laid = spread_within(segment["text"].split(), Stretch(segment["start"], segment["end"]), speech)
    return [replace(word, confidence=confidence) for word in laid]


def _require(folder: str, names: tuple[str, ...], key: str) -> None:
    missing = [name for name in names if not folder or not (Path(folder).expanduser() / name).is_file()]
    if missing:
        raise RecipeError(
            f"{key} is '{folder}', where {', '.join(missing)} cannot be found.",
            remedy="Point it to a local folder with the weights, or use engine: pocketsphinx or align.",
        )


def _vad_for_whisperx(voice: VoiceActivity, config: VoiceConfig) -> Any:
    """The project's voice activity as the class whisperx wants; its own Silero would be fetched from the network."""
    from whisperx.diarize import Segment
    from whisperx.vads import Silero
    from whisperx.vads.vad import Vad

    class SharedVoiceActivity(Vad):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(config.onset)
            self.vad_onset = config.onset

        def __call__(self, audio: dict[str, Any], **_: Any) -> list[Any]:
            found = voice.stretches(np.asarray(audio["waveform"], np.float32), config)
            return [Segment(s.start_s, s.end_s, "UNKNOWN") for s in found]

        preprocess_audio = staticmethod(lambda audio: audio)
        merge_chunks = staticmethod(Silero.merge_chunks)

    return SharedVoiceActivity()


_ABBREVIATIONS = "mr mrs ms dr prof st vs etc e.g i.e u.s jr sr gen col capt lt no inc co ltd"


def _provide_sentence_splitter(scratch_dir: Path) -> None:
    """Gives NLTK the Punkt data whisperx.align asks for, which it would otherwise try to download."""
    import nltk

    folder = scratch_dir / "nltk" / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "abbrev_types.txt").write_text("\n".join(_ABBREVIATIONS.split()) + "\n")
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    path = str(scratch_dir / "nltk")
    if path not in nltk.data.path:
        nltk.data.path.insert(0, path)
