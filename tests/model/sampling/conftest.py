"""A tiny network with codecs, a voice, a picture and encoded text, to generate from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from model.encoding.tiny_codec import write_tiny_codecs
from model.network.config import NavaConfig
from model.network.nava import Nava

CONFIG = NavaConfig.preset("nava_tiny", max_text_tokens=64)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.json, weights.safetensors, codecs/, voice.wav, frame.png and text.safetensors."""
    import soundfile

    home = tmp_path_factory.mktemp("sample")
    (home / "model.json").write_text(CONFIG.model_dump_json())
    torch.manual_seed(0)
    model = Nava(CONFIG)
    model.init_weights()
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    save_file({f"backbone.{name}": value for name, value in model.state_dict().items()}, home / "weights.safetensors")
    write_tiny_codecs(home / "codecs", CONFIG)
    time_s = np.arange(44100) / 44100
    soundfile.write(home / "voice.wav", np.stack([np.sin(2 * np.pi * f * time_s) * 0.5 for f in (220, 330)], 1), 44100)
    ramp = np.linspace(0, 255, 120, dtype=np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (80, 1))] * 3, -1)).save(home / "frame.png")
    text = {"text": torch.randn(7, 48), "voice_rows": torch.tensor([2, 5]), "voices": torch.randn(2, 192)}
    save_file(text, home / "text.safetensors")
    return home
