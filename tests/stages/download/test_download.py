"""Fetching, against a real local server: flaky answers, resume, redirects, limits, private networks, checksums."""

from __future__ import annotations

import base64
import errno
import json
import os
import select
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from schemas.errors import DownloadError, RecipeError
from stages.download.fetch_http import checked_addresses, is_public
from stages.download.partial import host_slot
from stages.download.receive import HttpLimits
from stages.download.stage import ADDS, Download, DownloadConfig
from stages.download.store import AssetStore, suffix_of
from tests.stages.download.web import (
    CONTENT,
    LIMITS,
    SHA256,
    Handler,
    Server,
    cut_off,
    fetch,
    fetch_http,
    reason,
    status,
)
from tests.tiny_disk import tiny_disk

# --- http


def test_content_goes_into_the_store_under_its_own_name(server: Server, stage: Any, context: Any) -> None:
    download = stage()
    got = fetch(download, f"{server.url}/videos/Clip.MP4?id=3")
    assert set(got) == {field.name for field in ADDS}
    path = Path(got["path"])
    assert path == Path(context.store_dir, SHA256[:2], SHA256 + ".mp4")
    assert path.read_bytes() == CONTENT
    assert (got["sha256"], got["bytes"], got["attempts"]) == (SHA256, len(CONTENT), 1)
    assert got["final_uri"] == f"{server.url}/videos/Clip.MP4?id=3"
    again = fetch(download, f"{server.url}/elsewhere.mov")
    assert again["path"] == got["path"]
    assert [p.name for p in Path(context.store_dir).rglob("*") if p.is_file()] == [path.name]


def test_a_flaky_server_is_asked_again_and_the_rest_continued(server: Server, tmp_path: Path) -> None:
    server.faults = [status(503, Retry_After="7"), cut_off(100_000), status(429), cut_off(50_000)]
    waits: list[float] = []
    got = fetch_http(f"{server.url}/a.mp4", tmp_path, LIMITS, sleep=waits.append)
    assert got.path.read_bytes() == CONTENT
    assert got.attempts == 5
    assert waits[0] == 7.0
    ranges = [(headers.get("range"), headers.get("if-range")) for _, headers in server.requests]
    assert ranges[2:] == [("bytes=100000-", '"v1"'), ("bytes=100000-", '"v1"'), ("bytes=150000-", '"v1"')]


def test_the_pause_doubles_with_jitter_up_to_a_limit(server: Server, tmp_path: Path) -> None:
    server.faults = [status(500)] * 6
    waits: list[float] = []
    limits = HttpLimits(allow_private_hosts=True, backoff_s=1.0, max_backoff_s=5.0, attempts=6)
    with pytest.raises(DownloadError) as caught:
        fetch_http(f"{server.url}/a.mp4", tmp_path, limits, sleep=waits.append)
    assert caught.value.reason == "network"
    assert "6 attempts" in str(caught.value)
    for wait, middle in zip(waits, [1, 2, 4, 5, 5], strict=True):
        assert 0.5 * middle <= wait <= 1.5 * middle


def test_a_killed_download_is_continued_by_the_next_run(server: Server, tmp_path: Path) -> None:
    once = HttpLimits(allow_private_hosts=True, attempts=1)
    server.faults = [cut_off(200_000)]
    with pytest.raises(DownloadError):
        fetch_http(f"{server.url}/a.mp4", tmp_path, once)
    got = fetch_http(f"{server.url}/a.mp4", tmp_path, once)
    assert got.path.read_bytes() == CONTENT
    assert server.requests[-1][1]["range"] == "bytes=200000-"


def test_words_about_a_partial_file_that_were_cut_short_begin_it_anew(server: Server, tmp_path: Path) -> None:
    once = HttpLimits(allow_private_hosts=True, attempts=1)
    server.faults = [cut_off(200_000)]
    with pytest.raises(DownloadError):
        fetch_http(f"{server.url}/a.mp4", tmp_path, once)
    (about,) = tmp_path.glob("*.json")
    about.write_text(about.read_text()[:9])
    assert fetch_http(f"{server.url}/a.mp4", tmp_path, once).path.read_bytes() == CONTENT
    assert "range" not in server.requests[-1][1]


TAKER = """
import hashlib, sys
from pathlib import Path
from stages.download.fetch_http import fetched_http
from stages.download.receive import HttpLimits

with fetched_http(sys.argv[1], Path(sys.argv[2]), HttpLimits(allow_private_hosts=True)) as got:
    print("mine", flush=True)
    sys.stdin.readline()
    print(hashlib.sha256(got.path.read_bytes()).hexdigest(), flush=True)
    got.path.rename(sys.argv[3])
print("through", flush=True)
"""


