"""The pictures of docs/inspector.md and README, taken of a run in Debian's chromium.

    python -m benchmarks.inspector_pictures RUN --out docs [--widths 1280]

Three pages for the guide; with `--all` every page at every width, light and dark, to be looked at.
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.inspector.app import Inspector
from pipeline.inspector.guard import Access
from pipeline.inspector.serve import bound
from pipeline.inspector.session import Session

LATE = "sync.offset_ms.abs_max"
GUIDE = {
    "inspector_overview": "/",
    "inspector_clip": "/clips/LATE#t=2.2",
    "inspector_measures": "/measures?gate.sync.offset_ms.abs_max=50#sync-offset_ms",
}
EVERY = {
    "overview": "/", "measures": "/measures?gate.sync.offset_ms.abs_max=50", "clips": "/clips",
    "table": "/clips?view=table&sort=margin:sync.offset_ms", "rejected": "/clips/LATE", "kept": "/clips/KEPT",
    "sources": "/sources", "source": "/sources/SOURCE", "shards": "/shards", "shard": "/shards/SHARD",
    "compare": "/compare", "query": "/query?sql=SELECT row_id, duration_us FROM facts LIMIT 5", "training": "/training",
    "refusal": "/clips?where=sync.confidense<3",
}  # fmt: skip
GUIDE_PX = (1280, 860)
PATIENCE_MS = 60_000
"""For a clip that has to be cut first."""
SETTLED_MS = 1_500
"""After which pictures of clips and charts stand."""


@contextmanager
def served(session: Session) -> Iterator[str]:
    """The address of a server in this process."""
    import uvicorn

    opened = bound("127.0.0.1", 0)
    access = Access("127.0.0.1", opened.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(Inspector(session, access).app(), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield access.address.rstrip("/")
    server.should_exit = True
    thread.join(10)


def places(session: Session) -> dict[str, str]:
    """Word in an address -> what stands for it in this run."""
    rows = session.view.run.ledger.rows("clip", columns=["verdict.status", "verdict.reason", "clip.has_speech"])
    kept = next(row for row in rows if row["verdict.status"] == "keep" and row["clip.has_speech"])
    late = next(row for row in rows if row["verdict.reason"] == LATE)
    shard = session.view.packed.manifest.shards[0].name if session.view.packed else ""
    return {
        "LATE": late["row_id"],
        "KEPT": kept["row_id"],
        "SOURCE": kept["source_id"],
        "SHARD": shard.removesuffix(".tar"),
    }


def take(tab: Any, address: str, out: Path, *, is_whole: bool) -> None:
    """One picture, when everything on the page is drawn."""
    tab.goto(address)
    if tab.locator("#wave-said").count():
        tab.locator("#wave-said").wait_for(state="detached", timeout=PATIENCE_MS)
    tab.wait_for_timeout(SETTLED_MS)
    while not tab.evaluate("[...document.images].every((image) => image.complete)"):
        tab.wait_for_timeout(SETTLED_MS)
    tab.screenshot(path=str(out), full_page=is_whole)


def main() -> None:
    """Takes the pictures."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=[GUIDE_PX[0]])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    session = Session(given.run, (given.run,))
    told, scheme = places(session), "dark" if given.dark else "light"
    with served(session) as site, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in given.widths:
            height = 3_200 if given.all else GUIDE_PX[1]
            tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            for name, path in (EVERY if given.all else GUIDE).items():
                for word, value in told.items():
                    path = path.replace(word, value)  # noqa: PLW2901
                end = f"_{width}_{scheme}" if given.all else ""
                take(tab, site + path, given.out / f"{name}{end}.png", is_whole=given.all)
        browser.close()


if __name__ == "__main__":
    main()
