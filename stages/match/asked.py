"""What published networks say of a clip's sound: against its picture by ImageBind and Synchformer, against a text by CLAP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.errors import MediaError
from schemas.networks.clap import Clap
from schemas.networks.folders import WEIGHTS, cosine
from schemas.networks.imagebind import ImageBind
from schemas.networks.synchformer import FPS, OFFSETS_S, SIDE_PX, Synchformer
from schemas.spans import SPEECH_RATE_HZ
from schemas.timing import Span
from stages.base import Context
from stages.engines.published import asked
from stages.match.config import MatchConfig

MOST_S = 30
"""Pictures and sound of longer clips are held against each other up to there."""
STEP_S = 0.2
"""Between two offsets that Synchformer tells apart."""


@dataclass(frozen=True)
class Judged:
    """What was said of one clip; None where nobody was asked, or the clip is too short for whom was."""

    imagebind: float | None = None
    synchformer_offset_ms: float | None = None
    synchformer_in_sync: float | None = None
    clap: float | None = None
    clap_text: str | None = None


@dataclass(frozen=True)
class ShownClip:
    """What networks see and hear of one clip."""

    frames: list[NDArray[np.uint8]]
    """RGB [h, w, 3] each, shorter side 256 px or less."""
    times_s: NDArray[np.float64]
    sound: NDArray[np.float32]
    """Mono at 16 kHz."""
    start_s: float


class AskedNetworks:
    """The networks that a recipe has paths for, in one worker. Raises RecipeError for a path at which nothing lies."""

    def __init__(self, config: MatchConfig, ctx: Context) -> None:
        self._ctx = ctx
        self._imagebind = asked(ctx, config.device, ImageBind, "stages.match.imagebind_path", config.imagebind_path)
        self._synchformer = asked(
            ctx, config.device, Synchformer, "stages.match.synchformer_path", config.synchformer_path
        )
        self._clap = asked(ctx, config.device, Clap, "stages.match.clap_path", config.clap_path, WEIGHTS)

    def judge(self, path: Path, span: Span, side_ratio: float, text: str | None) -> Judged:
        """What they say of the clip `span` of a file with picture and sound, and of its sound against `text`.

        `side_ratio` is the longer side of the picture over the shorter one.
        """
        likeness = offset_ms = in_sync = None
        if self._imagebind is not None or self._synchformer is not None:
            clip = self._shown(path, span, side_ratio)
            likeness = None if self._imagebind is None else likeness_of(self._imagebind, clip)
            offset_ms, in_sync = (None, None) if self._synchformer is None else offset_of(self._synchformer, clip)
        if self._clap is None or not text:
            return Judged(likeness, offset_ms, in_sync)
        heard = self._ctx.media.audio(path, rate_hz=self._clap.rate_hz).cut(span.start, span.end)
        fit = cosine(self._clap.of_sound(heard), self._clap.of_text(text))
        return Judged(likeness, offset_ms, in_sync, fit, text)

    def _shown(self, path: Path, span: Span, side_ratio: float) -> ShownClip:
        end = min(span.end, span.start + MOST_S)
        found = self._ctx.media.frames(
            path, start=span.start, end=end, long_side_px=round(SIDE_PX * side_ratio), max_fps=2.0 * FPS
        )
        sound = self._ctx.media.audio(path, rate_hz=SPEECH_RATE_HZ).cut(span.start, end)
        return ShownClip(list(found.images), found.times_s, sound, float(span.start))


def likeness_of(network: ImageBind, clip: ShownClip) -> float | None:
    """Cosine of what picture and sound are about; None for less than 25 ms of sound."""
    try:
        return cosine(network.of_pictures(clip.frames, clip.times_s), network.of_sound(clip.sound))
    except MediaError:
        return None


def offset_of(network: Synchformer, clip: ShownClip) -> tuple[float | None, float | None]:
    """(how late the sound is in ms, how likely it is within a step of none): means of the first and the last 4.8 s.

    None for clips that are shorter.
    """
    try:
        told = network.judge(clip.frames, clip.times_s, clip.sound, clip.start_s)
    except MediaError:
        return None, None
    chances = np.asarray(told.double().softmax(1).mean(0).numpy())
    near = np.abs(OFFSETS_S) <= STEP_S + 1e-9
    return -1000 * float(OFFSETS_S[int(chances.argmax())]) + 0.0, float(chances[near].sum())
