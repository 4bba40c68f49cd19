"""No address in any disguise, redirect, name or proxy leads a download into a private network."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DownloadError, NavaError
from stages.download import fetch_http as module
from stages.download.fetch_http import is_public
from stages.download.receive import HttpLimits
from stages.download.sources import list_inputs
from tests.stages.download.web import fetch, fetch_http

PUBLIC = "127.0.0.2"
"""Plays the public internet; everything else on loopback is what must not be reached."""
TARGETS = """
http://127.0.0.1:{port}/s http://localhost:{port}/s http://localhost.:{port}/s http://LOCALHOST:{port}/s http://127.1:{port}/s
http://127.0.0.1.:{port}/s http://0.0.0.0:{port}/s http://0:{port}/s http://2130706433:{port}/s http://0x7f000001:{port}/s
http://0x7f.0x0.0x0.0x1:{port}/s http://0177.0.0.1:{port}/s http://017700000001:{port}/s http://127.0.1:{port}/s
http://127.127.127.127:{port}/s http://[::1]:{port}/s http://[0:0:0:0:0:0:0:1]:{port}/s http://[::]:{port}/s
http://[::ffff:127.0.0.1]:{port}/s http://[::ffff:7f00:1]:{port}/s http://[::127.0.0.1]:{port}/s http://[64:ff9b::7f00:1]:{port}/s
http://[64:ff9b:1::7f00:1]:{port}/s http://[2002:7f00:1::]:{port}/s http://[fec0::1]:{port}/s http://[fd00::1]/ http://[fe80::1]/
http://[fe80::1%25lo]:{port}/s http://[ff02::1]/ http://10.0.0.5/ http://172.16.0.1/ http://172.31.255.255/ http://192.168.1.1/
http://169.254.169.254/latest/meta-data/ http://100.64.0.1/ http://100.100.100.200/ http://192.0.0.192/ http://198.18.0.1/
http://224.0.0.1/ http://240.0.0.1/ http://255.255.255.255/ http://192.0.2.1/ http://user:pw@127.0.0.1:{port}/s
http://{public}:{port}@127.0.0.1:{port}/s http://127.0.0.1:{port}\\@{public}:{port}/r?/s http://①②⑦.⓪.⓪.①:{port}/s
http://127。0。0。1:{port}/s http:///127.0.0.1/s http://:{port}/s https://127.0.0.1:{port}/s //127.0.0.1:{port}/s
file:///etc/hostname FILE:///etc/hostname file://127.0.0.1/etc/hostname ftp://127.0.0.1/x gopher://127.0.0.1/x dict://127.0.0.1:{port}/x
ldap://127.0.0.1/x jar:http://127.0.0.1:{port}/s data:text/plain,x s3::http://127.0.0.1:{port}/s s3://b/x::http://127.0.0.1:{port}/s
simplecache::http://127.0.0.1:{port}/s http://rebind.test:{port}/s http://both.test:{port}/s http://inside.test:{port}/s
""".split()  # noqa: SIM905 read as a text


class Site(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.seen.append((self.server.server_address[0], self.path))  # type: ignore[attr-defined]
        if self.path.startswith(("/r?", "/r.csv?")):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"inside")


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """A port that is served on the public address and on all of loopback, and what was asked there."""
    seen: list[tuple[str, str]] = []
    servers: list[Any] = [http.server.ThreadingHTTPServer((PUBLIC, 0), Site)]
    port = servers[0].server_address[1]
    servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", port), Site))
    threads = []
    for server in servers:
        server.seen = seen
        threads.append(threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}))
        threads[-1].start()
    yield port, seen
    for server in servers:
        server.shutdown()
        server.server_close()
    for thread in threads:
        thread.join()


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that lead somewhere else when asked again, or to several places; 127.0.0.2 is public, nothing else here is."""
    real, asked = socket.getaddrinfo, {"rebind.test": 0}

    def resolve(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        if host == "rebind.test":
            asked[host] += 1
            host = PUBLIC if asked[host] == 1 else "127.0.0.1"
        if host == "both.test":
            return real(PUBLIC, port, *rest, **more) + real("127.0.0.1", port, *rest, **more)
        return real("127.0.0.1" if host == "inside.test" else host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(module, "is_public", lambda address: address == PUBLIC or is_public(address))


def test_sixty_ways_in_and_as_many_by_redirect(site: Any, tmp_path: Path, stage: Callable[..., Any]) -> None:
    port, seen = site
    limits = HttpLimits(attempts=1, timeout_s=2.0)
    download = stage(allow_private_hosts=False, attempts=1, timeout_s=2.0)
    uris = [target.format(port=port, public=PUBLIC) for target in TARGETS]
    uris += [f"http://{PUBLIC}:{port}/r?{uri}" for uri in uris]
    assert len(uris) >= 120
    num_refused = 0
    for uri in uris:
        for ask in (lambda each: fetch_http(each, tmp_path, limits), lambda each: fetch(download, each)):
            try:
                ask(uri)
            except NavaError as error:
                num_refused += len(str(error)) > 20
    assert [place for place, _ in seen if place != PUBLIC] == []
    assert num_refused >= 2 * len(uris) - 10, "a file of this machine, and what leads to the public site after all"


def test_a_name_is_looked_up_once_and_its_answer_pinned(site: Any, tmp_path: Path) -> None:
    port, seen = site
    before = len(seen)
    fetch_http(f"http://rebind.test:{port}/s", tmp_path, HttpLimits(attempts=1, timeout_s=2.0))
    assert [place for place, _ in seen[before:]] == [PUBLIC]


def test_a_list_on_a_public_host_does_not_lead_inside(site: Any) -> None:
    port, seen = site
    with pytest.raises(NavaError, match="private address"):
        list_inputs([f"http://{PUBLIC}:{port}/r.csv?http://127.0.0.1:{port}/s"])
    assert [place for place, _ in seen if place != PUBLIC] == []


@pytest.mark.parametrize(
    "address", ["::7f00:1", "64:ff9b:1::1", "fec0::1", "2001:db8::1", "2001::1", "5f00::1", "100::1", "::"]
)
def test_only_global_unicast_of_ipv6_is_public(address: str) -> None:
    assert not is_public(address)


def test_pages_for_yt_dlp_are_checked_as_well(site: Any, stage: Callable[..., Any]) -> None:
    pytest.importorskip("yt_dlp")
    with pytest.raises(DownloadError) as caught:
        fetch(stage(engine="yt_dlp", allow_private_hosts=False), f"http://127.0.0.1:{site[0]}/watch")
    assert caught.value.reason == "private_address"
