"""Folders of torch.distributed.checkpoint: written with a sum of every file, read without running what lies in them.

    .metadata     a pickle that the library would execute; here it is read into plain records, which may only be a few
                  known types, and checked against the files before a tensor is made
    *.distcp      pieces of tensors, each a torch.save that is read with weights_only=True
    state.json    of a training checkpoint: its notes, under `files` the bytes and CRC-32 of every other file, and its own sum

Entries that are no tensors are left out: the library would unpickle those without restriction.
"""

from __future__ import annotations

import json
import math
import pickle  # for its opcodes alone: `_PlainUnpickler` makes nothing but records
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
import torch.distributed.checkpoint as dcp
from isal.isal_zlib import crc32
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from schemas.errors import ModelError
from schemas.files import BLOCK_BYTES, write_whole

if TYPE_CHECKING:
    from upath import UPath

METADATA, NOTES, FILES, OWN_SUM = ".metadata", "state.json", "files", "crc32_of_the_rest"
RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "WindowsPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}  # fmt: skip
"""What a `.metadata` of torch 2.1 to 2.13 names. Nothing of it is called: each name becomes a record."""
TORN = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    MemoryError,
    OverflowError,
)
"""What unpickling raises for bytes that are no whole pickle, or not one of these names."""


class FileSum(TypedDict):
    """What a file must be."""

    num_bytes: int
    crc32: int


class _Record:
    """Stands for an object of a pickle: what it would have been made of."""

    def __init__(self, *made_of: Any) -> None:
        self.made_of = made_of
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _PlainUnpickler(pickle.Unpickler):
    """Makes numbers, strings, containers, dtypes and `_Record`s, of types made anew for each file; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """A type of records for the names in `RECORDS`; raises UnpicklingError for others."""
        if name in RECORDS.get(module, ()):
            return type(name, (_Record,), {})
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where the numbers of a chunk of a tensor lie."""

    file: str
    offset: int
    num_bytes: int


def read_metadata(directory: Path | UPath) -> Metadata:
    """The tensors of a DCP folder and where they lie. Raises ModelError when it is damaged or holds anything unusual.

    Every piece lies inside a file of the folder, and the pieces of a tensor are as many numbers as it has.
    """
    try:
        with (directory / METADATA).open("rb") as file:
            found = _PlainUnpickler(file).load()
        tensors = _tensors(found.state["state_dict_metadata"])
        pieces = {
            (str(key.state["fqn"]), _sizes(key.state["offset"])): _piece(place)
            for key, place in found.state["storage_data"].items()
            if str(key.state["fqn"]) in tensors
        }
    except TORN as error:
        raise ModelError(
            f"{directory / METADATA} is damaged, or not what torch.distributed.checkpoint writes "
            f"({type(error).__name__}: {error}).",
            remedy="Nothing of it was run. Take another checkpoint, or copy this one again.",
        ) from error
    _check(directory, tensors, pieces)
    storage = {
        MetadataIndex(name, offset): _StorageInfo(place.file, place.offset, place.num_bytes)
        for (name, offset), place in pieces.items()
    }
    return Metadata(state_dict_metadata=tensors, storage_data=storage)


def open_reader(directory: Path | UPath) -> dcp.FileSystemReader:
    """What `dcp.load` reads a folder with: the library's reader over `read_metadata`."""

    reader: Any = dcp.FileSystemReader
    if not isinstance(directory, Path):
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        reader = FsspecReader

    class PlainReader(reader):  # type: ignore[misc]
        """Reads tensors alone, from files of its folder alone."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            """See the module's `read_metadata`."""
            return read_metadata(directory)

    return PlainReader(directory if isinstance(directory, Path) else str(directory))


