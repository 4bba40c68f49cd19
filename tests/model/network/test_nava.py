"""The network: official names and shapes, packing that changes nothing, modes per sample, initialisation, compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.network.config import PRESETS, NavaConfig
from model.network.layers import AudioEmbedding
from model.network.nava import Nava, Sample, Velocity, pack
from schemas.errors import ModelError

STREAM_PROJECTIONS = [f"{name}.{part}" for name in "qkvo" for part in ("weight", "bias")] + [
    f"norm_{name}.weight" for name in "qk"
]


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released 6.3B backbone, written out from its published layout (10 + 20 blocks)."""
    dim, ffn, hidden = 3072, 14336, 8192
    linear = {"weight": (dim, dim), "bias": (dim,)}
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, 48, 1, 2, 2),
        "patch_embedding_audio.0.weight": (dim, 128, 7),
        "patch_embedding_audio.2.w1.weight": (hidden, dim, 7),
        "patch_embedding_audio.2.w2.weight": (dim, hidden, 7),
        "patch_embedding_audio.2.w3.weight": (hidden, dim, 7),
        "speaker_embedding.null_token": (1, dim),
        "speaker_embedding.net.0.weight": (192,),
        "speaker_embedding.net.0.bias": (192,),
        "speaker_embedding.net.1.weight": (dim, 192),
        "speaker_embedding.out_norm.weight": (dim,),
        "text_embedding.0.weight": (dim, 4096),
        "time_embedding.0.weight": (dim, 256),
        "time_projection.1.weight": (6 * dim, dim),
        "time_projection.1.bias": (6 * dim,),
        "head.modulation": (1, 2, dim),
        "head.head.weight": (192, dim),
        "head.head.bias": (192,),
        "head_audio.modulation": (1, 2, dim),
        "head_audio.head.weight": (128, dim),
        "head_audio.head.bias": (128,),
    }
    for name in ("speaker_embedding.net.3", "text_embedding.2", "time_embedding.2"):
        shapes |= {f"{name}.{part}": shape for part, shape in linear.items()}
    for name in (
        "patch_embedding", "patch_embedding_audio.0", "speaker_embedding.net.1", "speaker_embedding.out_norm",
        "text_embedding.0", "time_embedding.0",
    ):  # fmt: skip
        shapes[f"{name}.bias"] = (dim,)
    for kind, num_blocks, streams in (("double", 10, ("", "_audio")), ("single", 20, ("",))):
        for i in range(num_blocks):
            block = f"{kind}_blocks.{i}"
            for attention in ("self_attn", "cross_attn"):
                for stream in streams:
                    for part in STREAM_PROJECTIONS:
                        name, tensor = part.split(".")
                        shape = (dim,) if name.startswith("norm") else linear[tensor]
                        shapes[f"{block}.{attention}.{name}{stream}.{tensor}"] = shape
            shapes |= {f"{block}.modulation{s}.modulation": (1, 6, dim) for s in streams}
            shapes |= {f"{block}.norm3.{part}": (dim,) for part in ("weight", "bias")}
            shapes |= {f"{block}.ffn.0.weight": (ffn, dim), f"{block}.ffn.0.bias": (ffn,)}
            shapes |= {f"{block}.ffn.2.weight": (dim, ffn), f"{block}.ffn.2.bias": (dim,)}
    return shapes


def test_the_release_preset_has_the_official_tensors_exactly() -> None:
    with torch.device("meta"):
        model = Nava(NavaConfig.preset("nava_6b"))
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == official_shapes()
    assert len(ours) == 1052
    assert sum(p.numel() for p in model.parameters()) == 6_296_995_520


