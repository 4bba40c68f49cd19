"""The pages in a real browser that can reach nobody else, over the run of `make demo`: no console error, media that play, keys.

Needs Debian's chromium and the package playwright; skipped without them.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from pipeline.inspector.app import Inspector
from pipeline.inspector.guard import Access
from pipeline.inspector.report import write_report
from pipeline.inspector.serve import bound
from pipeline.inspector.session import Session

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
axe_package = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium"),
    pytest.mark.xdist_group("browser"),
]
ONLY_HERE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
"""The browser finds no other host. Passing every request through the test instead kept it busy with media without end."""
WIDTHS = (1280, 390, 320)
EVERY_PAGE = (
    "/", "/measures", "/clips", "/clips?view=table&sort=margin:sync.offset_ms", "/sources", "/shards", "/compare",
    "/query?sql=select row_id from facts limit 3", "/training", "/clips?where=sync.confidense<3",
)  # fmt: skip


@pytest.fixture(scope="module")
def session(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("browser")
    return Session(str(demo_run), (str(demo_run),), folder / "cache")


@pytest.fixture(scope="module")
def site(session: Session) -> Iterator[str]:
    """The address of a server in this process."""
    opened = bound("127.0.0.1", 0)
    access = Access("127.0.0.1", opened.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(Inspector(session, access).app(), log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield access.address.rstrip("/")
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required", ONLY_HERE],
        )
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, site: str) -> Iterator[Any]:
    """A tab that reaches the server alone; fails the test for anything on its console."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    tab = context.new_page()
    tab.set_default_timeout(15_000)
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.said = said
    yield tab
    context.close()
    assert not said


def clips_of(session: Session) -> dict[str, str]:
    """Of the demo's talking clips: one that was kept, and the one whose sound is 600 ms late."""
    rows = session.view.run.ledger.rows("clip", columns=["verdict.status", "verdict.reason", "clip.has_speech"])
    kept = next(row["row_id"] for row in rows if row["verdict.status"] == "keep" and row["clip.has_speech"])
    late = next(row["row_id"] for row in rows if row["verdict.reason"] == "sync.offset_ms.abs_max")
    return {"kept": kept, "late": late}


def test_every_page_opens_fits_and_is_accessible(page: Any, site: str, session: Session) -> None:
    source = session.view.run.ledger.rows("asset", columns=["verdict.status"])[0]["row_id"]
    shard = session.view.packed.manifest.shards[0].name.removesuffix(".tar")
    clip = clips_of(session)["kept"]
    axe, wrong = axe_package.Axe(), []
    for path in (*EVERY_PAGE, f"/clips/{clip}", f"/sources/{source}", f"/shards/{shard}"):
        page.goto(site + path)
        page.wait_for_load_state("networkidle")
        if "confidense" in path:
            page.said[:] = [line for line in page.said if "400 (Bad Request)" not in line]
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            wrong += [(path, width, f"{over} px too wide")] if over > 0 else []
        page.set_viewport_size({"width": 1280, "height": 900})
        for found in axe.run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]:
            if found["impact"] in ("serious", "critical"):
                wrong.append((path, found["id"], found["nodes"][0]["html"][:200]))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("which", ["kept", "late"])
def test_a_clip_plays_and_words_follow_the_sound(which: str, page: Any, site: str, session: Session) -> None:
    page.goto(f"{site}/clips/{clips_of(session)[which]}#t=0.5")
    video = page.locator("#video")
    playwright.expect(page.locator("#wave-said")).to_have_count(0)
    assert video.evaluate("each => each.videoWidth") > 0
    assert abs(video.evaluate("each => each.currentTime") - 0.5) < 0.05
    page.keyboard.press("Space")
    deadline = time.monotonic() + 15
    while video.evaluate("each => each.currentTime") < 1.2:
        assert time.monotonic() < deadline, "it does not play"
        time.sleep(0.05)
    page.keyboard.press("Space")
    assert video.evaluate("each => each.paused")
    word = page.locator(".track.words button").nth(2)
    word.click()
    playwright.expect(page.locator(".track.words li.now")).to_have_text(word.inner_text())
    playwright.expect(page.locator("#caption")).to_have_text(word.inner_text())
    before = video.evaluate("each => each.currentTime")
    per = video.evaluate("each => each.duration") / int(page.locator("article.clip").get_attribute("data-frames"))
    for _ in range(4):
        page.keyboard.press(".")
        page.wait_for_timeout(60)
    moved = video.evaluate("each => each.currentTime") - before
    assert 3.4 * per < moved < 4.6 * per, (moved, per)
    page.keyboard.press("5")
    assert abs(video.evaluate("each => each.currentTime / each.duration") - 0.5) < 0.02


