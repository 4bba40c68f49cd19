"""The state of a run on a terminal, drawn again in place until the run is packed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.ask.status import RunStatus
from pipeline.show.screen import drawable
from pipeline.show.text import status_text
from schemas.printable import printable

EVERY_S = 2.0


def watched(ask: Callable[[], RunStatus], console: Console | None = None) -> None:
    """Draws what `ask` answers until the run is packed; Ctrl-C leaves the last answer standing."""
    console = console or Console(markup=False, highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            found = ask()
            told = f"{status_text(found)}\n{time.strftime('%H:%M:%S')}"
            live.update(Text(drawable(printable(told), sys.stdout.encoding)), refresh=True)
            if found.packed is not None:
                return
            try:
                time.sleep(EVERY_S)
            except KeyboardInterrupt:
                return
