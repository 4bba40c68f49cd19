"""Text from outside is text: nothing in it is acted on, and everything can print and store it."""

from __future__ import annotations

import os

import pytest

from schemas.printable import is_plain, percent_escaped, printable, whole_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\x9b31mred\x07", "\\x9b31mred\\x07"),
        ("a\rb\x08c", "a\\rb\\x08c"),
        ("gpj.\u202e4pm", "gpj.\\u202e4pm"),
        ("half \udce9", "half \\udce9"),
        ("two\nlines\tand [bold]no markup[/] $x_{$ Ünï 日本 🙂", None),
    ],
)
def test_what_a_terminal_would_act_on_is_written_out(text: str, shown: str | None) -> None:
    assert printable(text) == (text if shown is None else shown)
    printable(text).encode()


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("a\nb.mp4", "a%0Ab.mp4"),
        (os.fsdecode(b"caf\xe9.mp4"), "caf%E9.mp4"),
        ("\x1b[31m.mp4", "%1B[31m.mp4"),
        ("100% [id] ünï.mp4", "100% [id] ünï.mp4"),
    ],
)
def test_names_spell_what_cannot_be_printed(name: str, escaped: str) -> None:
    assert percent_escaped(name) == escaped
    assert is_plain(name) == (name == escaped)
    whole_text(name).encode()
