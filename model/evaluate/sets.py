"""Readers of evaluation sets, and where the samples of their items lie.

Verse-Bench   a folder with set1/, set2/, set3/ of ID.json (audio_prompt, speech_prompt.text), ID.jpg and ID.wav
Seed-TTS      a meta.lst: name|prompt text|prompt wav|text to say, and in some a fifth field, the real recording
JavisBench    a .json or .jsonl list of objects with an id or path and texts under several usual names; turns of speakers
manifest      a folder with the manifest.json of this project's media: transcripts that are known
folder        any other folder of media; NAME.txt beside NAME.mp4 is what is to be said, [S01] before what the first speaker says
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.evaluate.records import EvalItem, EvalSet, Utterance
from schemas.errors import RecipeError
from schemas.spans import joined

PICTURE_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a")
SUBSETS = ("set1", "set2", "set3")
RELEASE_ENDING = "-av-0"
"""What the release's own inference script adds to the names of its samples."""
CHINESE = "zh"
IDS = ("id", "item_id", "name", "video_id", "index")
PATHS = ("path", "video_path", "save_path", "video")
CAPTIONS = ("prompt", "caption", "text", "video_prompt")
SPEECH = ("speech", "speech_text", "transcript")
SOUNDS = ("audio_prompt", "audio_text", "audio_caption")
"""Keys under which lists of prompts in the manner of JavisBench say these things, the first that is there."""
TURNS = "turns"
"""Key under which they say who says what: a list of objects with `speaker` and `text`."""
SPEAKER_TAG = re.compile(r"\[(S\d+)\]")
"""Before what a speaker says, as MOVA's toolkit writes it."""


def read_set(path: Path) -> EvalSet:
    """The set at `path`, read in the form that it has. Raises RecipeError with file, line and what was expected."""
    if path.is_file():
        items = list(_seedtts(path) if path.suffix == ".lst" else _javis(path))
        form, name = ("seedtts" if path.suffix == ".lst" else "javis"), path.stem
    elif any((path / each).is_dir() for each in SUBSETS):
        items, form, name = list(_versebench(path)), "versebench", path.name
    elif (path / "manifest.json").is_file():
        items, form, name = list(_manifest(path / "manifest.json")), "manifest", path.name
    elif path.is_dir():
        items, form, name = list(_folder(path)), "folder", path.name
    else:
        raise RecipeError(f"no evaluation set at {path}.", remedy="Give a folder, a meta.lst or a .json list.")
    if not items:
        raise RecipeError(
            f"{path} was read as {form} and holds no item.", remedy="See docs/evaluation.md for the forms."
        )
    names = [(item.subset, item.item_id) for item in items]
    if len(set(names)) < len(names):
        twice = next(each for at, each in enumerate(names) if each in names[:at])
        raise RecipeError(
            f"{path}: item {'/'.join(filter(None, twice))} is there twice.", remedy="Give each its own name."
        )
    return EvalSet(name, form, tuple(items))


def _seedtts(path: Path) -> Iterator[EvalItem]:
    language = CHINESE if CHINESE in path.parts or CHINESE in path.stem else "en"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) not in (4, 5):
            raise RecipeError(
                f"{path}, line {number}: {len(parts)} fields, expected 4 or 5.",
                remedy="Write name|prompt text|prompt wav|text to say.",
            )
        name, _, voice, text, *real = parts
        yield EvalItem(
            item_id=name.removesuffix(".wav"),
            text=text,
            prompt=text,
            language=language,
            voice=path.parent / voice,
            reference=path.parent / real[0] if real else None,
        )


def _versebench(path: Path) -> Iterator[EvalItem]:
    for subset in SUBSETS:
        for told in sorted((path / subset).glob("*.json")):
            given = _json(told)
            if not isinstance(given, Mapping):
                raise RecipeError(f"{told} holds no object.", remedy="Verse-Bench has one JSON object per item.")
            speech, sounds = given.get("speech_prompt") or {}, given.get("audio_prompt") or ()
            text = speech.get("text") if isinstance(speech, Mapping) else speech
            yield EvalItem(
                item_id=told.stem,
                subset=subset,
                prompt=_first(given, ("video_prompt", "prompt", "caption")),
                text=str(text).strip() or None if text else None,
                sounds=(sounds,) if isinstance(sounds, str) else tuple(map(str, sounds)),
                first_frame=_beside(told, (".jpg", ".png")),
                reference=_beside(told, (*SOUND_SUFFIXES, *PICTURE_SUFFIXES)),
            )


