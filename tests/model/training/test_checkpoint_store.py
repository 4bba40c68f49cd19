"""Checkpoints under a URL: published by their last object, found damaged, rotated, and gone on from, as in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import Tensor

from model.data import retry
from model.ranks import World, open_world
from model.training.config import load_stages
from model.training.state import Checkpoints, load_tensors, read_notes
from schemas.errors import ModelError, RecipeError
from tests.pipeline.flaky_store import BUCKET, Faults, flaky_store

FILES = fsspec.filesystem("memory")
ROOT = "/bucket/run"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """This process alone."""
    with open_world() as opened:
        yield opened


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty place in memory, which nobody waits for."""
    monkeypatch.setattr(retry, "WAITS_S", (0.0,) * 2)
    yield f"memory:/{ROOT}"
    if FILES.exists(ROOT):
        FILES.rm(ROOT, recursive=True)


def states(step: int) -> dict[str, Tensor]:
    return {"model.a": torch.full((4, 3), float(step)), "ema.a": torch.arange(5.0) + step}


def saved(url: str, world: World, *steps: int, **options: Any) -> Checkpoints:
    """Checkpoints of these steps, each proven sound by the next."""
    checkpoints = Checkpoints(url, world, **options)
    for step in steps:
        checkpoints.prove(step)
        checkpoints.save(step, states(step), {"step": step})  # type: ignore[typeddict-item]
        assert not checkpoints.finish()
    return checkpoints


def held() -> list[str]:
    return sorted(path.removeprefix(f"{ROOT}/") for path in FILES.find(ROOT))


@pytest.mark.parametrize("is_asynchronous", [True, False])
def test_what_was_put_is_read_again(url: str, world: World, is_asynchronous: bool) -> None:
    saved(url, world, 2, 4, is_asynchronous=is_asynchronous)
    names = (".metadata", "__0_0.distcp", "state.json")
    assert held() == ["good", *(f"step-0000000{step}/{name}" for step in (2, 4) for name in names)]
    found = Checkpoints(url, world).newest()
    assert found is not None
    assert str(found) == f"{url}/step-00000004"
    assert read_notes(found)["step"] == 4
    tensors = {name: torch.zeros_like(value) for name, value in states(4).items()}
    load_tensors(found, tensors, world)
    assert all(torch.equal(tensors[name], value) for name, value in states(4).items())
    with pytest.raises(ModelError, match=r"1 of 1 tensors.*first is model\.other"):
        load_tensors(found, {"model.other": torch.zeros(1)}, world)


