"""Exit code of comparing this code with a directory of golden data: `run_check(directory)`, behind `nava-train check DIR`.

A directory holds pairs `name.json` + `name.safetensors`; every json is recognised by its content, not by its name:

    config + weights_file     a case: inputs, reference outputs, intermediates, losses, gradients of one batch
    config                    weights: names and shapes of all parameters
    .../video_cos             rotary tables and their application
    train/sigmas ...          noise schedules, solver trajectories
    aspect_ratio_table        bucket tables

Every reference tensor is compared; one that is not understood is a miss, so nothing is skipped in silence. The error of a
tensor is max|ours - reference| / max|reference|. Limits: 1e-5 in float32 (1e-4 for gradients), 1e-12 for float64 tables;
bfloat16 references are compared under `reference_numerics`, with twice the error that the reference itself has.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.network.config import NavaConfig
from model.network.flow import FlowObjective, Noised, without_text
from model.network.flow_config import FlowConfig
from model.network.nava import Nava, Packed, Sample, Velocity, pack
from model.parity.conventions import channels_first, first_frames
from model.parity.golden import LIMIT, Comparison, Golden, check_buckets, check_rope, check_schedules, compare, same
from model.weights.formats import RELEASE_PREFIX
from schemas.errors import ModelError

GRADIENT_LIMIT, BFLOAT16_LOSS_LIMIT = 1e-4, 1e-2


def run_check(directory: Path | str) -> int:
    """0 if every golden file in the directory matches, 1 otherwise; prints one line per tensor.

    Raises ModelError if there is nothing to check.
    """
    paths = sorted(Path(directory).glob("*.json"))
    if not paths:
        raise ModelError(f"no golden data in {directory}.", remedy="Give a directory of json and safetensors files.")
    misses = total = 0
    for path in paths:
        print(path.stem)
        for row in check_file(path, say=lambda note: print(f"  {note}")):
            total += 1
            misses += not row.is_match
            print(f"  {'ok  ' if row.is_match else 'MISS'} {row.error:9.2e} (limit {row.limit:.1e})  {row.tensor}")
    print(f"{total - misses} of {total} tensors match" + (f", {misses} MISS" if misses else ""))
    return 1 if misses or not total else 0


def check_file(path: Path, say: Callable[[str], None] = lambda note: None) -> Iterator[Comparison]:
    """Comparisons of one golden file; one of no known kind is a miss. `say` is told which conventions were read in it."""
    info = json.loads(path.read_text())
    tensor_path = path.with_suffix(".safetensors")
    golden = Golden(path, info, load_file(tensor_path) if tensor_path.exists() else {})
    names = golden.tensors
    if "weights_file" in info:
        yield from _check_case(golden, say)
    elif "config" in info:
        yield from _check_weights(golden)
    elif any(name.endswith("/video_cos") for name in names):
        yield from check_rope(golden)
    elif any(name.endswith(("/sigmas", "/trajectory")) for name in names):
        yield from check_schedules(golden)
    elif "aspect_ratio_table" in info:
        yield from check_buckets(info)
    else:
        yield Comparison(f"{path.name}: no known kind of golden data", math.inf, LIMIT)


def _check_weights(golden: Golden) -> Iterator[Comparison]:
    with torch.device("meta"):
        model = Nava(NavaConfig.from_official(golden.info["config"]))
    ours = {RELEASE_PREFIX + name: tuple(p.shape) for name, p in model.state_dict().items()}
    listed = {name: tuple(shape) for name, shape in golden.info["tensors"].items()}
    for name in sorted(ours.keys() | listed.keys()):
        stored = tuple(golden.tensors[name].shape) if name in golden.tensors else None
        yield same(name, ours.get(name), listed.get(name))
        if stored != listed.get(name):
            yield Comparison(f"{name}: the file holds {stored}", math.inf, 0.0)


def _check_case(golden: Golden, say: Callable[[str], None]) -> Iterator[Comparison]:
    golden, order = channels_first(golden, NavaConfig.from_official(golden.info["config"]).video_channels)
    if order:
        say(order)
    samples = _case_samples(golden)
    names = [name for name in golden.tensors if name.startswith("ref_")]
    for numerics, setting in sorted({(name.split("/")[0], name.split("/")[1]) for name in names}):
        wanted = {name: golden.tensors[name] for name in names if name.startswith(f"{numerics}/{setting}/")}
        if numerics not in ("ref_fp32", "ref_bf16"):
            yield from (Comparison(f"{name}: numerics not understood", math.inf, LIMIT) for name in wanted)
            continue
        is_bfloat16 = numerics == "ref_bf16"
        config = NavaConfig.from_official(golden.info["config"], reference_numerics=is_bfloat16)
        model = _load(golden.path.parent / golden.info["weights_file"], config)
        variant = _variant(setting)
        if variant is None:
            yield from (Comparison(f"{name}: setting not understood", math.inf, LIMIT) for name in wanted)
            continue
        given, where = first_frames(setting, golden.info, len(samples))
        if where:
            say(where)
        varied = [variant(sample, is_given) for sample, is_given in zip(samples, given, strict=True)]
        ours = _run(model, varied, golden.tensors, is_training="train" in setting)
        for name, reference in wanted.items():
            short = name.split("/", 2)[2]
            if short not in ours:
                yield Comparison(f"{name}: not understood", math.inf, LIMIT)
            elif is_bfloat16:
                yield _compare_bfloat16(name, ours[short], golden)
            else:
                yield from _compare_float32(name, ours[short], reference)


def _compare_float32(
    name: str, ours: Tensor | list[tuple[int, slice, Tensor]], reference: Tensor
) -> Iterator[Comparison]:
    if isinstance(ours, list):  # an intermediate: valid rows of each sample in the padded reference
        got = torch.cat([rows.flatten() for _, _, rows in ours])
        yield compare(name, got, torch.cat([reference[i, span].flatten() for i, span, _ in ours]))
    elif "/grad" not in name:
        yield compare(name, ours, _cropped(reference, ours))
    else:
        yield compare(name, ours, reference, GRADIENT_LIMIT)
        if reference.numel() > 1:
            yield compare(f"{name} (norm)", ours.norm()[None], reference.norm()[None], GRADIENT_LIMIT)


def _compare_bfloat16(name: str, ours: Any, golden: Golden) -> Comparison:
    reference, exact = golden.tensors[name], golden.tensors.get(name.replace("ref_bf16", "ref_fp32"))
    if "/loss/" in name or exact is None:
        return compare(name, ours, reference, BFLOAT16_LOSS_LIMIT)
    exact = _cropped(exact, ours)
    own_error: float = golden.info["tensors"][name]["max_abs_bf16_minus_fp64"]
    return compare(name, ours, exact, 2 * own_error / exact.abs().max().item())


def _case_samples(golden: Golden) -> list[Sample]:
    tensors = golden.tensors
    num_samples = len(tensors["in/timesteps"])
    placeholders = golden.info.get("spk_pos") or [[]] * num_samples
    voices = list(tensors["in/spk_embed"]) if "in/spk_embed" in tensors else None
    samples, used = [], 0
    for i, rows in enumerate(placeholders):
        own = voices[used : used + len(rows)] if voices is not None else None
        used += len(rows)
        latents = (tensors.get(f"in/video_latent_{i}"), tensors.get(f"in/audio_latent_{i}"))
        samples.append(Sample(f"{golden.path.stem}[{i}]", tensors[f"in/text_{i}"], *latents, own, rows))
    return samples


def _variant(setting: str) -> Callable[[Sample, bool], Sample] | None:
    """What a setting changes about a sample, from the words of its name; None if a word is unknown.

    Whether the sample's first frame is given is told apart (`model/parity/conventions.py`).
    """
    words = set(re.sub(r"first_frame(_is_clean|_clean)?|t?i2v", "clean", setting.lower()).split("_"))
    if words - {
        "cond",
        "train",
        "masked",
        "modality",
        "no",
        "timbre",
        "zero",
        "text",
        "clean",
        "audio",
        "video",
        "only",
    }:
        return None

    def apply(sample: Sample, is_first_frame_given: bool) -> Sample:
        if "only" in words:
            video, audio = (sample.video if "video" in words else None), (sample.audio if "audio" in words else None)
            sample = replace(sample, video=video, audio=audio)
        if "timbre" in words:
            sample = replace(sample, speakers=None)
        if "text" in words:
            sample = without_text(sample)
        is_joint = sample.video is not None and sample.audio is not None
        is_masked, has_clean = "masked" in words and is_joint, is_first_frame_given and sample.video is not None
        return replace(sample, is_cross_modal_masked=is_masked, is_first_frame_clean=has_clean)

    return apply


def _run(model: Nava, samples: list[Sample], tensors: dict[str, Tensor], *, is_training: bool) -> dict[str, Any]:
    """Everything a reference may name, by its name without numerics and setting."""
    packed = pack(samples, model.config)
    found: dict[str, Any] = {}
    with _recorded(model, packed, found), torch.set_grad_enabled(is_training):
        velocity = model(packed, tensors["in/timesteps"])
    for kind, parts in velocity._asdict().items():
        found |= {f"out/{kind}_{i}": part for i, part in enumerate(parts) if part is not None}
    if is_training:
        found |= _losses_and_gradients(model, samples, velocity, tensors)
    return found


def _losses_and_gradients(
    model: Nava, samples: list[Sample], velocity: Velocity, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    objective = FlowObjective(FlowConfig.official())
    videos, audios = (
        [tensors.get(f"in/target_{kind}_{i}") for i in range(len(samples))] for kind in ("video", "audio")
    )
    terms = objective.loss(
        velocity, Noised(samples, tensors["in/timesteps"], tensors["in/loss_reweight"], videos, audios)
    )
    total = objective.total(terms)
    model.zero_grad()
    total.backward()
    audio = objective.config.audio_weight * (terms.weights * terms.audio_mse).mean()
    plain = {"ddpm_vid_noreweight": terms.video_mse.mean(), "ddpm_audio_noreweight": terms.audio_mse.mean()}
    losses = {"total": total, "ddpm": total, "ddpm_audio": audio, "ddpm_vid": total - audio, **plain}
    losses["ddpm_noreweight"] = plain["ddpm_vid_noreweight"] + plain["ddpm_audio_noreweight"]
    found = {f"loss/{name}": loss.reshape(1) for name, loss in losses.items()}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {f"grad/{RELEASE_PREFIX}{name}": gradient for name, gradient in gradients.items()}
    found["grad_norm_total"] = torch.stack([g.norm() for g in gradients.values()]).norm()[None]
    return found


class _recorded:  # noqa: N801
    """Records the intermediates that a reference may hold while the network runs, through hooks on its blocks."""

    def __init__(self, model: Nava, packed: Packed, found: dict[str, Any]) -> None:
        self.model, self.packed, self.found = model, packed, found
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for block in self.model.double_blocks[:1]:
            self.handles.append(block.register_forward_pre_hook(lambda _, args: self._inputs(*args[:4])))
        for kind, blocks in (("double", self.model.double_blocks), ("single", self.model.single_blocks)):
            for k, block in enumerate(blocks):
                self.handles.append(
                    block.register_forward_hook(lambda _, __, out, n=f"after_{kind}_{k}": self._out(n, out))
                )

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _inputs(self, video: Tensor, audio: Tensor, context: Tensor, table: Tensor) -> None:
        layout = self.packed.layout
        self.found["inter/tokens_in"] = self._rows(video, audio)
        video_e0, audio_e0 = layout.video_time_rows.look_up(table), layout.audio_time_rows.look_up(table)
        no_video, no_audio = video_e0[:0], audio_e0[:0]
        self.found["inter/e0_vid"] = self._rows(video_e0, no_audio)
        self.found["inter/e0_audio"] = [(i, _shift_to_zero(s), x) for i, s, x in self._rows(no_video, audio_e0)]
        max_text = self.model.config.max_text_tokens
        per_sample = context.split(layout.context_segments.key_lengths)
        padded = [torch.cat([x, x[-1:].expand(max_text - len(x), -1)]) for x in per_sample]
        self.found["inter/context"] = [(i, slice(None), x) for i, x in enumerate(padded)]

    def _out(self, name: str, out: Tensor | tuple[Tensor, Tensor]) -> None:
        if isinstance(out, Tensor):
            by_modality = out[self.packed.layout.to_modalities]
            video, audio = by_modality.split([self.packed.num_video_tokens, self.packed.num_audio_tokens])
        else:
            video, audio = out
        self.found[f"inter/{name}"] = self._rows(video, audio)

    def _rows(self, video: Tensor, audio: Tensor) -> list[tuple[int, slice, Tensor]]:
        """(sample, rows in the padded reference, our rows); the reference pads videos, then audios, to the longest."""
        layout, rows = self.packed.layout, []
        num_video = layout.video_context_segments.query_lengths
        for lengths, start, tokens in (
            (num_video, 0, video),
            (self.packed.audio_lengths, max(num_video), audio),
        ):
            if len(tokens):
                parts = enumerate(tokens.split(lengths))
                rows += [(i, slice(start, start + len(part)), part) for i, part in parts if len(part)]
        return rows


def _shift_to_zero(span: slice) -> slice:
    return slice(0, span.stop - span.start)


def _cropped(reference: Tensor, ours: Tensor) -> Tensor:
    """A reference video latent of even-padded size without its padding."""
    if reference.dim() != 4 or ours.dim() != 4:
        return reference
    return reference[:, :, : ours.shape[2], : ours.shape[3]]


@lru_cache(maxsize=2)
def _load(weights_path: Path, config: NavaConfig) -> Nava:
    with torch.device("meta"):
        model = Nava(config)
    weights = {name.removeprefix(RELEASE_PREFIX): tensor for name, tensor in load_file(weights_path).items()}
    model.load_state_dict(weights, assign=True)
    return model.to(torch.bfloat16) if config.reference_numerics else model
