"""Whether burned-in text is found, named and read: `python -m benchmarks.quality_ocr DIR --json FILE`.

Over pieces of real videos without text, and over photographs that glide, subtitles, titles, tickers, marks and signs that
belong to the scene are drawn, in several fonts, sizes, colours and edges; they are encoded and go through decoder and stage
`ocr`. What was laid over them is cut away as stage `cut` does it, and looked for once more. The half `choose` has other videos
and seeds than the half `publish`.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.halves import parser_of_halves
from benchmarks.intervals import bootstrap_interval
from pipeline.demo.face import photograph
from pipeline.demo.sound import SENTENCES
from pipeline.demo.write import Encoding, encode
from schemas.timing import Span
from stages.base import Context
from stages.crop import CropRule, crop_of
from stages.media.cutting import CutOptions, cut_clip
from stages.ocr.stage import Ocr, OcrConfig

Half = Literal["choose", "publish"]
Pictures = NDArray[np.uint8]
WIDTH_PX, HEIGHT_PX, FPS, SECONDS = 640, 360, 4, 4
KINDS = ("none", "subtitle", "subtitle", "subtitle", "title", "ticker", "mark", "scene")
BACKGROUNDS: dict[Half, tuple[str, ...]] = {
    "choose": (
        "talking/portrait_hevc_man_kitchen.mp4",
        "talking/grid_lay_blue_at_x_four_now__man_glasses.mpg",
        "nonspeech/dog_barks_720p.mp4",
        "talking/portrait_hevc_man_curtain_30fps.mp4",
        "talking/talking_man_world_map.mp4",
        "coffee.png",
        "brick.png",
    ),
    "publish": (
        "talking/portrait_hevc_woman_garden.mp4",
        "talking/grid_bin_red_by_k_seven_now__woman_long_brown_hair.mpg",
        "nonspeech/big_buck_bunny_5s_5.1_audio.mp4",
        "talking/talking_woman_blue_backdrop.mp4",
        "talking/two_women_hair_home_video.mp4",
        "chelsea.png",
        "gravel.png",
    ),
}
FIRST_SEED: dict[Half, int] = {"choose": 0, "publish": 1000}
FACES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "STIXGeneral.ttf")
NAMES = ("NEWS24", "KANAL 5", "tvr", "@walker", "LIVE HD", "demo.org", "Studio B", "CH-7")
SIGNS = ("EXIT", "OPEN", "COFFEE", "NO PARKING", "Platform 9", "SALE 50%", "BAKERY", "Hotel Royal")


@dataclass(frozen=True)
class Drawn:
    """What was drawn over a background."""

    background: str
    kind: str
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        """The same choices each time."""
        return np.random.default_rng(self.seed)


def clips(half: Half, rounds: int) -> Iterator[Drawn]:
    """Every kind over every background, `rounds` times."""
    seed = FIRST_SEED[half]
    for _ in range(rounds):
        for background in BACKGROUNDS[half]:
            for kind in KINDS:
                seed += 1
                yield Drawn(background, kind, seed)


@dataclass
class Pen:
    """How letters look."""

    size_px: int
    face: str
    colour: tuple[int, int, int]
    edge_px: int
    box: int
    """How dark the box behind is, 0 for none."""

    @classmethod
    def any(cls, rng: np.random.Generator, low: float, high: float) -> Pen:
        """Letters of `low` to `high` of the picture's height."""
        colours = ((255, 255, 255), (255, 255, 255), (250, 240, 90), (200, 230, 255))
        return cls(
            size_px=round(HEIGHT_PX * rng.uniform(low, high)),
            face=str(rng.choice(FACES)),
            colour=colours[int(rng.integers(len(colours)))],
            edge_px=int(rng.integers(0, 3)),
            box=int(rng.choice([0, 0, 140, 255])),
        )

    def put(self, picture: Pictures, text: str, x: float, y: float) -> Pictures:
        """`text` in the middle of (x, y), shares of the picture's sides."""
        from matplotlib import get_data_path
        from PIL import Image, ImageDraw, ImageFont

        image = Image.fromarray(picture).convert("RGBA")
        layer = Image.new("RGBA", image.size)
        draw = ImageDraw.Draw(layer)
        font = ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf", self.face)), self.size_px)
        place = (x * image.width, y * image.height)
        if self.box:
            left, top, right, bottom = draw.textbbox(place, text, font=font, anchor="mm")
            draw.rectangle((left - 6, top - 4, right + 6, bottom + 4), fill=(0, 0, 0, self.box))
        edge = max(self.edge_px, 0 if self.box else 1)
        draw.text(
            place, text, font=font, anchor="mm", fill=(*self.colour, 255), stroke_width=edge, stroke_fill=(0, 0, 0, 255)
        )
        return np.asarray(Image.alpha_composite(image, layer).convert("RGB"), np.uint8)


