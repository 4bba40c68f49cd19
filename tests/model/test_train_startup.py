"""`nava-train` tells a mistake before it loads torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

COMMANDS = """
import json, sys
from model.cli import main
for sys.argv in json.loads(sys.argv[1]):
    try:
        main()
    except SystemExit as ended:
        print(ended.code, "torch" if "torch" in sys.modules else "no torch")
    print("end of", sys.argv[1], file=sys.stderr)
"""


def test_what_is_wrong_is_told_without_torch(tmp_path: Path) -> None:
    """In one process, which would have torch from the first command that loads it on."""
    mistakes = [
        (("convert", "{here}", "x.safetensors", "--model", "nava_7b"), "nava_7b"),
        (("convert", "{gone}", "x.safetensors"), "does not exist"),
        (("check", "{gone}"), "does not exist"),
        (("sample", "{here}", "--out", "x.mp4", "--set", "guidence=2"), "guidence"),
        (("encode", "run", "--out", "x", "--codecs", "{here}", "--set", "frames=3"), "frames"),
        (("plan", "tiny", "--set", "optim.rate=1"), "optim.rate"),
        (("train", "tiny", "--out", "x", "--set", "network.preset=nava_7b"), "nava_7b"),
        (("train", "tiny", "--out", "x", "--set", "network.changes.heads=3"), "heads"),
        (("tiny-codecs", "x", "--recipe", "stage9"), "stage9"),
    ]
    gone = tmp_path / "gone"
    commands = [["nava-train", *(word.format(here=tmp_path, gone=gone) for word in words)] for words, _ in mistakes]
    command, wide = [sys.executable, "-c", COMMANDS, json.dumps(commands)], os.environ | {"COLUMNS": "400"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=wide)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2 no torch"] * len(mistakes), done.stderr
    left = done.stderr
    for words, told in mistakes:
        said, _, left = left.partition(f"end of {words[0]}\n")
        assert told in said, words
