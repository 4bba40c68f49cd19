"""What training holds on one GPU, counted on the real blocks: run with tensors that have shapes and no numbers.

    states        this rank's shards: weights in the numbers they are held in, and of what is trained gradients, two
                  moments (matrices under Muon: one), and the average if one is kept; in host memory with parallel.offload.
                  A stage that distils has them twice, the average once, and the teacher's weights
    gathered      what sharding holds whole: the root's parameters, the block in use and the one fetched ahead
    gradients     whole gradients of a block while they are reduced, and of everything while micro-steps are added up
    activations   kept for the backward pass, and the temporaries of forward and backward, at their peak
    workspace     CUDA, NCCL, kernels' own buffers, fragmentation

Activations come of three runs of the network with one or two blocks of each kind, forward and backward, in which every
storage is counted while it lives; blocks of a kind are alike, so the rest follows. They are counted without
compilation, which keeps the same and needs less for the block in work. Nothing here needs a GPU.
"""

# mypy: disallow-subclassing-any=False
from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from model.network.config import NavaConfig
from model.network.nava import Nava, pack
from model.network.tokens import Packed, Sample
from model.training.config import NetworkConfig, TrainConfig
from model.training.optim import is_for_muon
from model.training.parallel import compute_dtype, empty_model, master_dtype
from model.training.recompute import set_recompute
from schemas.budget import Recompute

WORKSPACE_BYTES = 6_000_000_000
"""CUDA context, NCCL's buffers, cuBLAS workspaces and fragmentation: set aside, not measured."""
CLIP_TOKENS = 27_407
"""Video and audio tokens of the longest clip of the release, 121 frames of 704x1280: what packs are counted with."""
AUDIO_SHARE = 127 / CLIP_TOKENS
BYTES = {torch.bfloat16: 2, torch.float32: 4, torch.float64: 8}


class Activations(NamedTuple):
    """Bytes beside the weights."""

    kept: int
    """After the forward pass."""
    peak: int
    """At any time in forward or backward."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one GPU, by use."""

    states_bytes: int
    gathered_bytes: int
    gradients_bytes: int
    activations: Activations
    workspace_bytes: int
    host_bytes: int = 0
    """States of this rank in host memory; not part of the total."""

    @property
    def total_bytes(self) -> int:
        """Sum of all uses at the peak of activations."""
        return self.fixed_bytes + self.activations.peak

    @property
    def fixed_bytes(self) -> int:
        """What does not depend on the pack."""
        return self.states_bytes + self.gathered_bytes + self.gradients_bytes + self.workspace_bytes


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made while it is on, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these, nor views of them."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known[storage] = True
        num_bytes = storage.nbytes()
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, num_bytes)

    def _release(self, num_bytes: int) -> None:
        self.live -= num_bytes


def memory_per_gpu(config: TrainConfig, num_gpus: int) -> MemoryEstimate:
    """Estimated bytes per GPU of a stage on `num_gpus` GPUs; seconds of work, kept for the next question alike."""
    parallel, plan = config.parallel, config.plan
    network = config.network.network()
    counts = _count_parameters(config)
    master, compute = BYTES[master_dtype(parallel)], BYTES[compute_dtype(parallel)]
    states = states_per_gpu(config, num_gpus)
    fetched = master * counts.block if parallel.offload else 0  # on its way from the host, before it is cast
    has_micro_steps = plan.num_packs > num_gpus and not parallel.sync_every_micro_step
    activations = count_activations(network, parallel.recompute, compute_dtype(parallel), plan.token_budget)
    return MemoryEstimate(
        states_bytes=0 if parallel.offload else states,
        gathered_bytes=((1 if config.distill is None else 3) * counts.root + 2 * counts.block) * compute + fetched,
        gradients_bytes=(counts.trained_root + 2 * counts.trained_block) * (master + compute)
        + (master * counts.trained * (1 if config.distill is None else 2) if has_micro_steps else 0),
        activations=activations,
        workspace_bytes=WORKSPACE_BYTES,
        host_bytes=states if parallel.offload else 0,
    )


