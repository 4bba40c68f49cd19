"""Writing checkpoints: NAVA to NAVA in any of its containers, and Wan2.2-TI2V-5B into the video half of a new network.

The block assignment of the warm start (Wan blocks 0-9 to the alignment layers, 10-29 to the fusion layers) is inferred
from agreeing shapes and the paper's "corresponding layers"; the release names a converted file, it ships no converter.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.network.config import NavaConfig
from model.network.float8 import with_scales
from model.network.lora import merged
from model.weights.float8_files import widened
from model.weights.formats import (
    AVERAGE,
    RELEASE_PREFIX,
    SAFETENSORS_CODES,
    WEIGHTS,
    RenamedSource,
    TensorSource,
    TensorSpec,
    check_tensors,
    open_checkpoint,
    without_prefix,
)
from schemas.errors import ModelError
from schemas.files import open_whole, whole_dir, write_whole

WAN_SHARED = ("patch_embedding.", "text_embedding.", "time_embedding.", "time_projection.", "head.")
Layout = Literal["nava", "ema", "wan"]
Container = Literal["safetensors", "dcp"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion wrote."""

    num_tensors: int
    num_parameters: int
    num_bytes: int
    num_fresh_parameters: int
    files: tuple[Path, ...]


def expected_tensors(config: NavaConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network's parameters, counted on the meta device."""
    from model.network.nava import Nava

    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Nava(config).state_dict().items()}


def wan_name(name: str, config: NavaConfig) -> str | None:
    """The tensor of Wan2.2-TI2V-5B that starts parameter `name`; None for what only NAVA has (sound, voices)."""
    block = re.fullmatch(r"(double|single)_blocks\.(\d+)\.(.+)", name)
    if block is None:
        return name if name.startswith(WAN_SHARED) else None
    stack, index, part = block[1], int(block[2]), block[3]
    if "_audio." in part:
        return None
    wan_index = index + (config.num_align_layers if stack == "single" else 0)
    return f"blocks.{wan_index}.{part.replace('modulation.modulation', 'modulation')}"


def open_weights(path: Path, config: NavaConfig, section: str = WEIGHTS) -> TensorSource:
    """The NAVA checkpoint at `path` under plain parameter names, checked against the network. Raises ModelError.

    One that holds only what was trained beside frozen weights is completed by the weights that it says it began with.
    """
    source = without_prefix(widened(open_checkpoint(path, section)))
    if (frozen := frozen_part(path)) is not None:
        source = PartialSource(source, open_weights(frozen.weights, config), frozen.lora_scale)
    check_tensors(source.specs, expected_tensors(config), source.where)
    return source


def load_weights(model: torch.nn.Module, path: Path, config: NavaConfig) -> None:
    """Fill `model` in place from the checkpoint at `path`, in the model's own dtype and device. Raises ModelError."""
    from model.weights.dcp_files import refuse_damage

    refuse_damage(path)
    source = open_weights(path, config)
    with torch.no_grad():
        parameters = dict(model.state_dict(keep_vars=True))
        stored = source.read(name for name in parameters if name in source.specs)
        for name, value in with_scales(stored, parameters):
            parameters[name].copy_(value)


