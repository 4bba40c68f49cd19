"""Benchmarks on generated material of which one half chooses settings and the other is published."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser_of_halves(doc: str | None) -> argparse.ArgumentParser:
    """The options that they share: `media`, `--json` and `--half`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, help="folder with a manifest.json")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--half", choices=("choose", "publish"), default="publish")
    return parser
