"""Many prompts from one file: JSON lines as the release has them, or a Seed-TTS list.

    prompts.jsonl   {"prompt": "...", "image_path": "a.jpg", "spk_wavs": ["v.wav"], "save_path": "name"}   and keys of `Prompt`
    meta.lst        utt_id|what the reference says|reference.wav|what is to be said

Paths are relative to the file, or else to the working directory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from model.network.config import NavaConfig
from model.sampling.config import Prompt
from schemas.errors import RecipeError
from schemas.recipe import nearest, validated

RELEASE_KEYS = {"prompt": "caption", "image_path": "first_frame", "spk_wavs": "voices"}
"""The release's names of ours."""
SEED_TTS_SUFFIX = ".lst"


@dataclass(frozen=True, slots=True)
class NamedPrompt:
    """One clip to generate."""

    name: str
    """Of the file that is written, without suffix."""
    prompt: Prompt
    seed: int | None = None


def read_prompts(path: Path, base: Prompt, network: NavaConfig) -> list[NamedPrompt]:
    """The prompts of a file, each `base` with its own keys. Raises RecipeError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as text: {error}.") from error
    read = _seed_tts if path.suffix == SEED_TTS_SUFFIX else _json_line
    prompts = [
        read(line, f"{path}, line {number}", path.parent, base, network)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    names = [prompt.name for prompt in prompts]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(
            f"{path}: several prompts are named {', '.join(doubled[:3])}.", remedy="Give each another name."
        )
    return prompts


def _json_line(line: str, where: str, folder: Path, base: Prompt, network: NavaConfig) -> NamedPrompt:
    try:
        given: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{where}: not JSON: {error}.") from error
    if not isinstance(given, dict):
        raise RecipeError(f"{where}: expected an object, got {type(given).__name__}.")
    changes: dict[str, Any] = {RELEASE_KEYS.get(str(key), str(key)): value for key, value in given.items()}
    name, seed = changes.pop("save_path", None), changes.pop("seed", None)
    for key in changes:
        if key not in Prompt.model_fields:
            known = [*Prompt.model_fields, *RELEASE_KEYS, "save_path", "seed"]
            raise RecipeError(f"{where}: unknown key '{key}'.", remedy=nearest(key, known))
    prompt = validated(Prompt, {**base.model_dump(), **changes}, where)
    voices = tuple(None if voice is None else _beside(folder, voice) for voice in prompt.voices)
    first_frame = None if prompt.first_frame is None else _beside(folder, prompt.first_frame)
    prompt = prompt.model_copy(update={"voices": voices, "first_frame": first_frame})
    number = where.rpartition(" ")[2]
    return NamedPrompt(_plain_name(str(name), where) if name else f"{int(number):06d}", prompt, seed)


def _seed_tts(line: str, where: str, folder: Path, base: Prompt, network: NavaConfig) -> NamedPrompt:
    fields = [field.strip() for field in line.split("|")]
    if len(fields) < 4 or not all(fields[:4]):
        raise RecipeError(f"{where}: expected utt_id|prompt text|prompt wav|text, got {len(fields)} fields.")
    name, said, voice, text = fields[:4]
    path = _beside(folder, Path(voice))
    seconds = speech_seconds(_duration_s(path, where), said, text, network)
    changes = {"caption": f"<S>{text}<E>", "mode": "audio", "voices": (path,), "first_frame": None, "seconds": seconds}
    return NamedPrompt(_plain_name(name, where), base.model_copy(update=changes))


def speech_seconds(reference_s: float, said: str, text: str, network: NavaConfig) -> float:
    """How long a text will take: the release's rule, latents of the reference times the ratio of the texts' lengths.

    Counted in characters, rounded to whole latents, at least one and at most what the network has positions for.
    """
    latents = ceil(reference_s * network.audio_latent_hz)
    wanted = round(latents * len(text) / max(1, len(said)))
    return float(min(max(1, wanted), network.max_positions) / network.audio_latent_hz)


def _duration_s(path: Path, where: str) -> float:
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            if stream.duration is not None:
                return float(stream.duration * stream.time_base)
            return float(sum(frame.samples / frame.sample_rate for frame in container.decode(stream)))
    except (av.FFmpegError, OSError, IndexError) as error:
        raise RecipeError(f"{where}: {path} is no sound that can be read: {error}.") from error


def _beside(folder: Path, path: Path) -> Path:
    beside = folder / path
    return beside if beside.exists() else path


def _plain_name(name: str, where: str) -> str:
    """A name below the output folder, without the suffix of a clip."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise RecipeError(f"{where}: '{name}' leads out of the output folder.", remedy="Give a relative name.")
    return str(path.with_suffix("")) if path.suffix in (".mp4", ".wav", ".safetensors") else name
