"""How far pictures move from one frame to the next, by RAFT's optical flow (Teed and Deng 2020, arXiv 2003.12039).

The network as raft-things.pth has it, as a function of its tensors: features of both pictures, how alike every place of one
is to every place of the other at four scales, and a recurrent unit that looks there up around where it believes a place went.
Verse-Bench computes the mean absolute flow so (raft/raft_inferencer.py), and has it in no score.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.evaluate.media import each_picture
from model.evaluate.metric import Metric
from model.evaluate.networks import DECODER, guarded
from model.evaluate.records import Protocol
from schemas.errors import MediaError
from schemas.networks.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

MOST_PX = 640
"""Verse-Bench halves pictures until no side is longer."""
ROUNDS = 20
STEP = 8
"""Pixels along a side of a place of the features."""
NUM_SCALES, RADIUS = 4, 4
LEAST_PX = STEP * 2 ** (NUM_SCALES - 1) * 2
"""A side below has less than two places at the coarsest scale, where nothing lies between."""
MASK_SHARE = 0.25
"""Of what is learned about neighbours (update.py of the authors)."""


class Raft:
    """Motion between pictures, computed on `device`."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.weights = TensorFile(path, device=device)

    @cached_property
    def _prefix(self) -> str:
        """The published file was saved from several cards at once, which puts this before names."""
        return "module." if "module.fnet.conv1.weight" in self.weights else ""

    def of_film(self, path: Path) -> float:
        """Mean absolute flow in pixels, over both directions, all places and all pairs of neighbouring frames.

        Raises MediaError for a film of less than two frames or of pictures below 128 px.
        """
        import torch

        found, before = [], None
        with torch.inference_mode():
            for frame in each_picture(path):
                picture = self.prepared(frame)
                seen = self._encoded(picture, "fnet")
                if before is not None:
                    found.append(float(self.flow(before[0], before[1], seen).abs().mean()))
                before = (picture, seen)
        if not found:
            raise MediaError(f"{path.name}: one frame shows no motion.", reason="too_short")
        return float(np.mean(found))

    def prepared(self, frame: NDArray[np.uint8]) -> Tensor:
        """RGB [h, w, 3] -> [1, 3, h', w'] of -1 to 1, halved until it fits, its edges repeated to whole places."""
        import cv2
        import torch
        from torch.nn.functional import pad

        height, width = frame.shape[:2]
        while max(height, width) > MOST_PX:
            height, width = height // 2, width // 2
        if min(height, width) < LEAST_PX:
            raise MediaError(
                f"pictures are {min(height, width)} px high or wide as RAFT sees them, less than {LEAST_PX}."
            )
        scaled = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        given = torch.from_numpy(scaled).permute(2, 0, 1)[None].to(self.weights.device) / 255.0 * 2.0 - 1.0
        (left, right), (top, below) = ((more // 2, more - more // 2) for more in (-width % STEP, -height % STEP))
        return pad(given, (left, right, top, below), mode="replicate")

    def flow(self, picture: Tensor, seen: Tensor, other: Tensor) -> Tensor:
        """[1, 2, h, w] pixels to the right and down by which places of `picture` [1, 3, h, w] moved.

        `seen` and `other` [1, c, h/8, w/8] are the features of it and of the picture after it.
        """
        import torch

        scales = _alike(seen, other)
        state, context = self._encoded(picture, "cnet").chunk(2, 1)
        state, context = state.tanh(), context.relu()
        rows, columns = (torch.arange(side, device=picture.device).float() for side in seen.shape[2:])
        start = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))[None]
        at = start
        for _ in range(ROUNDS):
            moved = at - start
            state = self._updated(state, torch.cat([context, self._motion(moved, _looked_up(scales, at))], 1))
            at = at + self._convolved(
                self._convolved(state, "update_block.flow_head.conv1").relu(), "update_block.flow_head.conv2"
            )
        mask = self._convolved(self._convolved(state, "update_block.mask.0").relu(), "update_block.mask.2")
        return _enlarged(at - start, MASK_SHARE * mask)

    def _convolved(self, given: Tensor, name: str, stride: int = 1) -> Tensor:
        """Through the convolution of that name, zeros around so that every `stride`th place has an answer."""
        from torch.nn.functional import conv2d

        kernel = self.weights[f"{self._prefix}{name}.weight"]
        around = (kernel.shape[2] // 2, kernel.shape[3] // 2)
        return conv2d(given, kernel, self.weights[f"{self._prefix}{name}.bias"], stride=stride, padding=around)

    def _normed(self, given: Tensor, name: str) -> Tensor:
        """Features of both pictures by their own means, the context by means that were learned."""
        from torch.nn.functional import instance_norm

        return (
            instance_norm(given) if name.startswith("fnet") else self.weights.batch_norm(given, f"{self._prefix}{name}")
        )

    def _encoded(self, picture: Tensor, name: str) -> Tensor:
        """A picture [1, 3, h, w] -> [1, c, h/8, w/8]: three pairs of residual blocks."""
        held = self._normed(self._convolved(picture, f"{name}.conv1", stride=2), f"{name}.norm1").relu()
        for layer, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2)):
            for number in (0, 1):
                held = self._residual(held, f"{name}.{layer}.{number}", 1 if number else stride)
        return self._convolved(held, f"{name}.conv2")

    def _residual(self, given: Tensor, name: str, stride: int) -> Tensor:
        first = self._normed(self._convolved(given, f"{name}.conv1", stride), f"{name}.norm1").relu()
        second = self._normed(self._convolved(first, f"{name}.conv2"), f"{name}.norm2").relu()
        if stride > 1:
            given = self._normed(self._convolved(given, f"{name}.downsample.0", stride), f"{name}.norm3")
        return (given + second).relu()

    def _motion(self, moved: Tensor, looked_up: Tensor) -> Tensor:
        """What is known of motion: where places are believed to have gone, and how alike it is around there."""
        import torch

        name = "update_block.encoder"
        alike = self._convolved(self._convolved(looked_up, f"{name}.convc1").relu(), f"{name}.convc2").relu()
        flow = self._convolved(self._convolved(moved, f"{name}.convf1").relu(), f"{name}.convf2").relu()
        return torch.cat([self._convolved(torch.cat([alike, flow], 1), f"{name}.conv").relu(), moved], 1)

    def _updated(self, state: Tensor, given: Tensor) -> Tensor:
        """The recurrent unit, along rows and then along columns."""
        import torch

        for number in (1, 2):
            both = torch.cat([state, given], 1)
            kept, reset = (self._convolved(both, f"update_block.gru.conv{gate}{number}").sigmoid() for gate in "zr")
            new = self._convolved(torch.cat([reset * state, given], 1), f"update_block.gru.convq{number}").tanh()
            state = (1 - kept) * state + kept * new
        return state