@pytest.mark.parametrize(("name", "num_billion"), [("nava_1b", 1.3), ("nava_300m", 0.3)])
def test_presets_have_their_size_and_the_release_proportions(name: str, num_billion: float) -> None:
    config = NavaConfig.preset(name)
    with torch.device("meta"):
        num_parameters = sum(p.numel() for p in Nava(config).parameters())
    assert num_parameters / 1e9 == pytest.approx(num_billion, rel=0.05)
    assert config.head_dim == 128
    assert config.num_fusion_layers == 2 * config.num_align_layers
    assert config.rope_ratio == NavaConfig().rope_ratio


def test_unknown_presets_and_unknown_layouts_are_refused() -> None:
    with pytest.raises(ModelError, match="nava_6b"):
        NavaConfig.preset("nava_7b")
    official = {"model_type": "i2v", "vid_in_dim": 1, "vid_out_dim": 1, "audio_in_dim": 1, "audio_out_dim": 1}
    with pytest.raises(ModelError, match="model_type"):
        NavaConfig.from_official(official)
    with pytest.raises(ValueError, match="num_heads"):
        NavaConfig.preset("nava_tiny", num_heads=3)
    assert set(PRESETS) == {"nava_6b", "nava_1b", "nava_300m", "nava_tiny"}


def times(samples: list[Sample]) -> Tensor:
    return torch.linspace(997.3, 12.8, len(samples))


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def projection(velocity: Velocity, index: int) -> Tensor:
    """A loss of one sample in which every output value has its own weight."""
    parts = [v[index].flatten() for v in velocity if v[index] is not None]
    values = torch.cat(parts)
    return (values * torch.linspace(-1, 1, len(values), dtype=values.dtype)).sum()


def test_a_pack_gives_every_sample_what_it_gets_alone(tiny_nava: Nava, mixed_samples: list[Sample]) -> None:
    t, config = times(mixed_samples), tiny_nava.config
    together = tiny_nava(pack(mixed_samples, config), t)
    for i, sample in enumerate(mixed_samples):
        alone = tiny_nava(pack([sample], config), t[i : i + 1])
        for kind in ("video", "audio"):
            latents, ours, theirs = getattr(sample, kind), getattr(together, kind)[i], getattr(alone, kind)[0]
            assert (latents is None) == (ours is None) == (theirs is None)
            if latents is not None:
                assert ours.shape == latents.shape
                assert difference(ours, theirs) < 1e-5, (sample.clip_id, kind)


def test_gradients_of_a_pack_are_the_sum_of_those_of_its_samples(tiny_nava: Nava, mixed_samples: list[Sample]) -> None:
    t, config = times(mixed_samples), tiny_nava.config
    parameters = dict(tiny_nava.named_parameters())
    together = tiny_nava(pack(mixed_samples, config), t)
    packed_loss = torch.stack([projection(together, i) for i in range(len(mixed_samples))]).sum()
    packed = torch.autograd.grad(packed_loss, list(parameters.values()))
    alone = [torch.zeros_like(p) for p in parameters.values()]
    for i, sample in enumerate(mixed_samples):
        loss = projection(tiny_nava(pack([sample], config), t[i : i + 1]), 0)
        alone = [a + g for a, g in zip(alone, torch.autograd.grad(loss, list(parameters.values())), strict=True)]
    for name, ours, theirs in zip(parameters, packed, alone, strict=True):
        assert difference(ours, theirs) < 1e-5, name


