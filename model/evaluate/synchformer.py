"""DeSync: how far sound and picture are apart, by Synchformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from model.evaluate.media import mono_sound, read_pictures
from model.evaluate.metric import Metric
from model.evaluate.networks import DECODER, VOICE_HZ, guarded
from model.evaluate.records import Protocol
from schemas.networks.synchformer import OFFSETS_S, SIDE_PX, Synchformer


def offsets_s(network: Synchformer, path: Path) -> list[float]:
    """Of the first and of the last 4.8 s, positive = sound early. Raises MediaError for what is shorter or half."""
    told = network.judge(*read_pictures(path, SIDE_PX, "rgb24"), *mono_sound(path, VOICE_HZ))
    return [float(OFFSETS_S[int(each)]) for each in told.argmax(1)]


def synchformer_metrics(path: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """How far apart sound and picture are; under `versebench` signed, so that late and early cancel."""
    network = Synchformer(path)
    is_signed = protocol == "versebench"
    size: Callable[[Sequence[float]], float] = (lambda told: float(np.mean(told))) if is_signed else _mean_size
    return (
        Metric(
            name="signed_desync_s" if is_signed else "desync_s", unit="s", better="neither" if is_signed else "lower",
            doc="how far sound and picture are apart, in steps of 0.2 s", model=f"Synchformer in {path.name}",
            read=guarded(lambda _, sample: size(offsets_s(network, sample))), sha256=network.weights.sha256, decoder=DECODER,
            crop="first and last 4.8 s, 25 per second, middle 224 of 256 px",
        ),
    )  # fmt: skip


def _mean_size(told: Sequence[float]) -> float:
    return float(np.mean(np.abs(told)))
