"""The benchmark of quality as a command: parts are kept as they end, and its errors are said at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import quality


def test_a_part_is_put_beside_those_that_were_there(tmp_path: Path) -> None:
    file = tmp_path / "quality.json"
    quality.write(file, {"dates": {"cuts": "2026-01-01"}, "cuts": {"real": {"error_samples": 0}}})
    quality.write(file, {"dates": {"words": "2026-01-02"}, "words": {"wer": 0.05, "interval": [0.04, 0.06]}})
    figures = json.loads(file.read_text())
    assert figures["dates"] == {"cuts": "2026-01-01", "words": "2026-01-02"}
    assert figures["cuts"]["real"] == {"error_samples": 0}
    table = file.with_suffix(".md").read_text()
    assert table.index("## cuts, 2026-01-01") < table.index("## words, 2026-01-02")
    assert "| interval | 0.04 to 0.06 |" in table


def test_a_part_that_does_not_exist_is_refused_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", "--json", str(tmp_path / "q.json"), "--parts", "words,wordz"])
    with pytest.raises(SystemExit):
        quality.main()
    assert "no part is called wordz" in capsys.readouterr().err
    assert not (tmp_path / "q.json").exists()


@pytest.mark.slow
def test_a_part_that_fails_is_named_and_costs_no_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kept: list[object] = []
    assert quality.score(tmp_path / "no-media", ["words"], 1, kept.append) == ["words"]
    assert not kept
    assert "words: failed" in capfd.readouterr().err
