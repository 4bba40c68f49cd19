"""A web server on this machine's loopback that answers as tests say, and what asks it."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import DownloadError
from stages.download.fetch_http import Fetched, fetched_http
from stages.download.receive import HttpLimits
from stages.download.stage import Download

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Answers from `self.answer(handler)`; remembers the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.content = CONTENT
        self.etag: str | None = '"v1"'
        self.faults: list[Callable[[Handler], None]] = []
        self.now_open = self.most_open = 0
        self.lock = threading.Lock()
        self.answer_all: Callable[[Any], None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(200, b"", **{"Content-Type": "video/mp4"})

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            fault = server.faults.pop(0) if server.faults else None
            server.now_open += 1
            server.most_open = max(server.most_open, server.now_open)
        try:
            if fault is not None:
                fault(self)
            elif server.answer_all is not None:
                server.answer_all(self)
            elif self.path.startswith("/to/"):
                self.answer(302, b"", Location=self.path.removeprefix("/to/"))
            elif self.path.startswith("/slow"):
                time.sleep(0.3)
                self.send_content()
            elif self.path.startswith("/missing"):
                self.answer(404, b"no")
            else:
                self.send_content()
        finally:
            with server.lock:
                server.now_open -= 1

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_content(self, stop_after: int | None = None) -> None:
        content, etag = self.server.content, self.server.etag
        headers = {"ETag": etag} if etag else {}
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and condition in (None, etag) else 0
        if start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : len(content) if stop_after is None else start + stop_after])
        if stop_after is not None:
            self.close_connection = True


def cut_off(after: int) -> Callable[[Handler], None]:
    return lambda handler: handler.send_content(stop_after=after)


def status(code: int, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(code, b"not now", **headers)


@contextmanager
def serving(answer: Callable[[Any], None] | None = None) -> Iterator[Server]:
    """A server while the body runs; `answer` answers every request instead of what it would do by itself."""
    with Server() as running:
        running.answer_all = answer
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


LIMITS = HttpLimits(allow_private_hosts=True, backoff_s=0.0, timeout_s=10.0)


def fetch(stage: Download, uri: str, **row: Any) -> dict[str, Any]:
    (result,) = stage.process([{"source_id": "s", "uri": uri, "metadata": "{}", **row}])
    if isinstance(result, Exception):
        raise result
    return result


def fetch_http(uri: str, partial_dir: Path, limits: HttpLimits, **options: Any) -> Fetched:
    """What is left below `partial_dir`."""
    with fetched_http(uri, partial_dir, limits, **options) as got:
        return got


def reason(stage: Download, uri: str, **row: Any) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch(stage, uri, **row)
    assert len(str(caught.value)) > 20
    return caught.value.reason
