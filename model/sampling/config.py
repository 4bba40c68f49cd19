"""One clip to generate as a recipe: prompt, network, solver and guidance. Defaults are the release's.

nava-train sample WEIGHTS --out clip.mp4 --caption "..." --set prompt.seconds=4 --set guidance.timbre=2
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from schemas.recipe import RecipePart, read_recipe, validated

RECIPES = Path(__file__).parents[1] / "recipes" / "sample"
Mode = Literal["joint", "video", "audio"]


class Prompt(RecipePart):
    """What to generate."""

    caption: str = ""
    """Spoken lines as <S>line<E>."""
    mode: Mode = "joint"
    seconds: float = Field(default=6.0, gt=0)
    """Rounded to whole latents (4n + 1 frames)."""
    height_px: int = 704
    width_px: int = 1280
    voices: tuple[Path | None, ...] = ()
    """Sound files, one per spoken line in order, null for a line without reference; an empty list gives no line one."""
    first_frame: Path | None = None
    text_file: Path | None = None
    """Encoded caption and voices instead of `caption` and `voices` (`model.sampling.sample.read_text_file`)."""
    negative: str | None = None
    """Null: the release's negative prompt of the mode."""


class Guidance(RecipePart):
    """How strongly each condition is exaggerated. Defaults are the release's (configs/nava.yaml).

    A pass that is off is not computed. Switching alignment off also changes what a text scale means, by one unit, because
    the release has two conventions (`model.sampling.sampler.guide_video`).
    """

    video_text: float = 3.0
    audio_text: float = 2.0
    video_alignment: float = 3.0
    audio_alignment: float = 2.0
    timbre: float = 3.0
    has_alignment: bool = True
    has_timbre: bool = True
    is_alignment_voiceless: bool = False
    """True drops the voices from the pass without cross-modal attention, as the release does by accident: its alignment
    direction then also contains the timbre."""


class MemoryConfig(RecipePart):
    """What to do without on small cards."""

    is_float8: bool = False
    """Hold the blocks' matrices in eight bits (`model/network/float8.py`)."""
    offloads_text: bool = False
    """Keep the text encoder in host memory but while it reads."""
    offloads_blocks: bool = False
    """Keep the network's blocks in host memory, and fetch each as it computes."""
    has_tiles: bool = False
    """Encode and decode pictures in overlapping tiles."""


class RewriteConfig(RecipePart):
    """A language model that makes long captions of short prompts."""

    url: str
    """OpenAI-compatible, up to /v1."""
    model: str
    api_key_variable: str | None = None
    """Name of the environment variable that holds the key."""
    language: str = "Chinese"
    """Of the captions; the release was trained on Chinese ones."""
    instructions: str | None = None
    """Null: `model.sampling.rewrite.INSTRUCTIONS`."""
    temperature: float = Field(default=0.7, ge=0)
    timeout_s: float = Field(default=120.0, gt=0)


class SampleConfig(RecipePart):
    """What to generate and how."""

    prompt: Prompt = Prompt()
    network: str | None = None
    """A preset, or a json file of the network's shape; null: what a training checkpoint says of itself, else nava_6b."""
    codecs: Path | None = None
    """Folder of the frozen networks (docs/checkpoints.md)."""
    num_steps: int = Field(default=50, ge=1)
    solver: Literal["unipc", "euler", "few_steps"] = "unipc"
    """`few_steps` is for distilled networks (`model.sampling.sampler.FewSteps`): no pass but the condition's, no guidance."""
    shift: float = Field(default=5.0, gt=0)
    """How far noise levels are moved towards 1 (`model.sampling.sampler.shift_sigmas`)."""
    seed: int = Field(default=0, ge=0)
    """Noise depends on it and on the sizes alone, not on the device."""
    guidance: Guidance = Guidance()
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Numbers of the weights and the frozen codecs."""
    ranks_per_clip: int = Field(default=1, ge=1)
    """Neighbouring ranks that share every clip (Ulysses); they must divide the network's heads and the ranks."""
    memory: MemoryConfig = MemoryConfig()
    rewrite: RewriteConfig | None = None
    """Null: captions are taken as they are."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ranks_per_clip > 1 and self.rewrite is not None:
            raise ValueError("ranks that share a clip would ask for a caption each; rewrite with ranks_per_clip 1")
        return self

    def with_prompt(self, **changes: Any) -> SampleConfig:
        """The same with these fields of the prompt changed."""
        return self.model_copy(update={"prompt": self.prompt.model_copy(update=changes)})


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> SampleConfig:
    """The sample in a YAML file, or the one shipped under that name, with `--set a.b=c` overrides applied.

    Relative paths in a recipe are relative to the working directory. Raises RecipeError naming file, key and remedy.
    """
    return validated(SampleConfig, read_recipe(name_or_path, RECIPES, overrides), name_or_path)
