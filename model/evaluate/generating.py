"""Samples made from a set's prompts by a checkpoint, before they are scored: what is there is not made again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.evaluate.records import EvalItem, EvalSet
from model.evaluate.sets import find_samples
from model.sampling.config import SampleConfig
from schemas.errors import ModelError, RecipeError
from schemas.files import write_whole
from schemas.lines import lines_in, marked, plain_line

LOOK_EVERY_S = 2.0
"""How often the first rank looks for what the others have yet to write."""


@dataclass(frozen=True, slots=True)
class Making:
    """What makes the samples."""

    weights: Path
    config: SampleConfig

    def note(self) -> str:
        """What a report says of it."""
        config = self.config
        how = f"{config.num_steps} steps of {config.solver}, seed {config.seed}"
        return f"samples were made from the set's prompts by {self.weights}: {how}"


def caption_of(item: EvalItem) -> str | None:
    """What is asked of the network: the item's prompt, its sounds where that leaves them out, and what is said as a line.

    Where it is known who says what, every turn is a line of its own. None where nothing is known to make it from.
    """
    prompt = item.prompt if item.prompt != item.text else None
    parts = [prompt or ""]
    parts += [sound for sound in item.sounds if sound not in parts[0]]
    if item.text and not lines_in(parts[0]):
        parts += [marked(plain_line(text)) for text in (turn.text for turn in item.turns)] or [
            marked(plain_line(item.text))
        ]
    return " ".join(part.strip() for part in parts if part.strip()) or None


def generate_samples(
    given: EvalSet, source: Path, making: Making, generated: Path, prompts: Path, say: Callable[[str], None] = print
) -> bool:
    """Makes what is missing of the samples of `given` in `generated`; whether this is the first rank, which goes on.

    A Seed-TTS list, which `source` then is, is made as such: sound alone, as long as its rule says. Else `prompts` is
    written, JSON lines. Under torchrun every rank makes its share, and the first waits for all. Raises ModelError for
    prompts that cannot be generated, after all others, and RecipeError where samples of another checkpoint lie there.
    """
    from model.sampling.batch import generate_all, this_rank

    wanted = [item for item in given.items if caption_of(item) is not None]
    if not wanted:
        raise RecipeError(
            f"{given.name} says of no item what to make.", remedy="Give samples with --generated instead."
        )
    if given.form != "seedtts":
        write_whole(prompts, "".join(f"{line}\n" for line in _lines(wanted)).encode())
        source = prompts
    generated.mkdir(parents=True, exist_ok=True)
    _refuse_others(given, making, generated)
    written = generate_all(making.weights, making.config, source, generated, say)
    if latents := [path for path in written if path.suffix == ".safetensors"]:
        raise ModelError(
            f"{len(latents)} samples such as {latents[0]} are latents, which no metric sees or hears.",
            remedy="Give --codecs with the decoders of picture and sound.",
        )
    if this_rank()["number"]:
        return False
    _wait(given, wanted, generated, say)
    return True


def _lines(items: Sequence[EvalItem]) -> Iterator[str]:
    for item in items:
        caption = caption_of(item) or ""
        told: dict[str, object] = {"prompt": caption, "save_path": "/".join(filter(None, (item.subset, item.item_id)))}
        if item.first_frame is not None:
            told["image_path"] = str(item.first_frame.absolute())
        if item.voice is not None and item.voice.is_file():
            told["spk_wavs"] = [str(item.voice.absolute())] * len(lines_in(caption) or ())
        yield json.dumps(told, ensure_ascii=False)


def _refuse_others(given: EvalSet, making: Making, generated: Path) -> None:
    """Raises RecipeError where a sample says that it was made of other weights or another prompt."""
    for item, sample in find_samples(given, generated)[0].items():
        notes = sample.with_suffix(".json")
        told = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
        expected = {"weights": str(making.weights), "prompt": caption_of(item)}
        for name, value in expected.items():
            if told.get(name, value) != value:
                raise RecipeError(
                    f"{sample} was made of {name} {told[name]!r}, not of {value!r}.",
                    remedy="Name another folder with --generated, or take the samples there away.",
                )


def _wait(given: EvalSet, wanted: Sequence[EvalItem], generated: Path, say: Callable[[str], None]) -> None:
    """Until all samples are there. A rank that fails ends its launcher, and so this."""
    num_told = 0
    while num_missing := sum(item not in find_samples(given, generated)[0] for item in wanted):
        if num_missing != num_told:
            say(f"{num_missing} samples of other ranks are on their way")
            num_told = num_missing
        time.sleep(LOOK_EVERY_S)
