"""Word times by whisperx's forced aligner, for languages of which a folder with a wav2vec2 CTC model is given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spans import Word
from schemas.stretches import Stretch
from stages.transcribe.weights import require
from stages.transcribe.words import MIN_WORD_S


@dataclass
class Wav2Vec2:
    """The models by language."""

    models: dict[str, tuple[Any, dict[str, Any]]]
    device: str

    @classmethod
    def load(cls, folders: Mapping[str, str], device: str, scratch_dir: Path) -> Wav2Vec2:
        """The models in `folders`, by language. Raises RecipeError when a folder is missing or incomplete."""
        for language, folder in folders.items():
            key = f"transcribe.whisperx.align_weights.{language}"
            require(folder, ("config.json",), key, "Point it to a local folder with the weights, or leave it out.")
        if not folders:
            return cls({}, device)
        os.environ["HF_HUB_OFFLINE"] = "1"
        from stages.engines.torchaudio_shim import make_torchaudio_importable

        make_torchaudio_importable()
        import whisperx

        _provide_sentence_splitter(scratch_dir)
        models = {
            language: whisperx.load_align_model(language, device, model_name=folder, model_cache_only=True)
            for language, folder in folders.items()
        }
        return cls(models, device)

    def times(
        self, texts: Sequence[str], windows: Sequence[Stretch], samples: NDArray[np.float32], language: str
    ) -> list[list[Word] | None]:
        """The words of each text within its window; None where it gives up, as it does where text is too long for the sound."""
        import whisperx

        model, about = self.models[language]
        sound = np.array(samples)
        found: list[list[Word] | None] = []
        for text, window in zip(texts, windows, strict=True):
            segment = {"text": text, "start": window.start_s, "end": window.end_s}
            aligned = whisperx.align([segment], model, about, sound, self.device)
            found.append([word for part in aligned["segments"] for word in _timed(part)] or None)
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
