"""Synchformer: how far sound and picture are apart (Iashin et al. 2024, arXiv 2401.16423).

The network as the flat file synchformer_state_dict.pth has it, as a function of its tensors: a video transformer with attention
over time and space in turn, a spectrogram transformer, both gathered over space and over frequency, and a third over all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.errors import MediaError
from schemas.networks.tensors import TensorFile, attention
from schemas.spans import SPEECH_RATE_HZ

if TYPE_CHECKING:
    from torch import Tensor

FPS, SIDE_PX, CROP_PX = 25, 256, 224
SEGMENTS, SEGMENT_FRAMES, STEP_FRAMES = 14, 16, 8
LENGTH_FRAMES = (SEGMENTS - 1) * STEP_FRAMES + SEGMENT_FRAMES
"""Frames that are judged at once: 4.8 s."""
OFFSETS_S = np.linspace(-2.0, 2.0, 21)
"""What the classes stand for; positive is sound that is early."""
SEGMENT_SAMPLES = SPEECH_RATE_HZ * SEGMENT_FRAMES // FPS
BANDS, ROWS, FFT_SIZE, WINDOW, HOP = 128, 66, 1024, 400, 160
BAND_MEAN, BAND_STD = -4.2677393, 4.5689974
AST_PATCHES = (12, 6)
"""Along frequency and time, of 16 and 10 apart."""
NUM_HEADS, NUM_GLOBAL_HEADS = 12, 8
VIDEO, SOUND, GLOBAL = "vfeat_extractor", "afeat_extractor", "transformer"


class Synchformer:
    """How far sound and picture of a film are apart."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.weights = TensorFile(path, device=device)

    def ready(self) -> None:
        """Reads the weights. Raises ModelError for a file that has none of this network's."""
        _ = self.weights[f"{GLOBAL}.off_head.weight"]

    def judge(
        self,
        frames: Sequence[NDArray[np.uint8]],
        times_s: NDArray[np.float64],
        sound: NDArray[np.float32],
        start_s: float,
    ) -> Tensor:
        """[1 or 2, 21]: log odds of `OFFSETS_S` of the first and of the last 4.8 s.

        `frames` are RGB [h, w, 3], shown at `times_s` [n]; `sound` is mono at 16 kHz and begins at `start_s`. Raises
        MediaError for less than 4.8 s of both.
        """
        import torch

        nearest, heard = on_one_clock(times_s, sound, start_s)
        with torch.inference_mode():
            found = []
            for first in sorted({0, len(nearest) - LENGTH_FRAMES}):
                seen = shown([frames[at] for at in nearest[first : first + LENGTH_FRAMES]])
                found.append(self.logits(_segments(seen), _bands(heard[first * SPEECH_RATE_HZ // FPS :])))
            return torch.stack(found).cpu()

    def logits(self, segments: Tensor, bands: Tensor) -> Tensor:
        """[21] of pictures [14, 3, 16, 224, 224] of -1 to 1 and sounds [14, 128, 66]."""
        import torch

        weights = self.weights
        seen = weights.linear(self.of_pictures(segments.to(weights.device)).flatten(0, 1), "vproj")
        heard = weights.linear(self.of_sounds(bands.to(weights.device)).flatten(0, 1), "aproj")
        seen, heard = (
            weights.layer_norm(each, f"{GLOBAL}.{name}_in_lnorm", 1e-5)
            for each, name in ((seen, "vis"), (heard, "aud"))
        )
        tokens = torch.cat([weights[f"{GLOBAL}.OFF_tok"][0], seen, weights[f"{GLOBAL}.MOD_tok"][0], heard])[None]
        tokens = tokens + weights[f"{GLOBAL}.pos_emb_cfg.pos_emb"]
        for number in range(weights.num_blocks(f"{GLOBAL}.blocks.")):
            tokens = self.global_block(tokens, f"{GLOBAL}.blocks.{number}")
        return weights.linear(weights.layer_norm(tokens, f"{GLOBAL}.ln_f", 1e-5)[0, 0], f"{GLOBAL}.off_head")

    def global_block(self, tokens: Tensor, name: str) -> Tensor:
        """[1, t, c] through one block of the third transformer."""
        from torch.nn.functional import gelu

        weights = self.weights
        given = weights.layer_norm(tokens, f"{name}.ln1", 1e-5)
        query, key, value = (weights.linear(given, f"{name}.attn.{part}") for part in ("query", "key", "value"))
        tokens = tokens + weights.linear(attention(query, key, value, NUM_GLOBAL_HEADS), f"{name}.attn.proj")
        inner = weights.linear(weights.layer_norm(tokens, f"{name}.ln2", 1e-5), f"{name}.mlp.0")
        return tokens + weights.linear(gelu(inner), f"{name}.mlp.2")

    def of_pictures(self, segments: Tensor) -> Tensor:
        """[n, 8, c] of segments [n, 3, 16, 224, 224]: one vector for every two frames."""
        import torch
        from torch.nn.functional import conv3d

        weights = self.weights
        kernel = weights[f"{VIDEO}.patch_embed_3d.proj.weight"]
        patches = conv3d(segments, kernel, weights[f"{VIDEO}.patch_embed_3d.proj.bias"], stride=kernel.shape[2:])
        num_times, num_places = patches.shape[2], patches.shape[3] * patches.shape[4]
        where, when = weights[f"{VIDEO}.pos_embed"], weights[f"{VIDEO}.temp_embed"]
        first = (weights[f"{VIDEO}.cls_token"] + where[:, :1]).expand(len(segments), -1, -1)
        placed = where[:, 1:].repeat(1, num_times, 1) + when.repeat_interleave(num_places, 1)
        tokens = torch.cat([first, patches.flatten(2).transpose(1, 2) + placed], 1)
        for number in range(weights.num_blocks(f"{VIDEO}.blocks.")):
            block = f"{VIDEO}.blocks.{number}"
            given = weights.layer_norm(tokens, f"{block}.norm3")
            tokens = tokens + self.divided(given, f"{block}.timeattn", num_times, is_over_time=True)
            given = weights.layer_norm(tokens, f"{block}.norm1")
            tokens = tokens + self.divided(given, f"{block}.attn", num_times, is_over_time=False)
            tokens = tokens + weights.mlp(weights.layer_norm(tokens, f"{block}.norm2"), f"{block}.mlp")
        told = weights.layer_norm(tokens[:, 1:], f"{VIDEO}.norm").unflatten(1, (num_times, num_places))
        return self.gathered(told.flatten(0, 1), f"{VIDEO}.spatial_attn_agg").unflatten(0, (-1, num_times))

    def divided(self, tokens: Tensor, name: str, num_times: int, *, is_over_time: bool) -> Tensor:
        """[n, 1 + times x places, c]: every token attends to those of its place, or else of its time, and to the first one."""
        import torch

        query, key, value = self.weights.linear(tokens, f"{name}.qkv").chunk(3, -1)
        first = attention(query[:, :1], key, value, NUM_HEADS)
        groups = []
        for part in (query, key, value):
            rest = part[:, 1:].unflatten(1, (num_times, -1))
            groups.append((rest.transpose(1, 2) if is_over_time else rest).flatten(0, 1))
        ratio = len(groups[0]) // len(tokens)
        key, value = (
            torch.cat([part[:, :1].repeat_interleave(ratio, 0), rest], 1)
            for part, rest in zip((key, value), groups[1:], strict=True)
        )
        found = attention(groups[0], key, value, NUM_HEADS).unflatten(0, (len(tokens), ratio))
        rest = (found.transpose(1, 2) if is_over_time else found).flatten(1, 2)
        return self.weights.linear(torch.cat([first, rest], 1), f"{name}.proj")

    def of_sounds(self, bands: Tensor) -> Tensor:
        """[n, 6, c] of [n, 128, 66] bands: one vector for every 0.1 s."""
        import torch
        from torch.nn.functional import conv2d, gelu

        weights, stem = self.weights, f"{SOUND}.ast.embeddings"
        kernel = f"{stem}.patch_embeddings.projection"
        patches = conv2d(bands[:, None], weights[f"{kernel}.weight"], weights[f"{kernel}.bias"], stride=10)
        two = [weights[f"{stem}.{name}_token"].expand(len(bands), -1, -1) for name in ("cls", "distillation")]
        tokens = torch.cat([*two, patches.flatten(2).transpose(1, 2)], 1) + weights[f"{stem}.position_embeddings"]
        for number in range(weights.num_blocks(f"{SOUND}.ast.encoder.layer.")):
            layer = f"{SOUND}.ast.encoder.layer.{number}"
            given = weights.layer_norm(tokens, f"{layer}.layernorm_before", 1e-12)
            query, key, value = (
                weights.linear(given, f"{layer}.attention.attention.{part}") for part in ("query", "key", "value")
            )
            tokens = tokens + weights.linear(attention(query, key, value, NUM_HEADS), f"{layer}.attention.output.dense")
            given = weights.layer_norm(tokens, f"{layer}.layernorm_after", 1e-12)
            tokens = tokens + weights.linear(
                gelu(weights.linear(given, f"{layer}.intermediate.dense")), f"{layer}.output.dense"
            )
        told = weights.layer_norm(tokens, f"{SOUND}.ast.layernorm", 1e-12)[:, 2:].unflatten(1, AST_PATCHES)
        return self.gathered(told.transpose(1, 2).flatten(0, 1), f"{SOUND}.freq_attn_agg").unflatten(
            0, (len(bands), -1)
        )

    def gathered(self, tokens: Tensor, name: str) -> Tensor:
        """[n, c]: what a first token says after one layer over it and [n, t, c]."""
        import torch
        from torch.nn.functional import gelu, linear

        weights = self.weights
        tokens = torch.cat([weights[f"{name}.cls_token"].expand(len(tokens), -1, -1), tokens], 1)
        given = weights.layer_norm(tokens, f"{name}.norm1")
        packed = linear(given, weights[f"{name}.self_attn.in_proj_weight"], weights[f"{name}.self_attn.in_proj_bias"])
        query, key, value = packed.chunk(3, -1)
        first = tokens[:, :1] + weights.linear(
            attention(query[:, :1], key, value, NUM_HEADS), f"{name}.self_attn.out_proj"
        )
        inner = gelu(weights.linear(weights.layer_norm(first, f"{name}.norm2"), f"{name}.linear1"))
        return (first + weights.linear(inner, f"{name}.linear2"))[:, 0]


def on_one_clock(
    times_s: NDArray[np.float64], sound: NDArray[np.float32], start_s: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(numbers [t] of the frames nearest to each 25th of a second from the first on, and the sound at 16 kHz from there on).

    Frames are shown at `times_s` [n], `sound` begins at `start_s`. Raises MediaError for less than 4.8 s of both.
    """
    late = round((start_s - times_s[0]) * SPEECH_RATE_HZ)
    sound = np.pad(sound, (max(0, late), 0))[max(0, -late) :]
    num = min(int((times_s[-1] - times_s[0]) * FPS) + 1, len(sound) * FPS // SPEECH_RATE_HZ)
    if num < LENGTH_FRAMES:
        raise MediaError(f"{num / FPS:.1f} s of picture with sound are fewer than 4.8 s.", reason="too_short")
    return np.abs(times_s[:, None] - times_s[0] - np.arange(num) / FPS).argmin(0), sound


def shown(frames: Sequence[NDArray[np.uint8]]) -> Tensor:
    """[t, 3, 224, 224] of -1 to 1: the middle of RGB frames [h, w, 3], whose shorter side becomes 256 px where it is less."""
    import torch
    from torch.nn.functional import interpolate

    seen = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 127.5 - 1
    if (shorter := min(seen.shape[2:])) < SIDE_PX:
        seen = interpolate(seen, scale_factor=SIDE_PX / shorter, mode="bilinear")
    top, left = (round((side - CROP_PX) / 2) for side in seen.shape[2:])
    return seen[:, :, top : top + CROP_PX, left : left + CROP_PX]


def _segments(frames: Tensor) -> Tensor:
    """[14, 3, 16, h, w] of the first 120 frames [t, 3, h, w]."""
    return frames[:LENGTH_FRAMES].unfold(0, SEGMENT_FRAMES, STEP_FRAMES).permute(0, 1, 4, 2, 3)


def _bands(sound: NDArray[np.float32]) -> Tensor:
    """[14, 128, 66] of the sound of the same segments."""
    import torch
    from librosa.feature import melspectrogram

    step = SEGMENT_SAMPLES * STEP_FRAMES // SEGMENT_FRAMES
    pieces = np.stack([sound[at * step :][:SEGMENT_SAMPLES] for at in range(SEGMENTS)])
    found = melspectrogram(
        y=pieces, sr=SPEECH_RATE_HZ, n_fft=FFT_SIZE, win_length=WINDOW, hop_length=HOP, n_mels=BANDS, htk=True, norm=None,
        pad_mode="reflect",
    )  # fmt: skip
    rows = np.log(found + 1e-6)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, ROWS - rows.shape[2])))
    return torch.from_numpy(((rows - BAND_MEAN) / (2 * BAND_STD)).astype(np.float32))
