"""What golden files may say in more ways than one: the order of a latent's axes, and whether the first frame is given."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import Tensor

from model.parity.golden import Golden

LATENT_NAME = re.compile(r"(in/video_latent_|in/target_video_|/out/video_)\d+$")
FIRST_FRAME_NAMES = r"(?:first_frame_is_clean|clean_first_frame|first_frame_clean|first_frame|is_ti2v|is_i2v|ti2v|i2v)"
"""What the argument is called in the official code and in descriptions of cases."""
GIVEN = re.compile(rf"\b{FIRST_FRAME_NAMES}\b\W*[=:]\s*(\[[^\]]*\]|\w+)", re.IGNORECASE)
CHANNELS_LAST = re.compile(r"\[?\(?\s*T\s*,\s*H\s*,\s*W\s*,\s*C\s*\)?\]?")
CHANNELS_FIRST = re.compile(r"\[?\(?\s*C\s*,\s*T\s*,\s*H\s*,\s*W\s*\)?\]?")


def channels_first(golden: Golden, num_channels: int) -> tuple[Golden, str]:
    """(the case with its video latents as [C, T, H, W], what they were read as; empty without any).

    The axis of `num_channels` decides, for each latent by itself. Where first and last both have that length, the latent's
    own description does, then that of the case, then the other latents of its kind (inputs, outputs), then [C, T, H, W].
    """
    latents = {name: _unbatched(tensor) for name, tensor in golden.tensors.items() if LATENT_NAME.search(name)}
    if not latents:
        return golden, ""
    described = golden.info.get("tensors", {})
    told = {name: _is_last(latents[name], num_channels, described.get(name, {}).get("meaning", "")) for name in latents}
    of_case = True if CHANNELS_LAST.search(str(golden.info.get("case", ""))) else None
    of_kind = {kind: next((last for n, last in told.items() if last is not None and _kind(n) == kind), of_case)
               for kind in ("in", "out")}  # fmt: skip
    is_last = {name: bool(of_kind[_kind(name)] if last is None else last) for name, last in told.items()}
    moved = {name: tensor.permute(3, 0, 1, 2) if is_last[name] else tensor for name, tensor in latents.items()}
    kinds = {f"{_kind(n)}puts": "[T, H, W, C]" if last else "[C, T, H, W]" for n, last in is_last.items()}
    orders = sorted(set(kinds.values()))
    note = orders[0] if len(orders) == 1 else ", ".join(f"{kind} {order}" for kind, order in sorted(kinds.items()))
    return replace(golden, tensors={**golden.tensors, **moved}), f"video latents read as {note}"


def _kind(name: str) -> str:
    return "in" if name.startswith("in/") else "out"


def _is_last(tensor: Tensor, num_channels: int, meaning: str) -> bool | None:
    """Whether a latent has its channels last; None where neither shape nor description tells."""
    could_be_first, could_be_last = (bool(tensor.shape[axis] == num_channels) for axis in (0, -1))
    if could_be_first != could_be_last:
        return could_be_last
    if CHANNELS_LAST.search(meaning):
        return True
    return False if CHANNELS_FIRST.search(meaning) else None


def first_frames(setting: str, info: dict[str, Any], num_samples: int) -> tuple[list[bool], str]:
    """(for each sample whether its first frame is given in this setting, where that was read).

    The setting's name, its description (`is_i2v=True`, `first_frame_is_clean: [true, false]`, "first-frame mode"), or a
    key of the case itself, in this order.
    """
    if re.search(r"first_frame|t?i2v", setting.lower()):
        return [True] * num_samples, f"{setting}: first frame given, as its name says"
    described = info.get("settings", {}).get(setting, "")
    if isinstance(described, dict):
        described = ", ".join(f"{key}={value}" for key, value in described.items())
    if found := GIVEN.search(str(described)):
        return _flags(found[1], num_samples), f"{setting}: {found[0].strip()}, as described"
    if re.search(r"first[ -]frame mode", str(described).lower()):
        return [True] * num_samples, f"{setting}: first frame given, as described"
    for key, value in info.items():
        if re.fullmatch(FIRST_FRAME_NAMES, key, re.IGNORECASE):
            return _flags(str(value), num_samples), f"{setting}: {key}={value}, as the case says"
    return [False] * num_samples, ""


def _flags(text: str, num_samples: int) -> list[bool]:
    """One flag per sample out of `True`, `1`, `[true, false]`."""
    flags = [word.lower() in ("true", "1", "yes") for word in re.findall(r"\w+", text)]
    return flags if text.startswith("[") and len(flags) == num_samples else [any(flags)] * num_samples


def _unbatched(tensor: Tensor) -> Tensor:
    return tensor[0] if tensor.dim() == 5 and tensor.shape[0] == 1 else tensor
