"""The weights of VideoReward in a folder: Qwen2-VL with what low-rank adapters (LoRA) add to it, and a head.

The release is checkpoint-*/model.pth, a state dict of peft with adapters beside the layers that they belong to. Training
also leaves adapter_model.safetensors and non_lora_state_dict.pth, which go on top of Qwen2-VL's own safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from schemas.errors import ModelError
from schemas.files import sha256_of
from schemas.networks.tensors import named_tensors, plain_state

if TYPE_CHECKING:
    from torch import Tensor

WHOLE, ADAPTER, BESIDE = "model.pth", "adapter_model.safetensors", "non_lora_state_dict.pth"
HEAD = "rm_head.weight"
PEFT = "base_model.model."
"""What peft puts before every name."""
FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
PLACES = (
    (re.compile(r"(?:model\.)?visual\."), "visual."),
    (re.compile(r"model\.(?:language_model\.)?"), "language_model."),
)
"""Names of transformers 4.45, which the release has, and later ones -> those of Qwen2VLModel."""
UNUSED = ("lm_head.",)
"""What says which word comes next: no part of an opinion."""


def checkpoint_of(folder: Path) -> Path:
    """The last checkpoint in the folder of a release. Raises ModelError where there is none."""
    found = {
        int(each.name.rpartition("-")[2]): each for each in folder.glob("checkpoint-*") if each.name[11:].isdigit()
    }
    if not found:
        raise ModelError(
            f"{folder} has no folder checkpoint-NUMBER.",
            remedy="Put the release of VideoReward there, as it is published.",
        )
    return found[max(found)]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, in the order in which later ones go over earlier ones. Raises ModelError."""
    checkpoint = checkpoint_of(folder)
    if (checkpoint / WHOLE).is_file():
        return [checkpoint / WHOLE]
    parts = [checkpoint / BESIDE, checkpoint / ADAPTER]
    if gone := [each.name for each in parts if not each.is_file()]:
        raise ModelError(
            f"{checkpoint} has neither {WHOLE} nor {', '.join(gone)}.", remedy="Copy the published checkpoint again."
        )
    if not (base := sorted(folder.glob("*.safetensors"))):
        raise ModelError(
            f"{folder} has adapters alone, without the network that they belong to.",
            remedy="Put the safetensors of Qwen2-VL-2B-Instruct there.",
        )
    return [*base, *parts]


def hashes(files: Iterable[Path]) -> str:
    """SHA-256 of each file, with commas between."""
    return ",".join(sha256_of(each)[0] for each in files)


def reward_state(folder: Path, lora: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """(tensors of Qwen2VLModel by its names, head [outputs, c]), all float32. Raises ModelError.

    `lora` is what the release's model_config.json says of the adapters: `lora_r`, `lora_alpha`, and `use_rslora`, which
    divides by the root of the rank instead of the rank (peft 0.10).
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        is_plain = path.suffix == ".pth"
        read = plain_state(path, is_mapped=is_zipfile(path)) if is_plain else named_tensors(path, ("",))
        tensors |= {name: each for name, each in read.items() if not name.removeprefix(PEFT).startswith(UNUSED)}
    rank = float(lora.get("lora_r") or 1)
    scale = float(lora.get("lora_alpha") or 0) / (rank**0.5 if lora.get("use_rslora") else rank)
    state: dict[str, Tensor] = {}
    for name, tensor in merged(tensors, scale, str(checkpoint_of(folder))).items():
        for found, place in PLACES:
            if (at := found.match(name)) is not None:
                state[place + name[at.end() :]] = tensor
                break
        else:
            state[name] = tensor
    if HEAD not in state:
        raise ModelError(f"{checkpoint_of(folder)} has no tensor '{HEAD}'.", remedy="Give the release of VideoReward.")
    return state, state.pop(HEAD)


def merged(tensors: Mapping[str, Tensor], scale: float, where: str) -> dict[str, Tensor]:
    """A state dict of peft as one without adapters, float32: each layer with an adapter is W + scale B A.

    A is [rank, in], B [out, rank]. Raises ModelError for an adapter that has no layer or only one of its halves.
    """
    factors: dict[tuple[str, str], Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = name.removeprefix(PEFT)
        if (factor := FACTOR.fullmatch(own)) is not None:
            factors[factor["layer"], factor["side"]] = tensor.float()
        elif ".original_module." not in own:
            plain[own.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = tensor.float()
    for layer in {layer for layer, _ in factors}:
        weight = f"{layer}.weight"
        parts = {"weight": plain.get(weight), "A": factors.get((layer, "A")), "B": factors.get((layer, "B"))}
        if lacking := [name for name, each in parts.items() if each is None]:
            raise ModelError(
                f"{where}: the adapter of {layer} lacks {' and '.join(lacking)}.", remedy="Copy the checkpoint again."
            )
        plain[weight] = plain[weight] + scale * (factors[layer, "B"] @ factors[layer, "A"])
    return plain
