"""Published weights in one file, as tensors by their published names: networks here are functions of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from re import Pattern
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from schemas.errors import ModelError
from schemas.files import sha256_of

if TYPE_CHECKING:
    from torch import Tensor


def named_tensors(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names begin so. Raises ModelError for a file that is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys() if name.startswith(prefixes)}  # noqa: SIM118
    except (SafetensorError, FileNotFoundError) as error:
        raise ModelError(f"{path} is not a whole safetensors file: {error}.", remedy="Copy it again.") from error


SECTIONS = ("state_dict", "model", "params")
"""Keys under which trainers put a state dict beside what else they keep."""


def plain_content(path: Path, *, is_mapped: bool = True) -> Any:
    """What a file of torch.save holds, mapped or read whole. No code in it is run; what torch before 1.6 wrote cannot be mapped.

    Raises ModelError for one that holds more than tensors, numbers and texts.
    """
    import torch
    from torch._weights_only_unpickler import UnpicklingError

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except (RuntimeError, UnpicklingError, EOFError, LookupError, ValueError, TypeError, FileNotFoundError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        cause = next((line for line in said if "Unsupported" in line or "GLOBAL" in line), said[0])
        raise ModelError(
            f"{path} cannot be read as plain weights: {cause.strip()}",
            remedy="Save it again with a current torch.save, tensors and numbers only, or as safetensors.",
        ) from error


def plain_state(path: Path, sections: Sequence[str] = ("state_dict",), *, is_mapped: bool = True) -> dict[str, Tensor]:
    """The tensors of a file of torch.save by name: a flat state dict, or one under a key of `sections`.

    Raises ModelError for what cannot be read and for what is no state dict.
    """
    import torch

    content = plain_content(path, is_mapped=is_mapped)
    state = content
    if isinstance(content, dict):
        state = next((content[name] for name in sections if name in content), content)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        found = ", ".join(sorted(map(str, content))[:4]) if isinstance(content, dict) else type(content).__name__
        told = " or ".join(f"'{name}'" for name in sections)
        raise ModelError(f"{path}: expected a state dict, or one under {told}; found {found}.")
    return state


class TensorFile:
    """A state dict on disk, safetensors or a torch file of plain tensors, of which some parts are read when first asked."""

    def __init__(self, path: Path, prefixes: Iterable[str] = ("",), device: str = "cpu") -> None:
        self.path, self.device = path, device
        self._prefixes = tuple(prefixes)

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return sha256_of(self.path)[0]

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        if self.path.suffix == ".safetensors":
            found = named_tensors(self.path, self._prefixes)
        else:
            found = {
                name: each
                for name, each in plain_state(self.path, SECTIONS, is_mapped=is_zipfile(self.path)).items()
                if name.startswith(self._prefixes)
            }
        return {name: tensor.float().to(self.device) for name, tensor in found.items()}

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of a published name, float32. Raises ModelError where the file has none."""
        found = self._tensors.get(name)
        if found is None:
            raise ModelError(
                f"{self.path} has no tensor '{name}'.",
                remedy="Give the published file, or the same names in safetensors.",
            )
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def num_blocks(self, prefix: str) -> int:
        """How many numbers follow `prefix` in names, such as blocks of a transformer."""
        return len(self.numbers(prefix))

    def numbers(self, prefix: str) -> list[int]:
        """The numbers that follow `prefix` in names, in order: layers that have tensors."""
        found = {name.removeprefix(prefix).partition(".")[0] for name in self._tensors if name.startswith(prefix)}
        return sorted(map(int, found))

    def names(self, layer: Pattern[str], num: int) -> list[str]:
        """The layers whose names fit `layer`, in the order of the number in it. Raises ModelError unless they are `num`."""
        found = {name.rpartition(".")[0] for name in self._tensors if layer.fullmatch(name.rpartition(".")[0])}
        if len(found) != num:
            raise ModelError(f"{self.path}: expected {num} layers {layer.pattern}, got {len(found)}.")
        return sorted(found, key=lambda name: int(name.rpartition(".")[2]))

    def linear(self, given: Tensor, name: str) -> Tensor:
        """`given` [..., i] -> [..., o] through the layer of that name, with its bias if it has one."""
        from torch.nn.functional import linear

        return linear(given, self[f"{name}.weight"], self[bias] if (bias := f"{name}.bias") in self else None)

    def layer_norm(self, given: Tensor, name: str, eps: float = 1e-6) -> Tensor:
        """`given` [..., c] normalised over its channels by the layer of that name."""
        from torch.nn.functional import layer_norm

        return layer_norm(given, given.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)

    def batch_norm(self, given: Tensor, name: str) -> Tensor:
        """`given` [n, c, ...] scaled by the means and deviations that the layer of that name has seen."""
        from torch.nn.functional import batch_norm

        mean, variance, weight, bias = (
            self[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return batch_norm(given, mean, variance, weight, bias)

    def mlp(self, given: Tensor, name: str) -> Tensor:
        """`given` [..., c] through the two layers `fc1` and `fc2` of that name with a GELU between."""
        from torch.nn.functional import gelu

        return self.linear(gelu(self.linear(given, f"{name}.fc1")), f"{name}.fc2")


def attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """[n, q, c] of queries [n, q, c], keys and values [n, k, c], by heads that lie side by side in the channels."""
    from torch.nn.functional import scaled_dot_product_attention

    query, key, value = (part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