def painted(drawn: Drawn, pictures: Pictures) -> tuple[list[Pictures], str]:
    """(pictures with what was drawn, what subtitles say): pictures [n, h, w, 3]."""
    rng = drawn.rng
    if drawn.kind == "none":
        return list(pictures), ""
    if drawn.kind == "subtitle":
        return _subtitled(rng, pictures)
    if drawn.kind == "ticker":
        pen = Pen.any(rng, 0.045, 0.06)
        text = "   +++   ".join(str(each) for each in rng.permutation(SENTENCES)[:6])
        speed, y = rng.uniform(0.1, 0.25), rng.choice([0.94, 0.95, 0.05])
        return [pen.put(each, text, 1.2 - speed * at / FPS, y) for at, each in enumerate(pictures)], ""
    if drawn.kind == "mark":
        pen, text = Pen.any(rng, 0.04, 0.06), str(rng.choice(NAMES))
        x, y = rng.choice([0.1, 0.89]), rng.choice([0.08, 0.92])
        return [pen.put(each, text, x, y) for each in pictures], ""
    if drawn.kind == "title":
        pen, text = Pen.any(rng, 0.08, 0.14), " ".join(str(rng.choice(SENTENCES)).split()[:3])
        y = rng.uniform(0.35, 0.55)
        shown = range(int(rng.integers(0, 4)), int(rng.integers(9, len(pictures) + 1)))
        return [pen.put(each, text, 0.5, y) if at in shown else each for at, each in enumerate(pictures)], ""
    pen, text = Pen.any(rng, 0.05, 0.1), str(rng.choice(SIGNS))
    start, pace = rng.uniform((0.25, 0.3), (0.75, 0.8)), rng.uniform(0.03, 0.12) * rng.choice([-1, 1])
    return [pen.put(each, text, start[0] + pace * at / FPS, start[1]) for at, each in enumerate(pictures)], ""


