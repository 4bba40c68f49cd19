"""Shards on a server that is busy, cuts answers short, or is away for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from model.data.index import ShardIndex
from model.data.reader import PackLoader, SampleReader, decode_latents, open_shards
from model.data.retry import patiently
from schemas.errors import MachineError, ShardError
from tests.model.data.test_reader import make_plan, take, write_shards
from tests.model.latent_shards import random_clip, write_latent_shards


class Server(ThreadingHTTPServer):
    """Files of a folder by byte range; of every `period` requests the first `bad` are answered as `fault` says."""

    folder: Path
    fault = "503"
    period, bad = 3, 1
    num_requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, has_body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/").partition("?")[0]
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        given = self.headers.get("Range")
        if given:
            first, _, last = given.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last or len(data)) + 1]
        self.server.num_requests += 1
        is_bad = (self.server.num_requests - 1) % self.server.period < self.server.bad
        if is_bad and self.server.fault.isdigit():
            self.send_error(int(self.server.fault))
            return
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if has_body:
            self.wfile.write(data[: len(data) // 2] if is_bad and self.server.fault == "cut" else data)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of the folder `served`."""
    (tmp_path / "served").mkdir()
    with Server(("127.0.0.1", 0), Handler) as server:
        server.folder = tmp_path / "served"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.data.retry.WAITS_S", (0.0,) * 4)


@pytest.mark.parametrize("fault", ["503", "429", "cut"])
@pytest.mark.slow
def test_every_third_answer_may_be_bad(server: Server, fault: str) -> None:
    index = write_shards(server.folder)
    server.fault = fault
    expected = take(
        PackLoader(make_plan(index).stream(), SampleReader(index, open_shards(server.folder)), decode_latents), 12
    )
    reader = SampleReader(index, open_shards(server.url))
    loader = PackLoader(make_plan(index).stream(), reader, decode_latents, num_workers=1)
    assert take(loader, 12) == expected
    assert not loader.damaged
    assert server.num_requests > 12


def test_a_server_that_stays_away_or_refuses_is_named(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    index = write_shards(server.folder)
    server.bad = server.period
    with pytest.raises(MachineError, match=r"shard 00000\.tar cannot be read: the store answers 503, 5 times"):
        SampleReader(index, open_shards(server.url)).read(0)
    assert "the store answers 503; trying again" in capsys.readouterr().out
    server.fault = "403"
    asked = server.num_requests
    with pytest.raises(ShardError, match="the store answers 403"):
        SampleReader(index, open_shards(server.url)).read(0)
    assert server.num_requests == asked + 1, "a refusal is not asked again"


def test_messages_do_not_repeat_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise TimeoutError("GET https://host/x?X-Amz-Signature=SEKRET")

    with pytest.raises(MachineError) as raised:
        patiently(fail, "shard 00000.tar")
    assert "SEKRET" not in str(raised.value) + capsys.readouterr().out


def test_the_index_is_fetched_from_a_busy_server(server: Server, tmp_path: Path) -> None:
    write_latent_shards(tmp_path / "data", [random_clip(i) for i in range(12)])
    local = ShardIndex.open(tmp_path / "data" / "index")
    server.folder = tmp_path / "data"
    remote = ShardIndex.open([f"{server.url}/index/{i:05d}.arrow" for i in range(2)])
    assert remote.digest == local.digest
