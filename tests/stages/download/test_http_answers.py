"""What servers, names and proxies do that is no error: codings, cookies, dead addresses, answers that drip."""

from __future__ import annotations

import gzip
import http.server
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DownloadError
from stages.download.proxies import may_be_public, proxy_for
from stages.download.receive import HttpLimits
from tests.stages.download.web import CONTENT, LIMITS, Handler, Server, cut_off, fetch_http, serving, status

ONCE = HttpLimits(allow_private_hosts=True, attempts=1, backoff_s=0.0, timeout_s=5.0)


def coded(name: str, body: bytes) -> Any:
    return lambda handler: handler.answer(200, body, Content_Encoding=name, ETag='"v1"')


@pytest.mark.parametrize(
    ("name", "body"),
    [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("deflate", zlib.compress), ("gzip, identity", gzip.compress),
     ("none", bytes), ("aws-chunked", bytes)],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bodies_are_stored_as_the_file_and_not_as_they_were_sent(
    server: Server, tmp_path: Path, name: str, body: Any
) -> None:
    server.faults = [coded(name, body(CONTENT))]
    assert fetch_http(f"{server.url}/a.mp4", tmp_path, ONCE).path.read_bytes() == CONTENT


def test_a_coded_body_that_broke_off_is_not_continued(server: Server, tmp_path: Path) -> None:
    """Its bytes are none of the file's, and the server counts others than lie here."""

    def half(handler: Handler) -> None:
        body = gzip.compress(CONTENT)
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("ETag", '"v1"')
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        handler.close_connection = True

    server.faults = [half]
    got = fetch_http(f"{server.url}/a.mp4", tmp_path, LIMITS, is_checked=True, sleep=lambda _: None)
    assert got.path.read_bytes() == CONTENT
    assert "range" not in server.requests[1][1]


@pytest.mark.parametrize("name", ["br", "zstd", "gzip", "gzip, br"])
def test_a_coding_that_is_unknown_or_a_lie_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    server.faults = [coded(name, CONTENT[:1000])]
    with pytest.raises(DownloadError, match="cod") as caught:
        fetch_http(f"{server.url}/a.mp4", tmp_path, LIMITS)
    assert caught.value.reason == "content_encoding"
    assert len(server.requests) == 1


def test_answers_of_the_second_hundred(server: Server, tmp_path: Path) -> None:
    server.faults = [lambda handler: handler.answer(203, CONTENT)]
    assert fetch_http(f"{server.url}/a.mp4", tmp_path, ONCE).path.read_bytes() == CONTENT
    server.faults = [status(202, Retry_After="3"), status(202)]
    waits: list[float] = []
    assert fetch_http(f"{server.url}/b.mp4", tmp_path, LIMITS, sleep=waits.append).path.read_bytes() == CONTENT
    assert waits[0] == 3.0
    for code in (201, 204, 205, 207):
        server.faults = [lambda handler, code=code: handler.answer(code, b"")]
        with pytest.raises(DownloadError) as caught:
            fetch_http(f"{server.url}/c.mp4", tmp_path, LIMITS)
        assert caught.value.reason == "http_error"


def test_a_redirect_that_wants_its_cookie_back_gets_it_and_nobody_else_does(tmp_path: Path) -> None:
    seen: list[str | None] = []

    def stranger(handler: Handler) -> None:
        seen.append(handler.headers.get("Cookie"))
        handler.send_content()

    with serving(stranger) as other:

        def door(handler: Handler) -> None:
            if "k=1" in (handler.headers.get("Cookie") or ""):
                handler.answer(302, b"", Location=other.url.replace("127.0.0.1", "localhost") + "/a.mp4")
            else:
                handler.answer(302, b"", Location=handler.path, Set_Cookie="k=1; Path=/")

        with serving(door) as first:
            assert fetch_http(f"{first.url}/watch", tmp_path, ONCE).path.read_bytes() == CONTENT
    assert seen == [None]


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Every name that ends in .example resolves to these."""
    real = socket.getaddrinfo

    def answer(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        if not host.endswith(".example"):
            return real(host, port, *rest, **more)
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, 1, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


def test_every_address_of_a_host_is_tried(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names have IPv6 addresses that lead nowhere from many machines, and that come first."""
    resolving(monkeypatch, "::1", "127.0.0.9", "127.0.0.1")
    uri = f"http://video.example:{server.server_address[1]}/a.mp4"
    assert fetch_http(uri, tmp_path, ONCE).path.read_bytes() == CONTENT
    resolving(monkeypatch, "::1", "127.0.0.9")
    with pytest.raises(DownloadError) as caught:
        fetch_http(uri, tmp_path, ONCE)
    assert caught.value.reason == "network"


def test_an_address_that_takes_the_call_and_says_nothing_is_not_the_only_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.9", server.server_address[1])):
        resolving(monkeypatch, "127.0.0.9", "127.0.0.1")
        limits = HttpLimits(allow_private_hosts=True, attempts=2, backoff_s=0.0, timeout_s=0.3)
        got = fetch_http(f"http://video.example:{server.server_address[1]}/a.mp4", tmp_path, limits)
    assert got.path.read_bytes() == CONTENT


# --- proxies


class Proxy(http.server.BaseHTTPRequestHandler):
    """Fetches nothing: says what it was asked for."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Proxy-Authorization")))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)


@pytest.fixture
def proxy() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as running:
        running.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_the_proxy_of_the_environment_is_asked(proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://ada:SEKRET@127.0.0.1:{proxy.server_address[1]}")
    limits = HttpLimits(attempts=1, timeout_s=5.0)
    got = fetch_http("http://video.example.invalid/a.mp4?token=1", tmp_path, limits)
    assert got.path.read_bytes() == CONTENT
    (asked,) = proxy.asked
    assert asked[0] == "http://video.example.invalid/a.mp4?token=1"
    assert asked[1].startswith("Basic ")
    monkeypatch.setenv("NO_PROXY", "example.invalid")
    with pytest.raises(DownloadError, match="does not resolve"):
        fetch_http("http://video.example.invalid/b.mp4", tmp_path, limits)
    assert len(proxy.asked) == 1


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "2130706433", "0x7f.1", "127.0.0.1.", "intranet",
     "db.internal", "nas.local", "router.home.arpa", "0177.0.0.1", "①②⑦.⓪.⓪.①", "1.2.3.4.5"],
)  # fmt: skip
def test_a_proxy_is_no_way_into_private_networks(
    proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
    with pytest.raises(DownloadError) as caught:
        fetch_http(f"http://{host}/a.mp4", tmp_path, HttpLimits(attempts=1, timeout_s=5.0))
    assert caught.value.reason in ("private_address", "bad_address")
    assert proxy.asked == []


def test_proxies_are_named_as_usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for("https://example.org/") is None
    monkeypatch.setenv("https_proxy", "proxy:3128")
    assert proxy_for("https://example.org/") == "http://proxy:3128"
    assert proxy_for("http://example.org/") is None
    monkeypatch.setenv("no_proxy", "example.org, 10.0.0.0/8")
    assert proxy_for("https://cdn.example.org/x") is None
    assert may_be_public("video.example.org")
    monkeypatch.setenv("https_proxy", "socks9://x")
    monkeypatch.delenv("no_proxy")
    with pytest.raises(DownloadError, match="HTTP_PROXY"):
        fetch_http("https://video.example.invalid/a.mp4", tmp_path, ONCE)


# --- speed


def test_a_body_that_drips_is_given_up(tmp_path: Path) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.02)
        except OSError:
            handler.close_connection = True

    with serving(drip) as server, pytest.raises(DownloadError, match=r"only \d+ bytes came") as caught:
        fetch_http(f"{server.url}/a.mp4", tmp_path, HttpLimits(allow_private_hosts=True, attempts=1, timeout_s=0.3))
    assert caught.value.reason == "network"


def test_a_head_that_drips_is_given_up(tmp_path: Path) -> None:
    """Each byte breaks the silence, and none of them is the body's."""
    is_over = threading.Event()

    def drip(handler: Handler) -> None:
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Filler: ")
            while not is_over.is_set():
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.02)
        except OSError:
            pass
        handler.close_connection = True

    with serving(drip) as server:
        try:
            with pytest.raises(DownloadError) as caught:
                fetch_http(
                    f"{server.url}/a.mp4", tmp_path, HttpLimits(allow_private_hosts=True, attempts=1, timeout_s=0.3)
                )
        finally:
            is_over.set()
    assert caught.value.reason == "network"


