"""One recording has one fingerprint, whatever it was encoded by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.demo.clips import talking_clip
from pipeline.demo.write import Encoding
from stages.base import Context
from stages.fingerprint import Fingerprint, FingerprintConfig
from stages.near_duplicates.search import ClipPrints, likeness
from tests.rows import clip_row, span_of_file


@pytest.mark.slow
def test_a_file_and_its_copy_have_one_fingerprint(tmp_path: Path, context: Context) -> None:
    """Through decoder and encoder: half the size, and another codec."""
    stage = Fingerprint(FingerprintConfig())
    stage.setup(context)
    found = []
    for name, encoding in (
        ("a.mp4", Encoding()),
        ("b.webm", Encoding(160, 120, video_codec="libvpx", audio_codec="libopus")),
    ):
        talking_clip(tmp_path / name, duration_s=3.0, encoding=encoding, seed=4)
        span = span_of_file(context.media.probe(tmp_path / name))
        (row,) = stage.process([clip_row(tmp_path / name, span)])
        assert isinstance(row, dict)
        pictures = np.array(row["pictures"], np.int64).view(np.uint64).reshape(-1, 6)
        found.append(ClipPrints(np.array(row["at_s"]), pictures, np.array(row["sound"], np.int32).view(np.uint32)))
    assert len(found[0].at_s) == 12
    assert likeness(*found) == likeness(*reversed(found))
    assert (likeness(*found).picture, likeness(*found).sound) == (True, True)
    context.media.close()
