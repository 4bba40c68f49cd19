"""NISQA 2.0: opinions of speech and of four things that spoil it, without the clean sound (Mittag et al. 2021, arXiv 2104.09494).

The network and its spectrogram are those of torchmetrics, which has them from the authors' code; the weights are the published
nisqa.tar, from a local folder. The authors' program hears a file at its own rate, here every file is heard at 48 kHz.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

from model.evaluate.media import mono_sound
from model.evaluate.metric import Metric, has_text
from model.evaluate.networks import DECODER, guarded
from model.evaluate.records import EvalCase, Protocol
from schemas.errors import MediaError, ModelError
from schemas.files import sha256_of
from schemas.networks.tensors import plain_content

RATE_HZ = 48_000
OPINIONS: Mapping[str, str] = {
    "mos": "all of it",
    "noisiness": "how free of noise",
    "discontinuity": "how free of gaps",
    "coloration": "how natural in tone",
    "loudness": "how right in level",
}
"""What the network says, in the order of its outputs, 1 bad to 5 excellent each."""
STATE, SETTINGS = "model_state_dict", "args"
LAST_OPINION = f"pool_layers.{len(OPINIONS) - 1}.model.linear3.weight"
REMEDY = "Give the published nisqa.tar of NISQA 2.0; nisqa_mos_only.tar and nisqa_tts.tar say one thing each."


class Nisqa:
    """Five opinions of speech. Raises ModelError for a file of another network."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = plain_content(path, is_mapped=is_zipfile(path))
        if not isinstance(content, Mapping) or not {STATE, SETTINGS} <= set(content):
            raise ModelError(f"{path} has no '{STATE}' beside '{SETTINGS}'.", remedy=REMEDY)
        if LAST_OPINION not in content[STATE]:
            raise ModelError(f"{path} has no tensor '{LAST_OPINION}'.", remedy=REMEDY)
        self._content: Mapping[str, Any] = content

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return sha256_of(self.path)[0]

    @cached_property
    def _network(self) -> Any:
        from torchmetrics.functional.audio.nisqa import _NISQADIM

        try:
            network = _NISQADIM(self._content[SETTINGS])
            network.load_state_dict(self._content[STATE], strict=True)
        except (RuntimeError, KeyError, TypeError) as error:
            said = str(error).strip().splitlines()[-1].strip()
            raise ModelError(f"{self.path} is no whole NISQA 2.0: {said}", remedy=REMEDY) from error
        return network.eval()

    @lru_cache(maxsize=4096)  # noqa: B019 - as long as the metrics, which are as long as the command
    def of_file(self, path: Path) -> Mapping[str, float]:
        """The opinions of a file's sound, whole. Raises MediaError, also for sound that is silent, too short or too long."""
        sound, _ = mono_sound(path, RATE_HZ)
        if not sound.any():
            raise MediaError(f"{path.name} is silent.")
        try:
            return self.of_sound(sound)
        except ValueError as error:
            raise MediaError(f"{path.name}: {error}") from error

    def of_sound(self, sound: NDArray[np.float32]) -> Mapping[str, float]:
        """The opinions of mono samples [n] at 48 kHz. Raises ValueError for fewer than one window, or more than it hears."""
        import torch
        from torchmetrics.functional.audio.nisqa import _get_librosa_melspec, _segment_specs

        network, settings = self._network, self._content[SETTINGS]
        bands = torch.from_numpy(_get_librosa_melspec(sound[None], RATE_HZ, settings))
        shortest = settings["ms_seg_length"]
        longest = shortest + settings["ms_seg_hop_length"] * settings["ms_max_segments"] - 1
        if not shortest <= bands.shape[2] <= longest:
            unit_s = settings["ms_hop_length"]
            raise ValueError(
                f"{bands.shape[2] * unit_s:.2f} s, of {shortest * unit_s:.2f} to {longest * unit_s:.2f} s."
            )
        windows, num = _segment_specs(bands, settings)
        with torch.inference_mode():
            found = network(windows, num.expand(1))[0].double()
        return dict(zip(OPINIONS, found.tolist(), strict=True))

    def one_of_file(self, name: str, _: EvalCase, sample: Path) -> float:
        """One of the opinions of a sample. Raises MediaError."""
        return self.of_file(sample)[name]


def nisqa_metrics(path: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """The five opinions of spoken items, by the network in a file; none but under `own`, for no other protocol has them."""
    if protocol != "own":
        return ()
    network = Nisqa(path)
    return tuple(
        Metric(
            name=f"nisqa_{name}", doc=f"opinion of the speech, {what}, 1 bad to 5 excellent", better="higher",
            read=guarded(partial(network.one_of_file, name)), applies=has_text, sha256=network.sha256,
            model=f"NISQA 2.0 in {path.name}, by torchmetrics", decoder=DECODER, crop="mono 48 kHz, whole",
        )
        for name, what in OPINIONS.items()
    )  # fmt: skip