def test_keys_mark_move_and_help(page: Any, site: str, session: Session) -> None:
    late = clips_of(session)["late"]
    page.goto(f"{site}/clips/{late}?status=reject")
    page.keyboard.press("b")
    playwright.expect(page.locator("[data-mark=bad]")).to_have_attribute("aria-pressed", "true")
    assert session.marks.all()[late].opinion == "bad"
    page.locator("#note").fill("gbu late")
    assert session.marks.all()[late].opinion == "bad", "typing is no key"
    page.locator("h1").click()
    page.keyboard.press("Control+g")
    assert session.marks.all()[late].opinion == "bad", "with control it is the browser's key"
    page.keyboard.press("?")
    playwright.expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#keys")).to_be_hidden()
    page.keyboard.press("=")
    assert page.locator("#speed").input_value() == "1.25"
    page.keyboard.press("l")
    playwright.expect(page.locator("#loop")).to_be_checked()
    page.keyboard.press("f")
    page.locator("#nudge").fill("100")
    playwright.expect(page.locator("#nudge-said")).to_have_text("100 ms later")
    page.locator("h1").click()
    page.keyboard.press("j")
    page.wait_for_url(lambda url: late not in url)
    page.keyboard.press("k")
    page.wait_for_url(f"**/clips/{late}?status=reject")
    page.keyboard.press("Escape")
    page.wait_for_url("**/clips?status=reject")
    page.keyboard.press("j")
    page.keyboard.press("u")
    playwright.expect(page.locator(".badge.unsure").first).to_be_visible()
    page.keyboard.press("m")
    page.wait_for_url("**/measures")


def test_from_the_costliest_gate_to_three_clips_and_new_gates(page: Any, site: str, session: Session) -> None:
    """The way of a new user: a bar, its clips, the slider, the command; and back where one came from."""
    page.goto(site)
    page.get_by_role("link", name="sync.offset_ms.abs_max").first.click()
    page.wait_for_url("**/clips?reason=sync.offset_ms.abs_max")
    page.locator("a.tile").first.click()
    playwright.expect(page.locator("tr.failed code")).to_have_text("sync.offset_ms")
    page.go_back()
    playwright.expect(page.locator("select[name=reason]")).to_have_value("sync.offset_ms.abs_max")
    page.goto(f"{site}/measures")
    gate = page.locator('[data-gate="sync.offset_ms.abs_max"]')
    gate.scroll_into_view_if_needed()
    playwright.expect(page.locator('[data-path="sync.offset_ms"] svg')).to_be_visible()
    exact = session.view.measures.answer({"sync.offset_ms.abs_max": 50.0})
    gate.locator("input[type=number]").fill("50")
    gate.locator("input[type=number]").press("Enter")
    playwright.expect(page.locator('[data-said="delta-clips"]')).to_have_text(
        f"−{exact.now_clips - exact.low_clips} clip{'s' * (exact.now_clips - exact.low_clips != 1)}"
    )
    assert page.url.endswith("gate.sync.offset_ms.abs_max=50")
    gate.locator("input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_url(lambda url: "abs_max=50" not in url)
    assert "gate.sync.offset_ms.abs_max" in page.locator("#save-recipe").get_attribute("href")
    page.locator("#copy-yaml").click()
    playwright.expect(page.locator("#toast")).to_have_text("copied")
    page.reload()
    playwright.expect(page.locator('[data-said="delta-clips"]')).not_to_have_text("")


def test_the_report_opens_from_disk_without_network(browser: Any, session: Session, tmp_path: Path) -> None:
    path = write_report(session, tmp_path / "report.html")[0]
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(path.as_uri())
    gate = tab.locator('[data-gate="sync.offset_ms.abs_max"]')
    playwright.expect(gate.locator("input[type=range]")).to_be_enabled()
    before = tab.locator("#then").inner_text()
    gate.locator("input[type=range]").fill("0")
    playwright.expect(tab.locator("#delta")).not_to_have_text("0:00:00")
    gate.locator("input[type=checkbox]").check()
    playwright.expect(tab.locator("#delta")).to_contain_text("+")
    assert before == tab.locator(".whatif b").first.inner_text()
    context.close()
    assert not said
