"""All prompts of a file, shared out over ranks: each generates its own, files are written whole, and the same command goes on.

OUT/NAME.mp4 (.wav, .safetensors)      OUT/NAME.json: the prompt, the caption it was rewritten to, seed, weights
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypedDict

from model.network.config import network_of
from model.ranks import make_team, open_world
from model.sampling.config import SampleConfig
from model.sampling.prompts import NamedPrompt, read_prompts
from model.sampling.rewrite import rewrite
from model.sampling.sample import Generator, target_of
from model.sampling.sampler import SampleRequest
from schemas.errors import MediaError, ModelError
from schemas.files import write_whole

CHUNK = 32
"""Prompts whose text is encoded at a time: with offloads_text the encoder changes places once for them."""


class Rank(TypedDict):
    """This process among those that share the prompts, as torchrun names them."""

    number: int
    size: int
    local: int


class ClipNotes(TypedDict):
    """What is written beside a clip."""

    prompt: str
    caption: str
    seed: int
    weights: str


def this_rank() -> Rank:
    """From the environment; alone where nothing started several."""
    number, size, local = (int(os.environ.get(name, default)) for name, default in
                           (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))  # fmt: skip
    return {"number": number, "size": size, "local": local}


def generate_all(
    weights: Path, config: SampleConfig, prompts: Path, out: Path, tell: Callable[[str], None] = print
) -> list[Path]:
    """The files that this rank wrote. Those that are there already are left alone.

    A prompt that cannot be generated is told and left out. Raises ModelError, naming them, after all others.
    """
    rank, members = this_rank(), config.ranks_per_clip
    if config.device == "cuda":
        config = config.model_copy(update={"device": f"cuda:{rank['local']}"})
    if members == 1:
        return _generate_mine(Generator(weights, config), prompts, out, rank, tell)
    num_heads = network_of(weights, config.network).num_heads
    if rank["size"] % members or num_heads % members:
        raise ModelError(
            f"{members} ranks cannot share a clip: they must divide the {rank['size']} ranks and the {num_heads} heads.",
            remedy="Set ranks_per_clip to a divisor of both.",
        )
    with open_world() as world:
        generator = Generator(weights, config, make_team(world, members))
        team: Rank = {**rank, "number": rank["number"] // members, "size": rank["size"] // members}
        return _generate_mine(generator, prompts, out, team, tell)


def _generate_mine(
    generator: Generator, prompts: Path, out: Path, rank: Rank, tell: Callable[[str], None]
) -> list[Path]:
    mine = read_prompts(prompts, generator.config.prompt, generator.network)[rank["number"] :: rank["size"]]
    suffix = ".wav" if prompts.suffix == ".lst" else ""
    targets = {each.name: target_of(out / f"{each.name}{suffix}", each.prompt.mode, generator.codecs) for each in mine}
    missing = [each for each in mine if not targets[each.name].exists()]
    if len(missing) < len(mine):
        tell(f"{len(mine) - len(missing)} of {len(mine)} clips are there already")
    written: list[Path] = []
    failed: list[str] = []
    for number, (each, made, request) in enumerate(_requests(generator, missing, failed, tell), start=1):
        target = targets[each.name]
        target.parent.mkdir(parents=True, exist_ok=True)
        generator.make(request, target)
        if generator.is_writing:
            write_whole(target.with_suffix(".json"), json.dumps(made, ensure_ascii=False, indent=1).encode())
            written.append(target)
        tell(f"{number}/{len(missing)} {target}")
    if failed:
        raise ModelError(f"{len(failed)} of {len(missing)} prompts could not be generated: {', '.join(failed[:5])}.")
    return written


def _requests(
    generator: Generator, prompts: Sequence[NamedPrompt], failed: list[str], tell: Callable[[str], None]
) -> Iterator[tuple[NamedPrompt, ClipNotes, SampleRequest]]:
    """What the network is asked, text encoded a chunk at a time; names of prompts that are refused go to `failed`."""
    waiting = iter(prompts)
    while chunk := list(islice(waiting, CHUNK)):
        ready: list[tuple[NamedPrompt, ClipNotes, SampleRequest]] = []
        for each in chunk:
            seed = generator.config.seed if each.seed is None else each.seed
            try:
                caption = each.prompt.caption
                if generator.config.rewrite is not None:
                    caption = rewrite(caption, generator.config.rewrite)
                prompt = each.prompt.model_copy(update={"caption": caption})
                request = generator.request(prompt, seed)
            except (ModelError, MediaError) as error:
                failed.append(each.name)
                tell(f"{each.name}: {error}")
                continue
            made: ClipNotes = {"prompt": each.prompt.caption, "caption": caption, "seed": seed,
                               "weights": str(generator.weights)}  # fmt: skip
            ready.append((each, made, request))
        generator.rest_encoder()
        yield from ready
