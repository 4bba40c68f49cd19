"""Many prompts: read from files, rewritten by a server, shared out over ranks, and generated on little memory."""

from __future__ import annotations

import json
import threading
import wave
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.network.config import NavaConfig
from model.network.float8 import hold_in_float8, quantised
from model.network.nava import Nava
from model.sampling.batch import generate_all
from model.sampling.config import MemoryConfig, Prompt, RewriteConfig, SampleConfig
from model.sampling.prompts import read_prompts, speech_seconds
from model.sampling.rewrite import rewrite
from model.sampling.sample import Generator, load_model
from model.sampling.sampler import sample
from model.weights.convert import open_weights
from schemas.errors import ModelError, RecipeError
from tests.model.latent_shards import run_ranks
from tests.model.rank_jobs import generate_together
from tests.model.sampling.conftest import CONFIG

pytestmark = pytest.mark.xdist_group("codecs")  # whoever has imported their libraries once


class ChatServer(ThreadingHTTPServer):
    """Answers completions with what stands in `answers`, one after the other, the last one for ever."""

    answers: tuple[Any, ...]
    asked: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class ChatHandler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answers, number = self.server.answers, len(self.server.asked)
        self.server.asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
        answer = answers[min(number, len(answers) - 1)]
        if isinstance(answer, int):
            self.send_error(answer)
            return
        data = json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A language model's server."""
    monkeypatch.setattr("model.sampling.rewrite.WAITS_S", (0.0,) * 3)
    with ChatServer(("127.0.0.1", 0), ChatHandler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def config_of(folder: Path, **changes: Any) -> SampleConfig:
    prompt = {"seconds": 0.4, "height_px": 32, "width_px": 48}
    return SampleConfig(
        prompt=prompt, network=str(folder / "model.json"), codecs=folder / "codecs", num_steps=1, **changes
    )


@pytest.mark.slow
def test_prompts_are_shared_out_over_ranks_and_made_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        {"prompt": "rain", "save_path": "weather/rain.mp4"},
        {"prompt": "two <S>hi<E>", "spk_wavs": [str(folder / "voice.wav")], "image_path": str(folder / "frame.png")},
        {"prompt": "a voice <S>hi<E>", "spk_wavs": ["gone.wav"]},
        {"prompt": "wind", "mode": "audio", "seed": 7},
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, lines)))
    said: list[str] = []

    def generate_as(rank: int) -> list[str]:
        """Names of what a rank wrote."""
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        weights = folder / "weights.safetensors"
        written = generate_all(weights, config_of(folder), prompts, tmp_path / "out", said.append)
        return [str(path.relative_to(tmp_path / "out")) for path in written]

    with pytest.raises(ModelError, match=r"1 of 2 prompts could not be generated: 000003\."):
        generate_as(0)
    assert "gone.wav" in "".join(said)
    assert [path.name for path in (tmp_path / "out").rglob("*.mp4")] == ["rain.mp4"]
    assert generate_as(1) == ["000002.mp4", "000004.mp4"]
    told = json.loads((tmp_path / "out" / "000004.json").read_text())
    assert (told["prompt"], told["seed"]) == ("wind", 7)
    said.clear()
    assert generate_as(1) == []
    assert said == ["2 of 2 clips are there already"]


def test_a_seed_tts_list_is_spoken_at_the_length_of_its_rule(folder: Path, tmp_path: Path) -> None:
    assert speech_seconds(2.0, "one two three", "one two", NavaConfig()) == 27 / 25
    assert speech_seconds(30.0, "x", "y" * 99, NavaConfig()) == 1024 / 25
    (tmp_path / "meta.lst").write_text(f"a1|hello there|{folder / 'voice.wav'}|hello there you\n")
    config = config_of(folder)
    (only,) = read_prompts(tmp_path / "meta.lst", config.prompt, CONFIG)
    assert (only.name, only.prompt.caption, only.prompt.mode) == ("a1", "<S>hello there you<E>", "audio")
    assert only.prompt.seconds == round(25 * 15 / 11) / 25
    (written,) = generate_all(folder / "weights.safetensors", config, tmp_path / "meta.lst", tmp_path / "out", str)
    with wave.open(str(written)) as file:
        assert (written.name, file.getframerate(), file.getsampwidth()) == ("a1.wav", 48000, 2)
        assert file.getnframes() / 48000 == pytest.approx(only.prompt.seconds, abs=0.05)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: not JSON"),
        ('{"promt": "x"}', "unknown key 'promt'. Did you mean 'prompt'"),
        ('{"prompt": "x", "seconds": -1}', "seconds"),
        ('{"prompt": "x", "save_path": "../../x"}', "leads out of the output folder"),
    ],
)
def test_lines_that_cannot_be_read_are_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(line)
    with pytest.raises(RecipeError, match=said.replace("(", r"\(")):
        read_prompts(tmp_path / "prompts.jsonl", Prompt(), CONFIG)


