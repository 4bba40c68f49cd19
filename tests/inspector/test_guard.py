"""Who may ask, and what browsers may do with the answers: the security list of docs/inspector.md, line by line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from pipeline.inspector import pages
from pipeline.inspector.app import PAGES, Inspector
from pipeline.inspector.guard import POLICY, Access
from pipeline.inspector.media import packed_blob
from pipeline.inspector.serve import bound
from pipeline.inspector.session import Session
from pipeline.show.screen import address
from schemas.errors import RecipeError
from tests.inspector.conftest import BASE, HOSTILE, PORT


def test_it_is_served_on_loopback_alone_unless_asked_otherwise() -> None:
    with bound("127.0.0.1", 0) as opened:
        assert opened.getsockname()[0] == "127.0.0.1"
        with pytest.raises(RecipeError, match="Give another --port"):
            bound("127.0.0.1", opened.getsockname()[1])
    assert Access("127.0.0.1", PORT).address == f"{BASE}/"
    assert "token=" in Access("0.0.0.0", PORT).address


@pytest.mark.slow
def test_any_other_address_needs_the_token_which_becomes_a_cookie(session: Session) -> None:
    access = Access("192.0.2.7", PORT)
    app = Inspector(session, access).app()
    with TestClient(app, f"http://192.0.2.7:{PORT}", follow_redirects=False) as client:
        assert client.get("/").status_code == 403
        assert client.get("/?token=wrong").status_code == 403
        assert client.get("/media/c00000000000000000000.mp4").status_code == 403
        first = client.get(f"/clips?view=table&token={access.token}")
        assert (first.status_code, first.headers["location"]) == (303, "/clips?view=table")
        cookie = first.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/").status_code == 200
        client.cookies.clear()
        away = client.get(f"//evil.example/?token={access.token}")
        assert not away.headers.get("location", "").startswith("//")


def test_a_foreign_host_is_turned_away(client: TestClient) -> None:
    for host in ("evil.example", "evil.example:8470", "127.0.0.1.evil.example", ""):
        assert client.get("/", headers={"host": host}).status_code == 400, host
    assert client.get("/", headers={"host": f"localhost:{PORT}"}).status_code == 200


def test_nothing_but_marks_is_written(client: TestClient) -> None:
    for path in ("/", "/clips", "/marks", static(client, "app.js")):
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
            assert client.request(method, path).status_code == 405, (method, path)
    assert client.post("/clips").status_code == 405


def test_a_mark_needs_the_origin_and_the_token(
    client: TestClient, access: Access, session: Session, ids: dict[str, str]
) -> None:
    body = json.dumps({"clip_id": ids["keep"], "opinion": "good"})
    ours = {"origin": BASE, "x-nava-token": access.token}
    for headers in ({}, {"origin": BASE}, {"x-nava-token": access.token}, {**ours, "origin": "http://evil.example"}):
        assert client.post("/marks", content=body, headers=headers).status_code == 403, headers
    assert not session.marks.all()
    assert client.post("/marks", content=body, headers=ours).status_code == 200
    assert session.marks.all()[ids["keep"]].opinion == "good"
    for content in ("[]", "nonsense", json.dumps({"clip_id": ids["keep"], "opinion": "fine"})):
        assert client.post("/marks", content=content, headers=ours).status_code == 400, content
    unknown = json.dumps({"clip_id": "c" + 20 * "0", "opinion": "good"})
    assert client.post("/marks", content=unknown, headers=ours).status_code == 404
    assert client.post("/marks", content="x" * 5000, headers=ours).status_code == 413


@pytest.mark.slow
def test_every_answer_carries_the_policy_and_no_page_a_script_of_its_own(
    client: TestClient, ids: dict[str, str]
) -> None:
    assert "script-src 'self';" in POLICY
    assert "unsafe-eval" not in POLICY
    assert POLICY.count("unsafe-inline") == 1, "of styles alone"
    for path in PAGES:
        where = path.replace("/clips/{id}", f"/clips/{ids['keep']}").replace("{id}", ids["source"])
        answer = client.get(where)
        assert answer.headers["content-security-policy"] == POLICY, where
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        for tag in answer.text.split("<script")[1:]:
            assert 'src="/static/' in tag.split(">")[0] or 'type="application/json"' in tag.split(">")[0], where
        assert " onclick=" not in answer.text
        assert "http://" not in answer.text.replace("http://www.w3.org", ""), where
    assert client.get(static(client, "app.js")).headers["content-security-policy"] == POLICY


def test_only_ids_of_the_ledger_lead_to_files(client: TestClient) -> None:
    for name in (
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "c\0",
        "%00",
        "/etc/passwd",
        "C" + 20 * "0",
        "c" + 20 * "0",
    ):
        for place in (
            "/media/{}.mp4",
            "/posters/{}.jpg",
            "/peaks/{}.json",
            "/words/{}.vtt",
            "/clips/{}",
            "/sources/{}",
        ):
            answer = client.get(place.format(quote(name, safe="%")))
            assert answer.status_code == 404, (place, name, answer.text[:200])
            assert "root:" not in answer.text
    for path in (
        "/static/../app.py",
        "/static/..%2f..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/shards/..%2f..%2frecipe.yaml",
    ):
        assert client.get(path).status_code == 404, path


def test_a_shard_that_is_a_link_out_of_the_run_is_not_followed(
    damaged_run: Path, tmp_path: Path, cache: Path, ids: dict[str, str]
) -> None:
    for path in (damaged_run / "shards").glob("*.tar"):
        outside = tmp_path / path.name
        path.rename(outside)
        os.symlink(outside, path)
    assert packed_blob(Session(str(damaged_run), cache=cache).view, ids["keep"], "mp4") is None


def test_what_comes_from_outside_is_text(client: TestClient, session: Session, ids: dict[str, str]) -> None:
    """File names of the run itself, and then every text of every page at once."""
    for path in ("/clips", "/sources", f"/clips/{ids['reject']}", "/query?sql=<script>", "/clips?where=<img%20src=x>"):
        assert "<img src=x" not in client.get(path).text, path
    view = session.view
    told = {
        "overview": pages.overview(session, view),
        "clips": pages.clips(session, view, {}),
        "one_clip": pages.one_clip(session, view, ids["keep"], {}),
        "sources": pages.sources(session, view, {}),
        "one_source": pages.one_source(session, view, ids["source"]),
        "shards": pages.shards(session, view),
    }
    templates = Inspector(session, Access("127.0.0.1", PORT)).templates
    told["one_clip"]["spans"] = [
        {"text": "a", "speaker": "A", "language": "en", "start_s": 0.0, "end_s": 1.0, "is_overlap": False,
         "words": [{"text": "a", "start_s": 0.0, "end_s": 1.0}]}
    ]  # fmt: skip
    for name, data in told.items():
        text = templates.get_template(f"{name}.html").render(page=name, **poisoned(data))
        assert "onerror" in text, name
        assert "<img src=x" not in text, name


def static(client: TestClient, name: str) -> str:
    """The address of a file of the package."""
    found = re.search(r'src="(/static/\w+/)', client.get("/query").text)
    return found[1] + name


def poisoned(value: object, key: str = "") -> object:
    """The same data with `HOSTILE` behind every text that is not a name of the house."""
    if isinstance(value, dict):
        return {name: poisoned(inside, name) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [poisoned(inside, key) for inside in value]
    is_ours = key in ("status", "outcome", "kind", "operator", "state", "opinion", "href")
    return value + HOSTILE if isinstance(value, str) and not is_ours else value


def test_addresses_are_shown_without_secrets() -> None:
    assert address("https://user:secret@example.org:8443/a/b.mp4?sig=abc#x") == "https://example.org:8443/a/b.mp4"
    assert address("s3://bucket/a b.mp4") == "s3://bucket/a b.mp4"
    assert address("/local/path?x.mp4") == "/local/path?x.mp4"
    assert "token" not in repr(Access("0.0.0.0", PORT)).replace("token_", "")
