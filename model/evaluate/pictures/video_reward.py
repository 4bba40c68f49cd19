"""VideoReward: opinions of a film's pictures, its motion and its text by a vision-language network (arXiv 2501.13918).

Qwen2-VL-2B is shown the film and told in one text what to look at; at three words that it was taught for the purpose a head
says its opinion of the pictures (VQ), of the motion (MQ) and of how they agree with the prompt (TA). It reads from the left,
and the prompt stands behind the words of VQ and MQ: these do not depend on it.

A folder has the release of KwaiVGI/VideoReward (model_config.json, checkpoint-*/), config.json of Qwen2-VL-2B-Instruct, and
the authors' prompt_template.py, of which the text is taken and no code is run. How the film is looked at is the authors'
program's (KwaiVGI/VideoAlign, inference.py and vision_process.py), as are the positions of words: they run 1, 2, 3 through
the film too, as the authors' network passes none on, and not in rows and columns as Qwen2-VL's own. Computed in float32, by
the authors in bfloat16.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from functools import cached_property, lru_cache, partial
from math import ceil, floor, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.evaluate.media import read_chosen
from model.evaluate.metric import Metric, always
from model.evaluate.networks import DECODER, guarded
from model.evaluate.pictures.reward_weights import checkpoint_of, hashes, reward_state, weight_files
from model.evaluate.records import EvalCase, EvalItem, Protocol
from schemas.errors import MediaError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

RELEASE, TEMPLATE, CONFIG = "model_config.json", "prompt_template.py", "config.json"
TEXT = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
"""The text in the authors' file that the release was trained with."""
GAP = "{text_prompt}"
SCORES = ("VQ", "MQ", "TA")
WORDS = tuple(f"<|{each}_reward|>" for each in SCORES)
FILM = "<|video_pad|>"
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
"""What Qwen2-VL-2B-Instruct's own template puts around what it is told."""
EVEN = 2
LEAST_FRAMES, MOST_FRAMES = 4, 768
SIDE_STEP_PX = 28
LEAST_PX = 128 * SIDE_STEP_PX**2
"""Pixels of a frame (vision_process.py)."""
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of Qwen2-VL's front end, which are CLIP's."""
EXPECTED: Mapping[str, Mapping[str, object]] = {
    "model_config": {"use_special_tokens": True, "reward_token": "special"},
    "data_config": {"prompt_template_type": "detailed_special", "sample_type": "uniform", "num_frames": None},
}
"""What the release says of itself; another one is read otherwise."""


class VideoReward:
    """Opinions of films, by the network in a folder."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.device = folder, device
        for name in (RELEASE, TEMPLATE, CONFIG):
            if not (folder / name).is_file():
                raise ModelError(
                    f"{folder} has no {name}.",
                    remedy=f"Put there the release of VideoReward, {TEMPLATE} of its authors' program and {CONFIG} of "
                    "Qwen2-VL-2B-Instruct.",
                )
        told = json.loads((folder / RELEASE).read_text(encoding="utf-8"))
        for section, expected in EXPECTED.items():
            got = {name: told.get(section, {}).get(name) for name in expected}
            if got != expected:
                raise ModelError(
                    f"{folder / RELEASE}: {section} says {got}, expected {expected}.",
                    remedy="Give the published release.",
                )
        data = told["data_config"]
        self.fps, self.most_px = float(data["fps"]), int(data["max_frame_pixels"])
        self.lora: Mapping[str, Any] = told.get("peft_lora_config") or {}
        self.scales: Mapping[str, float] | None = told.get("inference_config")
        self.text = template(folder / TEMPLATE)

    @cached_property
    def sha256(self) -> str:
        """Of the files of weights, and of the text."""
        return hashes([*weight_files(self.folder), self.folder / TEMPLATE])

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        beside = checkpoint_of(self.folder) / "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(beside if beside.is_dir() else self.folder, local_files_only=True)
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(WORDS)}, replace_additional_special_tokens=False
        )
        return tokenizer

    @cached_property
    def _parts(self) -> tuple[Any, Tensor]:
        """The network and the head [1 or 3, c]. Raises ModelError for weights of another network or another tokenizer."""
        import torch
        from transformers import Qwen2VLConfig, Qwen2VLModel

        state, head = reward_state(self.folder, self.lora)
        config = Qwen2VLConfig.from_pretrained(self.folder, local_files_only=True)
        num_words = len(state.get("language_model.embed_tokens.weight", ()))
        if num_words != len(self._tokenizer):
            raise ModelError(
                f"{self.folder}: the tokenizer knows {len(self._tokenizer)} words with {', '.join(WORDS)}, the weights "
                f"{num_words}.",
                remedy="Put the release's folder checkpoint-*/tokenizer there.",
            )
        config.text_config.vocab_size = num_words
        with torch.device("meta"):
            wanted = {name: each.shape for name, each in Qwen2VLModel(config).state_dict().items()}
        got = {name: each.shape for name, each in state.items()}
        if wrong := sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name)):
            raise ModelError(
                f"{checkpoint_of(self.folder)}: {len(wrong)} tensors are missing, unknown or of another size, such as "
                f"{', '.join(wrong[:3])}.",
                remedy=f"Give the published release, and {CONFIG} of the network that it was made of.",
            )
        network = Qwen2VLModel.from_pretrained(None, config=config, state_dict=state, dtype=head.dtype)
        return network.eval().to(self.device), head.to(self.device)

    @lru_cache(maxsize=4096)  # noqa: B019 - as long as the metrics, which are as long as the command
    def of_film(self, path: Path, prompt: str) -> Mapping[str, float]:
        """VQ, MQ and TA of a film that was made from `prompt`; what is not asked of the prompt is the same without.

        Raises MediaError for less than two frames, and for a prompt with words that only the template may have.
        """
        import torch

        frames = read_chosen(path, partial(chosen_frames, fps=self.fps))
        with torch.inference_mode():
            raw = self.opinions(resized(frames, self.most_px), prompt)
        if self.scales is None:
            return raw
        return {name: (raw[name] - self.scales[f"{name}_mean"]) / self.scales[f"{name}_std"] for name in SCORES}

    def opinions(self, frames: Tensor, prompt: str) -> Mapping[str, float]:
        """What the head says of frames [t, 3, h, w] of 0 to 255, t even, and sides of whole patches."""
        import torch

        network, head = self._parts
        vision = network.config.vision_config
        pixels, grid = patches(frames, vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        ids, at = self._words(prompt, int(grid.prod()) // vision.spatial_merge_size**2)
        given = network.language_model.embed_tokens(ids)
        seen = network.visual(pixels.to(self.device), grid_thw=grid[None].to(self.device))
        given[ids == self._tokenizer.convert_tokens_to_ids(FILM)] = seen
        places = torch.arange(len(ids), device=self.device).expand(3, 1, -1)
        told = network.language_model(inputs_embeds=given[None], position_ids=places, use_cache=False)
        found = told.last_hidden_state[0, at] @ head.T
        own = found[:, 0] if found.shape[1] == 1 else found.diagonal()
        return dict(zip(SCORES, own.double().tolist(), strict=True))

    def _words(self, prompt: str, num_of_film: int) -> tuple[Tensor, list[int]]:
        """(what the network reads [n], where the three words are in it)."""
        import torch

        said = self.text.replace(GAP, prompt)
        ids = self._tokenizer(f"{BEFORE}{FILM * num_of_film}<|vision_end|>{said}{AFTER}").input_ids
        named = self._tokenizer.convert_tokens_to_ids([FILM, *WORDS])
        if [ids.count(each) for each in named] != [num_of_film, 1, 1, 1]:
            raise MediaError(
                f"the prompt has one of the words {', '.join((FILM, *WORDS))}, which are the network's own."
            )
        return torch.tensor(ids, device=self.device), [ids.index(each) for each in named[1:]]


def template(path: Path) -> str:
    """The text for the network in the authors' file, which is read as text. Raises ModelError where it is not there."""
    try:
        lines = ast.parse(path.read_text(encoding="utf-8")).body
    except SyntaxError as error:
        raise ModelError(
            f"{path} is no file of Python: {error}.", remedy="Give the authors' file as published."
        ) from error
    named = [each for each in lines if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == TEXT]
    values = [each.value.value for each in named if isinstance(each.value, ast.Constant)]
    text = values[0] if values and isinstance(values[0], str) else ""
    if [text.count(each) for each in (GAP, *WORDS)] == [1, 1, 1, 1] and text.index(GAP) > text.index(WORDS[1]):
        return text
    raise ModelError(
        f"{path} has no text {TEXT} with {', '.join(WORDS)}, and {GAP} behind the first two.",
        remedy="Give prompt_template.py of KwaiVGI/VideoAlign as published.",
    )


def chosen_frames(num_frames: int, film_fps: float, fps: float) -> list[int]:
    """Which frames of a film are looked at: evenly from the first to the last, an even number, `fps` a second and 4 at least.

    Raises MediaError for a film of less than two frames.
    """
    if num_frames < EVEN:
        raise MediaError(f"{num_frames} frames show no motion.", reason="too_short")
    most = min(MOST_FRAMES, num_frames) // EVEN * EVEN
    wanted = min(max(num_frames / film_fps * fps, LEAST_FRAMES), most)
    count = round(wanted / EVEN) * EVEN
    return [int(each) for each in np.linspace(0, num_frames - 1, min(count, num_frames)).round()]


def size_px(height: int, width: int, most_px: int) -> tuple[int, int]:
    """(height, width) in whole steps of 28 px, nearest to the shape of a picture, of 100 352 pixels to `most_px`."""
    rows, columns = (max(SIDE_STEP_PX, round(side / SIDE_STEP_PX) * SIDE_STEP_PX) for side in (height, width))
    if LEAST_PX <= rows * columns <= most_px:
        return rows, columns
    bound, whole = (most_px, floor) if rows * columns > most_px else (LEAST_PX, ceil)
    scale = sqrt(bound / (height * width))
    rows, columns = (max(SIDE_STEP_PX, whole(side * scale / SIDE_STEP_PX) * SIDE_STEP_PX) for side in (height, width))
    return rows, columns


def resized(frames: list[NDArray[np.uint8]], most_px: int) -> Tensor:
    """Pictures RGB [h, w, 3] -> [t, 3, h', w'] of whole numbers 0 to 255, bicubic, in sizes that the network takes."""
    import torch
    from torch.nn.functional import interpolate

    size = size_px(frames[0].shape[0], frames[0].shape[1], most_px)
    each = (torch.from_numpy(frame).permute(2, 0, 1)[None].float() for frame in frames)
    return torch.cat([interpolate(one, size, mode="bicubic", antialias=True).clamp(0, 255).round() for one in each])


def patches(frames: Tensor, side: int, depth: int, group: int) -> tuple[Tensor, Tensor]:
    """Frames [t, 3, h, w] of 0 to 255 -> (patches [n, 3 depth side side], grid [3] of their number in time, height, width).

    In the order in which the network merges them: `group` by `group` neighbours follow each other.
    """
    import torch

    mean, std = (torch.tensor(each)[:, None, None] for each in (PIXEL_MEAN, PIXEL_STD))
    held = (frames / 255.0 - mean) / std
    if lacking := -len(held) % depth:
        held = torch.cat([held, held[-1:].expand(lacking, -1, -1, -1)])
    count, rows, columns = len(held) // depth, held.shape[2] // side, held.shape[3] // side
    cut = held.reshape(count, depth, 3, rows // group, group, side, columns // group, group, side)
    laid = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return laid.reshape(count * rows * columns, -1), torch.tensor([count, rows, columns])


def is_video_reward(folder: Path) -> bool:
    """Whether a folder holds the release, by the file that only it has, or the network that it was made of."""
    if (folder / RELEASE).is_file():
        return True
    return bool(json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type") == "qwen2_vl")


def reward_metrics(folder: Path, protocol: Protocol) -> tuple[Metric, ...]:
    """VQ, MQ, TA and their sum by the network in a folder, on a CUDA device where there is one. Raises ModelError."""
    import torch

    network = VideoReward(folder, "cuda" if torch.cuda.is_available() else "cpu")
    scale = "as released: deviations from the mean of its authors' films" if network.scales else "not normalised"
    about = {
        "VQ": "how good the pictures are", "MQ": "how good the motion is", "TA": "how far the film shows what its prompt says",
        "Overall": "sum of VQ, MQ and TA",
    }  # fmt: skip

    def one_of(name: str, case: EvalCase, sample: Path) -> float:
        found = network.of_film(sample, case.item.prompt or "")
        return found[name] if name in found else sum(found.values())

    return tuple(
        Metric(
            name=f"videoreward_{name.lower()}", doc=f"{how}, {scale}", better="higher", read=guarded(partial(one_of, name)),
            applies=always if name in ("VQ", "MQ") else has_prompt, model=f"VideoReward in {folder.name}", sha256=network.sha256,
            decoder=DECODER, crop=f"{network.fps:g} frames a second, whole, {network.most_px} px at most; float32",
        )
        for name, how in about.items()
    )  # fmt: skip


def has_prompt(item: EvalItem) -> bool:
    """It is known what the film was made from."""
    return bool(item.prompt)
