"""DCP folders of strangers: nothing in them is run, nothing outside them is read, and what was damaged is named."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
)

from model.weights.dcp_files import SummedWriter, damage_of, open_reader, read_metadata, refuse_damage
from model.weights.formats import open_checkpoint
from schemas.errors import ModelError

TENSORS = {"model.a": torch.arange(12.0).view(3, 4), "ema.a": torch.zeros((), dtype=torch.bfloat16)}


class Payload:
    """What runs when it is unpickled: it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with sums and an entry that is no tensor."""
    writer = SummedWriter(tmp_path / "step-1", {"step": 1})
    dcp.save({**TENSORS, "extra": {"not": "a tensor"}}, storage_writer=writer, no_dist=True)
    return tmp_path / "step-1"


def change(folder: Path, edit: Callable[[Metadata], Any]) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(edit(metadata) or metadata))


def read(folder: Path) -> dict[str, torch.Tensor]:
    wanted = {name: torch.empty_like(tensor) for name, tensor in TENSORS.items()}
    dcp.load(wanted, storage_reader=open_reader(folder), no_dist=True)
    return wanted


def test_what_was_written_is_read_and_what_is_no_tensor_is_left_out(folder: Path) -> None:
    assert all(torch.equal(value, TENSORS[name]) for name, value in read(folder).items())
    assert set(read_metadata(folder).state_dict_metadata) == set(TENSORS)
    notes = json.loads((folder / "state.json").read_text())
    assert notes["step"] == 1
    assert set(notes["files"]) == {path.name for path in folder.iterdir()} - {"state.json"}
    assert damage_of(folder) == ""
    refuse_damage(folder)


@pytest.mark.parametrize("place", ["whole", "inside", "state", "a name of torch", "a name of builtins", "a class"])
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(
    folder: Path, tmp_path: Path, place: str
) -> None:
    mark = tmp_path / "ran"

    def hide(metadata: Metadata) -> Any:
        if place == "whole":
            return Payload(mark)
        if place == "inside":
            metadata.planner_data = {"x": [Payload(mark)]}
        elif place == "state":
            metadata.storage_meta.modules = [Payload(mark)]  # type: ignore[union-attr]
        return None

    change(folder, hide)
    named = {
        "a name of torch": b"ctorch\nload\n(S'%s'\ntR." % str(mark).encode(),
        "a name of builtins": b'cbuiltins\neval\n(S\'open("%s", "w")\'\ntR.' % str(mark).encode(),
        # sets attributes on a class that is allowed, so that later readers would call them
        "a class": b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N}S'__init__'\nctorch\nSize\nstb.",
    }
    if place in named:
        (folder / ".metadata").write_bytes(named[place])
    before = Metadata.__init__
    for look in (read_metadata, read, open_checkpoint):
        with pytest.raises((ModelError, dcp.api.CheckpointException), match="damaged, or not what"):
            look(folder)
    assert damage_of(folder)
    assert not mark.exists()
    assert Metadata.__init__ is before


def test_weights_that_are_called_bytes_are_not_unpickled_by_the_library(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save(Payload(mark), folder / "evil.distcp")

    def call_bytes(metadata: Metadata) -> None:
        metadata.state_dict_metadata["model.a"] = BytesStorageMetadata()
        place = next(place for key, place in metadata.storage_data.items() if key.fqn == "model.a")
        place.relative_path, place.offset, place.length = "evil.distcp", 0, (folder / "evil.distcp").stat().st_size
        metadata.storage_data[MetadataIndex("model.a")] = place

    change(folder, call_bytes)
    with pytest.raises(dcp.api.CheckpointException, match=r"Missing key.*model\.a"):
        read(folder)
    assert "a" not in open_checkpoint(folder).specs
    assert not mark.exists()


@pytest.mark.parametrize("path", ["../outside.distcp", "/etc/hostname", "sub/x.distcp"])
def test_pieces_lie_in_the_folder(folder: Path, path: str) -> None:
    shutil.copy(folder / "__0_0.distcp", folder.parent / "outside.distcp")

    def point_outside(metadata: Metadata) -> None:
        for place in metadata.storage_data.values():
            place.relative_path = path

    change(folder, point_outside)
    with pytest.raises(ModelError, match="no file of the folder"):
        read_metadata(folder)


def test_a_tensor_without_all_its_pieces_is_refused_not_filled_with_what_was_in_memory(folder: Path) -> None:
    def drop(metadata: Metadata) -> None:
        metadata.storage_data = {key: at for key, at in metadata.storage_data.items() if key.fqn != "model.a"}

    change(folder, drop)
    with pytest.raises(ModelError, match=r"the pieces of model\.a are not the 12 numbers"):
        read_metadata(folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json"])
@pytest.mark.parametrize(
    "how", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["cut", "flipped", "gone", "empty"]
)
def test_damage_is_seen_and_named(folder: Path, name: str, how: Callable[[Path], Any]) -> None:
    how(folder / name)
    assert name in damage_of(folder)
    if (folder / "state.json").exists():
        with pytest.raises(ModelError, match="is damaged"):
            refuse_damage(folder)


def test_ranks_share_the_looking(folder: Path) -> None:
    flip(folder / "__0_0.distcp")
    assert sorted(bool(damage_of(folder, (rank, 5))) for rank in range(5)) == [False] * 4 + [True]


def test_an_older_checkpoint_without_sums_is_judged_by_its_sizes(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 1}')
    assert damage_of(folder) == ""
    cut(folder / "__0_0.distcp")
    assert "__0_0.distcp is damaged" in damage_of(folder)
