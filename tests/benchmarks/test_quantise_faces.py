"""The detector's file is what its script makes of the packaged floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.quantise_faces import write_int8
from stages.engines.face_networks import DETECTOR_WEIGHTS


@pytest.mark.slow
def test_the_script_makes_the_file_that_is_loaded(tmp_path: Path) -> None:
    write_int8(tmp_path / "made.onnx")
    made, kept = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (tmp_path / "made.onnx", DETECTOR_WEIGHTS)
    )
    assert made.keys() == kept.keys()
    for name, values in made.items():
        tolerance = 2 if values.dtype == np.int32 else 0  # biases are in units of a scale that comes from floats
        np.testing.assert_allclose(values, kept[name], rtol=1e-4, atol=tolerance, err_msg=name)
    assert DETECTOR_WEIGHTS.stat().st_size < 2_100_000
