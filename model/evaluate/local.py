"""All that `--models DIR` adds: networks in folders below it as transformers saves them, and published files of known names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model.evaluate.lip_distances import WEIGHTS, distance_metrics
from model.evaluate.metric import Metric, SetMetric
from model.evaluate.networks import Clap, Dino, LocalNetwork, SoundTagger, WavlmVoice
from model.evaluate.records import Protocol
from schemas.errors import ModelError

KINDS: dict[str, type[Clap | WavlmVoice | Dino | SoundTagger]] = {
    "clap": Clap,
    "wavlm": WavlmVoice,
    "dinov2": Dino,
    "dinov3_vit": Dino,
    "audio-spectrogram-transformer": SoundTagger,
}
"""What transformers calls a network -> what it measures."""

FILES: dict[str, Callable[[Path, Protocol], tuple[Metric, ...]]] = {WEIGHTS: distance_metrics}
"""Published file -> the metrics it gives under a protocol."""


def local_metrics(models: Path, protocol: Protocol) -> tuple[tuple[Metric, ...], tuple[SetMetric, ...]]:
    """The metrics of all networks in `models`. Raises ModelError for a folder that holds none, or one that is not known."""
    metrics, sets = network_metrics(models)
    files = [models / name for name in FILES if (models / name).is_file()]
    for file in files:
        metrics += FILES[file.name](file, protocol)
    if not files and not metrics:
        raise ModelError(
            f"{models} holds no network: no folder with a config.json and no file of a known name.",
            remedy=f"Save networks there in folders ({', '.join(KINDS)}), or put files there: {', '.join(FILES)}.",
        )
    return metrics, sets


def network_metrics(models: Path) -> tuple[tuple[Metric, ...], tuple[SetMetric, ...]]:
    """The metrics of all networks in the folders below `models`. Raises ModelError for a folder with another network."""
    metrics: list[Metric] = []
    sets: list[SetMetric] = []
    for folder in sorted(path.parent for path in models.glob("*/config.json")):
        kind = LocalNetwork(folder).kind
        if kind not in KINDS:
            raise ModelError(f"{folder} is a '{kind}', which measures nothing.", remedy=f"Known: {', '.join(KINDS)}.")
        some, of_sets = KINDS[kind](folder).metrics()
        metrics += some
        sets += of_sets
    return tuple(metrics), tuple(sets)