def test_two_processes_that_want_one_url_take_it_one_after_the_other(server: Server, tmp_path: Path) -> None:
    """The file is the first one's until it has been hashed and moved; the second begins its own, on another file."""
    command = [sys.executable, "-c", TAKER, f"{server.url}/a.mp4", str(tmp_path)]
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")])
    workers = [
        subprocess.Popen(
            [*command, str(tmp_path / name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        for name in ("first", "second")
    ]  # fmt: skip
    try:
        ready, _, _ = select.select([worker.stdout for worker in workers], [], [], 60)
        workers.sort(key=lambda worker: worker.stdout not in ready)
        first, second = workers
        assert first.stdout is not None
        assert second.stdout is not None
        assert first.stdout.readline() == "mine\n"
        assert select.select([second.stdout], [], [], 1.0)[0] == []
        assert len(server.requests) == 1
        for worker in workers:
            told = worker.communicate("go on\n", timeout=60)[0].split()
            assert told[-2:] == [SHA256, "through"]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [(tmp_path / name).read_bytes() == CONTENT for name in ("first", "second")] == [True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


@pytest.mark.parametrize("scheme", ["http", "memory", "file"])
def test_a_full_disk_is_no_fault_of_the_source_and_room_mends_it(
    server: Server, context: Any, tmp_path: Path, scheme: str
) -> None:
    import fsspec

    path = tmp_path / "a.mp4"
    path.write_bytes(CONTENT)
    fsspec.filesystem("memory").pipe_file("/raw/a.mp4", CONTENT)
    uri = {"http": f"{server.url}/a.mp4", "memory": "memory://raw/a.mp4", "file": str(path)}[scheme]
    with tiny_disk(tmp_path / "disk", 100) as disk:
        context.store_dir = str(disk.path)
        options = DownloadConfig(schemes=(scheme,), mode="copy", allow_private_hosts=True, attempts=3, backoff_s=0.0)
        download = Download(options)
        download.setup(context)
        with pytest.raises(OSError, match="No space left") as caught:
            fetch(download, uri)
        assert caught.value.errno == errno.ENOSPC
        assert len(server.requests) == (scheme == "http"), "room does not come by asking again"
        disk.grow(1000)
        assert Path(fetch(download, uri)["path"]).read_bytes() == CONTENT


def test_content_that_changed_meanwhile_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    once = HttpLimits(allow_private_hosts=True, attempts=1)
    server.faults = [cut_off(200_000)]
    with pytest.raises(DownloadError):
        fetch_http(f"{server.url}/a.mp4", tmp_path, once)
    server.content, server.etag = CONTENT[::-1], '"v2"'
    assert fetch_http(f"{server.url}/a.mp4", tmp_path, once).path.read_bytes() == CONTENT[::-1]


def test_without_a_validator_nothing_is_pasted_together(server: Server, tmp_path: Path) -> None:
    server.etag = None
    server.faults = [cut_off(200_000)]
    got = fetch_http(f"{server.url}/a.mp4", tmp_path, LIMITS, sleep=lambda _: None)
    assert got.path.read_bytes() == CONTENT
    assert all("range" not in headers for _, headers in server.requests)
    server.faults = [cut_off(200_000)]
    fetch_http(f"{server.url}/b.mp4", tmp_path, LIMITS, is_checked=True, sleep=lambda _: None)
    assert server.requests[-1][1]["range"] == "bytes=200000-"


def test_redirects_are_followed_and_counted(server: Server, stage: Any) -> None:
    assert fetch(stage(), f"{server.url}/to//real/a.mp4")["final_uri"] == f"{server.url}/real/a.mp4"
    endless = "/to/" * 9
    assert reason(stage(max_redirects=3), f"{server.url}{endless}/x") == "redirect_loop"
    assert reason(stage(), f"{server.url}/to/file:///etc/passwd") == "scheme_not_allowed"
    assert reason(stage(schemes=("file", "http")), f"{server.url}/to/https://127.0.0.1/x") == "scheme_not_allowed"


def test_refusals_are_final_and_named(server: Server, stage: Any) -> None:
    assert reason(stage(), f"{server.url}/missing.mp4") == "not_found"
    for code, expected in ((403, "forbidden"), (410, "not_found"), (418, "http_error")):
        server.faults = [status(code)]
        assert reason(stage(), f"{server.url}/a.mp4") == expected
    assert len(server.requests) == 4
    assert reason(stage(attempts=1), "http://127.0.0.1:9/a.mp4") == "network"


def test_the_size_cap_holds_whatever_the_server_says(server: Server, stage: Any, context: Any) -> None:
    assert reason(stage(max_bytes=1000), f"{server.url}/a.mp4") == "too_large"

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            for _ in range(200):
                handler.wfile.write(b"x" * 65536)
        except OSError:
            pass
        handler.close_connection = True

    server.faults = [endless]
    assert reason(stage(max_bytes=1_000_000), f"{server.url}/b.mp4") == "too_large"
    kept = sum(p.stat().st_size for p in Path(context.store_dir).rglob("*") if p.is_file())
    assert kept < 1000


def test_checksums_of_the_manifest_are_compared(server: Server, stage: Any) -> None:
    url = f"{server.url}/a.mp4"
    assert fetch(stage(), url, metadata=json.dumps({"sha256": SHA256.upper()}))["sha256"] == SHA256
    assert reason(stage(), url, metadata=json.dumps({"sha256": "0" * 64})) == "checksum_mismatch"


def test_credentials_reach_the_server_but_not_the_row(server: Server, stage: Any) -> None:
    secret = server.url.replace("http://", "http://ada:s%40me@") + "/to//a.mp4?token=abc&id=1"
    got = fetch(stage(), server.url + "/to//a.mp4?id=1", fetch_uri=secret)
    expected = "Basic " + base64.b64encode(b"ada:s@me").decode()
    assert [headers.get("authorization") for _, headers in server.requests] == [expected, expected]
    assert "token" not in json.dumps(got)
    assert "s@me" not in json.dumps(got)
    assert got["final_uri"] == server.url + "/a.mp4?id=1"


def test_connections_per_host_are_limited(server: Server, tmp_path: Path) -> None:
    limits = HttpLimits(allow_private_hosts=True, per_host=2)
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(fetch_http, f"{server.url}/slow{i}", tmp_path, limits) for i in range(6)]
        assert all(job.result().path.read_bytes() == CONTENT for job in jobs)
    assert server.most_open == 2


def test_requests_to_a_host_keep_their_distance() -> None:
    starts = []
    for _ in range(3):
        with host_slot("interval.test.example", 2, min_interval_s=0.2):
            starts.append(time.time())
    assert all(b - a > 0.19 for a, b in pairwise(starts))


# --- private networks


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) is expected


def test_private_addresses_are_refused_first_and_on_every_hop(
    server: Server, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = stage(allow_private_hosts=False)
    local = server.url.removeprefix("http://")
    for host in (local, "localhost:1", "[::1]:1", "2130706433:1", "0x7f.1:1", "169.254.169.254"):
        assert reason(guarded, f"http://{host}/a.mp4") == "private_address"
    assert server.requests == []

    real = __import__("stages.download.fetch_http", fromlist=["is_public"]).is_public
    monkeypatch.setattr("stages.download.fetch_http.is_public", lambda address: address == "127.0.0.1" or real(address))
    assert reason(guarded, f"{server.url}/to/http://10.0.0.1/secret") == "private_address"
    assert reason(guarded, f"{server.url}/to/http://[::1]:{server.server_address[1]}/secret") == "private_address"
    assert len(server.requests) == 2


def test_the_address_that_was_checked_is_the_one_connected_to(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves elsewhere the second time must not matter."""
    answers = iter(["127.0.0.1"])

    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", (next(answers) if host == "video.example" else host, port))]

    monkeypatch.setattr("stages.download.fetch_http.socket.getaddrinfo", resolve)
    got = fetch_http(f"http://video.example:{server.server_address[1]}/a.mp4", tmp_path, LIMITS)
    assert got.path.read_bytes() == CONTENT
    assert server.requests[0][1]["host"] == f"video.example:{server.server_address[1]}"


def test_any_private_answer_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(2, 1, 6, "", ("93.184.216.34", 80)), (2, 1, 6, "", ("192.168.0.1", 80))]
    monkeypatch.setattr("stages.download.fetch_http.socket.getaddrinfo", lambda *_, **__: both)
    with pytest.raises(DownloadError) as caught:
        checked_addresses("http://split.example/", HttpLimits())
    assert caught.value.reason == "private_address"


# --- local files and object stores


def test_local_files_are_referenced_or_copied(stage: Any, context: Any, tmp_path: Path) -> None:
    path = tmp_path / "in" / "Über clip.MP4"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    got = fetch(stage(), str(path))
    assert (got["path"], got["sha256"], got["bytes"]) == (str(path), SHA256, len(CONTENT))
    assert not Path(context.store_dir).exists()
    copied = fetch(stage(mode="copy"), f"file://{path}")
    assert copied["path"] == str(Path(context.store_dir, SHA256[:2], SHA256 + ".mp4"))
    assert path.read_bytes() == Path(copied["path"]).read_bytes()
    assert copied["asset_id"] == got["asset_id"]
    assert reason(stage(), str(tmp_path / "none.mp4")) == "not_found"
    assert reason(stage(max_bytes=10), str(path)) == "too_large"
    assert reason(stage(), str(path), metadata=json.dumps({"sha256": "ab"})) == "checksum_mismatch"
    assert reason(stage(schemes=("https",)), str(path)) == "scheme_not_allowed"


def test_object_stores_in_and_out(context: Any) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/raw/a.mp4", CONTENT)
    context.store_dir = "memory://run/assets"
    download = Download(DownloadConfig(schemes=("file", "memory"), attempts=2, backoff_s=0.0, max_bytes=400_000))
    download.setup(context)
    got = fetch(download, "memory://raw/a.mp4")
    assert got["path"] == f"memory://run/assets/{SHA256[:2]}/{SHA256}.mp4"
    assert memory.cat_file(f"/run/assets/{SHA256[:2]}/{SHA256}.mp4") == CONTENT
    assert context.media.localise(got["path"]).read_bytes() == CONTENT
    patient = Download(DownloadConfig(schemes=("memory",), attempts=2, backoff_s=60.0))
    patient.setup(context)
    began = time.monotonic()
    assert reason(patient, "memory://raw/none.mp4") == "not_found"
    assert time.monotonic() - began < 20, "what is not there is not asked for again"
    memory.pipe_file("/raw/big.mp4", CONTENT * 2)
    assert reason(download, "memory://raw/big.mp4") == "too_large"
    assert reason(download, "ftp://example.org/a.mp4") == "scheme_not_allowed"


def test_every_way_of_fetching_keeps_the_suffix(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """yt-dlp names pages; what goes by fsspec is named by its own URL."""
    import fsspec

    monkeypatch.setitem(sys.modules, "yt_dlp", ModuleType("yt_dlp"))
    fsspec.filesystem("memory").pipe_file("/raw/named.MP4", CONTENT)
    for engine in ("direct", "yt_dlp"):
        got = fetch(stage(engine=engine, schemes=("memory",)), "memory://raw/named.MP4")
        assert Path(got["path"]).suffix == ".mp4"


def test_store_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    assert [suffix_of(n) for n in ("a.MP4", "a.tar.gz", "a", "a.b c", "x.verylong", "/v/a.m4a")] == [
        ".mp4", ".gz", "", "", "", ".m4a",
    ]  # fmt: skip
    store = AssetStore(str(tmp_path / "store"))
    first = store.put(path, SHA256, ".mp4", keep=True)
    assert store.put(path, SHA256, ".mov", keep=True) == first
    assert path.exists()


# --- yt-dlp


def test_a_missing_yt_dlp_is_said_before_the_run(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(RecipeError) as caught:
        stage(engine="yt_dlp")
    assert "pip install" in str(caught.value)


def test_a_page_whose_host_does_not_resolve_is_an_error_of_the_network(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: Any, **__: Any) -> Any:
        raise socket.gaierror("no such name")

    monkeypatch.setattr("stages.download.fetch_http.socket.getaddrinfo", resolve)
    monkeypatch.setitem(sys.modules, "yt_dlp", ModuleType("yt_dlp"))
    assert reason(stage(engine="yt_dlp"), "https://no-such-host.invalid/watch") == "network"


class FullDisk:
    """As much of yt-dlp as fails when its disk is full: it says so in words, with the cause beside them."""

    class DownloadError(Exception):
        exc_info = (OSError, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None)

    YoutubeDLError = DownloadError

    def __init__(self, options: dict[str, Any]) -> None:
        pass

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def extract_info(self, uri: str, download: bool) -> Any:
        raise self.DownloadError(f"unable to write data of {uri}")


def test_a_disk_that_is_full_for_yt_dlp_is_full_for_all(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("yt_dlp")
    module.utils = module.YoutubeDL = FullDisk  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yt_dlp", module)
    with pytest.raises(OSError, match="No space left"):
        fetch(stage(engine="yt_dlp"), "http://127.0.0.1:9/watch")


def test_yt_dlp_finds_the_video_of_a_page(server: Server, stage: Any, context: Any, tmp_path: Path) -> None:
    pytest.importorskip("yt_dlp")
    from pipeline.demo.clips import flash_and_click
    from pipeline.demo.write import Encoding

    clip = tmp_path / "clip.mp4"
    flash_and_click(clip, 1.0, Encoding(width_px=192, height_px=96))
    server.content = clip.read_bytes()
    download = stage(engine="yt_dlp", attempts=1)
    got = fetch(download, f"{server.url}/clip.mp4")
    assert Path(got["path"]).read_bytes() == server.content
    assert context.media.probe(got["path"])["num_frames"] == 25
    assert reason(download, f"{server.url}/missing.mp4") == "page_without_video"
    assert reason(stage(engine="yt_dlp", allow_private_hosts=False), f"{server.url}/clip.mp4") == "private_address"
