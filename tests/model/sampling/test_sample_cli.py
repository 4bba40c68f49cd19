"""`nava-train` end to end on a tiny network and tiny codecs: what is written, and what is refused with a reason."""

from __future__ import annotations

import json
import shutil
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from model.cli import app, main
from model.encoding.clip_media import read_sound
from model.encoding.codec import open_codecs
from model.network.config import NavaConfig, read_config
from model.ranks import open_world
from model.sampling import sample
from model.sampling.config import RECIPES, Prompt, SampleConfig, load_recipe
from model.sampling.sample import (
    audio_latents,
    make_request,
    read_picture,
    read_voice,
    video_grid,
    write_mp4,
)
from model.training.distill import read_negatives
from schemas.errors import MediaError, ModelError, RecipeError
from tests.model.sampling.conftest import CONFIG

pytestmark = pytest.mark.xdist_group("codecs")  # whoever has imported their libraries once
CAPTION = "two cats <S>hi<E> <S>ho<E>"


def _codecs_of_sound(folder: Path) -> Path:
    """The codecs without those of text and pictures."""
    target = folder / "sound_codecs"
    for name in ("audio_vae", "vocoder"):
        shutil.copytree(folder / "codecs" / name, target / name)
    return target


def _set(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _run(folder: Path, out: Path, *options: str) -> Result:
    fixed = _set(f"network={folder / 'model.json'}", "num_steps=2")
    fixed += _set("prompt.seconds=0.6", "prompt.height_px=32", "prompt.width_px=48")
    command = ["sample", str(folder / "weights.safetensors"), "--out", str(out), *fixed, *options]
    return CliRunner().invoke(app, command, catch_exceptions=True)


def _refusal(result: Result) -> str:
    assert isinstance(result.exception, ModelError | MediaError), result.output
    return str(result.exception)


def _streams(path: Path) -> dict[str, float]:
    """Seconds of each stream, by decoding it."""
    seconds = {}
    with av.open(str(path)) as container:
        for stream in container.streams:
            container.seek(0)
            last = max(container.decode(stream), key=lambda frame: frame.pts)
            length = last.samples / last.sample_rate if stream.type == "audio" else 1 / stream.average_rate
            seconds[stream.type] = float(last.pts * last.time_base + length)
    return seconds


def test_mp4_has_picture_and_sound_of_one_length(folder: Path, tmp_path: Path) -> None:
    result = _run(folder, tmp_path / "clip", "--codecs", str(folder / "codecs"), "--caption", CAPTION)
    assert result.exit_code == 0, result.output
    written = tmp_path / "clip.mp4"
    assert result.stdout.strip() == str(written)
    with av.open(str(written)) as container:
        frames = list(container.decode(video=0))
        assert (len(frames), frames[0].width, frames[0].height) == (13, 48, 32)
        assert container.streams.video[0].average_rate == 24
        assert container.streams.audio[0].rate == 48000
    seconds = _streams(written)
    assert seconds["video"] == pytest.approx(13 / 24, abs=1e-3)
    assert seconds["audio"] == pytest.approx(13 / 24, abs=1024 / 48000 + 1e-3)  # within one AAC frame
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_latents_are_written_without_codecs(folder: Path, tmp_path: Path) -> None:
    result = _run(folder, tmp_path / "clip", *_set(f"prompt.text_file={folder / 'text.safetensors'}"))
    assert result.exit_code == 0, result.output
    latents = load_file(tmp_path / "clip.safetensors")
    assert {name: tuple(value.shape) for name, value in latents.items()} == {"video": (6, 4, 2, 3), "audio": (14, 10)}
    again = _run(folder, tmp_path / "again.safetensors", *_set(f"prompt.text_file={folder / 'text.safetensors'}"))
    other = _run(
        folder, tmp_path / "other.safetensors", *_set(f"prompt.text_file={folder / 'text.safetensors'}"), "--seed", "1"
    )
    assert again.exit_code == other.exit_code == 0
    assert torch.equal(load_file(tmp_path / "again.safetensors")["video"], latents["video"])
    assert not torch.allclose(load_file(tmp_path / "other.safetensors")["video"], latents["video"])


@pytest.mark.parametrize(
    ("options", "kinds"),
    [(_set("prompt.mode=audio"), {"audio"}), (_set("prompt.mode=video", "solver=euler"), {"video"})],
)
def test_single_modalities(folder: Path, tmp_path: Path, options: list[str], kinds: set[str]) -> None:
    written = tmp_path / "one.mp4"
    result = _run(folder, written, "--codecs", str(folder / "codecs"), "--caption", "rain", *options)
    assert result.exit_code == 0, result.output
    assert set(_streams(written)) == kinds


@pytest.mark.slow
def test_every_option_reaches_the_sampler(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option alone changes the latents; two that cannot matter here do not."""
    monkeypatch.setattr(sample, "open_codecs", cache(open_codecs))
    voice = ["--voice", str(folder / "voice.wav"), "--voice", "none"]
    base = ["--codecs", str(folder / "codecs"), "--caption", CAPTION, *voice]

    def latents(*options: str) -> torch.Tensor:
        result = _run(folder, tmp_path / "x.safetensors", *base, *options)
        assert result.exit_code == 0, result.output
        found = load_file(tmp_path / "x.safetensors")
        return torch.cat([found["video"].flatten(), found["audio"].flatten()])

    reference = latents()
    for options in (
        _set("guidance.video_text=4"),
        _set("guidance.audio_text=4"),
        _set("guidance.video_alignment=4"),
        _set("guidance.audio_alignment=4"),
        _set("guidance.timbre=4"),
        _set("guidance.has_alignment=false"),
        _set("guidance.has_timbre=false"),
        _set("guidance.is_alignment_voiceless=true"),
        _set("prompt.negative=noise"),
        _set("solver=euler"),
        _set("shift=4"),
        _set("dtype=bfloat16"),
        ["--first-frame", str(folder / "frame.png")],
        ["--seed", "1"],
    ):
        assert not torch.equal(latents(*options), reference), options
    assert torch.equal(latents(*_set("guidance.video_text=3")), reference)


def test_the_shipped_recipe_shows_every_key_with_its_default() -> None:
    shown = yaml.safe_load((RECIPES / "release.yaml").read_text())
    assert shown == SampleConfig().model_dump(mode="json")
    with pytest.raises(RecipeError, match=r"guidance\.timber: unknown key\. Did you mean 'timbre'"):
        load_recipe("release", ["guidance.timber=2"])


def test_a_first_frame_is_cropped_not_squeezed(folder: Path) -> None:
    pixels = read_picture(folder / "frame.png", 32, 32)
    assert pixels.shape == (3, 1, 32, 32)
    middle = 2 * np.array([20.0, 100.0]) / 120 - 1  # of 120 px the middle 80 remain
    np.testing.assert_allclose(pixels[0, 0, 16, [0, -1]], middle, atol=0.05)
    codecs = open_codecs(folder / "codecs", CONFIG, torch.device("cpu"), torch.float32)
    prompt = Prompt(caption="rain", seconds=0.6, height_px=32, width_px=48, first_frame=folder / "frame.png")
    request = make_request(SampleConfig(prompt=prompt), CONFIG, codecs)
    assert request.first_frame is not None
    assert request.first_frame.shape == (6, 1, 2, 3)


def test_a_student_s_teacher_has_the_negative_prompts_of_the_sampler(folder: Path) -> None:
    with open_world() as world:
        found = read_negatives(folder / "codecs", CONFIG, world)
        assert [len(rows) for rows in read_negatives(None, CONFIG, world)] == [0, 0]
        with pytest.raises(ModelError, match="no text encoder to read negative prompts with"):
            read_negatives(_codecs_of_sound(folder), CONFIG, world)
    codecs = open_codecs(folder / "codecs", CONFIG, torch.device("cpu"), torch.float32)
    for mode, rows in zip(("joint", "audio"), found, strict=True):
        prompt = Prompt(caption="rain", mode=mode, height_px=32, width_px=48)
        due = make_request(SampleConfig(prompt=prompt), CONFIG, codecs).negative_text
        torch.testing.assert_close(rows, due, atol=0.1, rtol=0.1)


def test_sizes_are_the_release_s() -> None:
    config = NavaConfig()
    assert video_grid(config, 6.04, 704, 1280) == (36, 44, 80)
    assert video_grid(config, 37 / 6, 704, 1280) == (37, 44, 80)
    assert (audio_latents(config, 31, 0), audio_latents(config, 37, 0)) == (127, 152)
    assert audio_latents(config, None, 5.0) == 125
    with pytest.raises(ModelError, match="multiples of 16"):
        video_grid(config, 1, 700, 1280)


def test_sound_is_read_as_mono_at_the_asked_rate(folder: Path) -> None:
    wave = read_voice(folder / "voice.wav")
    assert abs(len(wave) - 16000) < 40
    spectrum = np.abs(np.fft.rfft(wave.numpy()[:16000] * np.hanning(len(wave[:16000]))))
    peaks = np.sort(np.argsort(spectrum)[-2:])
    assert set(peaks) <= {219, 220, 221, 329, 330, 331}
    with pytest.raises(MediaError, match=r"frame\.png holds no sound"):
        read_voice(folder / "frame.png")


def test_mp4_carries_the_pixels_and_the_tone(tmp_path: Path) -> None:
    pixels = torch.zeros(3, 9, 32, 48)
    pixels[0], pixels[2] = 0.8, -0.8
    time_s = torch.arange(48000) / 48000
    wave = 0.2 * torch.sin(2 * torch.pi * 1000 * time_s)[None].repeat(2, 1)
    write_mp4(tmp_path / "t.mp4", pixels, Fraction(24), wave, 48000)
    with av.open(str(tmp_path / "t.mp4")) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    np.testing.assert_allclose(frame.reshape(-1, 3).mean(0), [230, 128, 26], atol=8)
    heard = read_sound(tmp_path / "t.mp4", 48000, "the clip").mean(0)
    assert len(heard) / 48000 == pytest.approx(9 / 24, abs=0.03)
    middle = heard[4096:12288]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == pytest.approx(1000 * len(middle) / 48000, abs=1)
    assert np.abs(middle).max() == pytest.approx(0.95, abs=0.03)


def test_mistakes_are_refused_before_the_network_runs(folder: Path, tmp_path: Path) -> None:
    codecs = ["--codecs", str(folder / "codecs")]
    speech = ["--caption", CAPTION]
    assert "No text encoder" in _refusal(_run(folder, tmp_path / "x", *speech))
    assert "1 voices for 2 spoken lines" in _refusal(_run(folder, tmp_path / "x", *codecs, *speech, "--voice", "none"))
    assert "multiples of 16" in _refusal(_run(folder, tmp_path / "x", *codecs, *speech, *_set("prompt.height_px=33")))
    text = [*_set(f"prompt.text_file={folder / 'text.safetensors'}")]
    assert "needs video_vae/ and audio_vae/" in _refusal(_run(folder, tmp_path / "x.mp4", *text))
    frame = ["--first-frame", str(folder / "frame.png")]
    assert "No video VAE" in _refusal(_run(folder, tmp_path / "x", *text, *frame))
    assert "A first frame needs a picture" in _refusal(
        _run(folder, tmp_path / "x", *codecs, *frame, *_set("prompt.mode=audio"))
    )
    missing = ["--voice", str(folder / "gone.wav"), "--voice", "none"]
    assert "gone.wav holds no sound" in _refusal(_run(folder, tmp_path / "x", *codecs, *speech, *missing))
    assert list(tmp_path.iterdir()) == []


def test_models_are_named_by_preset_or_file(folder: Path, tmp_path: Path) -> None:
    assert read_config(str(folder / "model.json")) == CONFIG
    assert read_config("nava_6b") == NavaConfig()
    official = {
        "model_type": "ti2v",
        "dim": 64,
        "ffn_dim": 160,
        "freq_dim": 32,
        "num_heads": 2,
        "patch_size": [1, 2, 2],
    }
    official |= {"num_double_layers": 2, "num_single_layers": 2, "vid_in_dim": 6, "vid_out_dim": 6, "audio_in_dim": 10}
    official |= {"audio_out_dim": 10, "text_len": 16, "text_dim": 48, "eps": 1e-6, "temporal_rope_scaling_factor": 0.24}
    (tmp_path / "official.json").write_text(json.dumps(official))
    assert read_config(str(tmp_path / "official.json")) == NavaConfig.preset("nava_tiny")
    (tmp_path / "odd.json").write_text('{"dims": 3}')
    with pytest.raises(ModelError, match="dims"):
        read_config(str(tmp_path / "odd.json"))


@pytest.mark.slow
def test_the_command_itself_reports_and_refuses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its entry point: results on stdout, a mistake as one sentence and exit code 2."""

    def entered(*arguments: str) -> object:
        monkeypatch.setattr(sys, "argv", ["nava-train", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    options = ["--model", str(folder / "model.json"), "--dtype", "bfloat16"]
    assert entered("convert", str(folder / "weights.safetensors"), str(tmp_path / "half.safetensors"), *options) == 0
    num_tensors = len(load_file(folder / "weights.safetensors"))
    assert capsys.readouterr().out.startswith(f"{num_tensors} tensors, ")
    assert all(value.dtype == torch.bfloat16 for value in load_file(tmp_path / "half.safetensors").values())
    wrong = [str(folder / "weights.safetensors"), str(tmp_path / "x.safetensors"), "--model", "nava_300m"]
    assert entered("convert", *wrong) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "does not fit the network" in said
