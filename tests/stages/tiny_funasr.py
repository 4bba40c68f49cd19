"""Exports in the form of Paraformer's and SenseVoice's that tell two tones apart: real loaders and front ends, known words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from schemas.spans import SPEECH_RATE_HZ

F32 = NDArray[np.float32]
LOW_HZ, HIGH_HZ = 500.0, 2000.0
NUM_BANDS, WIDTH, SHIFT = 80, 7, 6
"""Front end of both: 80 mel bands, 7 frames side by side, every 60 ms."""
LANGUAGES = {"auto": 0, "zh": 3, "en": 4, "yue": 5, "ja": 6, "ko": 7}
SPECIAL = ("<blank>", "<s>", "</s>", "<|zh|>", "<|NEUTRAL|>", "<|Speech|>", "<|woitn|>", "<|withitn|>")


def tones(*parts: tuple[float, float, float], length_s: float) -> F32:
    """Silence with sines of (frequency, start, end)."""
    times_s = np.arange(round(length_s * SPEECH_RATE_HZ)) / SPEECH_RATE_HZ
    found = sum(
        0.3 * np.sin(2 * np.pi * hz * times_s) * ((start_s <= times_s) & (times_s < end_s))
        for hz, start_s, end_s in parts
    )
    return np.asarray(found, np.float32)


def write_export(
    folder: Path, network: Literal["paraformer", "sense_voice_ctc"], low: str, high: str, **metadata: str
) -> Path:
    """Writes model.onnx and tokens.txt into `folder`: the token `low` for the one tone, `high` for the other.

    SenseVoice's says nothing without a tone, and 2 for the high one where it writes numbers; Paraformer's two tokens are of
    0.24 and 0.96 s.
    """
    folder.mkdir(parents=True, exist_ok=True)
    symbols = (*SPECIAL, low, high, "2")
    (folder / "tokens.txt").write_text("".join(f"{symbol} {at}\n" for at, symbol in enumerate(symbols)))
    graph = _sense_voice(len(symbols)) if network == "sense_voice_ctc" else _paraformer(len(symbols))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    numbers = {"vocab_size": len(symbols), "lfr_window_size": WIDTH, "lfr_window_shift": SHIFT}
    vectors = {name: ",".join([value] * NUM_BANDS * WIDTH) for name, value in (("neg_mean", "0"), ("inv_stddev", "1"))}
    told: dict[str, Any] = {"model_type": network, **numbers, **vectors}
    if network == "sense_voice_ctc":
        told |= {f"lang_{name}": at for name, at in LANGUAGES.items()}
        told |= {"normalize_samples": 0, "with_itn": 1, "without_itn": 0}
    for key, value in {**told, **metadata}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, str(value)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def _band(hz: float) -> int:
    """The mel band, of 80 between 20 and 8000 Hz, that a tone is loudest in."""
    mels = [1127 * np.log1p(each / 700) for each in (20.0, hz, 8000.0)]
    return round((mels[1] - mels[0]) / (mels[2] - mels[0]) * (NUM_BANDS + 1)) - 1


def _tells(num: int) -> list[onnx.TensorProto]:
    """Weights [560, num] and bias [num] of a layer: a threshold first, then how loud the tones are, the high one twice."""
    weights, bias = np.zeros((NUM_BANDS * WIDTH, num), np.float32), np.full(num, -100, np.float32)
    for token, hz in ((num - 3, LOW_HZ), (num - 2, HIGH_HZ), (num - 1, HIGH_HZ)):
        weights[_band(hz) :: NUM_BANDS, token] = 1 / WIDTH
    bias[0], bias[-3:] = 18, (0, 0, -1)
    return [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")]


def _info(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _sense_voice(num: int) -> onnx.GraphProto:
    """Four answers before those of the frames: language, mood, event, and how numbers are written."""
    first = np.eye(num, dtype=np.float32)[None, 3:7]
    writes = np.zeros((2, 1, num), np.float32)
    writes[1, 0, -1] = 2
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["loud"]),
        helper.make_node("Add", ["loud", "bias"], ["told"]),
        helper.make_node("Gather", ["writes", "text_norm"], ["written"]),
        helper.make_node("Add", ["told", "written"], ["chosen"]),
        helper.make_node("Concat", ["first", "chosen"], ["logits"], axis=1),
    ]
    lengths = [_info(name, "N", kind=TensorProto.INT32) for name in ("x_length", "language", "text_norm")]
    held = [*_tells(num), numpy_helper.from_array(first, "first"), numpy_helper.from_array(writes, "writes")]
    inputs = [_info("x", "N", "T", NUM_BANDS * WIDTH), *lengths]
    return helper.make_graph(nodes, "sense_voice", inputs, [_info("logits", "N", "L", num)], held)


def _paraformer(num: int) -> onnx.GraphProto:
    nodes = [
        helper.make_node("Gather", ["x", "at"], ["looked"], axis=1),
        helper.make_node("MatMul", ["looked", "weights"], ["loud"]),
        helper.make_node("Add", ["loud", "bias"], ["logits"]),
        helper.make_node("Identity", ["two"], ["token_num"]),
    ]
    held = [
        *_tells(num),
        numpy_helper.from_array(np.array([4, 16], np.int64), "at"),
        numpy_helper.from_array(np.array([2], np.int32), "two"),
    ]
    inputs = [_info("x", "N", "T", NUM_BANDS * WIDTH), _info("x_length", "N", kind=TensorProto.INT32)]
    outputs = [_info("logits", "N", 2, num), _info("token_num", 1, kind=TensorProto.INT32)]
    return helper.make_graph(nodes, "paraformer", inputs, outputs, held)
