"""Makes the face detector's network in 8 bits from the packaged CenterFace, whose weights are floats.

    python -m benchmarks.quantise_faces [--out stages/engines/centerface_int8.onnx]

Weights are rounded per channel to 7 bits, so that processors without VNNI instructions cannot overflow and every one
gives the same answer; activations to 8 bits between the extremes that six packaged photographs at three sizes bring.
Needs the package `onnx`. Takes some seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from stages.engines.face_networks import DETECTOR_WEIGHTS
from stages.engines.packaged import packaged

PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "brick.png", "hubble_deep_field.jpg")
SCALES = (1.0, 0.6, 0.35)
WIDTH, HEIGHT = 512, 288
OPSET = 13
"""The first whose quantisation is per channel."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DETECTOR_WEIGHTS)
    write_int8(parser.parse_args().out)


def write_int8(path: Path) -> None:
    """The network in 8 bits, for pictures of any size whose sides are multiples of 32, as an ONNX file."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "float.onnx"
        onnx.save(any_size(onnx.load(packaged("centerface"))), whole)
        quantize_static(
            whole,
            path,
            Pictures(),
            quant_format=QuantFormat.QOperator,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )


def any_size(network: Any) -> Any:
    """The packaged network without the size its inputs and outputs are declared with, its batch norms folded away."""
    graph = network.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        _fold(graph, norm, weights)
    used = {name for node in graph.node for name in node.input}
    channels = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in graph.output}
    made = helper.make_graph(
        list(graph.node),
        "centerface",
        [_image("input.1", 3)],
        [_image(value.name, channels[value.name]) for value in graph.output],
        [tensor for tensor in graph.initializer if tensor.name in used],
    )
    for index, node in enumerate(made.node):
        node.name = f"{node.op_type.lower()}_{index}"
    opset = helper.make_opsetid("", network.opset_import[0].version)
    return version_converter.convert_version(helper.make_model(made, opset_imports=[opset], ir_version=8), OPSET)


def _image(name: str, channels: int) -> Any:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", channels, None, None])


def _fold(graph: Any, norm: Any, weights: dict[str, Any]) -> None:
    """Takes a batch norm behind a transposed convolution without offset into that one's weights."""
    before = next(node for node in graph.node if node.output[0] == norm.input[0])
    gain, offset, mean, variance = (numpy_helper.to_array(weights[name]) for name in norm.input[1:])
    scale = gain / np.sqrt(variance + norm.attribute[0].f)
    kernel = weights[before.input[1]]
    folded = numpy_helper.to_array(kernel) * scale[None, :, None, None]
    kernel.CopyFrom(numpy_helper.from_array(folded.astype(np.float32), kernel.name))
    bias = numpy_helper.from_array((offset - mean * scale).astype(np.float32), f"{kernel.name}.bias")
    graph.initializer.append(bias)
    before.input.append(bias.name)
    before.output[0] = norm.output[0]
    graph.node.remove(norm)


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    """What the network is shown to learn how far its activations go."""

    def __init__(self) -> None:
        self._pictures = pictures()

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next picture as the network's input, or None."""
        picture = next(self._pictures, None)
        return None if picture is None else {"input.1": picture.transpose(2, 0, 1)[None].astype(np.float32)}


def pictures() -> Iterator[NDArray[np.uint8]]:
    """The photographs, RGB uint8 [288, 512, 3], each filling the upper part of the picture and smaller ones a corner."""
    import cv2

    for name in PHOTOGRAPHS:
        whole = np.asarray(cv2.imread(str(packaged(name))))[..., ::-1]
        part = cv2.resize(whole[: whole.shape[1] * HEIGHT // WIDTH], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        for scale in SCALES:
            small = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            picture = np.full_like(part, int(part.mean()))
            picture[: len(small), : small.shape[1]] = small
            yield picture


if __name__ == "__main__":
    main()
