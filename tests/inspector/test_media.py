"""Bytes of clips: ranges as browsers ask for them, cuts on demand, pictures and peaks, and what is said where there are none."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pipeline.inspector.app import Inspector, stretch
from pipeline.inspector.guard import Access
from pipeline.inspector.media import CACHE_BYTES, MOST_PEAKS, MediaShelf, peaks
from pipeline.inspector.session import Session
from schemas.shard import SOUND_RATE_HZ
from stages.media.decoder import Decoder
from tests.inspector.conftest import BASE, PORT

PATIENCE_S = 60


def got(client: TestClient, path: str, **headers: str) -> httpx.Response:
    """The answer once it is there."""
    began = time.monotonic()
    while (answer := client.get(path, headers=headers)).status_code == 202:
        assert time.monotonic() < began + PATIENCE_S
        assert answer.json()["state"] == "cutting"
        time.sleep(0.05)
    return answer


@pytest.mark.slow
def test_a_packed_clip_is_served_by_ranges_out_of_its_shard(client: TestClient, ids: dict[str, str]) -> None:
    path = f"/media/{ids['keep']}.mp4"
    whole = client.get(path)
    assert whole.status_code == 200
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["cache-control"].startswith("private")
    data, size = whole.content, len(whole.content)
    assert data[4:8] == b"ftyp"
    for asked, expected in (
        ("bytes=0-99", (0, 100)),
        ("bytes=100-", (100, size)),
        ("bytes=-50", (size - 50, size)),
        (f"bytes=10-{size + 5}", (10, size)),
        (f"bytes=-{size + 5}", (0, size)),
        ("bytes=0-", (0, size)),
    ):
        part = client.get(path, headers={"range": asked})
        assert part.status_code == 206, asked
        assert part.content == data[slice(*expected)], asked
        assert part.headers["content-range"] == f"bytes {expected[0]}-{expected[1] - 1}/{size}"
    for asked in ("bytes=0-1,5-9", "bytes=9-5", "bytes=-", "lines=0-5", "bytes=a-b"):
        assert client.get(path, headers={"range": asked}).status_code == 200, asked
    for asked in (f"bytes={size}-", f"bytes={size + 7}-{size + 9}", "bytes=-0"):
        beyond = client.get(path, headers={"range": asked})
        assert beyond.status_code == 416, asked
        assert beyond.headers["content-range"] == f"bytes */{size}"
    head = client.head(path, headers={"range": "bytes=0-99"})
    assert (head.status_code, head.headers["content-length"], head.content) == (206, "100", b"")
    assert client.get(path, headers={"if-none-match": whole.headers["etag"]}).status_code == 304


@given(st.integers(1, 1000), st.integers(0, 1200), st.integers(0, 1200))
def test_a_range_lies_inside(size: int, first: int, last: int) -> None:
    try:
        found = stretch(f"bytes={first}-{last}", size)
    except ValueError:
        assert first >= size
        return
    if found is None:
        assert last < first
    else:
        assert found == (first, min(last + 1, size))


def test_a_rejected_clip_is_cut_exactly_when_it_is_asked_for(
    client: TestClient, ids: dict[str, str], tmp_path: Path
) -> None:
    answer = got(client, f"/media/{ids['reject']}.mp4")
    assert answer.status_code == 200, answer.text
    assert got(client, f"/media/{ids['reject']}.mp4", range="bytes=4-7").content == b"ftyp"
    path = tmp_path / "cut.mp4"
    path.write_bytes(answer.content)
    decoder = Decoder(tmp_path)
    assert len(decoder.frames(path, long_side_px=64).images) == 100, "4 s of 25 frames"
    decoder.close()
    sound, rate = soundfile.read(io.BytesIO(got(client, f"/media/{ids['reject']}.flac").content))
    assert (len(sound), rate) == (4 * SOUND_RATE_HZ, SOUND_RATE_HZ)


def test_pictures_and_peaks(client: TestClient, ids: dict[str, str]) -> None:
    for clip_id in (ids["keep"], ids["reject"]):
        poster = client.get(f"/posters/{clip_id}.jpg")
        assert poster.content[:2] == b"\xff\xd8"
        assert len(poster.content) < 40_000
        told = client.get(f"/peaks/{clip_id}.json")
        assert len(told.content) <= 4_000
        pairs = np.frombuffer(base64.b64decode(told.json()["peaks"]), np.int8).reshape(-1, 2)
        assert len(pairs) == told.json()["num_pairs"] == round(100 * told.json()["duration_s"])
        assert pairs[:, 1].max() > 10
        assert client.get(f"/words/{clip_id}.vtt").text.startswith("WEBVTT")


def test_peaks_hold_the_extremes() -> None:
    sound = np.zeros(48_000, np.float32)
    sound[10_000], sound[40_000] = 1.0, -0.5
    found = peaks(sound, 48_000)
    assert found.shape == (100, 2)
    assert (found[20, 1], found[83, 0]) == (127, -64)
    assert len(peaks(np.zeros(48_000 * 600, np.float32), 48_000)) == MOST_PEAKS
    assert len(peaks(np.zeros(0, np.float32), 48_000)) == 0


@pytest.mark.parametrize(("damage", "said"), [("gone", "is not at"), ("longer", "has changed since")])
def test_without_its_source_the_rest_of_the_page_is_there(
    damage: str, said: str, damaged_run: Path, whole_run: Path, tmp_path: Path, ids: dict[str, str]
) -> None:
    """The asset is reached by the path of the ledger, which is a link here, so that the run of other tests is not touched."""
    session = Session(str(damaged_run), cache=tmp_path / "cache")
    clip = session.view.clip(ids["reject"])
    told = dict(clip.asset.structs["download"])
    moved = tmp_path / "moved.mp4"
    if damage == "longer":
        moved.write_bytes(Path(told["path"]).read_bytes() + b"x")
    told["path"] = str(moved)
    clip.asset.structs["download"] = told
    with TestClient(Inspector(session, Access("127.0.0.1", PORT)).app(), BASE) as client:
        answer = got(client, f"/media/{ids['reject']}.mp4")
        assert answer.status_code == 404
        assert said in answer.json()["error"]
        assert client.get(f"/clips/{ids['reject']}").status_code == 200
        assert client.get(f"/media/{ids['keep']}.mp4").status_code == 200


def test_the_least_used_media_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CACHE_BYTES == 2_000_000_000
    monkeypatch.setattr("pipeline.inspector.media.CACHE_BYTES", 250)
    shelf = MediaShelf(tmp_path)

    def write(path: Path) -> None:
        path.write_bytes(bytes(100))

    for name in ("a.jpg", "b.jpg"):
        shelf._made(name, write).result()
        time.sleep(0.02)
    shelf._made("a.jpg", write).result()
    time.sleep(0.02)
    shelf._made("c.jpg", write).result()
    assert {path.name for path in tmp_path.iterdir()} == {"a.jpg", "c.jpg"}
    shelf.close()
