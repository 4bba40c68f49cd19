"""VideoReward on a tiny network of its class, written as the release is: peft's names of transformers 4.45, with adapters."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.evaluate.local import local_metrics
from model.evaluate.media import read_chosen
from model.evaluate.metric import Metric
from model.evaluate.pictures.reward_weights import merged, reward_state
from model.evaluate.pictures.video_reward import (
    AFTER,
    BEFORE,
    FILM,
    GAP,
    SCORES,
    TEXT,
    WORDS,
    VideoReward,
    chosen_frames,
    patches,
    resized,
    size_px,
)
from model.evaluate.protocols import of_subsets
from model.evaluate.records import EvalCase, EvalItem
from pipeline.demo.write import Encoding, encode
from schemas.errors import MediaError, ModelError

VOCABULARY = ("<unk>", "sharp", "smooth", "text", "dog", "cat", "barks", "assistant")
SAID = f"\nsharp {WORDS[0]} smooth {WORDS[1]} text {GAP} {WORDS[2]} text\n"
TEXT_SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16,
    "vocab_size": 99, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
}  # fmt: skip
VISION_SIZES = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1}
LORA = {"lora_enable": True, "lora_r": 2, "lora_alpha": 6, "use_rslora": False}
RELEASE = {
    "model_config": {"use_special_tokens": True, "reward_token": "special", "output_dim": 1},
    "data_config": {
        "prompt_template_type": "detailed_special", "sample_type": "uniform", "num_frames": None, "fps": 2.0,
        "max_frame_pixels": 200704,
    },
    "peft_lora_config": LORA,
    "inference_config": {f"{name}_{part}": value for name in SCORES for part, value in (("mean", 1.0), ("std", 4.0))},
}  # fmt: skip
ADAPTED = "model.layers.1.self_attn.v_proj"


def tiny() -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """(the network with its adapter in the weights, the state dict of peft that stands for it, the head)."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    network = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**TEXT_SIZES, vision_config=VISION_SIZES)).eval()
    network.resize_token_embeddings(len(VOCABULARY) + 5 + len(WORDS))
    torch.nn.init.normal_(network.model.language_model.embed_tokens.weight)
    a, b, head = torch.randn(2, 16), torch.randn(8, 2), torch.randn(1, 16)
    state = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): each.clone()
        for name, each in network.state_dict().items()
    }
    for part in ("weight", "bias"):
        state[f"{ADAPTED}.base_layer.{part}"] = state.pop(f"{ADAPTED}.{part}")
    state |= {f"{ADAPTED}.lora_A.default.weight": a, f"{ADAPTED}.lora_B.default.weight": b, "rm_head.weight": head}
    with torch.no_grad():
        network.model.language_model.layers[1].self_attn.v_proj.weight += 3.0 * (b @ a)
    return network, {f"base_model.model.{name}": each for name, each in state.items()}, head


def write_release(folder: Path, state: dict[str, torch.Tensor], text: str = SAID) -> None:
    """The folder as a user puts it together."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: at for at, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    marks = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", FILM]
    beside = folder / "checkpoint-7" / "tokenizer"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", additional_special_tokens=marks)
    tokenizer.save_pretrained(beside)
    torch.save(state, folder / "checkpoint-7" / "model.pth")
    (folder / "model_config.json").write_text(json.dumps(RELEASE))
    (folder / "prompt_template.py").write_text(f"import nothing_that_is_there\n{TEXT} = {text!r}\n")
    told = {"model_type": "qwen2_vl", "torch_dtype": "bfloat16", **TEXT_SIZES, "vision_config": VISION_SIZES}
    (folder / "config.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/reward, and a film of 1.5 s."""
    root = tmp_path_factory.mktemp("reward")
    (root / "models" / "reward").mkdir(parents=True)
    write_release(root / "models" / "reward", tiny()[1])
    frames = np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3), dtype=np.uint8)
    encode(root / "film.mp4", iter(frames), None, Encoding(64, 48, fps=Fraction(16)))
    return root


@pytest.fixture(scope="module")
def network(root: Path) -> VideoReward:
    return VideoReward(root / "models" / "reward")


