"""Spoken lines in captions: each stands as `<S>line<E>`, and the n-th line is the n-th speech span of the clip.

The marks are those of NAVA's release: the network binds the n-th voice to the n-th `<S>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

LINE_START, LINE_END = "<S>", "<E>"
UNHEARD = "..."
"""What stands between the marks where a span has no words."""

_LINE = re.compile(f"{re.escape(LINE_START)}(.*?){re.escape(LINE_END)}", re.DOTALL)


def plain_line(text: str) -> str:
    """`text` as it may stand between the marks: without angle brackets, which mark lines and special tokens."""
    return " ".join(text.replace("<", " ").replace(">", " ").split()) or UNHEARD


def marked(line: str) -> str:
    """`line` between its marks."""
    return f"{LINE_START}{line}{LINE_END}"


def lines_in(caption: str) -> list[str] | None:
    """The lines of `caption` in order; None where the marks do not pair up."""
    lines: list[str] = _LINE.findall(caption)
    is_paired = caption.count(LINE_START) == caption.count(LINE_END) == len(lines)
    return lines if is_paired else None


def with_lines(caption: str, lines: Sequence[str | None]) -> str:
    """`caption` with its n-th line replaced by the n-th of `lines`, and removed with its marks where that is None.

    White space is collapsed. There is one entry per line of the caption (`lines_in`).
    """
    replacements = iter(lines)

    def replacement(_: re.Match[str]) -> str:
        line = next(replacements)
        return "" if line is None else marked(line)

    return " ".join(_LINE.sub(replacement, caption).split())


def caption_or_lines(caption: str | None, texts: Iterable[str]) -> str:
    """`caption`, or where none was written the `texts` of the speech spans as a caption of nothing but lines."""
    return caption or " ".join(marked(plain_line(text)) for text in texts)


def plain_caption(caption: str | None, texts: Iterable[str]) -> str:
    """What `caption_or_lines` gives for readers who know no marks: each line stands in quotes."""
    text = _LINE.sub(lambda found: f'"{found[1].strip()}"', caption_or_lines(caption, texts))
    return " ".join(text.split())