def states_per_gpu(config: TrainConfig, num_gpus: int) -> int:
    """Bytes of what one rank keeps of weights, gradients, moments and averages, on the GPU or with parallel.offload beside it."""
    counts, num_shards = _count_parameters(config), max(1, num_gpus // config.parallel.num_replicas)
    held = 4 * counts.trained - (counts.trained_matrices if config.optim.kind == "muon" else 0)
    network = counts.frozen_bytes + BYTES[master_dtype(config.parallel)] * held
    average = BYTES[master_dtype(config.parallel)] * counts.trained if config.optim.ema_decay else 0
    beside = 0 if config.distill is None else network + counts.teacher_bytes
    return math.ceil((network + average + beside) / num_shards)


def count_activations(network: NavaConfig, recompute: Recompute, dtype: torch.dtype, num_tokens: int) -> Activations:
    """Bytes beside the weights for a pack of `num_tokens` tokens: clips of the release's longest kind, as many as fit.

    Cost: a second or three, whatever the size; none for networks that differ in depth alone from one counted before. The
    scratch of the attention kernels in backward (float32 gradients of the queries) is added: it is theirs alone and no
    tensor of ours.
    """
    shallow = network.model_copy(update={"num_align_layers": 1, "num_fusion_layers": 1})
    one, more_align, more_fusion = _runs_of_few_blocks(shallow, recompute, dtype, num_tokens)
    num_align, num_fusion = network.num_align_layers - 1, network.num_fusion_layers - 1
    kept, peak = (
        of_one + num_align * (of_align - of_one) + num_fusion * (of_fusion - of_one)
        for of_one, of_align, of_fusion in zip(one, more_align, more_fusion, strict=True)
    )
    scratch = 4 * network.dim * num_tokens if dtype == torch.bfloat16 else 0
    return Activations(kept, peak + scratch)


@lru_cache(maxsize=64)
def _runs_of_few_blocks(
    shallow: NavaConfig, recompute: Recompute, dtype: torch.dtype, num_tokens: int
) -> tuple[Activations, Activations, Activations]:
    """With one block of each kind, with one more that aligns, with one more that fuses."""
    packed = _example_pack(shallow, num_tokens)
    more_align, more_fusion = (shallow.model_copy(update={f"num_{kind}_layers": 2}) for kind in ("align", "fusion"))
    one, two, three = (_run(network, recompute, dtype, packed) for network in (shallow, more_align, more_fusion))
    return one, two, three


def run_activations(network: NavaConfig, recompute: Recompute, dtype: torch.dtype, num_tokens: int) -> Activations:
    """The same from one run of the whole network, without the kernels' scratch: what `count_activations` is held to."""
    return _run(network, recompute, dtype, _example_pack(network, num_tokens))


def most_tokens(config: TrainConfig, num_gpus: int, memory_bytes: float) -> int:
    """Largest token budget, in steps of 1,024, whose estimate fits `memory_bytes`; 0 when nothing does."""
    estimate = memory_per_gpu(config, num_gpus)
    room = (memory_bytes - estimate.fixed_bytes) / max(1, estimate.activations.peak)
    return max(0, int(config.plan.token_budget * room) // 1024 * 1024)


def _run(network: NavaConfig, recompute: Recompute, dtype: torch.dtype, packed: Packed) -> Activations:
    """Forward and backward with shapes alone. Gradients of weights are let go at once, as sharding does."""
    with torch.device("meta"):
        model = Nava(network)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype)))
        set_recompute(model, recompute)
        hooks = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in model.parameters()]
        with LiveBytes() as counted:
            counted.leave_out(model.parameters())
            velocity = model(packed, torch.zeros(packed.num_samples))
            loss = sum(v.float().square().sum() for v in [*velocity.video, *velocity.audio] if v is not None)
            del velocity
            kept = counted.live
            assert isinstance(loss, Tensor), "a pack has a modality"
            loss.backward()
        del hooks
    return Activations(kept, counted.peak)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _example_pack(network: NavaConfig, num_tokens: int) -> Packed:
    """A pack of `num_tokens` tokens or hardly fewer, of clips with picture, sound and a full caption; latents are zeros."""
    clips = []
    for number, tokens in enumerate(_clip_lengths(num_tokens)):
        num_audio = max(1, round(AUDIO_SHARE * tokens))
        frames = min(31, max(1, tokens - num_audio))
        height = max(1, math.isqrt((tokens - num_audio) // frames))
        width = max(1, (tokens - num_audio) // frames // height)
        _, patch_height, patch_width = network.patch_size
        clips.append(
            Sample(
                f"clip{number}",
                text=torch.zeros(network.max_text_tokens, network.text_dim),
                video=torch.zeros(network.video_channels, frames, height * patch_height, width * patch_width),
                audio=torch.zeros(num_audio, network.audio_channels),
            )
        )
    return pack(clips, network)


def _clip_lengths(num_tokens: int) -> Iterator[int]:
    """Tokens of each clip: whole ones, and the rest with the last."""
    whole = max(1, num_tokens // CLIP_TOKENS)
    yield from [num_tokens // whole] * whole


class ParameterCounts(NamedTuple):
    """Parameters of the network outside its blocks, and of its largest block, all and trained ones."""

    trained: int
    trained_matrices: int
    """Those that Muon would move."""
    frozen_bytes: int
    teacher_bytes: int
    """Of what a student is distilled from."""
    root: int
    trained_root: int
    block: int
    trained_block: int


def _count_parameters(config: TrainConfig) -> ParameterCounts:
    """Counted on the meta device, once for each network and what it is distilled from."""
    teacher = None if config.distill is None else config.distill.teacher_of(config.network).model_dump_json()
    return _counts_of(config.network.model_dump_json(), teacher, master_dtype(config.parallel))


@lru_cache(maxsize=64)
def _counts_of(network: str, teacher: str | None, dtype: torch.dtype) -> ParameterCounts:
    """Of networks written as JSON, for what a recipe holds in dictionaries is no key."""
    model = empty_model(NetworkConfig.model_validate_json(network), dtype)
    frozen = (
        ()
        if teacher is None
        else empty_model(NetworkConfig.model_validate_json(teacher), dtype, is_trained=False).parameters()
    )
    trained = [(name, p.numel() if p.requires_grad else 0) for name, p in model.named_parameters()]
    blocks = [*model.double_blocks, *model.single_blocks]
    of_root = {name: "_blocks." not in name for name, _ in trained}
    return ParameterCounts(
        trained=sum(count for _, count in trained),
        trained_matrices=sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and is_for_muon(n, p)),
        frozen_bytes=sum(p.nbytes for p in model.parameters() if not p.requires_grad),
        teacher_bytes=sum(p.nbytes for p in frozen),
        root=sum(p.numel() for name, p in model.named_parameters() if of_root[name]),
        trained_root=sum(count for name, count in trained if of_root[name]),
        block=max(sum(p.numel() for p in block.parameters()) for block in blocks),
        trained_block=max(sum(p.numel() for p in block.parameters() if p.requires_grad) for block in blocks),
    )
