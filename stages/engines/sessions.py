"""Networks in ONNX Runtime as workers run them: on the CPU, on one thread, as every worker has one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def one_thread_session(weights: Path) -> Any:
    """An `onnxruntime.InferenceSession` of an ONNX file. Raises what ONNX Runtime raises for a file that is none."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