@pytest.mark.parametrize("index", [1, 2], ids=["audio only", "video only"])
def test_an_absent_modality_has_gradients_of_zero_and_none_missing(
    tiny_nava: Nava, mixed_samples: list[Sample], index: int
) -> None:
    sample = mixed_samples[index]
    tiny_nava.zero_grad()
    projection(tiny_nava(pack([sample], tiny_nava.config), torch.tensor([500.0])), 0).backward()
    gradients = {name: p.grad for name, p in tiny_nava.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    is_audio_name = {name: "_audio" in name for name in gradients}
    for name, gradient in gradients.items():
        if name.startswith(("patch_embedding", "head")) or "_audio" in name:
            is_absent = is_audio_name[name] != (sample.audio is not None)
            assert (gradient.abs().max() == 0) == is_absent, name
    tiny_nava.zero_grad(set_to_none=True)


def test_a_masked_sample_hears_nothing_of_its_picture(tiny_nava: Nava, make_sample: Callable[..., Sample]) -> None:
    sample, t = make_sample("x"), torch.tensor([400.0])
    changed = replace(sample, video=-sample.video)

    def audio(s: Sample, is_masked: bool) -> Tensor:
        return tiny_nava(pack([replace(s, is_cross_modal_masked=is_masked)], tiny_nava.config), t).audio[0]

    assert difference(audio(changed, False), audio(sample, False)) > 1e-3
    assert torch.equal(audio(changed, True), audio(sample, True))


def test_a_clean_first_frame_is_told_timestep_zero(tiny_nava: Nava, make_sample: Callable[..., Sample]) -> None:
    sample = make_sample("x", is_first_frame_clean=True)
    at_zero, at_700 = (tiny_nava(pack([sample], tiny_nava.config), torch.tensor([t])) for t in (0.0, 700.0))
    noisy = tiny_nava(pack([replace(sample, is_first_frame_clean=False)], tiny_nava.config), torch.tensor([700.0]))
    zero = tiny_nava(pack([replace(sample, is_first_frame_clean=False)], tiny_nava.config), torch.tensor([0.0]))
    assert torch.equal(at_zero.video[0], zero.video[0])
    assert difference(at_700.video[0], noisy.video[0]) > 1e-3


def test_text_padding_counts_as_zero_rows(tiny_nava: Nava, make_sample: Callable[..., Sample]) -> None:
    short = make_sample("x", text=5)
    padded = replace(short, text=torch.nn.functional.pad(short.text, (0, 0, 0, 11)))
    one, two = (tiny_nava(pack([s], tiny_nava.config), torch.tensor([300.0])) for s in (short, padded))
    assert difference(one.video[0], two.video[0]) < 1e-5
    assert difference(one.audio[0], two.audio[0]) < 1e-5


def test_an_odd_latent_is_padded_with_zeros_and_cut_back(tiny_nava: Nava, make_sample: Callable[..., Sample]) -> None:
    odd = make_sample("x", grid=(2, 3, 5))
    even = replace(odd, video=torch.nn.functional.pad(odd.video, (0, 1, 0, 1)))
    one, two = (tiny_nava(pack([s], tiny_nava.config), torch.tensor([300.0])) for s in (odd, even))
    assert one.video[0].shape == odd.video.shape
    assert difference(one.video[0], two.video[0][:, :, :3, :5]) < 1e-6


def test_the_audio_front_end_keeps_samples_apart(tiny_config: NavaConfig) -> None:
    torch.manual_seed(0)
    front_end = AudioEmbedding(tiny_config)
    clips = [torch.randn(n, tiny_config.audio_channels) for n in (1, 9, 2)]
    slots = torch.cat([torch.arange(n) + start for n, start in ((1, 0), (9, 4), (2, 16))])
    together = front_end(torch.cat(clips), slots, 22)
    alone = torch.cat([front_end(clip, torch.arange(len(clip)), len(clip)) for clip in clips])
    assert difference(together, alone) < 1e-5


def test_a_float32_stream_halves_the_error_of_bfloat16_weights(tiny_nava: Nava, mixed_samples: list[Sample]) -> None:
    config, t = tiny_nava.config, times(mixed_samples)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in tiny_nava.state_dict().items()}
    wide = Nava(config)
    wide.load_state_dict(weights)
    exact = wide(pack(mixed_samples, config), t)
    errors = {}
    for is_reference in (False, True):
        narrow = Nava(config.model_copy(update={"reference_numerics": is_reference})).to(torch.bfloat16)
        narrow.load_state_dict(weights)
        velocity = narrow(pack(mixed_samples, narrow.config), t)
        assert velocity.video[0].dtype == (torch.bfloat16 if is_reference else torch.float32)
        errors[is_reference] = sum(
            difference(ours.float(), theirs)
            for ours, theirs in zip(velocity.audio + velocity.video, exact.audio + exact.video, strict=True)
            if theirs is not None
        )
    assert errors[False] < 0.7 * errors[True], errors