# --- addresses that are none


@pytest.mark.parametrize(
    "uri",
    ["http://[bad/a.mp4", "http://u:SEKRET/pw@h/a.mp4", "http://h:port/a.mp4", "http://h:99999/", "http:///a.mp4",
     "http://u:SEKRET@[h/", "http://h\u2100/a.mp4", "http://" + "a" * 300 + ".example/"],
)  # fmt: skip
def test_what_is_no_address_is_one_error_that_repeats_no_secret(tmp_path: Path, uri: str) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch_http(uri, tmp_path, ONCE)
    assert "SEKRET" not in str(caught.value)
    assert len(str(caught.value)) > 20


def test_a_login_goes_to_the_server_it_is_for_and_to_no_other_port(tmp_path: Path) -> None:
    seen: list[Any] = []

    def other_port(handler: Handler) -> None:
        seen.append(handler.headers.get("Authorization"))
        handler.send_content()

    with serving(other_port) as second, serving(lambda handler: handler.answer(302, b"", Location=second.url)) as first:
        uri = first.url.replace("http://", "http://ada:secret@")
        assert fetch_http(uri, tmp_path, ONCE).final_uri == second.url
    assert seen == [None]


def test_what_was_cut_off_is_continued_though_the_address_is_another(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, "127.0.0.9", "127.0.0.1")
    server.faults = [cut_off(100_000)]
    uri = f"http://video.example:{server.server_address[1]}/a.mp4"
    assert fetch_http(uri, tmp_path, LIMITS, sleep=lambda _: None).path.read_bytes() == CONTENT
    assert server.requests[1][1]["range"] == "bytes=100000-"
