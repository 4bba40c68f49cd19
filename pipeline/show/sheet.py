"""Contact sheets: a picture of each clip of a list, with its id, verdict and the values that were asked about, in one PNG."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.ask.clips import ClipRow
from pipeline.ask.find import find
from pipeline.ask.queries import Run
from pipeline.show.screen import hms, plural, value
from schemas.errors import LedgerError, MediaError
from schemas.records import Clip

if TYPE_CHECKING:
    from stages.base import Context

MOST_TILES = 200
"""More pictures than this nobody looks at, and each opens a file."""
ACROSS = 5
TILE_PX, GAP_PX, LINE_PX = 256, 8, 15
LOOK_S = Fraction(1, 4)
"""Stretch around a clip's middle in which a picture is looked for."""
PAPER, INK, ABSENT = "#ffffff", "#222222", "#dddddd"


def draw_sheet(run: Run, rows: Sequence[ClipRow], out: Path) -> str:
    """Writes the sheet of these clips; returns a sentence on what is there. Raises LedgerError where there is no clip."""
    from PIL import Image, ImageDraw, ImageFont

    from stages.base import Context

    if not rows:
        raise LedgerError("no clip fits, so that there is nothing to draw.", remedy="Ask for fewer conditions.")
    shown = rows[:MOST_TILES]
    font = ImageFont.load_default(LINE_PX - 3)
    texts = [_lines(row) for row in shown]
    height = TILE_PX * 9 // 16 + LINE_PX * max(map(len, texts)) + GAP_PX
    across = min(ACROSS, len(shown))
    size = across * (TILE_PX + GAP_PX) + GAP_PX, -(-len(shown) // across) * height + GAP_PX
    sheet = Image.new("RGB", size, PAPER)
    draw, num_absent = ImageDraw.Draw(sheet), 0
    with tempfile.TemporaryDirectory(prefix="nava-sheet-") as folder:
        context = Context(Path(folder))
        for at, (row, lines) in enumerate(zip(shown, texts, strict=True)):
            x, y = GAP_PX + at % across * (TILE_PX + GAP_PX), GAP_PX + at // across * height
            box = (TILE_PX, TILE_PX * 9 // 16)
            try:
                picture = Image.fromarray(_picture(run, row, context))
                picture.thumbnail(box)
                sheet.paste(picture, (x + (box[0] - picture.width) // 2, y + (box[1] - picture.height) // 2))
            except (MediaError, OSError) as error:
                num_absent += 1
                draw.rectangle((x, y, x + box[0], y + box[1]), fill=ABSENT)
                draw.text((x + GAP_PX, y + GAP_PX), getattr(error, "reason", None) or "no picture", INK, font)
            for number, line in enumerate(lines):
                draw.text((x, y + box[1] + 2 + number * LINE_PX), line, INK, font)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "PNG")
    rest = f"; {len(rows) - len(shown)} more are not drawn" if len(rows) > len(shown) else ""
    lost = f"; of {num_absent} the source cannot be read any more" if num_absent else ""
    return f"{out}: {plural(len(shown), 'image')}{rest}{lost}"


def _lines(row: ClipRow) -> list[str]:
    told = [f"{row.clip_id[:13]}  {row.duration_us / 1e6:.2f} s at {hms(row.start_s * 1e6)}", row.reason or row.status]
    return told + [f"{name} {value(found)}" for name, found in row.values.items()]


def _picture(run: Run, row: ClipRow, context: Context) -> NDArray[Any]:
    """Uint8 [height, width, 3] of the clip's middle. Raises MediaError, and OSError where the source is away."""
    clip = find(run, row.clip_id).rows[-1]
    assert isinstance(clip, Clip)
    path, span = context.media.localise(clip.asset.path), clip.span
    middle = span.start + span.duration / 2
    try:
        found = context.media.frames(path, start=middle, end=middle + LOOK_S, long_side_px=2 * TILE_PX)
    except MediaError:  # a slide that stands longer than the look
        found = context.media.frames(path, start=span.start, end=span.end, long_side_px=2 * TILE_PX, max_fps=1.0)
    return np.array(found.images[0])
