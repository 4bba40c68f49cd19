"""All that `--models DIR` adds: networks in folders below it as transformers saves them, and published files of known names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from model.evaluate.combined import COMBINED
from model.evaluate.imagebind import imagebind_metrics
from model.evaluate.lip_distances import WEIGHTS, distance_metrics
from model.evaluate.metric import Metric, SetMetric
from model.evaluate.networks import ClapMetrics, Dino, SoundTagger, WavlmVoice
from model.evaluate.pictures.aesthetics import AestheticMetrics
from model.evaluate.pictures.dover import dover_metrics
from model.evaluate.pictures.maniqa import maniqa_metrics
from model.evaluate.pictures.musiq import musiq_metrics
from model.evaluate.pictures.raft import raft_metrics
from model.evaluate.pictures.video_reward import RELEASE, is_video_reward, reward_metrics
from model.evaluate.protocols import Rules, of_items, of_subsets
from model.evaluate.recognisers import TOKENS, recogniser_metrics
from model.evaluate.records import Protocol
from model.evaluate.sounds.audiobox import audiobox_metrics, is_audiobox
from model.evaluate.sounds.nisqa import nisqa_metrics
from model.evaluate.sounds.panns import panns_metrics
from model.evaluate.sounds.passt import passt_metrics
from model.evaluate.sounds.unispeech import unispeech_metrics
from model.evaluate.synchformer import synchformer_metrics
from schemas.errors import ModelError
from schemas.networks.folders import WEIGHTS as FOLDER_WEIGHTS
from schemas.networks.folders import LocalNetwork

KINDS: dict[str, type[ClapMetrics | WavlmVoice | Dino | SoundTagger | AestheticMetrics]] = {
    "clap": ClapMetrics,
    "wavlm": WavlmVoice,
    "dinov2": Dino,
    "dinov3_vit": Dino,
    "audio-spectrogram-transformer": SoundTagger,
    "siglip": AestheticMetrics,
    "siglip_vision_model": AestheticMetrics,
    "clip": AestheticMetrics,
    "clip_vision_model": AestheticMetrics,
}
"""What transformers calls a network -> what it measures."""

FILES: dict[str, Callable[[Path, Protocol], tuple[Metric | SetMetric, ...]]] = {
    WEIGHTS: distance_metrics,
    "DOVER.*": dover_metrics,
    "Cnn14_mAP*.*": panns_metrics,
    "checkpoint.pt": audiobox_metrics,
    "ckpt_koniq10k.*": maniqa_metrics,
    "imagebind_*.*": imagebind_metrics,
    "musiq_*.*": musiq_metrics,
    "nisqa.*": nisqa_metrics,
    "passt-s-*.*": passt_metrics,
    "raft-things.*": raft_metrics,
    "synchformer_*.*": synchformer_metrics,
    "wavlm_large_finetune.*": unispeech_metrics,
    TOKENS: recogniser_metrics,
}
"""Name of a published file -> the metrics it gives under a protocol."""


def with_local(rules: Rules, models: Path, protocol: Protocol) -> Rules:
    """The rules with what all networks in `models` measure besides. Raises ModelError as `local_metrics` does."""
    metrics, sets = local_metrics(models, protocol)
    metrics = (*rules.metrics, *of_subsets(of_items(metrics, protocol), protocol))
    sets, combined = (*rules.sets, *of_subsets(sets, protocol)), COMBINED.get(protocol, ())
    return replace(rules, metrics=metrics, sets=sets, combined=combined, by_models="")


def local_metrics(models: Path, protocol: Protocol) -> tuple[tuple[Metric, ...], tuple[SetMetric, ...]]:
    """The metrics of all networks in `models`. Raises ModelError for a folder that holds none, or one that is not known."""
    metrics, sets = network_metrics(models, protocol)
    files = [(file, make) for name, make in FILES.items() for file in sorted(models.glob(name))]
    for made in (each for file, make in files for each in make(file, protocol)):
        if isinstance(made, SetMetric):
            sets += (made,)
        else:
            metrics += (made,)
    if not files and not metrics:
        raise ModelError(
            f"{models} holds no network: no folder with a config.json and no file of a known name.",
            remedy=f"Save networks there in folders ({', '.join(KINDS)}), or put files there: {', '.join(FILES)}.",
        )
    names = [each.name for each in (*metrics, *sets)]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ModelError(
            f"{models} holds several networks for {', '.join(doubled)}.", remedy="Leave one of each there."
        )
    return metrics, sets


def network_metrics(models: Path, protocol: Protocol) -> tuple[tuple[Metric, ...], tuple[SetMetric, ...]]:
    """The metrics of all networks in the folders below `models`. Raises ModelError for a folder with another network."""
    metrics: list[Metric] = []
    sets: list[SetMetric] = []
    for folder in sorted({path.parent for name in ("config.json", RELEASE) for path in models.glob(f"*/{name}")}):
        if is_video_reward(folder):
            metrics += reward_metrics(folder, protocol)
            continue
        if is_audiobox((found := LocalNetwork(folder)).config):
            metrics += audiobox_metrics(folder / FOLDER_WEIGHTS, protocol)
            continue
        kind = found.kind
        if kind not in KINDS:
            raise ModelError(f"{folder} is a '{kind}', which measures nothing.", remedy=f"Known: {', '.join(KINDS)}.")
        network = KINDS[kind](folder)
        some, of_sets = network.metrics()
        metrics += some
        sets += of_sets
        if protocol == "versebench" and isinstance(network, ClapMetrics):
            metrics.append(network.pair_distance())
    return tuple(metrics), tuple(sets)
