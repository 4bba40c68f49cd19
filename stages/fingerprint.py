"""`fingerprint`: what a clip's pictures and sound are recognised by, see `stages.near_duplicates.prints`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from schemas.fields import f, struct
from schemas.records import Row, span_of
from schemas.spans import SPEECH_RATE_HZ
from schemas.timing import Span
from stages.asset_pass import Wish
from stages.base import Context, Measure, Resources, StageConfig
from stages.media.decoder import Frames, Look
from stages.near_duplicates.prints import HOP_S, Hashes, picture_hashes, sound_prints

PICTURES_PER_S = 4.0
LONG_SIDE_PX = 256


class FingerprintConfig(StageConfig):
    """Nothing to choose: fingerprints of two runs can be compared."""


class PrintWatch:
    """Collects hashes of pictures, four a second: 200 bytes a second."""

    look = Look(long_side_px=LONG_SIDE_PX, max_fps=PICTURES_PER_S, format="gray")

    def __init__(self, ctx: Context | None = None) -> None:
        self._found: list[tuple[float, Hashes]] = []

    def see(self, run: Frames) -> None:
        """Adds pictures, uint8 [n, h, w]; of flat ones there is nothing to add."""
        for image, time_s in zip(run.images, run.times_s.tolist(), strict=True):
            if (hashes := picture_hashes(image)) is not None:
                self._found.append((time_s, hashes))

    def of(self, span: Span) -> tuple[list[float], list[int]]:
        """Times from the beginning of a clip, and the hashes, six for each time."""
        start_s, end_s = float(span.start), float(span.end)
        inside = [(time_s - start_s, hashes) for time_s, hashes in self._found if start_s <= time_s < end_s]
        return [time_s for time_s, _ in inside], [
            each for _, hashes in inside for each in hashes.view(np.int64).tolist()
        ]


class Fingerprint(Measure[FingerprintConfig]):
    """Fingerprints of a clip, about 280 bytes a second: six hashes for each of four pictures, and 22 of sound."""

    name = "fingerprint"
    version = "1"
    level = "clip"
    reads = ("download.path", "probe.has_audio", "clip")
    adds = struct(
        f(
            "at_s",
            pa.list_(pa.float32()),
            unit="s",
            doc="when pictures that are not flat begin, on the clip clock",
            means="picture_times",
        ),
        f(
            "pictures",
            pa.list_(pa.int64()),
            doc="hashes of each of them: of all of it, and of its middle with 4, 8, 12, 16 and 20 % of both sides left out",
            means="picture_prints",
        ),
        f(
            "sound",
            pa.list_(pa.int32()),
            doc=f"hashes of the sound, one every {1000 * HOP_S:g} ms; 0 for silence",
            means="sound_prints",
        ),
        in_shard=False,
        private=True,
    )
    Config = FingerprintConfig
    is_watching = True
    resources = Resources(cpus=1.0, memory_gb=0.1, timeout_s=300.0)

    @classmethod
    def watches(cls, config: FingerprintConfig, ctx: Context) -> Wish:
        """Four pictures a second of the asset."""
        return (PrintWatch,)

    def measure(self, row: Row) -> dict[str, Any]:
        """The struct of one clip."""
        span, path = span_of(row["clip"]), self.ctx.asset_path(row)
        at_s, pictures = self.ctx.asset_pass.look(path, PrintWatch).of(span)
        sound = np.zeros(0, np.uint32)
        if row["probe"]["has_audio"]:
            heard = self.ctx.media.audio(path, rate_hz=SPEECH_RATE_HZ)
            sound = sound_prints(heard.cut(span.start, span.end).reshape(-1), heard.rate_hz)
        return {"at_s": at_s, "pictures": pictures, "sound": sound.view(np.int32).tolist()}
