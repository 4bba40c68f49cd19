"""Words by the recogniser that a protocol's owner takes, measured by stage `transcribe` with an export from a local folder.

Seed-TTS hears Chinese with Paraformer, Verse-Bench everything with SenseVoice. Their figures bear its name and stand beside
those of the packaged Whisper: one is never taken for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from model.evaluate.metric import Metric
from model.evaluate.records import EvalItem, Protocol
from model.evaluate.words import OWN_WORDS, RECOGNISER, SEEDTTS_WORDS, VERSEBENCH_WORDS, language_of
from schemas.errors import ModelError
from schemas.files import sha256_of

TOKENS = "*/tokens.txt"
"""What lies beside an export, below the folder of models."""
FUNASR = "stages.transcribe.funasr"
Network = Literal["paraformer", "sense_voice_ctc"]


@dataclass(frozen=True, slots=True)
class Listener:
    """What is known of one network."""

    name: str
    languages: tuple[str, ...]
    """Items in others are not its own."""
    metrics: Mapping[Protocol, tuple[Metric, ...]]


LISTENERS: Mapping[Network, Listener] = {
    "paraformer": Listener("Paraformer", ("zh",), {"own": OWN_WORDS, "seedtts": SEEDTTS_WORDS}),
    "sense_voice_ctc": Listener(
        "SenseVoice", ("zh", "en", "ja", "ko", "yue"), {"own": OWN_WORDS, "versebench": VERSEBENCH_WORDS}
    ),
}
"""What an export says that it is -> who hears."""


def recogniser_metrics(tokens: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """Errors in words as `protocol` counts them, by the export beside a list of tokens; none where it is not the protocol's.

    Raises ModelError where the folder has not one export, or one of another network.
    """
    exports = sorted(tokens.parent.glob("*.onnx"))
    if len(exports) != 1:
        names = ", ".join(path.name for path in exports) or "none"
        raise ModelError(
            f"{tokens.parent} has tokens.txt, but not one network in ONNX: {names}.",
            remedy="Leave there the one that shall hear; of a published pair the one in int8 is smaller.",
        )
    weights = exports[0].absolute()
    listener = LISTENERS[_network(weights)]
    writes_numbers = protocol == "versebench"
    how: dict[str, Any] = {
        "applies": _in_languages(listener.languages),
        "sha256": sha256_of(weights)[0],
        "settings": (
            "stages.transcribe.engine=funasr",
            f"{FUNASR}.weights_path={weights}",
            f"{FUNASR}.writes_numbers={str(writes_numbers).lower()}",
        ),
    }
    by = f"{listener.name} in {weights.parent.name}/{weights.name}, by sherpa-onnx"
    return tuple(
        replace(each, name=f"{each.name}_{listener.name.lower()}", model=each.model.replace(RECOGNISER, by), **how)
        for each in listener.metrics.get(protocol, ())
    )


def _network(weights: Path) -> Network:
    import onnxruntime
    import onnxruntime.capi.onnxruntime_pybind11_state as failures

    unreadable = (
        failures.Fail, failures.InvalidArgument, failures.InvalidGraph, failures.InvalidProtobuf, failures.NotImplemented
    )  # fmt: skip
    try:
        session = onnxruntime.InferenceSession(str(weights), providers=["CPUExecutionProvider"])
    except unreadable as error:
        raise ModelError(
            f"{weights} is no network that ONNX Runtime reads: {error}.", remedy="Copy the file again."
        ) from error
    told = session.get_modelmeta().custom_metadata_map.get("model_type", "")
    network = next((each for each in LISTENERS if each == told), None)
    if network is None:
        raise ModelError(
            f"{weights} says it is '{told}', which hears nothing.", remedy=f"Known: {', '.join(LISTENERS)}."
        )
    return network


def _in_languages(languages: tuple[str, ...]) -> Callable[[EvalItem], bool]:
    def applies(item: EvalItem) -> bool:
        return bool(item.text) and language_of(item) in languages

    return applies