def _javis(path: Path) -> Iterator[EvalItem]:
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        given = [_parsed(line, f"{path}, line {at}") for at, line in enumerate(lines, start=1) if line.strip()]
    else:
        given = _json(path)
    rows = next((each for each in given.values() if isinstance(each, list)), None) if isinstance(given, dict) else given
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise RecipeError(f"{path} holds no list of objects.", remedy="Write one object per item.")
    for number, row in enumerate(rows):
        place, sound = _first(row, PATHS), _first(row, SOUNDS)
        name = _first(row, IDS) or (Path(place).stem if place else f"{number:05d}")
        turns, said = _turns(row.get(TURNS) or ()), _first(row, SPEECH)
        if len(turns) < len(row.get(TURNS) or ()):
            raise RecipeError(
                f"{path}, item {name}: a turn without speaker or text.",
                remedy='Write {"speaker": "A", "text": "Good evening."} for each.',
            )
        real = path.parent / place if place and (path.parent / place).is_file() else None
        yield EvalItem(
            item_id=name,
            prompt=_first(row, CAPTIONS),
            text=said or joined(turn.text for turn in turns) or None,
            turns=turns,
            language=_first(row, ("language",)),
            sounds=(sound,) if sound else (),
            reference=real,
        )


def _manifest(path: Path) -> Iterator[EvalItem]:
    told = _json(path)
    rows = told.get("items") if isinstance(told, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) and "path" in row for row in rows):
        raise RecipeError(f"{path} has no items with a path.", remedy="Give a folder that nava-curate demo wrote.")
    for each in rows:
        truth, place = each.get("ground_truth") or {}, path.parent / each["path"]
        if "probe" in each and not each["probe"].get("streams"):
            continue
        yield EvalItem(
            item_id=place.stem,
            subset=place.parent.relative_to(path.parent).as_posix().removeprefix("."),
            prompt=each.get("seen_and_heard"),
            text=truth.get("transcript"),
            turns=_turns(truth.get("speaker_turns") or ()),
            language=truth.get("language"),
            voice=place if truth.get("transcript") else None,
            reference=place,
        )


def _folder(path: Path) -> Iterator[EvalItem]:
    for place in sorted(each for each in path.iterdir() if each.suffix.lower() in (*PICTURE_SUFFIXES, *SOUND_SUFFIXES)):
        words = place.with_suffix(".txt")
        text = words.read_text(encoding="utf-8").strip() if words.is_file() else ""
        turns = tagged_turns(text)
        text = joined(turn.text for turn in turns) if turns else text
        voice = place if text else None
        yield EvalItem(item_id=place.stem, text=text or None, turns=turns, voice=voice, reference=place)


def tagged_turns(text: str) -> tuple[Utterance, ...]:
    """The turns of a text in which a tag such as [S01] stands before what each speaker says; none where it has no tag."""
    _, *parts = SPEAKER_TAG.split(text)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Utterance(speaker, said) for speaker, told in pairs if (said := " ".join(told.split())))


def _turns(rows: Iterable[Any]) -> tuple[Utterance, ...]:
    """Of rows that say so who says what."""
    told = [row for row in rows if isinstance(row, Mapping) and row.get("speaker") and row.get("text")]
    return tuple(Utterance(str(row["speaker"]), str(row["text"]).strip()) for row in told)


def _json(path: Path) -> Any:
    return _parsed(path.read_text(encoding="utf-8"), str(path))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RecipeError(f"{where} is no JSON: {error}.", remedy="Mend or download it again.") from None


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of `keys` under which something is said, as text; of a list its first."""
    for key in keys:
        value = row.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if value is not None and value != "" and not isinstance(value, list | Mapping):
            return str(value)
    return None


def _beside(path: Path, suffixes: tuple[str, ...]) -> Path | None:
    return next((each for suffix in suffixes if (each := path.with_suffix(suffix)).is_file()), None)


def find_samples(items: EvalSet, generated: Path) -> tuple[dict[EvalItem, Path], dict[str, str]]:
    """(item -> its sample below `generated`, item id -> what else could have been meant).

    A sample lies at SUBSET/NAME or NAME with any ending of picture or sound, and picture goes before sound; the release's
    ending of names is understood. Raises RecipeError where `generated` is no folder.
    """
    if not generated.is_dir():
        raise RecipeError(f"{generated} is no folder.", remedy="Give the folder with the generated samples.")
    there: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(generated.rglob("*")):
        if path.suffix.lower() in (*PICTURE_SUFFIXES, *SOUND_SUFFIXES):
            folder = path.parent.relative_to(generated).as_posix().removeprefix(".")
            there.setdefault((folder, path.stem.removesuffix(RELEASE_ENDING)), []).append(path)
    found: dict[EvalItem, Path] = {}
    ambiguous: dict[str, str] = {}
    for item in items.items:
        paths = there.get((item.subset, item.item_id)) or there.get(("", item.item_id)) or []
        ranked = sorted(paths, key=lambda path: (path.suffix.lower() not in PICTURE_SUFFIXES, path.name))
        if ranked:
            found[item] = ranked[0]
        if len([each for each in ranked if each.suffix.lower() in PICTURE_SUFFIXES]) > 1:
            ambiguous[item.item_id] = f"{ranked[0].name} taken, {', '.join(each.name for each in ranked[1:])} not"
    return found, ambiguous
