"""Names and messages are text wherever they are printed: no markup, no escape sequence is acted on or stumbled over."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline import cli
from pipeline.ask.find import find
from pipeline.ask.queries import Run
from pipeline.show.figure import draw
from pipeline.show.progress import Progress
from schemas.errors import RecipeError
from schemas.records import Level
from tests.pipeline.light_run import LIGHT

STAGES = LIGHT["stages"] | {"download": {"attempts": 1, "timeout_s": 1.0}}
RECIPE = LIGHT | {"name": "[/x] \x1b[2J $y", "stages": STAGES}
ROWS = (
    "http://lp.example.invalid/hmprod?set=key[source],value[/model/2013/V20%20004.mp4]",
    "http://lp.example.invalid/[/bold]/[red]x[/]/a.mp4",
    "takes [draft]/[/final] a.mp4",
    "Talk [dQw4w9WgXcQ].mp4",
    "\x1b[2J\x1b]0;title\x07 a.mp4",
    "gpj.\u202e4pm.mp4",
    "$x_{$ 日本 🙂.mp4",
)


def asked(monkeypatch: pytest.MonkeyPatch, *command: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nava-curate", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_a_run_of_odd_names_settles_them_all_and_prints_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"caf\xe9 [x].mp4")).write_bytes(b"no film")
    (tmp_path / "in" / "two\nlines.mp4").write_bytes(b"no film either")
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"uri": uri}) + "\n" for uri in ROWS))
    run = str(tmp_path / "run")
    inputs = ["--input", str(tmp_path / "in"), "--input", str(tmp_path / "list.jsonl")]
    assert asked(monkeypatch, "run", str(tmp_path / "recipe.yaml"), *inputs, "--out", run, "--here") == 0
    told = "".join(capfd.readouterr())
    assert f"{len(ROWS) + 2} sources with errors" in told
    assert "[/final] a.mp4" in told
    assert "[/bold]/[red]x[/]" in told
    assert not {"\x1b", "\x07", "\u202e"} & set(told)
    for name, shown in ((b"caf\xe9", "caf%E9"), (b"two\nlines", "two%0Alines"), (b"Talk [dQ", "Talk [dQw4w9WgXcQ].mp4"),
                        (b"\x1b[2J", "%1B%5B2J%1B%5D0%3Btitle%07"), ("$x_{$ 日本".encode(), "$x_{$ 日本 🙂.mp4")):  # fmt: skip
        assert asked(monkeypatch, "why", os.fsdecode(name), "--run", run) == 0
        told = "".join(capfd.readouterr())
        assert shown in " ".join(told.split()), "lines may break at a space"
        assert not {"\x1b", "\x07"} & set(told)
    for command in ("stats", "status", "verify"):
        asked(monkeypatch, command, run)
        assert not {"\x1b", "\x07", "\u202e"} & set("".join(capfd.readouterr()))


@pytest.mark.slow
def test_a_figure_writes_names_and_words_as_they_are(light_run: tuple[Path, Path], tmp_path: Path) -> None:
    """Dollar signs begin no mathematics, of which half would be an error."""
    run = Run(str(light_run[1]))
    (clip, *_) = [row for row in run.ledger.rows(Level.CLIP) if row["verdict.status"] == "keep"]
    chain = find(run, clip["row_id"])
    odd = replace(chain.rows[-1].asset, source=replace(chain.rows[0].source, uri=r"/in/$x_{$ \frac{.mp4"))  # type: ignore[union-attr]
    last = replace(chain.rows[-1], asset=odd)  # type: ignore[call-arg]
    draw(replace(chain, rows=(*chain.rows[:-1], last)), run.plan, tmp_path / "clip.png")
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_printed_as_text(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert asked(monkeypatch, "run", "quickstart", "--input", "no\x1b[2J [/x] \udce9.mp4", "--out", "/tmp/never") == 2
    told = "".join(capfd.readouterr())
    assert "no%1B[2J [/x] %E9.mp4" in told
    assert "\x1b" not in told
    assert asked(monkeypatch, "plan", "quickstart", "--set", "\x1b[31mx") == 2
    assert "\\x1b[31mx" in "".join(capfd.readouterr())


def test_a_terminal_of_few_characters_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", narrow)

    def told() -> None:
        print("日本 ½ █")

    monkeypatch.setattr(cli, "app", told)
    cli.main()
    narrow.flush()
    assert narrow.buffer.getvalue() == b"\\u65e5\\u672c \xbd \\u2588\n"  # type: ignore[attr-defined]


def test_progress_prints_text(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, 0, quiet=False) as progress:
        progress.collecting("[/x] [red]\x1b[2J")
    assert "[/x] [red]\\x1b[2J looks at" in capsys.readouterr().err


def test_names_too_long_for_the_system_are_refused() -> None:
    from stages.download.sources import list_inputs

    for name in ("x" * 5000, "~nobody-is-called-so/x.mp4", "/etc/hostname/x.mp4"):
        with pytest.raises(RecipeError, match=r"cannot be found|neither a file"):
            list_inputs([name])
