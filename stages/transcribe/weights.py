"""Weights of the recogniser: packaged ones by their name, others by the folder they lie in."""

from __future__ import annotations

from pathlib import Path

from schemas.errors import RecipeError
from schemas.files import cache_folder, publish_file
from stages.engines.packaged import JOINED, joined, packaged

PACKAGED = ("base", "tiny.en")
"""Names of weights that come in packages. base: 99 languages, 145 MB. tiny.en: English alone, about half the cost."""


def whisper_folder(weights: str) -> Path:
    """The folder with model.bin, config.json, tokenizer.json and the vocabulary of `weights`: a name in PACKAGED, or a path.

    base comes in two packages and is joined once per machine, in the program's cache. Raises RecipeError where a package is
    missing or carries other bytes, where the cache cannot be written, and where a folder lacks a file.
    """
    if weights == "base":
        return _joined_base()
    if weights == "tiny.en":
        for path in (packaged("whisper_tiny_en_config"), packaged("whisper_tiny_en_tokenizer")):
            assert path.is_file()
        packaged("whisper_tiny_en_vocabulary")
        return packaged("whisper_tiny_en").parent
    require(
        weights,
        ("model.bin", "config.json", "tokenizer.json"),
        "transcribe.whisperx.weights",
        f"Point it to a folder of a CTranslate2 Whisper model, or use one of {', '.join(PACKAGED)}.",
    )
    return Path(weights).expanduser()


def _joined_base() -> Path:
    folder = cache_folder() / "weights" / f"whisper-base-{JOINED['whisper_base'].sha256[:8]}"
    files = {
        "config.json": packaged("whisper_base_config"),
        "tokenizer.json": packaged("whisper_base_tokenizer"),
        "vocabulary.txt": packaged("whisper_base_vocabulary"),
    }
    try:
        joined("whisper_base", folder / "model.bin")
        for name, path in files.items():
            if not (folder / name).is_file() or (folder / name).read_bytes() != path.read_bytes():
                publish_file(path, folder / name, keep=True)
    except OSError as error:
        raise RecipeError(
            f"The weights of whisper base cannot be joined in '{folder}': {error}.",
            remedy="Set XDG_CACHE_HOME to a folder that can be written and has 150 MB free.",
        ) from error
    return folder


def require(folder: str, names: tuple[str, ...], key: str, remedy: str) -> None:
    """Raises RecipeError that names `key` where `folder` lacks one of the files `names`."""
    missing = [name for name in names if not folder or not (Path(folder).expanduser() / name).is_file()]
    if missing:
        raise RecipeError(f"{key} is '{folder}', where {', '.join(missing)} cannot be found.", remedy=remedy)