def _alike(one: Tensor, other: Tensor) -> list[Tensor]:
    """[h w, 1, h', w'] at each scale: how alike every place of features [1, c, h, w] is to all of the other's."""
    from torch.nn.functional import avg_pool2d

    dim, height, width = one.shape[1:]
    scales = [(one.reshape(dim, -1).T @ other.reshape(dim, -1) / dim**0.5).reshape(-1, 1, height, width)]
    for _ in range(NUM_SCALES - 1):
        scales.append(avg_pool2d(scales[-1], 2))
    return scales


def _looked_up(scales: list[Tensor], at: Tensor) -> Tensor:
    """[1, scales (2r + 1)^2, h, w]: how alike it is around `at` [1, 2, h, w], columns of the window one after the other."""
    import torch
    from torch.nn.functional import grid_sample

    steps = torch.arange(-RADIUS, RADIUS + 1, device=at.device).float()
    around = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
    places = at[0].permute(1, 2, 0).reshape(-1, 1, 1, 2)
    found = []
    for number, scale in enumerate(scales):
        sides = torch.tensor([scale.shape[3] - 1, scale.shape[2] - 1], device=at.device)
        window = 2 * (places / 2**number + around) / sides - 1
        found.append(grid_sample(scale, window, align_corners=True).flatten(1))
    return torch.cat(found, 1).T.reshape(1, -1, *at.shape[2:])


def _enlarged(flow: Tensor, mask: Tensor) -> Tensor:
    """Flow [1, 2, h, w] in places -> [1, 2, 8 h, 8 w] in pixels: of the nine places around, in shares that `mask` says."""
    from torch.nn.functional import unfold

    height, width = flow.shape[2:]
    shares = mask.reshape(1, 9, STEP, STEP, height, width).softmax(1)
    near = unfold(STEP * flow, 3, padding=1).reshape(2, 9, 1, 1, height, width)
    return (shares * near).sum(1).permute(0, 3, 1, 4, 2).reshape(1, 2, STEP * height, STEP * width)


def raft_metrics(path: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """How far the pictures of a film move, by the network in a file, on a CUDA device where there is one."""
    import torch

    network = Raft(path, "cuda" if torch.cuda.is_available() else "cpu")
    return (
        Metric(
            name="raft_flow", doc="how far pictures move from one frame to the next, mean over both directions", unit="px",
            better="neither", read=guarded(lambda _, sample: network.of_film(sample)), model=f"RAFT in {path.name}",
            sha256=network.weights.sha256, decoder=DECODER,
            crop=f"every frame, halved until no side is above {MOST_PX} px, {ROUNDS} rounds",
        ),
    )  # fmt: skip
