"""The decoding benchmark compares what both can decode, names what decord cannot, and checks that frames are equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.decode import as_text, score_decoding
from pipeline.demo.clips import flash_and_click
from pipeline.demo.write import Encoding


@pytest.mark.slow
def test_both_engines_are_measured_on_the_same_frames(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    small = Encoding(width_px=192, height_px=96)
    flash_and_click(tmp_path / "a.mp4", 2.0, small)
    flash_and_click(tmp_path / "b.avi", 2.0, Encoding(width_px=192, height_px=96, video_codec="mpeg4"))
    (tmp_path / "notes.txt").write_text("no media")
    result = score_decoding([tmp_path], repeats=1)
    rows = {(row["file"], row["view"]): row for row in result["files"]}
    assert [key for key, row in rows.items() if row["ratio"]] == [("a.mp4", "all"), ("a.mp4", "sparse")]
    assert rows["a.mp4", "all"]["frames"] == 50
    assert rows["a.mp4", "sparse"]["frames"] == 2
    assert all(rows["a.mp4", view]["apart"] < 2 for view in ("all", "sparse"))
    assert rows["b.avi", "all"]["pyav_cpu_s"] > 0
    assert result["compared"] == {"all": 1, "sparse": 1}
    assert "a.mp4" in as_text(result)