def test_a_prompt_is_rewritten_and_what_is_said_stays(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_KEY", "k1")
    config = RewriteConfig(url=chat.url, model="any", api_key_variable="CHAT_KEY")
    chat.answers = (503, "a cat says <S>bye<E>", "<think>hm</think> A long picture of a cat. <S>hi<E>")
    assert rewrite("cat <S>hi<E>", config) == "A long picture of a cat. <S>hi<E>"
    assert len(chat.asked) == 3
    asked = chat.asked[0]
    assert (asked["path"], asked["key"], asked["model"]) == ("/v1/chat/completions", "Bearer k1", "any")
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert asked["messages"][1]["content"] == "cat <S>hi<E>"
    chat.answers = ("<S>bye<E>",)
    with pytest.raises(ModelError, match="changes what is said, 4 times, for the prompt 'cat <S>hi<E>'"):
        rewrite("cat <S>hi<E>", config)
    chat.answers = (401,)
    with pytest.raises(ModelError, match="answers 401"):
        rewrite("cat", config)
    monkeypatch.delenv("CHAT_KEY")
    with pytest.raises(ModelError, match="the environment has no CHAT_KEY"):
        rewrite("cat", config)


def bytes_of_matrices(model: Nava) -> int:
    return sum(p.nbytes for name, p in model.named_parameters() if "_blocks." in name and p.dim() > 1)


def test_eight_bit_matrices_take_a_quarter_and_say_nearly_the_same(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    plain = load_model(weights, CONFIG, "cpu", torch.float32)
    held = load_model(weights, CONFIG, "cpu", torch.float32, is_float8=True)
    assert 0.24 < bytes_of_matrices(held) / bytes_of_matrices(plain) < 0.3
    generator = Generator(weights, config_of(folder))
    request = generator.request(Prompt(caption="rain", seconds=0.4, height_px=32, width_px=48), 0)
    outputs = []
    for model in (plain, held):
        found = sample(model, request)
        outputs.append(torch.cat([found.video.flatten(), found.audio.flatten()]))
    assert torch.nn.functional.cosine_similarity(*outputs, dim=0) > 0.995
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("scale_name", ["weight_scale", "scale_weight", None])
def test_checkpoints_in_eight_bits_are_read(folder: Path, tmp_path: Path, scale_name: str | None) -> None:
    stored, expected = {}, {}
    for name, value in load_file(folder / "weights.safetensors").items():
        if "_blocks." in name and name.endswith(".weight") and value.dim() == 2:
            eight_bits, scale = quantised(value)
            stored[name] = eight_bits if scale_name else value.to(torch.float8_e4m3fn)
            if scale_name:
                stored[f"{name.removesuffix('weight')}{scale_name}"] = scale
            expected[name] = (eight_bits.float() * scale[:, None] if scale_name else stored[name].float()).bfloat16()
        else:
            stored[name] = expected[name] = value.bfloat16()
    save_file(stored, tmp_path / "fp8.safetensors")
    source = open_weights(tmp_path / "fp8.safetensors", CONFIG)
    assert all(torch.equal(value, expected[f"backbone.{name}"]) for name, value in source.read(source.specs))
    with torch.device("meta"):
        model = Nava(CONFIG).requires_grad_(False)
    assert hold_in_float8(model) == sum("_blocks." in name and v.dim() == 2 for name, v in source.read(source.specs))


@pytest.mark.slow
def test_what_saves_memory_changes_nothing_else(folder: Path, tmp_path: Path) -> None:
    found = []
    for memory in (MemoryConfig(), MemoryConfig(offloads_text=True, offloads_blocks=True, has_tiles=True)):
        config = config_of(folder, memory=memory)
        generator = Generator(folder / "weights.safetensors", config)
        request = generator.request(config.prompt, 0)
        generator.rest_encoder()
        generator.make(request, tmp_path / "x.safetensors")
        generator.make(request, tmp_path / "x.mp4")
        found.append(load_file(tmp_path / "x.safetensors"))
        assert generator.codecs.video is not None
        assert generator.codecs.video.vae.use_tiling == memory.has_tiles
        assert (tmp_path / "x.mp4").stat().st_size > 1000
    assert all(torch.equal(found[1][name], value) for name, value in found[0].items())


@pytest.mark.slow
def test_ranks_that_share_a_clip_make_what_one_makes(folder: Path, tmp_path: Path) -> None:
    lines = [{"save_path": f"{mode}.safetensors", "mode": mode} for mode in ("joint", "audio")]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"text_file": str(folder / "text.safetensors"), **line}) for line in lines))
    config = config_of(folder).model_copy(update={"codecs": None})
    generate_all(folder / "weights.safetensors", config, prompts, tmp_path / "one", str)
    shared = config.model_copy(update={"ranks_per_clip": 2})
    run_ranks(generate_together, 2, tmp_path, folder / "weights.safetensors", shared, prompts, tmp_path / "two")
    written = [json.loads((tmp_path / f"two-{rank}.json").read_text()) for rank in (0, 1)]
    assert written == [["joint.safetensors", "audio.safetensors"], []]
    for mode in ("joint", "audio"):
        one, two = (load_file(tmp_path / name / f"{mode}.safetensors") for name in ("one", "two"))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
    odd = config.model_copy(update={"ranks_per_clip": 3})
    with pytest.raises(ModelError, match="3 ranks cannot share a clip"):
        generate_all(folder / "weights.safetensors", odd, prompts, tmp_path / "x", str)
