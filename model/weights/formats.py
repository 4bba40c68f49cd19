"""Checkpoints as they are read, one tensor at a time: safetensors, torch.save files, DCP directories.

    name     a parameter of `Nava.state_dict()`; files of the release write it as `backbone.<name>`
    source   anything with `specs` (name -> dtype and shape) and `read(names)`, which yields tensors in batches

Nothing here holds more than `BATCH_BYTES` of weights, or one tensor if that is larger, so 25 GB convert in little
memory. Files are opened again for every batch: closing a mapping is what gives its pages back.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from schemas.errors import ModelError
from schemas.networks.tensors import plain_state

BATCH_BYTES = 256 * 2**20
RELEASE_PREFIX = "backbone."
WEIGHTS, AVERAGE = "model.", "ema."
"""Sections of a training checkpoint: the weights themselves, and their running average."""
TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
SAFETENSORS_CODES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
DTYPES = {code: dtype for dtype, code in SAFETENSORS_CODES.items()} | {"F8_E4M3": torch.float8_e4m3fn}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is, without its numbers."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return int(math.prod(self.shape))

    @property
    def num_bytes(self) -> int:
        """Size in memory and in a file."""
        return self.num_elements * int(self.dtype.itemsize)


class TensorSource(Protocol):
    """A checkpoint that can be read piece by piece."""

    where: str
    specs: dict[str, TensorSpec]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors on the CPU, in the given order."""
        ...


def open_checkpoint(path: Path, section: str = WEIGHTS) -> TensorSource:
    """The checkpoint at `path`: a safetensors or torch file, a directory of safetensors shards, or a DCP directory.

    `section` chooses among the weights of a DCP directory. Raises ModelError if there is nothing of that kind.
    """
    if path.is_dir() and (path / ".metadata").exists():
        return DcpSource(path, section)
    if section != WEIGHTS:
        raise ModelError(f"{path} has no section '{section}'.", remedy="Give a training checkpoint (a DCP directory).")
    if path.is_dir():
        return SafetensorsSource(_shard_files(path), str(path))
    if not path.is_file():
        raise ModelError(f"No checkpoint at {path}.", remedy="Give a file or a directory that exists.")
    if path.suffix == ".safetensors":
        return SafetensorsSource([path], str(path))
    if path.suffix in TORCH_SUFFIXES:
        return TorchSource(path)
    raise ModelError(
        f"{path} is not a checkpoint this reads: its name ends in '{path.suffix}'.",
        remedy=f"Give .safetensors, one of {', '.join(TORCH_SUFFIXES)}, a directory of shards, or a DCP directory.",
    )


