"""Networks that say of which kind a picture is, as transformers saves them: any whose labels are classes of pictures."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ModelError
from schemas.networks.folders import WEIGHTS, LocalNetwork

FRONT_END = "preprocessor_config.json"
KIND = "ForImageClassification"
"""How the names of transformers' classes of such networks end."""


class PictureClassifier(LocalNetwork):
    """Probabilities of kinds of pictures (Falconsai/nsfw_image_detection, a ViT, and others of transformers' classes)."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        super().__init__(folder, device)
        found = self.config.get("architectures") or ["no architecture"]
        if not all(name.endswith(KIND) for name in found):
            raise ModelError(
                f"{folder / 'config.json'}: expected a network called ...{KIND}, got {', '.join(found)}.",
                remedy="Give the folder of a classifier of pictures, such as Falconsai/nsfw_image_detection.",
            )
        if not (folder / FRONT_END).is_file():
            raise ModelError(
                f"{folder} has no {FRONT_END}, without which nobody knows how its pictures are prepared.",
                remedy="Put the published file there.",
            )

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        import transformers

        network, told = transformers.AutoModelForImageClassification.from_pretrained(
            self.folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype="float32"
        )
        if missing := sorted(told["missing_keys"]):
            raise ModelError(
                f"{self.folder / WEIGHTS} has no tensor '{missing[0]}' ({len(missing)} missing), which config.json asks for.",
                remedy="Give the published folder whole: what is missing would be drawn at random.",
            )
        return network.eval().to(self.device), self.picture_front_end()

    def ready(self) -> None:
        """Loads the network. Raises ModelError where its weights are not whole."""
        assert self._parts

    def number_of(self, label: str) -> int:
        """Which of the probabilities is that of `label`. Raises ModelError where the network does not know it."""
        names = {str(name): int(number) for number, name in self.config.get("id2label", {}).items()}
        if label not in names:
            raise ModelError(
                f"{self.folder / 'config.json'}: expected a label '{label}' in id2label, got {sorted(names) or 'no labels'}.",
                remedy="Name the label that stands for what is sought, or give the folder of another network.",
            )
        return names[label]

    def of_picture(self, picture: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The probability [labels] of every label for a picture RGB [h, w, 3]; of one that holds, unless many may."""
        import torch

        network, prepare = self._parts
        with torch.inference_mode():
            given = prepare(picture, return_tensors="pt", input_data_format="channels_last").to(self.device)
            logits = network(**given).logits[0].double()
            may_be_many = network.config.problem_type == "multi_label_classification"
            return np.asarray((logits.sigmoid() if may_be_many else logits.softmax(-1)).cpu().numpy())
