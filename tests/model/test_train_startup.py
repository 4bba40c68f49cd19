"""`nava-train` tells a mistake before it loads torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import sys
from model.cli import main
try:
    main()
finally:
    print("torch" if "torch" in sys.modules else "no torch")
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("convert", "{here}", "x.safetensors", "--model", "nava_7b"), "nava_7b"),
        (("convert", "{gone}", "x.safetensors"), "does not exist"),
        (("check", "{gone}"), "does not exist"),
        (("sample", "{here}", "--out", "x.mp4", "--set", "guidence=2"), "guidence"),
        (("encode", "run", "--out", "x", "--codecs", "{here}", "--set", "frames=3"), "frames"),
        (("plan", "tiny", "--set", "optim.rate=1"), "optim.rate"),
        (("train", "tiny", "--out", "x", "--set", "network.preset=nava_7b"), "nava_7b"),
        (("train", "tiny", "--out", "x", "--set", "network.changes.heads=3"), "heads"),
        (("tiny-codecs", "x", "--recipe", "stage9"), "stage9"),
    ],
)
def test_what_is_wrong_is_told_without_torch(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    filled = [word.format(here=tmp_path, gone=tmp_path / "gone") for word in words]
    command, wide = [sys.executable, "-c", COMMAND, *filled], os.environ | {"COLUMNS": "400"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=wide)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert done.stdout.strip() == "no torch"
