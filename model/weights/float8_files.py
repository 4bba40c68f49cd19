"""Checkpoints whose matrices are stored in eight bits, read as bfloat16: float8 (E4M3) values, with a scale or without.

How the release names its scales is not known here, so every name in use is looked for: `X.weight` goes with
`X.weight_scale`, `X.scale_weight` or `X.weight_scale_inv`, one number or one per output row, by which values are multiplied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from model.weights.formats import TensorSource, TensorSpec
from schemas.errors import ModelError

FLOAT8 = torch.float8_e4m3fn
SCALES = ("weight_scale", "scale_weight", "weight_scale_inv")
MARKERS = ("scaled_fp8", "input_scale", "scale_input")
"""Last parts of names that hold nothing of the weights."""


def widened(source: TensorSource) -> TensorSource:
    """The source itself, or seen as bfloat16 where it has tensors in eight bits. Raises ModelError for scales of other shapes."""
    if not any(spec.dtype == FLOAT8 for spec in source.specs.values()):
        return source
    return WidenedSource(source)


class WidenedSource:
    """A source with float8 tensors as one of bfloat16."""

    def __init__(self, source: TensorSource) -> None:
        self.where, self._source = source.where, source
        self._scale_of: dict[str, str] = {}
        for name, spec in source.specs.items():
            stem = name.removesuffix("weight")
            found = [stem + scale for scale in SCALES if stem + scale in source.specs]
            if spec.dtype == FLOAT8 and found:
                self._scale_of[name] = found[0]
                self._refuse_other_shapes(name, spec, found[0])
        aside = {*self._scale_of.values(), *(name for name in source.specs if name.rpartition(".")[2] in MARKERS)}
        self.specs = {
            name: TensorSpec(torch.bfloat16, spec.shape) if spec.dtype == FLOAT8 else spec
            for name, spec in source.specs.items()
            if name not in aside
        }

    def _refuse_other_shapes(self, name: str, spec: TensorSpec, scale: str) -> None:
        shape, rows = self._source.specs[scale].shape, spec.shape[0]
        if shape not in ((), (1,), (rows,), (rows, 1)):
            raise ModelError(
                f"{self.where}: {scale} has {list(shape)}, expected one number or one for each of the {rows} rows of {name}."
            )

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, those in eight bits multiplied by their scales in float32."""
        for name in names:
            ((_, value),) = self._source.read([name])
            if value.dtype != FLOAT8:
                yield name, value
                continue
            wide = value.float()
            if name in self._scale_of:
                ((_, scale),) = self._source.read([self._scale_of[name]])
                wide *= scale.float().reshape(-1, *[1] * (wide.dim() - 1))
            yield name, wide.to(torch.bfloat16)
