"""What a golden file is, how a tensor is compared, and the checks that need no network: tables, schedules, buckets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.network import rope
from model.network.config import NavaConfig
from model.network.flow import NUM_STEPS, FlowObjective, interpolate
from model.network.flow_config import FlowConfig
from model.sampling.sampler import UniPC, euler_sigmas
from schemas import budget

LIMIT, TABLE_LIMIT = 1e-5, 1e-12


class Comparison(NamedTuple):
    """One compared tensor."""

    tensor: str
    error: float
    limit: float

    @property
    def is_match(self) -> bool:
        """Whether the error is within its limit; not a number is not."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Golden:
    """One json and its tensors."""

    path: Path
    info: dict[str, Any]
    tensors: dict[str, Tensor]


def compare(name: str, ours: Tensor, reference: Tensor, limit: float = LIMIT) -> Comparison:
    """The row for one tensor; a wrong shape is an infinite error."""
    if ours.shape != reference.shape:
        return Comparison(f"{name}: shape {tuple(ours.shape)}, expected {tuple(reference.shape)}", math.inf, limit)
    scale = reference.double().abs().max().item() if reference.numel() else 0.0
    error = (ours.detach().double() - reference.double()).abs().max().item() if reference.numel() else 0.0
    return Comparison(name, error / (scale or 1.0), limit)


def check_rope(golden: Golden) -> Iterator[Comparison]:
    """Rotary tables and their application, for every head width in the file."""
    tensors = golden.tensors
    for head in sorted({name.split("/")[0] for name in tensors}):
        head_dim, num_positions = int(head[1:]), len(tensors[f"{head}/video_cos"])
        config = NavaConfig(dim=head_dim, num_heads=1, max_positions=max(num_positions, 1024))
        angles = [rope.axis_angles(config, axis, num_positions) for axis in range(3)]
        video, audio = torch.cat(angles, dim=1), angles[0] * config.rope_ratio
        ours = {"video_cos": video.cos(), "video_sin": video.sin(), "audio_cos": audio.cos(), "audio_sin": audio.sin()}
        for name, table in ours.items():
            yield compare(f"{head}/{name}", table, tensors[f"{head}/{name}"], TABLE_LIMIT)
        for kind in ("apply3d", "apply1d"):
            name = f"{head}/{kind}_in"
            if name not in tensors:
                continue
            rotated = tensors[name].clone()
            for i, table in enumerate(_described_tables(config, kind, golden.info["tensors"][name]["meaning"])):
                num_valid = table.shape[1]
                rotated[i, :num_valid] = rope.rotate(rotated[i, :num_valid], table.float())
            yield compare(f"{head}/{kind}_out", rotated, tensors[f"{head}/{kind}_out"])


def _described_tables(config: NavaConfig, kind: str, meaning: str) -> list[Tensor]:
    """Tables for the grids "(3,4,5)" or the lengths "valid 19 and 11" that the description of an input names."""
    if kind == "apply3d":
        grids = re.findall(r"\((\d+),\s*(\d+),\s*(\d+)\)", meaning)
        return [rope.video_table(config, (int(t), int(h), int(w))) for t, h, w in grids]
    return [rope.audio_table(config, int(n)) for n in re.findall(r"\d+", meaning.split("valid")[1])]


def check_schedules(golden: Golden) -> Iterator[Comparison]:
    """Training grid and weights, solver grids, the toy trajectory."""
    tensors, objective = golden.tensors, FlowObjective(FlowConfig.official())
    ours: dict[str, Tensor] = {
        "train/sigmas": objective.sigmas,
        "train/timesteps": objective.sigmas * NUM_STEPS,
        "train/weights": objective.weights,
    }
    if "train/example_t" in tensors:
        clean, noise, t = (tensors[f"train/example_{name}"] for name in ("x0", "noise", "t"))
        sigma = (t / NUM_STEPS).view(-1, *[1] * (clean.dim() - 1))
        nearest = (ours["train/timesteps"][None] - t[:, None]).abs().argmin(dim=1)
        ours["train/example_xt"] = interpolate(clean, noise, sigma)
        ours["train/example_target"] = noise - clean
        ours["train/example_weight"] = objective.weights[nearest]
    for name in tensors:
        if match := re.fullmatch(r"euler_(\d+)/sigmas", name):
            ours[name] = euler_sigmas(int(match[1]))
            ours[name.replace("sigmas", "timesteps")] = ours[name] * NUM_STEPS
        elif match := re.fullmatch(r"unipc_(\d+)/sigmas", name):
            solver = UniPC(int(match[1]))
            ours[name], ours[name.replace("sigmas", "timesteps")] = solver.sigmas, solver.timesteps
        elif name == "unipc_toy/trajectory":
            ours[name] = _toy_trajectory(tensors["unipc_toy/x_init"], len(tensors[name]))
    inputs = {"train/example_x0", "train/example_noise", "train/example_t", "unipc_toy/x_init"}
    for name in sorted(tensors.keys() - inputs):
        yield (
            compare(name, ours[name], tensors[name])
            if name in ours
            else Comparison(f"{name}: not understood", math.inf, LIMIT)
        )


def _toy_trajectory(x: Tensor, num_steps: int) -> Tensor:
    """States after every UniPC step of dx/dsigma = sin(1.7 x) + 0.3 x t / 1000, the toy flow of the golden data."""
    solver, states = UniPC(num_steps), []
    for t in solver.timesteps.tolist():
        x = solver.step(torch.sin(1.7 * x) + 0.3 * x * t / NUM_STEPS, x)
        states.append(x)
    return torch.stack(states)


def check_buckets(info: dict[str, Any]) -> Iterator[Comparison]:
    """Aspect and length buckets of schemas.budget, which must agree exactly."""
    for row in info["aspect_ratio_table"]:
        height, width = row["height"], row["width"]
        yield same(f"label {width}x{height}", budget.aspect_label(height, width), row["ratio_label"])
        for key in (key for key in row if key.startswith("target_hw_")):
            ours = budget.pixel_bucket(height, width, int(key.rsplit("_", 1)[1]))
            yield same(f"{key} {width}x{height}", list(ours), row[key])
    for label, units in info.get("bucket_hw_units_of_16px", {}).items():
        short, long = map(int, label.split("/"))
        for resolution, column in info["resolution_to_column_1based"].items():
            ours = budget.pixel_bucket(short * 100, long * 100, int(resolution))
            yield same(f"{label} at {resolution}", [px // 16 for px in ours], units[column - 1])
    for table in info.get("length_buckets", []):
        lengths = [int(n) for n in table["table"]]
        ids = budget.length_bucket(lengths, table["min_len"], table["max_len"], table["num_buckets"]).tolist()
        yield same(f"length buckets {table['name']}", ids, list(table["table"].values()))
    for rule in info.get("av_length_rule", []):
        ours_tokens = budget.paired_audio_tokens(rule["pixel_frames"])
        yield same(f"audio tokens beside {rule['pixel_frames']} frames", ours_tokens, rule["audio_tokens"])


def same(name: str, ours: object, reference: object) -> Comparison:
    """The row of two values that must be equal."""
    return Comparison(
        name if ours == reference else f"{name}: {ours}, expected {reference}", float(ours != reference), 0.0
    )