def test_initialisation_on_meta_is_complete_and_reproducible(tiny_config: NavaConfig) -> None:
    def built(seed: int) -> dict[str, Tensor]:
        with torch.device("meta"):
            model = Nava(tiny_config)
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, float("nan"))
        model.init_weights(torch.Generator().manual_seed(seed))
        return model.state_dict()

    one, same, other = built(3), built(3), built(4)
    assert all(torch.isfinite(tensor).all() for tensor in one.values())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["double_blocks.0.ffn.0.weight"], other["double_blocks.0.ffn.0.weight"])
    assert one["head.head.weight"].abs().max() == 0 < one["head_audio.head.weight"].abs().max()
    assert one["text_embedding.0.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert one["single_blocks.1.modulation.modulation"].std() == pytest.approx(tiny_config.dim**-0.5, rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": torch.zeros(5, 2, 4, 4)}, r"video latents are \(5, 2, 4, 4\), expected \[6, T, H, W\]"),
        ({"audio": torch.zeros(4, 11)}, r"audio latents are \(4, 11\), expected \[L, 10\]"),
        ({"text": torch.zeros(17, 48)}, r"text states are \(17, 48\), expected \[n <= 16, 48\]"),
        ({"video": None, "audio": None}, "neither video nor audio"),
        ({"video": None, "is_first_frame_clean": True}, "clean first frame but no video"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(
    make_sample: Callable[..., Sample], tiny_config: NavaConfig, change: dict[str, Any], message: str
) -> None:
    bad = replace(make_sample("clip 7"), **change)
    with pytest.raises(ModelError, match=f"sample 'clip 7'.*{message}"):
        pack([make_sample("good"), bad], tiny_config)


def test_timesteps_must_match_the_pack(tiny_nava: Nava, make_sample: Callable[..., Sample]) -> None:
    with pytest.raises(ModelError, match="one per sample"):
        tiny_nava(pack([make_sample("x")], tiny_nava.config), torch.zeros(2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["double_blocks", "single_blocks"])
def test_a_block_compiles_whole_and_once_for_all_lengths(
    tiny_nava: Nava, make_sample: Callable[..., Sample], kind: str
) -> None:
    """Forward and backward, no graph break; at most one recompilation over packs of other lengths and sample counts."""
    block = getattr(tiny_nava, kind)[0]
    packs = [
        [make_sample("a", audio=9), make_sample("b", grid=(2, 4, 4), audio=10, text=3)],
        [make_sample("a", grid=(3, 6, 6), audio=21), make_sample("b", grid=(2, 4, 4), audio=7)],
        [make_sample(str(i), grid=(2, 2 + 2 * i, 4) if i else None, audio=3 + i, text=2 + i) for i in range(4)],
    ]
    calls: list[tuple[Any, ...]] = []
    hook = block.register_forward_pre_hook(lambda _, args: calls.append(args))
    for samples in packs:
        tiny_nava(pack(samples, tiny_nava.config), times(samples))
    hook.remove()
    torch._dynamo.reset()
    as_in_training = {"specialize_float": True}  # model/training/parallel.py
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True, **as_in_training):
        compiled = torch.compile(block, backend="aot_eager", dynamic=True, fullgraph=True)
        for args in calls:
            inputs = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in args]
            results = []
            for function in (compiled, block):
                out = function(*inputs)
                out = torch.cat(out) if isinstance(out, tuple) else out
                results.append((out, *torch.autograd.grad(out.square().sum(), inputs[:2])))
            for ours, theirs in zip(*results, strict=True):
                assert difference(ours, theirs) < 1e-5
    torch._dynamo.reset()
