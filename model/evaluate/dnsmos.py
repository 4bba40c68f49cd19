"""DNSMOS P.808: one opinion of speech, by the network in the wheel of `speechmos` (Reddy, Gopal, Cutler, ICASSP 2021).

Nothing of that package is imported, for it imports much.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluate.media import mono_sound
from model.evaluate.metric import Metric, has_text, of_set3
from model.evaluate.networks import DECODER, VOICE_HZ, guarded
from schemas.errors import MediaError, ModelError
from schemas.files import sha256_of
from schemas.networks.p808 import WINDOW, opinion_of_window

PACKAGE = "speechmos"
STEP = VOICE_HZ
"""Samples from one time that the network hears to the next."""


def network_path() -> Path:
    """Where the network lies. Raises ModelError where the package is not installed whole."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModelError(f"the package {PACKAGE} is not installed.", remedy=f"pip install {PACKAGE}")
    return Path(found.origin).parent / "dnsmos_models" / "model_v8.onnx"


def opinion(samples: NDArray[np.float32], path: Path) -> float:
    """1 bad to 5 excellent, of mono sound at 16 kHz: the mean over windows of 9 s, one a second; shorter sound is doubled."""
    while len(samples) < WINDOW:
        samples = np.append(samples, samples)
    starts = range(0, len(samples) - WINDOW + 1, STEP)
    return float(np.mean([opinion_of_window(samples[start : start + WINDOW], _session(path)) for start in starts]))


@lru_cache(maxsize=1)
def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def opinion_metric(is_only_set3: bool = False) -> Metric:
    """The opinion of spoken items, MOVA's of set3 alone."""
    path = network_path()

    def read(sample: Path) -> float:
        samples, _ = mono_sound(sample, VOICE_HZ)
        if not samples.any():
            raise MediaError(f"{sample.name} is silent.")
        return opinion(samples, path)

    return Metric(
        name="dnsmos_p808", doc="opinion of the speech, 1 bad to 5 excellent", better="higher",
        read=guarded(lambda _, sample: read(sample)), applies=of_set3 if is_only_set3 else has_text, decoder=DECODER,
        model=f"DNSMOS P.808 from the package {PACKAGE}", sha256=sha256_of(path)[0], crop="mono 16 kHz, windows of 9 s",
    )  # fmt: skip
