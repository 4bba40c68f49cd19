"""A whole run of sources full of secrets, kept, refused and failing: nothing of them on the screen or in the run's folder."""

from __future__ import annotations

import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import stages
from pipeline import cli
from pipeline.demo import ball_clip
from pipeline.ledger import Ledger
from schemas.arrow_file import read_table
from schemas.records import Level
from tests.pipeline.light_run import LIGHT
from tests.schemas.test_public import COLUMNS, FORMS, NAMES, SECRET
from tests.stages.download.web import Handler, serving


def places(text: str) -> list[str]:
    """What stands around each secret in a text."""
    return [text[max(found.start() - 60, 0) : found.end()] for found in re.finditer(SECRET, text)]


@pytest.mark.slow
def test_no_secret_is_found_in_what_a_run_leaves_or_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **more: Any) -> list[Any]:
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for stage, stand_in in (
        ("transcribe", "NoWords"),
        ("diarize", "Nobody"),
    ):  # nobody speaks
        monkeypatch.setitem(stages.CATALOG, stage, f"benchmarks.chaos_stages:{stand_in}")
    ball_clip(tmp_path / "ball.mp4", duration_s=3.0)
    film = (tmp_path / "ball.mp4").read_bytes()
    asked: list[str] = []

    def answer(handler: Handler) -> None:
        asked.append(handler.path)
        if handler.path.startswith("/film"):
            handler.answer(200, film)
        elif handler.path.startswith("/on"):
            handler.answer(302, b"", Location=f"/gone?sig={SECRET}")
        else:
            handler.answer((404, 403, 503)[len(asked) % 3], SECRET.encode())

    with serving(answer) as server:
        uris = [f"{server.url}/film.mp4?sig={SECRET}", server.url.replace("//", f"//u:{SECRET}@") + "/film.mp4"]
        uris += [f"{server.url}/{name}.mp4?{name}={SECRET}" for name in NAMES[::2]] + [
            f"{server.url}/on?token={SECRET}"
        ]
        uris += [uri for uri in FORMS.values() if "://" in uri]
        columns = dict.fromkeys(COLUMNS, SECRET) | {"thumb": f"https://h.example/t.jpg?sig={SECRET}", "title": "kept"}
        (tmp_path / "list.jsonl").write_text("".join(json.dumps({"uri": uri, **columns}) + "\n" for uri in uris))
        recipe = json.loads(json.dumps(LIGHT))
        del recipe["stages"]["audio"]
        recipe["stages"]["download"] = {"allow_private_hosts": True, "attempts": 1, "timeout_s": 5.0}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        recipe_file, listed, run = (str(tmp_path / name) for name in ("recipe.yaml", "list.jsonl", "run"))
        for command in (
            ["run", recipe_file, "--input", listed, "--out", run, "--here"],
            ["stats", run],
            ["why", "/film.mp4", "--run", run, "--json"],
        ):
            monkeypatch.setattr(sys, "argv", ["nava-curate", *command])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert ended.value.code == 0
    said = "".join(capfd.readouterr())
    assert places(said) == []
    assert "credentials in columns of manifests are not kept" in said
    assert sum(SECRET in path for path in asked) > len(NAMES) // 2, "it reached the server"
    ledger = Ledger(f"{tmp_path}/run/ledger")
    rows: list[Any] = [row for level in Level for row in ledger.rows(level)]
    assert sum(row["kind"] == Level.ASSET.value for row in rows) == len(uris)
    assert any(row["verdict.status"] == "keep" for row in rows)
    assert [found for row in rows for found in places(repr(row))] == []
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".tar" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    for path in files:
        if path.suffix == ".arrow":
            assert places(repr(read_table(path.read_bytes()).to_pylist())) == []