def test_opinions_are_the_heads_of_the_network_with_its_adapters(network: VideoReward) -> None:
    """Held against transformers' own front end and network, with the adapter in the weights."""
    from transformers import Qwen2VLImageProcessor

    whole, _, head = tiny()
    frames = torch.randint(256, (3, 3, 56, 84), generator=torch.Generator().manual_seed(1)).float()
    processor = Qwen2VLImageProcessor(min_pixels=3_136, max_pixels=12_845_056)
    given = processor(images=None, videos=[frames.numpy()], return_tensors="pt")
    pixels, grid = patches(frames, 14, 2, 2)
    torch.testing.assert_close(pixels, given["pixel_values_videos"].float(), atol=1e-5, rtol=1e-5)
    assert grid.tolist() == given["video_grid_thw"][0].tolist() == [2, 4, 6]
    told = network._tokenizer(f"{BEFORE}{FILM * 12}<|vision_end|>{SAID.replace(GAP, 'dog barks')}{AFTER}").input_ids
    ids, at = torch.tensor([told]), [told.index(each) for each in network._tokenizer.convert_tokens_to_ids(list(WORDS))]
    config = whole.config
    assert config.video_token_id not in told, (
        "the tiny tokenizer has another number for the film than the published one"
    )
    ids[ids == network._tokenizer.convert_tokens_to_ids(FILM)] = config.video_token_id = 12
    with torch.inference_mode():
        hidden = whole.model(
            input_ids=ids, pixel_values_videos=pixels, video_grid_thw=grid[None], use_cache=False,
            position_ids=torch.arange(len(told)).expand(3, 1, -1),
        ).last_hidden_state  # fmt: skip
        found = network.opinions(frames, "dog barks")
    expected = (hidden[0, at] @ head.T)[:, 0].tolist()
    assert list(found) == list(SCORES)
    assert {each.dtype for each in network._parts[0].parameters()} == {torch.float32}, "whatever its config says"
    assert list(found.values()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_only_the_text_is_asked_of_the_prompt(network: VideoReward) -> None:
    frames = torch.randint(256, (4, 3, 56, 56), generator=torch.Generator().manual_seed(1)).float()
    with torch.inference_mode():
        one, other, none = (network.opinions(frames, prompt) for prompt in ("dog barks", "cat cat cat", ""))
        assert one == VideoReward(network.folder).opinions(frames, "dog barks"), "the same twice"
    for name in ("VQ", "MQ"):
        assert other[name] == pytest.approx(one[name], rel=1e-4)
        assert none[name] == pytest.approx(one[name], rel=1e-4)
    assert abs(other["TA"] - one["TA"]) > 1e-3
    with pytest.raises(MediaError, match="the network's own"):
        network.opinions(frames, f"dog {FILM}")


def test_metrics_name_model_and_files(root: Path, network: VideoReward) -> None:
    metrics = {each.name: each for each in local_metrics(root / "models", "mova")[0]}
    assert set(metrics) == {f"videoreward_{name}" for name in ("vq", "mq", "ta", "overall")}
    with_prompt, without = EvalItem(item_id="i", prompt="dog"), EvalItem(item_id="j")
    assert [metrics[f"videoreward_{name}"].applies(without) for name in ("vq", "mq", "ta", "overall")] == [
        True, True, False, False,
    ]  # fmt: skip
    case = EvalCase(with_prompt, root / "film.mp4")
    vq, mq, ta, overall = (each.read(case).value for each in metrics.values())
    assert overall == pytest.approx(vq + mq + ta)
    frames = resized(read_chosen(root / "film.mp4", lambda count, fps: chosen_frames(count, fps, network.fps)), 200_704)
    assert frames.shape == (4, 3, 280, 392), "the fewest frames, the fewest pixels"
    with torch.inference_mode():
        raw = network.opinions(frames, "dog").values()
    assert [vq, mq, ta] == pytest.approx([(each - 1.0) / 4.0 for each in raw], rel=1e-5)
    assert metrics["videoreward_vq"].read(EvalCase(without, root / "film.mp4")).value == pytest.approx(vq, rel=1e-4)
    of_mova: tuple[Metric, ...] = of_subsets(metrics.values(), "mova")
    for each in of_mova:
        assert len(each.sha256.split(",")) == 2, "weights and text"
        assert each.model == "VideoReward in reward"
        assert each.is_mean_of_subsets
        assert not each.is_as_published


def test_adapters_beside_the_network_are_the_same(root: Path, tmp_path: Path) -> None:
    """As training leaves it: adapters, what was trained beside them, and Qwen2-VL's own files."""
    _, state, _ = tiny()
    plain = {name.removeprefix("base_model.model."): each for name, each in state.items()}
    adapters = {name.replace(".default", ""): each for name, each in state.items() if ".lora_" in name}
    (tmp_path / "checkpoint-9").mkdir()
    save_file(adapters, tmp_path / "checkpoint-9" / "adapter_model.safetensors")
    head = {"base_model.model.rm_head.weight": plain.pop("rm_head.weight")}
    torch.save(head, tmp_path / "checkpoint-9" / "non_lora_state_dict.pth")
    with pytest.raises(ModelError, match="adapters alone"):
        reward_state(tmp_path, LORA)
    base = {name.replace(".base_layer", ""): each.clone() for name, each in plain.items() if ".lora_" not in name}
    save_file(base, tmp_path / "model-00001-of-00001.safetensors")
    found, told = reward_state(tmp_path, LORA)
    known, known_head = reward_state(root / "models" / "reward", LORA)
    assert torch.equal(told, known_head)
    assert found.keys() == known.keys()
    assert all(torch.equal(found[name], known[name]) for name in known)
    stable, _ = reward_state(tmp_path, LORA | {"use_rslora": True})
    name = "language_model.layers.1.self_attn.v_proj.weight"
    bare = base[f"{ADAPTED}.weight"]
    torch.testing.assert_close(stable[name] - bare, (found[name] - bare) * 2**0.5)
    (tmp_path / "checkpoint-9" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="neither model"):
        reward_state(tmp_path, LORA)


def test_half_an_adapter_and_one_without_a_layer_are_named() -> None:
    a = torch.ones(1, 2)
    with pytest.raises(ModelError, match="adapter of q lacks weight and B"):
        merged({"base_model.model.q.lora_A.default.weight": a}, 1.0, "here")
    kept = {"h.original_module.weight": a, "h.modules_to_save.default.weight": 2 * a}
    assert torch.equal(merged(kept, 1.0, "here")["h.weight"], 2 * a)


@pytest.mark.parametrize(
    ("without", "more", "said"),
    [
        ("base_model.model.model.norm.weight", {}, "1 tensors are missing, .* such as language_model.norm"),
        (None, {"base_model.model.other.weight": torch.ones(1)}, "1 tensors are .* such as other.weight"),
        (None, {"base_model.model.model.norm.weight": torch.ones(3)}, "1 tensors are .* such as language_model.norm"),
        ("base_model.model.rm_head.weight", {}, "has no tensor 'rm_head.weight'"),
        (None, {"base_model.model.model.embed_tokens.weight": torch.ones(9, 16)}, "knows 16 words .* the weights 9"),
    ],
)  # fmt: skip
def test_other_weights_are_refused(tmp_path: Path, without: str | None, more: dict[str, Any], said: str) -> None:
    state = {name: each for name, each in tiny()[1].items() if name != without}
    write_release(tmp_path, state | more)
    with pytest.raises(ModelError, match=said):
        _ = VideoReward(tmp_path)._parts


def test_another_release_and_a_folder_that_lacks_something_are_refused(tmp_path: Path) -> None:
    write_release(tmp_path, {}, text=f"{WORDS[0]} {WORDS[1]} {WORDS[2]}")
    with pytest.raises(ModelError, match="has no text DETAILED_PROMPT_WITH_SPECIAL_TOKEN"):
        VideoReward(tmp_path)
    (tmp_path / "prompt_template.py").write_text("def (")
    with pytest.raises(ModelError, match="no file of Python"):
        VideoReward(tmp_path)
    other = RELEASE | {"model_config": {"use_special_tokens": False, "reward_token": "last"}}
    (tmp_path / "model_config.json").write_text(json.dumps(other))
    with pytest.raises(ModelError, match="'reward_token': 'last'"):
        VideoReward(tmp_path)
    (tmp_path / "models" / "qwen").mkdir(parents=True)
    (tmp_path / "config.json").rename(tmp_path / "models" / "qwen" / "config.json")
    with pytest.raises(ModelError, match="qwen has no model_config"):
        local_metrics(tmp_path / "models", "mova")
    (tmp_path / "prompt_template.py").unlink()
    with pytest.raises(ModelError, match="has no prompt_template"):
        VideoReward(tmp_path)


def test_frames_and_sizes_are_as_the_authors_choose_them() -> None:
    """By hand after vision_process.py: two a second, at least four, an even number, from the first to the last."""
    assert chosen_frames(100, 25.0, 2.0) == [0, 14, 28, 42, 57, 71, 85, 99]
    assert chosen_frames(24, 24.0, 2.0) == [0, 8, 15, 23]
    assert chosen_frames(3, 24.0, 2.0) == [0, 2]
    assert len(chosen_frames(60_000, 25.0, 2.0)) == 768
    with pytest.raises(MediaError, match="1 frames"):
        chosen_frames(1, 25.0, 2.0)
    assert size_px(704, 1280, 200_704) == (308, 588)
    assert size_px(448, 448, 200_704) == (448, 448)
    assert size_px(240, 320, 200_704) == (280, 392)
