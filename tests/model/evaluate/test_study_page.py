"""The study's page in a real browser, from disk and without network: raters with a taste and a bad habit.

Needs Debian's chromium and the package playwright; skipped without them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.evaluate.study import make_study, open_votes
from model.evaluate.votes import score_votes
from pipeline.demo.write import Encoding, encode

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium"),
    pytest.mark.xdist_group("browser"),
]
SYSTEMS = ("mova", "ours", "ovi")
KEYS = {"left": "ArrowLeft", "right": "ArrowRight"}
PLAYS = "() => [...document.querySelectorAll('video')].every(each => each.currentTime > 0.1 && !each.paused)"


def answered(page: Any, owner: dict[str, str], rater: str, out: Path) -> None:
    """All trials of one rater, who prefers `ours`, and the left side of any others; saved to `out`."""
    page.select_option("#rater", rater)
    page.click("#go")
    for at in range(30):
        page.wait_for_function(f"document.getElementById('where').textContent === '{at + 1} of 30'")
        shown = page.evaluate("['left', 'right'].map(side => video(side).src.split('/').pop())")
        names = [owner[each] for each in shown]
        page.keyboard.press(KEYS["right" if names[1] == "ours" else "left"])
        if at == 2:
            page.keyboard.press("Backspace")
            page.wait_for_function("document.getElementById('where').textContent === '3 of 30'")
            page.keyboard.press(KEYS["right" if names[1] == "ours" else "left"])
    with page.expect_download() as saved:
        page.click("#save")
    saved.value.save_as(out)


def test_raters_answer_on_the_page_and_taste_and_habit_are_told_apart(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (25, 48, 64, 3)).astype(np.uint8)
    encode(clip, iter(noise), np.zeros(48_000, np.float32), Encoding(width_px=64, height_px=48))
    for name in SYSTEMS:
        (tmp_path / name).mkdir()
        for case in range(20):
            shutil.copyfile(clip, tmp_path / name / f"{case}.mp4")
    plan = make_study({name: tmp_path / name for name in SYSTEMS}, tmp_path / "study", 20, 2, 30)
    owner = {blind: told.partition("/")[0] for told, blind in plan.media.items()}
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"],
        )
        context = opened.new_context(offline=True)
        page = context.new_page()
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        for rater in plan.raters:
            page.goto((tmp_path / "study" / "study.html").as_uri())
            if rater == "user_01":
                page.click("#go")
                page.wait_for_function(PLAYS)
                assert page.evaluate("['left', 'right'].map(side => video(side).muted)") == [False, True]
                page.keyboard.press("2")
                assert page.evaluate("['left', 'right'].map(side => video(side).muted)") == [True, False]
                page.reload()
            answered(page, owner, rater, tmp_path / f"{rater}.jsonl")
        opened.close()
    assert not said
    votes = open_votes([tmp_path / f"{rater}.jsonl" for rater in plan.raters], tmp_path / "study")
    assert len(votes) == 60
    found = score_votes(votes)
    assert {(each.first, each.second): each.preferred for each in found.preferences} == {
        ("mova", "ours"): "ours",
        ("mova", "ovi"): "",
        ("ours", "ovi"): "ours",
    }
    assert found.side.is_flagged
