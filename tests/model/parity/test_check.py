"""The golden check passes on golden data, on cases it has never seen, and fails on anything that differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.network.config import NavaConfig
from model.network.nava import Nava, Sample, pack
from model.parity.check import check_file, run_check
from model.weights.formats import RELEASE_PREFIX
from schemas.errors import ModelError

OWN_GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "nava_tiny"


def test_every_golden_tensor_matches(golden_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(golden_dir) == 0
    printed = capsys.readouterr().out
    assert "MISS" not in printed
    for tensor in ("inter/after_single_1", "grad_norm_total", "unipc_toy/trajectory", "d128/audio_sin", "ddpm_vid"):
        assert tensor in printed


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("case_a_t2av_timbre", "ref_fp32/masked_modality/out/audio_1"),
        ("case_a_t2av_timbre", "ref_fp32/cond/inter/after_double_1"),
        ("case_a_t2av_timbre", "ref_fp32/train/loss/ddpm_vid"),
        ("case_b_audio_only", "ref_fp32/cond/out/audio_1"),
        ("flow_match", "unipc_toy/trajectory"),
        ("rope", "d32/video_cos"),
    ],
)
def test_a_reference_that_differs_by_one_part_in_ten_thousand_is_a_miss(name: str, tensor: str, tmp_path: Path) -> None:
    for file in OWN_GOLDEN.glob("weights.*"):
        shutil.copyfile(file, tmp_path / file.name)
    shutil.copyfile(OWN_GOLDEN / f"{name}.json", tmp_path / f"{name}.json")
    tensors = load_file(OWN_GOLDEN / f"{name}.safetensors")
    tensors[tensor] = tensors[tensor] * (1 + 1e-4)
    save_file(tensors, tmp_path / f"{name}.safetensors")
    misses = [row.tensor for row in check_file(tmp_path / f"{name}.json") if not row.is_match]
    assert misses == [tensor]


def test_a_bucket_that_differs_is_a_miss(tmp_path: Path) -> None:
    info = json.loads((OWN_GOLDEN / "buckets.json").read_text())
    info["aspect_ratio_table"][0]["target_hw_960"] = [704, 1296]
    (tmp_path / "tables.json").write_text(json.dumps(info))
    assert run_check(tmp_path) == 1


def unseen_case(directory: Path, settings: dict[str, str], references: dict[str, Any], inputs: dict[str, Any]) -> Path:
    """Writes a case of the golden format beside a copy of the weights."""
    for file in OWN_GOLDEN.glob("weights.*"):
        shutil.copyfile(file, directory / file.name)
    config = json.loads((OWN_GOLDEN / "weights.json").read_text())["config"]
    path = directory / "case_z.json"
    tensors = {**inputs, **references}
    info = {"config": config, "weights_file": "weights.safetensors", "settings": settings, "spk_pos": [[1], []]}
    path.write_text(json.dumps({**info, "tensors": {name: {"shape": list(t.shape)} for name, t in tensors.items()}}))
    save_file({name: t.contiguous() for name, t in tensors.items()}, path.with_suffix(".safetensors"))
    return path


def test_a_case_never_seen_is_run(tmp_path: Path, make_sample: Callable[..., Sample], tiny_config: NavaConfig) -> None:
    """Ragged, odd-sized, first frame given: references computed one sample at a time from the same weights."""
    model = Nava(tiny_config)
    weights = load_file(OWN_GOLDEN / "weights.safetensors")
    model.load_state_dict({name.removeprefix(RELEASE_PREFIX): tensor for name, tensor in weights.items()})
    samples = [make_sample("a", grid=(3, 4, 5), audio=7, placeholders=[1]), make_sample("b", grid=(2, 4, 4), audio=12)]
    inputs: dict[str, Any] = {"in/timesteps": torch.tensor([811.0, 95.5]), "in/spk_embed": samples[0].speakers[0][None]}
    references: dict[str, Any] = {}
    with torch.no_grad():
        for i, sample in enumerate(samples):
            inputs |= {f"in/video_latent_{i}": sample.video, f"in/audio_latent_{i}": sample.audio}
            inputs[f"in/text_{i}"] = sample.text
            for setting in ("cond", "first_frame"):
                given = replace(sample, is_first_frame_clean=setting == "first_frame")
                velocity = model(pack([given], tiny_config), inputs["in/timesteps"][i : i + 1])
                references[f"ref_fp32/{setting}/out/video_{i}"] = velocity.video[0]
                references[f"ref_fp32/{setting}/out/audio_{i}"] = velocity.audio[0]
    settings = {"cond": "normal", "first_frame": "first_frame_is_clean=True"}
    rows = list(check_file(unseen_case(tmp_path, settings, references, inputs)))
    assert len(rows) == 8
    assert all(row.is_match for row in rows), rows
    with_unknown = {
        **references,
        "ref_fp32/cond/out/depth_0": torch.zeros(1),
        "ref_fp32/upside_down/out/audio_0": torch.zeros(1),
    }
    rows = list(check_file(unseen_case(tmp_path, settings, with_unknown, inputs)))
    assert sorted(row.tensor for row in rows if not row.is_match) == [
        "ref_fp32/cond/out/depth_0: not understood",
        "ref_fp32/upside_down/out/audio_0: setting not understood",
    ]


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("NAVA.forward(is_i2v=True)", {}),
        ("first_frame_is_clean: true", {}),
        ("a training step in first-frame mode", {}),
        ("normal", {"is_i2v": True}),
        ("normal", {"first_frame_is_clean": [True, True]}),
    ],
)
@pytest.mark.parametrize("order", ["[T, H, W, C]", "[C, T, H, W]"])
def test_axes_and_first_frame_are_read_however_the_case_says_them(
    tmp_path: Path, make_sample: Callable[..., Sample], tiny_config: NavaConfig, words: str, more: dict[str, Any],
    order: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = Nava(tiny_config)
    weights = load_file(OWN_GOLDEN / "weights.safetensors")
    model.load_state_dict({name.removeprefix(RELEASE_PREFIX): tensor for name, tensor in weights.items()})
    samples = [make_sample("a", grid=(3, 4, 6), audio=7, placeholders=[1]), make_sample("b", grid=(2, 4, 4), audio=12)]
    inputs: dict[str, Any] = {"in/timesteps": torch.tensor([811.0, 95.5]), "in/spk_embed": samples[0].speakers[0][None]}
    references: dict[str, Any] = {}

    def laid_out(latent: torch.Tensor) -> torch.Tensor:
        return latent.permute(1, 2, 3, 0) if order == "[T, H, W, C]" else latent

    with torch.no_grad():
        for i, sample in enumerate(samples):
            assert sample.video is not None
            inputs |= {f"in/video_latent_{i}": laid_out(sample.video), f"in/audio_latent_{i}": sample.audio}
            inputs[f"in/text_{i}"] = sample.text
            given = replace(sample, is_first_frame_clean=True)
            velocity = model(pack([given], tiny_config), inputs["in/timesteps"][i : i + 1])
            assert velocity.video[0] is not None
            references[f"ref_fp32/cond/out/video_{i}"] = laid_out(velocity.video[0])
            references[f"ref_fp32/cond/out/audio_{i}"] = velocity.audio[0]
    path = unseen_case(tmp_path, {"cond": words}, references, inputs)
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    (tmp_path / "weights.json").unlink()
    assert run_check(tmp_path) == 0
    printed = capsys.readouterr().out
    assert f"video latents read as {order}" in printed
    assert "cond: " in printed


def test_directories_without_golden_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no golden data"):
        run_check(tmp_path)
    (tmp_path / "notes.json").write_text("{}")
    assert run_check(tmp_path) == 1