def flipped(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 4]) + content[len(content) // 2 + 1 :]


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes] | None]] = {
    "states flipped": ("__0_0.distcp", flipped),
    "states cut": ("__0_0.distcp", lambda content: content[:-100]),
    "states gone": ("__0_0.distcp", None),
    "metadata torn": (".metadata", lambda content: content[:-100]),
    "notes torn": ("state.json", lambda content: content[:-10]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_one_is_set_aside_and_the_one_before_taken(
    url: str, world: World, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(url, world, 1, 2, 3)
    name, how = DAMAGES[damage]
    path = f"{ROOT}/step-00000003/{name}"
    if how is None:
        FILES.rm(path)
    else:
        FILES.pipe_file(path, how(FILES.cat_file(path)))
    found = Checkpoints(url, world).newest()
    assert str(found) == f"{url}/step-00000002"
    (said,) = capsys.readouterr().out.splitlines()
    assert "step-00000003 is damaged: " in said
    assert name in said
    assert "step-00000003/damaged-state.json" in held()
    again = saved(url, world, 3)
    assert str(again.newest()) == f"{url}/step-00000003", "its step is written again, over what was damaged"
    assert "step-00000003/damaged-state.json" not in held()


def test_nothing_whole_is_an_error_and_not_a_new_beginning(url: str, world: World) -> None:
    checkpoints = saved(url, world, 1, 2)
    for step in (1, 2):
        FILES.rm(f"{ROOT}/step-0000000{step}/__0_0.distcp")
    with pytest.raises(
        ModelError, match=r"no checkpoint in memory://.* is whole; the last one tried: __0_0\.distcp is"
    ):
        checkpoints.newest()
    assert "good" not in held()


def test_the_newest_the_regular_and_the_last_sound_one_stay(url: str, world: World) -> None:
    checkpoints = Checkpoints(url, world, num_kept=1, keep_every_steps=4)
    for step in range(1, 9):
        if step <= 3:
            checkpoints.prove(step)
        checkpoints.save(step, states(step), None)
        checkpoints.finish()
    assert {path.partition("/")[0] for path in held()} == {"good", "step-00000002", "step-00000004", "step-00000008"}
    assert FILES.cat_file(f"{ROOT}/good") == b"step-00000002"


class Refusing(MemoryFileSystem):  # type: ignore[misc]
    """Takes no object of some names, for good or a few times."""

    protocol = "refusing"
    refused = ""
    num_refusals = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("refusing://", "memory://"))

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        """The library's, or a refusal."""
        if Refusing.refused and rpath.endswith(Refusing.refused) and Refusing.num_refusals:
            Refusing.num_refusals -= 1
            raise OSError(5, "the store is away")
        super().put_file(lpath, rpath, **options)


@pytest.mark.filterwarnings("ignore:UPath 'refusing'")
@pytest.mark.parametrize("refused", [".distcp", ".metadata", "state.json"])
def test_what_could_not_be_put_is_said_removed_and_tried_again(
    url: str, world: World, refused: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    where = url.replace("memory", "refusing")
    checkpoints = saved(where, world, 1)
    monkeypatch.setattr(Refusing, "refused", refused)
    Refusing.num_refusals = 100
    checkpoints.save(2, states(2), {"step": 2})  # type: ignore[typeddict-item]
    assert "cannot be written" in checkpoints.finish()
    assert checkpoints.has_failed
    assert {path.partition("/")[0] for path in held()} == {"step-00000001"}
    assert "the checkpoint of step 2 could not be written to refusing://" in capsys.readouterr().out
    Refusing.num_refusals = 2
    checkpoints.save(2, states(2), {"step": 2})  # type: ignore[typeddict-item]
    assert not checkpoints.finish(), "a store that is away for a moment is waited for"
    found = checkpoints.newest()
    assert found is not None
    assert found.name == "step-00000002"


def test_a_kill_before_the_last_object_leaves_nothing_that_counts(url: str, world: World) -> None:
    saved(url, world, 1, 2)
    FILES.rm(f"{ROOT}/step-00000002/state.json")
    found = Checkpoints(url, world).newest()
    assert found is not None
    assert found.name == "step-00000001"
    assert not [path for path in held() if path.startswith("step-00000002")]


def test_a_url_that_nothing_opens_is_refused_with_what_to_do(world: World) -> None:
    with pytest.raises(RecipeError, match="no checkpoints can be kept at nothing://x"):
        Checkpoints("nothing://x/y", world)


def test_stages_are_refused_where_the_next_could_not_begin_from_the_store() -> None:
    with pytest.raises(
        RecipeError, match=r"stage 1 keeps its checkpoints at memory://x, where the next cannot begin from"
    ):
        load_stages("three_stages", ["output.checkpoints=memory://x"])


@pytest.mark.slow
def test_on_s3_that_fails_now_and_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on loopback; every seventh request or so is refused, or its answer lost."""
    monkeypatch.setattr(retry, "WAITS_S", (0.0,) * 5)
    with flaky_store() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir(BUCKET)
        store.choose(Faults(seed=1, share=0.15))
        where = f"s3://{BUCKET}/run"
        saved(where, world, 1, 2, 3, num_kept=2)
        found = Checkpoints(where, world).newest()
        assert str(found) == f"{where}/step-00000003"
        tensors = {name: torch.zeros_like(value) for name, value in states(3).items()}
        load_tensors(found, tensors, world)
        assert all(torch.equal(tensors[name], value) for name, value in states(3).items())
        assert store.seen().faults
        fsspec.get_filesystem_class("s3").clear_instance_cache()
