"""Which metrics a protocol has. A metric of one protocol stands in no report of another, even under the same name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TypeVar

from model.evaluate.alignment import AV_ALIGN, LIPS, OWN_ALIGNMENT, VERSEBENCH_ALIGNMENT, lips_by
from model.evaluate.combined import Combined
from model.evaluate.cpcer import CPCER
from model.evaluate.dnsmos import opinion_metric
from model.evaluate.likeness import OWN_LIKENESS, OWN_SETS
from model.evaluate.metric import Metric, SetMetric, has_reference
from model.evaluate.qualities import CONTENT_QUALITIES, OWN_QUALITIES, RMS_DB
from model.evaluate.records import EvalItem, Protocol
from model.evaluate.words import OWN_WORDS, SEEDTTS_WORDS, VERSEBENCH_WORDS
from schemas.errors import RecipeError
from schemas.ids import digest
from schemas.recipe import nearest


@dataclass(frozen=True, slots=True)
class Rules:
    """What one protocol measures."""

    about: str
    metrics: tuple[Metric, ...]
    sets: tuple[SetMetric, ...] = ()
    combined: tuple[Combined, ...] = ()
    """Figures of those, looked for where networks from local files measure."""
    absent: str = ""
    """What of the owner's protocol is not measured, and why."""
    by_models: str = ""
    """What of it only networks from local files measure, where there are none."""

    @property
    def all(self) -> list[Metric | SetMetric]:
        """All that it measures."""
        return [*self.metrics, *self.sets]

    @property
    def stages(self) -> list[str]:
        """Stages of the curation half that have to measure samples, as the recipe has them."""
        return sorted({each.stage for each in self.all if each.stage and not each.settings})

    @property
    def stages_apart(self) -> dict[tuple[str, ...], list[str]]:
        """Settings that metrics are measured with -> their stages."""
        apart = {each.settings for each in self.all if each.settings}
        return {settings: sorted({each.stage for each in self.all if each.settings == settings}) for settings in apart}

    @property
    def recording_stages(self) -> list[str]:
        """Stages that have to measure what items bring along."""
        return sorted({each.stage for each in self.all if each.reads_recording and each.stage and not each.settings})

    def key_of(self, settings: tuple[str, ...]) -> str:
        """A name for what is measured with `settings`: other weights at the same place have another."""
        return digest(*settings, *sorted({each.sha256 for each in self.all if each.settings == settings}))


SIMILARITY, *_ = OWN_LIKENESS
LOUDNESS = next(each for each in OWN_QUALITIES if each.name == "sound_loudness_lufs")
PROTOCOLS: Mapping[Protocol, Rules] = {
    "own": Rules(
        "everything that is measured without weights from elsewhere, with defects of published protocols mended",
        (*OWN_WORDS, CPCER, *OWN_LIKENESS, *OWN_ALIGNMENT, *OWN_QUALITIES),
        OWN_SETS,
    ),
    "seedtts": Rules(
        "Seed-TTS-eval: word error by utterance, similarity to the prompt's voice",
        (*SEEDTTS_WORDS, replace(SIMILARITY, name="sim")),
        absent="Whisper-large-v3 unless stages.transcribe has it; zhconv, instead of which OpenCC makes Chinese simplified",
        by_models="Paraformer, UniSpeech's WavLM",
    ),
    "versebench": Rules(
        "Verse-Bench as its owner computes it, as far as that needs no weights from elsewhere",
        (*VERSEBENCH_WORDS, *VERSEBENCH_ALIGNMENT),
        absent="faces as InsightFace finds them and the token that its owner takes of DINOv3, instead of which others are taken",
        by_models="AS, ID, FD, KL, CS, CE, CU, PC, PQ, LSE-C, AV-A, SenseVoice, the overall score of all; RAFT's flow",
    ),
    "mova": Rules(
        "MOVA's toolkit, as far as that needs no weights from elsewhere",
        (AV_ALIGN, LOUDNESS, RMS_DB, CPCER),
        absent="cpCER by its owner's service, instead of which own words and voices tell; its frame size is unknown",
        by_models="IS, DeSync, IB, CLAP, LSE-C and LSE-D, VideoReward",
    ),
}  # fmt: skip


def with_sounds(item: EvalItem) -> bool:
    """Of Verse-Bench's set1 and set2, and of a set without parts, the items that are to sound like something."""
    return bool(item.sounds) and before_set3(item)


def before_set3(item: EvalItem) -> bool:
    """Of Verse-Bench set1 and set2, of a set without parts every item."""
    return item.subset != "set3"


VERSEBENCH_ITEMS: Mapping[str, Callable[[EvalItem], bool]] = {
    **dict.fromkeys(("audiobox_ce", "audiobox_cu", "audiobox_pc", "audiobox_pq"), before_set3),
    **dict.fromkeys(("clap", "signed_desync_s"), with_sounds),
    **dict.fromkeys(("fd_pair_clap", "kl_passt"), lambda item: with_sounds(item) and has_reference(item)),
}
"""Items that its owner takes a figure of, where they are fewer than those that the figure can be taken of."""


def of_items(metrics: Iterable[Metric], protocol: Protocol) -> tuple[Metric, ...]:
    """The metrics, each of the items that the protocol's owner takes it of."""
    if protocol != "versebench":
        return tuple(metrics)
    return tuple(replace(each, applies=VERSEBENCH_ITEMS.get(each.name, each.applies)) for each in metrics)


Either = TypeVar("Either", Metric, SetMetric)
MEANS_OF_SUBSETS: Mapping[Protocol, tuple[str, ...]] = {
    "mova": (
        "clap", "is_panns", "desync_s", "ib", "videoreward_vq", "videoreward_mq", "videoreward_ta", "videoreward_overall",
    ),
}  # fmt: skip
"""Figures that are means of the figures of the set's parts (MOVA's evaluation/README.md and eval_video_reward.py)."""


def of_subsets(metrics: Iterable[Either], protocol: Protocol) -> tuple[Either, ...]:
    """The metrics, those of them as means of the set's parts that the protocol's owner takes so."""
    names = MEANS_OF_SUBSETS.get(protocol, ())
    return tuple(
        replace(each, is_mean_of_subsets=True, crop=f"{each.crop}; mean over sets") if each.name in names else each
        for each in metrics
    )


BRISQUE = "brisque"
"""Package of the extra `content` that stage `quality` needs."""


def rules_here(protocol: Protocol, settings: Sequence[str] = ()) -> Rules:
    """The rules of a protocol with what lies in packages, own with what the extra `content` measures where it is installed.

    Lips are said to be held by whatever `settings` of a recipe, KEY=VALUE, have hold them.
    """
    rules = PROTOCOLS[protocol]
    if (by := lips_by(settings)) != LIPS:
        named = (replace(each, model=by) if each.model == LIPS else each for each in rules.metrics)
        rules = replace(rules, metrics=tuple(named))
    if protocol in ("own", "mova"):
        rules = replace(rules, metrics=(*rules.metrics, opinion_metric(is_only_set3=protocol == "mova")))
    if protocol != "own":
        return rules
    if find_spec(BRISQUE) is None:
        lacking = f"stage quality's figures of the picture, for want of {BRISQUE}: pip install 'nava-engine[content]'"
        return replace(rules, absent=lacking)
    return replace(rules, metrics=(*rules.metrics, *CONTENT_QUALITIES))


def protocol_named(name: str) -> Protocol:
    """The protocol of that name. Raises RecipeError for one that is not known."""
    for known in PROTOCOLS:
        if known == name:
            return known
    raise RecipeError(f"there is no protocol '{name}'.", remedy=nearest(name, PROTOCOLS))