class SummedWriter(dcp.FileSystemWriter):  # type: ignore[misc]
    """Writes a DCP folder; rank 0 ends it with `state.json`: `notes`, and the sum of every file that any rank wrote.

    Each rank sums up its own files, which it reads back for that: out of memory, where the system has room.
    """

    def __init__(self, directory: Path, notes: dict[str, Any] | None) -> None:
        super().__init__(directory)
        self._directory, self._notes = directory, notes

    def stage(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The states as they are now, in host memory, each copied once: training may go on changing them.

        The library makes room for them by copying, then copies again. Of 728 tensors of 1.4 GB in host memory, on one core:
        0.15 s instead of 1.1 to 2.0; of 11 MB 0.013 s instead of 0.127.
        """
        self.per_thread_copy_ahead = 0  # as the library's `stage` has it: nothing is left to be copied from a GPU
        return {name: _in_host_memory(tensor) for name, tensor in state_dict.items()}

    def write_data(self, plan: Any, planner: Any) -> Any:
        """The library's, with the sums of the files as further results."""
        try:
            results = super().write_data(plan, planner).value()
        except RuntimeError as error:
            raise _as_the_system_says(error) from error
        names = sorted({result.storage_data.relative_path for result in results})
        sums = [WriteResult(MetadataIndex(name), 0, sum_of(self._directory / name)) for name in names]
        done: torch.futures.Future[Any] = torch.futures.Future()
        done.set_result([*results, *sums])
        return done

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """The library's; then the notes, by which a folder is known to be whole."""
        files: dict[str, Any] = {
            r.index.fqn: r.storage_data for rank in results for r in rank if isinstance(r.storage_data, dict)
        }
        super().finish(metadata, [[r for r in rank if not isinstance(r.storage_data, dict)] for rank in results])
        files[METADATA] = sum_of(self._directory / METADATA)
        content = json.loads(json.dumps({**(self._notes or {}), FILES: files}))
        write_whole(self._directory / NOTES, json.dumps({**content, OWN_SUM: _own_sum(content)}).encode())


def _in_host_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A copy; of a sharded tensor that of this rank's shard, which `DTensor.from_local` would move to the mesh's device."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    return DTensor(tensor.to_local().detach().to("cpu", copy=True), tensor._spec, requires_grad=False)


def _as_the_system_says(error: RuntimeError) -> Exception:
    """The refusal of the system behind an error of torch's archive writer, which tells of positions in a file instead."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError):
            return behind
        behind = behind.__cause__ or behind.__context__
    return error


def sum_of(path: Path | UPath) -> FileSum:
    """Bytes and CRC-32 of a file. Cost: one read of it; 48 GB are summed up per CPU second."""
    total, num_bytes = 0, 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            total, num_bytes = crc32(block, total), num_bytes + len(block)
    return {"num_bytes": num_bytes, "crc32": total}


def damage_of(checkpoint: Path | UPath, share: tuple[int, int] = (0, 1)) -> str:
    """What is wrong with the files of a training checkpoint, in a few words; empty when they are as they were written.

    `share` (number, of how many) sums up only that share of the files, for ranks that do it together. A checkpoint of a
    version that wrote no sums is checked by the sizes in its metadata. Raises OSError when a file cannot be read.
    """
    number, num_shares = share
    try:
        notes = json.loads((checkpoint / NOTES).read_bytes())
        files: dict[str, FileSum] = dict(notes.get(FILES, {}))
        if notes.pop(OWN_SUM, None) != (_own_sum(notes) if files else None):
            return f"{NOTES} has other content than was written (CRC-32)"
    except (ValueError, AttributeError, TypeError):
        return f"{NOTES} is not whole"
    except FileNotFoundError:
        return f"{NOTES} is missing"
    for name in sorted(files)[number::num_shares]:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        found = sum_of(checkpoint / name)
        if found["num_bytes"] != files[name]["num_bytes"]:
            return f"{name} has {found['num_bytes']:,} of {files[name]['num_bytes']:,} bytes"
        if found["crc32"] != files[name]["crc32"]:
            return f"{name} has other bytes than were written (CRC-32)"
    if number == 0:
        try:
            read_metadata(checkpoint)
        except ModelError as error:
            return error.message
        except FileNotFoundError:
            return f"{METADATA} is missing"
    return ""


def _own_sum(content: dict[str, Any]) -> int:
    total: int = crc32(json.dumps(content).encode())
    return total


def refuse_damage(checkpoint: Path, look: Callable[[Path], str] = damage_of) -> None:
    """Raises ModelError when `checkpoint` is the folder of a training checkpoint and `look` says that it is damaged."""
    if (checkpoint / NOTES).is_file() and (damage := look(checkpoint)):
        raise ModelError(
            f"{checkpoint} is damaged: {damage}.", remedy="Take the checkpoint before it, or copy this one again."
        )


def _tensors(given: Any) -> dict[str, TensorStorageMetadata]:
    tensors: dict[str, TensorStorageMetadata] = {}
    for name, record in given.items():
        if type(record).__name__ == "TensorStorageMetadata":
            properties = record.state["properties"].state
            dtype = properties[0] if isinstance(properties, tuple) else properties["dtype"]
            if not isinstance(dtype, torch.dtype):
                raise TypeError(f"tensor {name} has the dtype {dtype}")
            chunks = [
                ChunkStorageMetadata(torch.Size(_sizes(c.state["offsets"])), torch.Size(_sizes(c.state["sizes"])))
                for c in record.state["chunks"]
            ]
            size = torch.Size(_sizes(record.state["size"]))
            tensors[str(name)] = TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)
    return tensors


def _sizes(record: Any) -> tuple[int, ...]:
    """The numbers of a torch.Size."""
    numbers = tuple(record.made_of[0]) if record.made_of else ()
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"sizes {numbers}")
    return numbers


def _piece(record: Any) -> _Piece:
    state = record.state
    if state.get("transform_descriptors"):
        raise ValueError("its files are transformed")
    place = _Piece(state["relative_path"], state["offset"], state["length"])
    if not isinstance(place.file, str) or type(place.offset) is not int or type(place.num_bytes) is not int:
        raise TypeError(f"a piece lies at {place}")
    if Path(place.file).name != place.file or min(place.offset, place.num_bytes) < 0:
        raise ValueError(f"a piece lies at {place.offset} of {place.file!r}, which is no file of the folder")
    return place


def _check(
    directory: Path | UPath,
    tensors: dict[str, TensorStorageMetadata],
    pieces: dict[tuple[str, tuple[int, ...]], _Piece],
) -> None:
    """Raise ModelError where a tensor lacks pieces or a piece lacks bytes."""
    for name, tensor in tensors.items():
        held = [chunk for chunk in tensor.chunks if (name, tuple(chunk.offsets)) in pieces]
        if _count(chunk.sizes for chunk in held) != math.prod(tensor.size):
            raise ModelError(
                f"{directory / METADATA}: the pieces of {name} are not the {math.prod(tensor.size):,} numbers it has."
            )
    ends: dict[str, int] = {}
    for place in pieces.values():
        ends[place.file] = max(ends.get(place.file, 0), place.offset + place.num_bytes)
    for name, end in sorted(ends.items()):
        path = directory / name
        found = path.stat().st_size if path.is_file() else 0
        if found < end:
            raise ModelError(
                f"{path} is {'damaged' if path.is_file() else 'missing'}: it has {found:,} of at least {end:,} bytes.",
                remedy="Take another checkpoint, or copy this one again.",
            )


def _count(sizes: Iterable[Iterable[int]]) -> int:
    return sum(math.prod(size) for size in sizes)
