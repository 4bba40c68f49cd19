"""Objects of stores: asked again while the other side is away, and a store that stays away ends the run."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from schemas.errors import MachineError, MediaError
from stages import objects
from stages.media.decoder import Decoder
from stages.objects import at_store, fetch, leave, put
from stages.retry import RetryPolicy, TryAgainError

CLOSED = "127.0.0.1:9"
"""Nobody listens there."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "STORE", RetryPolicy(3, 0.0))


class FlakyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Resets the connection of as many requests for content as `num_resets` says."""

    protocol = "flaky"
    num_resets = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("flaky:/")))

    def _open(self, *args: Any, **kwargs: Any) -> Any:
        if FlakyFileSystem.num_resets:
            FlakyFileSystem.num_resets -= 1
            raise ConnectionResetError(errno.ECONNRESET, "reset by peer")
        return super()._open(*args, **kwargs)


@pytest.fixture
def flaky() -> str:
    """URL of an object behind a `FlakyFileSystem`."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    fsspec.filesystem("flaky").pipe_file("/assets/a.mp4", b"content")
    return "flaky://assets/a.mp4"


def test_an_asset_is_asked_for_again(flaky: str, tmp_path: Path) -> None:
    FlakyFileSystem.num_resets = 2
    assert Decoder(tmp_path).localise(flaky).read_bytes() == b"content"
    assert FlakyFileSystem.num_resets == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda path: Decoder(path.parent / "scratch").localise(f"webhdfs://{CLOSED}/a.mp4"),
        lambda path: put(path, f"webhdfs://{CLOSED}/a.mp4"),
        lambda path: leave(b"content", f"webhdfs://{CLOSED}/a.mp4"),
    ],
)
def test_a_store_that_is_away_ends_the_run(tmp_path: Path, ask: Any) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"content")
    with pytest.raises(
        MachineError, match=f"store that this run needs does not answer: .*{CLOSED}.*the same command goes on"
    ):
        ask(path)
    assert path.read_bytes() == b"content"


def test_a_full_disk_here_is_neither_the_stores_fault_nor_asked_again(flaky: str) -> None:
    asked: list[None] = []

    def once() -> None:
        asked.append(None)
        fetch(flaky, Path("/dev/full"))

    with pytest.raises(OSError, match="No space left") as caught:
        at_store(flaky, once)
    assert caught.value.errno == errno.ENOSPC
    assert len(asked) == 1


def test_what_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        Decoder(tmp_path).localise("memory://nothing/a.mp4")
    assert caught.value.reason == "asset_unreachable"
    assert list(tmp_path.iterdir()) == []


def test_what_back_ends_raise_of_their_own_is_the_other_sides() -> None:
    """aiohttp's errors are no OSErrors."""
    import aiohttp

    with pytest.raises(TryAgainError, match="payload"), objects.other_side():
        raise aiohttp.ClientPayloadError("half a payload")