def _shard_files(directory: Path) -> list[Path]:
    """Safetensors files of a directory; those its index names if it has one."""
    indexes = sorted(directory.glob("*.safetensors.index.json"))
    if not indexes:
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{directory} holds neither .safetensors files nor a DCP checkpoint (.metadata).")
        return files
    if len(indexes) > 1:
        raise ModelError(f"{directory} holds {len(indexes)} indexes.", remedy="Give a directory with one checkpoint.")
    try:
        names = sorted(set(json.loads(indexes[0].read_bytes())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ModelError(
            f"{indexes[0]} is not a whole index of shards: {error}.", remedy="Copy the checkpoint again."
        ) from error
    if outside:
        raise ModelError(f"{indexes[0]} names files outside its folder: {_some(outside)}.")
    files = [directory / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(f"{indexes[0]} names shards that are not there: {_some(missing)}.")
    return files


class SafetensorsSource:
    """One or more safetensors files."""

    def __init__(self, files: list[Path], where: str) -> None:
        from safetensors import SafetensorError, safe_open

        self.where = where
        self.specs: dict[str, TensorSpec] = {}
        self._file_of: dict[str, Path] = {}
        for file in files:
            try:
                with safe_open(file, framework="pt") as handle:
                    for name in handle.keys():  # noqa: SIM118 (not a mapping)
                        piece = handle.get_slice(name)
                        self.specs[name] = TensorSpec(_dtype(piece.get_dtype(), name), tuple(piece.get_shape()))
                        self._file_of[name] = file
            except SafetensorError as error:
                raise ModelError(f"{file} is not a whole safetensors file: {error}.") from error

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, the files opened once per batch."""
        from safetensors import safe_open

        for batch in _batches(names, self.specs):
            for file, in_file in _grouped(batch, self._file_of):
                with safe_open(file, framework="pt") as handle:
                    for name in in_file:
                        yield name, handle.get_tensor(name)


class TorchSource:
    """A file of torch.save: a flat state dict, or one under the key 'state_dict' as the release's trainer writes it.

    Read with weights_only=True and memory-mapped; files of torch before 1.6 cannot be mapped and are refused.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        self.specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._load().items()}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, the file mapped once per batch."""
        for batch in _batches(names, self.specs):
            state = self._load()
            for name in batch:
                yield name, state.pop(name)

    def _load(self) -> dict[str, Tensor]:
        return plain_state(self._path)


class DcpSource:
    """A distributed checkpoint (torch.distributed.checkpoint): the tensors under `section`, or all if none is there."""

    def __init__(self, directory: Path, section: str = WEIGHTS) -> None:
        from model.weights.dcp_files import read_metadata

        self.where = str(directory)
        self._directory = directory
        stored = read_metadata(directory).state_dict_metadata
        tensors = {key: TensorSpec(item.properties.dtype, tuple(item.size)) for key, item in stored.items()}
        is_sectioned = any(key.startswith((WEIGHTS, section)) for key in tensors)
        self._section = section if is_sectioned else ""
        self.specs = {
            key.removeprefix(self._section): spec for key, spec in tensors.items() if key.startswith(self._section)
        }

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, put together from whatever pieces the ranks wrote."""
        import torch.distributed.checkpoint as dcp

        from model.weights.dcp_files import open_reader

        for batch in _batches(names, self.specs):
            wanted = {
                self._section + name: torch.empty(self.specs[name].shape, dtype=self.specs[name].dtype)
                for name in batch
            }
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as asked for by no_dist
                dcp.load(wanted, storage_reader=open_reader(self._directory), no_dist=True)
            for name in batch:
                yield name, wanted.pop(self._section + name)


class RenamedSource:
    """A source under other names: `names` maps ours to those of the source."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        self.where = source.where
        self.specs = {ours: source.specs[theirs] for ours, theirs in names.items()}
        self._source = source
        self._names = dict(names)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors under our names."""
        wanted = list(names)
        stored = self._source.read(self._names[name] for name in wanted)
        for name, (_, tensor) in zip(wanted, stored, strict=True):
            yield name, tensor


def without_prefix(source: TensorSource, prefix: str = RELEASE_PREFIX) -> TensorSource:
    """The source under plain parameter names: all of them carry the release's prefix, or none does."""
    prefixed = [name for name in source.specs if name.startswith(prefix)]
    if not prefixed:
        return source
    if len(prefixed) < len(source.specs):
        other = [name for name in source.specs if not name.startswith(prefix)]
        raise ModelError(
            f"{source.where}: {len(prefixed)} tensors are named '{prefix}...', {len(other)} are not: {_some(other)}.",
            remedy="A NAVA checkpoint holds only the network; remove what is not part of it.",
        )
    return RenamedSource(source, {name.removeprefix(prefix): name for name in prefixed})


def check_tensors(found: Mapping[str, TensorSpec], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise ModelError unless names and shapes are exactly the expected ones; it counts and shows each kind of miss."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} has {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if not (missing or unexpected or misshapen):
        return
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    listed = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names)
    raise ModelError(f"{where} does not fit the network. {listed}.", remedy=_remedy(found, unexpected))


def _remedy(found: Mapping[str, TensorSpec], unexpected: list[str]) -> str:
    if "blocks.0.self_attn.q.weight" in found:
        return "These are the names of Wan2.2: convert it with --from wan."
    if any(".ffn_audio." in name for name in unexpected):
        return "It was trained with one FFN per stream (no_split_norm_ffn: false), which is not the released layout."
    return "Name the network that the checkpoint was trained with (--model, or the recipe's network)."


def _dtype(code: str, name: str) -> torch.dtype:
    if code not in DTYPES:
        raise ModelError(f"Tensor {name} is stored as {code}; NAVA's weights are one of {', '.join(DTYPES)}.")
    return DTYPES[code]


def _batches(names: Iterable[str], specs: Mapping[str, TensorSpec]) -> Iterator[list[str]]:
    """The names in order, in runs of at most BATCH_BYTES."""
    batch: list[str] = []
    num_bytes = 0
    for name in names:
        if batch and num_bytes + specs[name].num_bytes > BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
        batch.append(name)
        num_bytes += specs[name].num_bytes
    if batch:
        yield batch


def _grouped(names: list[str], file_of: Mapping[str, Path]) -> Iterator[tuple[Path, list[str]]]:
    """Runs of neighbouring names that lie in one file."""
    run: list[str] = []
    for name in names:
        if run and file_of[name] != file_of[run[0]]:
            yield file_of[run[0]], run
            run = []
        run.append(name)
    if run:
        yield file_of[run[0]], run


def _some(names: list[str] | str, limit: int = 4) -> str:
    if isinstance(names, str):
        return names
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