def _subtitled(rng: np.random.Generator, pictures: Pictures) -> tuple[list[Pictures], str]:
    """One or two subtitles, each there for 1.5 s or more, of one or two lines."""
    pen, y = Pen.any(rng, 0.04, 0.075), float(rng.choice([0.88, 0.9, 0.93]))
    sentences = [str(each) for each in rng.permutation(SENTENCES)]
    shown, num = list(pictures), len(pictures)
    first = int(rng.integers(0, 3))
    parts = [(first, num)] if rng.random() < 0.4 else [(first, num // 2), (num // 2, num)]
    said = []
    for (start, end), sentence in zip(parts, sentences, strict=False):
        words = sentence.split()
        most = max(1, round(1.5 * WIDTH_PX / pen.size_px / 7))
        lines = [" ".join(words[:most])] + ([" ".join(words[most : 2 * most])] if len(words) > most else [])
        said += lines
        for at in range(start, end):
            for number, line in enumerate(lines):
                down = y - 1.4 * pen.size_px / HEIGHT_PX * (len(lines) - 1 - number)
                shown[at] = pen.put(shown[at], line, 0.5, down)
    return shown, " ".join(said)


class Backgrounds:
    """Pictures that are drawn over."""

    def __init__(self, media_dir: Path, context: Context) -> None:
        self._media_dir, self._context = media_dir, context
        self._kept: dict[str, Pictures] = {}

    def of(self, name: str) -> Pictures:
        """`FPS` x `SECONDS` pictures [n, 360, 640, 3]: a video, cropped, or a photograph that glides by."""
        if name not in self._kept:
            self._kept[name] = self._filmed(name) if "/" in name else self._gliding(photograph(name))
        return self._kept[name]

    def _filmed(self, name: str) -> Pictures:
        shown = self._context.media.frames(
            self._media_dir / name, long_side_px=1280, max_fps=float(FPS), end=Fraction(SECONDS)
        )
        pictures = [_covering(picture, 0.5) for picture in shown.images[: FPS * SECONDS]]
        return np.stack(pictures + pictures[-1:] * (FPS * SECONDS - len(pictures)))

    def _gliding(self, picture: Pictures) -> Pictures:
        return np.stack([_covering(picture, at / (FPS * SECONDS)) for at in range(FPS * SECONDS)])


def _covering(picture: Pictures, down: float) -> Pictures:
    """A part of `picture` [h, w, 3] that is as wide, at 640 x 360."""
    import cv2

    high = min(picture.shape[0], round(picture.shape[1] * HEIGHT_PX / WIDTH_PX))
    wide = min(picture.shape[1], round(high * WIDTH_PX / HEIGHT_PX))
    top, left = round((picture.shape[0] - high) * down), (picture.shape[1] - wide) // 2
    return np.asarray(cv2.resize(picture[top : top + high, left : left + wide], (WIDTH_PX, HEIGHT_PX)), np.uint8)


@dataclass(frozen=True)
class SeenDrawing:
    """What the stage says of a clip, and of what was written of it."""

    drawn: Drawn
    said: str
    """What its subtitles say."""
    told: dict[str, Any]
    kept_ratio: float | None
    """Share of the picture that was written; None where nothing was cut away."""
    told_after: dict[str, Any] | None


def measured(half: Half, media_dir: Path, rounds: int) -> Iterator[SeenDrawing]:
    """Every clip as the stage sees it."""
    with tempfile.TemporaryDirectory() as folder:
        context, path, written = Context(Path(folder)), Path(folder) / "drawn.mp4", Path(folder) / "written.mp4"
        backgrounds, stage = Backgrounds(media_dir, context), Ocr(OcrConfig())
        stage.setup(context)
        clip = {"start_pts": 0, "end_pts": FPS * SECONDS, "tb_num": 1, "tb_den": FPS, "spans": []}
        for number, drawn in enumerate(clips(half, rounds)):
            pictures, said = painted(drawn, backgrounds.of(drawn.background))
            encode(path, pictures, None, Encoding(WIDTH_PX, HEIGHT_PX, Fraction(FPS), quality=(20, 26, 32)[number % 3]))
            told = stage.measure({"download": {"path": str(path)}, "clip": clip})
            part, after, kept_ratio = crop_of({"ocr": told}, CropRule(text=True)), None, None
            if part is not None:
                probe = context.media.probe(path)
                span = Span(probe["video_start_pts"], probe["video_end_pts"], probe["tb_num"], probe["tb_den"])
                report = cut_clip(path, span, written, options=CutOptions(crop=part), decoder=context.media)
                kept_ratio = report.width_px * report.height_px / (WIDTH_PX * HEIGHT_PX)
                after = stage.measure({"download": {"path": str(written)}, "clip": clip})
            yield SeenDrawing(drawn, said, told, kept_ratio, after)
        context.media.close()


def f1(truth: NDArray[np.bool_], told: NDArray[np.bool_]) -> float:
    """Of one yes or no."""
    right = int((truth & told).sum())
    return 2 * right / max(1, int(truth.sum() + told.sum()))


def score(found: list[SeenDrawing]) -> dict[str, Any]:
    """Subtitles present or absent, marks, kinds, how well subtitles are read, and what a crop leaves."""
    truth = np.array([each.drawn.kind == "subtitle" for each in found])
    told = np.array([each.told["has_subtitles"] for each in found])
    marks = np.array([each.drawn.kind == "mark" for each in found])
    told_marks = np.array([each.told["has_mark"] for each in found])
    has_text = np.array([each.drawn.kind != "none" for each in found])
    read = [
        SequenceMatcher(None, each.said.split(), (each.told["subtitles"] or "").split(), autojunk=False).ratio()
        for each in found
        if each.drawn.kind == "subtitle"
    ]
    called = Counter((each.drawn.kind, _main_kind(each.told)) for each in found)
    wrong = [
        f"{each.drawn.kind} {each.drawn.seed} on {each.drawn.background}"
        for each, is_there, is_told in zip(found, truth, told, strict=True)
        if is_there != is_told
    ]
    return {
        "clips": len(found),
        "subtitles_f1": f1(truth, told),
        "interval": bootstrap_interval(lambda at: f1(truth[at], told[at]), len(found)),
        "marks_f1": f1(marks, told_marks),
        "text_f1": f1(has_text, np.array([each.told["frames_ratio"] > 0 for each in found])),
        "words_read": float(np.mean(read)),
        "kinds": {f"{kind} called {name}": num for (kind, name), num in sorted(called.items())},
        "wrong": wrong,
        **cut_away(found),
    }  # fmt: skip


def cut_away(found: list[SeenDrawing]) -> dict[str, Any]:
    """Of clips of each kind that something was laid over: how many were cropped, how much stayed, and what has text after it."""
    figures: dict[str, Any] = {}
    for kind in ("subtitle", "title", "ticker", "mark"):
        own = [each for each in found if each.drawn.kind == kind]
        written = [each for each in own if each.told_after is not None]
        shares = [each.kept_ratio for each in written if each.kept_ratio is not None]
        after = [(each.drawn, each.told_after) for each in written if each.told_after is not None]
        figures[f"crop of {kind}"] = {
            "clips": len(own),
            "cropped": len(written),
            "kept_ratio": [round(float(edge), 2) for edge in np.quantile(shares, (0, 0.5, 1))] if shares else None,
            "overlaid_after": sum(told["overlaid_area_ratio"] > 0 for _, told in after),
            "with_text_after": [
                f"{drawn.seed} on {drawn.background}" for drawn, told in after if told["frames_ratio"] > 0
            ],
        }
    return figures


def _main_kind(each: dict[str, Any]) -> str:
    """Kind of most text of a clip."""
    areas: Counter[str] = Counter()
    for line in each["lines"]:
        areas[line["kind"]] += line["width"] * line["height"] * (line["end_s"] - line["start_s"])
    return areas.most_common(1)[0][0] if areas else "none"


def main(arguments: list[str] | None = None) -> None:
    """Scores, prints the table and writes it."""
    parser = parser_of_halves(__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args(arguments)
    figures = score(list(measured(given.half, given.media, given.rounds)))
    given.json.write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