def convert(
    source_path: Path,
    target: Path,
    config: NavaConfig,
    *,
    layout: Layout = "nava",
    container: Container = "safetensors",
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
    seed: int = 0,
) -> Conversion:
    """Write the checkpoint at `source_path` to `target`, tensor by tensor, and say what was written.

    layout           what to take of the source: NAVA's weights, the running average that a training checkpoint keeps of
                     them (ema), or Wan2.2-TI2V-5B's as a warm start (the rest is initialised with `seed`)
    container        safetensors (a file, or with `max_shard_bytes` a directory of shards and its index) or DCP
    dtype            stored type; None keeps the source's

    Names and shapes must be exactly the network's, else ModelError. `target` must not exist; it appears when whole.
    """
    from model.weights.dcp_files import refuse_damage

    if target.exists():
        raise ModelError(f"{target} exists already.", remedy="Remove it or choose another name.")
    refuse_damage(source_path)
    if layout == "wan":
        source: TensorSource = WarmStart(open_checkpoint(source_path), config, seed)
    else:
        source = open_weights(source_path, config, AVERAGE if layout == "ema" else WEIGHTS)
    specs = {
        name: TensorSpec(dtype or source.specs[name].dtype, source.specs[name].shape)
        for name in expected_tensors(config)
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    if container == "dcp":
        files = [_write_dcp(target, specs, source)]
    elif max_shard_bytes is None:
        files = [write_safetensors(target, specs, _cast(source, specs, specs))]
    else:
        files = _write_shards(target, specs, source, max_shard_bytes)
    fresh = source.fresh if isinstance(source, WarmStart) else ()
    return Conversion(
        num_tensors=len(specs),
        num_parameters=sum(spec.num_elements for spec in specs.values()),
        num_bytes=sum(spec.num_bytes for spec in specs.values()),
        num_fresh_parameters=sum(specs[name].num_elements for name in fresh),
        files=tuple(files),
    )


@dataclass(frozen=True, slots=True)
class FrozenPart:
    """What a checkpoint of trained weights alone goes with."""

    weights: Path
    lora_scale: float


def frozen_part(checkpoint: Path) -> FrozenPart | None:
    """What the weights of a training checkpoint were trained beside; None for checkpoints that hold everything."""
    notes = checkpoint / "state.json"
    if not notes.is_file():
        return None
    recipe = json.loads(notes.read_bytes()).get("recipe", {})
    network = recipe.get("network", {}) if isinstance(recipe, dict) else {}
    lora = network.get("lora")
    if not (lora or network.get("train_only")):
        return None
    return FrozenPart(Path(network["weights"]), lora["alpha"] / lora["rank"] if lora else 0.0)


class PartialSource:
    """A network of which some weights were trained, by themselves or by adapters, beside frozen ones; adapters added in."""

    def __init__(self, trained: TensorSource, frozen: TensorSource, lora_scale: float) -> None:
        self.where = f"{trained.where} with {frozen.where}"
        self.specs = dict(frozen.specs)
        self._trained, self._frozen, self._scale = trained, frozen, lora_scale

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors."""
        held = self._trained.specs
        for name in names:
            stem = name.removesuffix("weight")
            adapters = [f"{stem}lora_a", f"{stem}lora_b"]
            (_, value), *_ = (self._trained if name in held else self._frozen).read([name])
            if name.endswith("weight") and adapters[0] in held:
                (_, lora_a), (_, lora_b) = self._trained.read(adapters)
                value = merged(value, lora_a, lora_b, self._scale)
            yield name, value.to(self.specs[name].dtype)


class WarmStart:
    """A Wan2.2-TI2V-5B checkpoint seen as a NAVA network: the video half from it, the rest freshly initialised.

    Raises ModelError unless every tensor of the Wan checkpoint has a place, with the right shape.
    """

    def __init__(self, wan: TensorSource, config: NavaConfig, seed: int) -> None:
        from model.network.nava import Nava

        expected = expected_tensors(config)
        names = {name: wan_name(name, config) for name in expected}
        taken = {name: theirs for name, theirs in names.items() if theirs is not None}
        check_tensors(wan.specs, {theirs: expected[name] for name, theirs in taken.items()}, wan.where)
        self.where = wan.where
        self.fresh = tuple(name for name in expected if name not in taken)
        self._wan = RenamedSource(wan, taken)
        with torch.device("meta"):
            self._network = Nava(config)
        self._seed = seed
        self.specs = self._wan.specs | {name: TensorSpec(torch.float32, expected[name]) for name in self.fresh}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors; a fresh one depends only on the seed and its own name."""
        for name in names:
            if name in self._wan.specs:
                yield from self._wan.read([name])
            else:
                yield name, self._initialise(name)

    def _initialise(self, name: str) -> Tensor:
        """The tensor as `Nava.init_weights` fills it: only its own module is given memory, the rest has shapes only."""
        owner = self._network.get_submodule(name.rpartition(".")[0])
        owner.to_empty(device="cpu", recurse=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed ^ zlib.crc32(name.encode()))
            self._network.init_weights()
        value: Tensor = self._network.get_parameter(name).detach()
        owner.to_empty(device="meta", recurse=False)
        return value


def write_safetensors(
    path: Path, specs: Mapping[str, TensorSpec], tensors: Iterable[tuple[str, Tensor]], prefix: str = RELEASE_PREFIX
) -> Path:
    """`path`, written as one safetensors file from tensors that arrive in the order of `specs`.

    The library's own writer wants every tensor in memory; the format (8 bytes of header length, JSON, raw little-endian
    numbers back to back) lets them pass one at a time. The file gets its name only when it is whole.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.num_bytes
        header[prefix + name] = {
            "dtype": SAFETENSORS_CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open_whole(path) as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for (name, spec), (arrived, tensor) in zip(specs.items(), tensors, strict=True):
            if arrived != name or TensorSpec(tensor.dtype, tuple(tensor.shape)) != spec:
                raise ModelError(f"{path}: expected {name} {spec}, got {arrived} {tensor.dtype} {list(tensor.shape)}.")
            file.write(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return path


def _cast(source: TensorSource, names: Iterable[str], specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in source.read(names):
        yield name, tensor.to(specs[name].dtype)


def _write_shards(
    directory: Path, specs: Mapping[str, TensorSpec], source: TensorSource, max_shard_bytes: int
) -> list[Path]:
    """Shards of at most `max_shard_bytes` (or one tensor) and the index that Hugging Face tools read."""
    shards: list[dict[str, TensorSpec]] = [{}]
    for name, spec in specs.items():
        held = sum(other.num_bytes for other in shards[-1].values())
        if shards[-1] and held + spec.num_bytes > max_shard_bytes:
            shards.append({})
        shards[-1][name] = spec
    weight_map: dict[str, str] = {}
    with whole_dir(directory) as partial:
        for number, shard in enumerate(shards, start=1):
            file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            write_safetensors(partial / file_name, shard, _cast(source, shard, specs))
            weight_map |= {RELEASE_PREFIX + name: file_name for name in shard}
        total = sum(spec.num_bytes for spec in specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_whole(partial / "model.safetensors.index.json", json.dumps(index, indent=1).encode())
    return [directory / file_name for file_name in sorted(set(weight_map.values()))]


def _write_dcp(directory: Path, specs: Mapping[str, TensorSpec], source: TensorSource) -> Path:
    """A distributed checkpoint with the weights under `model.`, one file per tensor so that only one is held."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    stream = _cast(source, specs, specs)

    class StreamingPlanner(DefaultSavePlanner):  # type: ignore[misc]
        """Plans with empty tensors; reads each one when its turn to be written comes, which is the planned order."""

        def resolve_data(self, write_item: Any) -> Tensor:
            name, tensor = next(stream)
            if WEIGHTS + name != write_item.index.fqn:
                raise ModelError(f"{directory}: writing {write_item.index.fqn}, but {name} came next.")
            return tensor

    planned = {WEIGHTS + n: torch.empty(s.shape, dtype=s.dtype, device="meta") for n, s in specs.items()}
    with whole_dir(directory) as partial:
        writer = dcp.FileSystemWriter(partial, single_file_per_rank=False)
        dcp.save(planned, storage_writer=writer, planner=StreamingPlanner(), no_dist=True)
    return directory
