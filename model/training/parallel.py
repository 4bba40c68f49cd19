"""The network made ready for many GPUs: recomputation, then compilation, then sharding, in that order.

1. Recomputation first, because it replaces what a block computes; the compiler must see the replacement.
2. Compilation of each block's forward next: one graph per kind of block, reused by all of them.
3. Sharding last, because its hooks gather weights before a block and free them after it; compiled in, they would break
   the graph. The forward is compiled, not the module, so the hooks stay outside and parameter names do not change.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model.data.retry import patiently
from model.network.float8 import hold_in_float8, with_scales
from model.network.lora import add_adapters, initial_adapter, is_adapter, train_only
from model.network.nava import Nava
from model.ranks import World
from model.training.config import NetworkConfig, ParallelConfig
from model.training.recompute import set_recompute
from model.weights.convert import open_weights
from model.weights.dcp_files import damage_of, refuse_damage
from schemas.errors import PlanError

if TYPE_CHECKING:
    from upath import UPath


def damage_seen_by_all(checkpoint: Path | UPath, world: World) -> str:
    """`model.weights.dcp_files.damage_of`, its files shared out over the ranks; the same answer on all of them."""
    everyone = [""] * world.size
    damage = patiently(lambda: damage_of(checkpoint, (world.rank, world.size)), str(checkpoint))
    dist.all_gather_object(everyone, damage, group=world.background)
    return next(filter(None, everyone), "")


def make_mesh(world: World, config: ParallelConfig) -> DeviceMesh:
    """One dimension to shard over, or (copies, shards). Raises PlanError when the ranks do not divide."""
    if world.size % config.num_replicas:
        raise PlanError(
            f"{world.size} ranks cannot hold {config.num_replicas} equal copies of the states.",
            remedy="Set parallel.num_replicas to a divisor of the number of ranks.",
        )
    num_shards = world.size // config.num_replicas
    if config.num_replicas == 1:
        return init_device_mesh(world.device.type, (num_shards,), mesh_dim_names=("shard",))
    sizes = (config.num_replicas, num_shards)
    return init_device_mesh(world.device.type, sizes, mesh_dim_names=("replicate", "shard"))


def parallelize(model: Nava, mesh: DeviceMesh, config: ParallelConfig) -> None:
    """Wrap `model` in place; afterwards it is an `FSDPModule` whose gradients are sums, not means, over all ranks."""
    # It warns that outputs are views, which only matters to callers that change them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    set_recompute(model, config.recompute)
    blocks = [*model.double_blocks, *model.single_blocks]
    if config.compile:
        # Floats of a block, such as eps, never change. As symbols they have every kind of block traced twice, backward
        # pass included: only then torch finds that kernels take them as constants alone, and starts again.
        torch._dynamo.config.specialize_float = True
        for block in blocks:
            block.forward = torch.compile(block.forward, dynamic=True, backend=config.compile_backend)
    compute, reduce = compute_dtype(config), master_dtype(config)
    # Inputs keep their dtype: positions and timesteps are float32, and every layer casts what it multiplies.
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce, cast_forward_inputs=False)
    offload = OffloadPolicy()
    if config.offload:
        offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offload)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The divisors of the loss are global already, so ranks add up; a plain sum also needs no special reduction
            # that only one backend has.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def let_go(model: nn.Module) -> None:
    """Shard again what a forward pass without a backward pass left whole; otherwise later ones would go on with that copy."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def master_dtype(config: ParallelConfig) -> torch.dtype:
    """Numbers of stored weights, gradients and optimiser states."""
    return torch.float64 if config.precision == "float64" else torch.float32


def compute_dtype(config: ParallelConfig) -> torch.dtype:
    """Numbers of the gathered weights and matrix products."""
    dtype: torch.dtype = getattr(torch, config.precision)
    return dtype


def empty_model(network: NetworkConfig, dtype: torch.dtype, *, is_trained: bool = True) -> Nava:
    """The network on the meta device, with adapters and frozen parts; what `network.frozen` does not say is held in `dtype`."""
    with torch.device("meta"):
        model = Nava(network.network(), network.attention_backend)
        if network.lora is not None:
            add_adapters(model, network.lora.rank, network.lora.alpha, network.lora.targets)
    model.to(dtype)
    if not is_trained:
        model.requires_grad_(False)
    elif network.is_partial:
        train_only(model, network.train_only)
    if network.frozen != "master":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    if network.frozen == "float8":
        hold_in_float8(model)
    return model


def build_model(
    network: NetworkConfig,
    config: ParallelConfig,
    mesh: DeviceMesh,
    world: World,
    seed: int,
    *,
    is_trained: bool = True,
) -> Nava:
    """The sharded network with its weights: from a checkpoint, or initialised alike at every number of ranks.

    A checkpoint is read by every rank, tensor by tensor, each keeping its shard; nothing is held whole. Initialisation
    builds the whole network in rank 0's memory (25 GB for 6.3B) and hands out shards.
    """
    model = empty_model(network, master_dtype(config), is_trained=is_trained)
    parallelize(model, mesh, config)
    model.to_empty(device="cpu" if config.offload else world.device)
    parameters = {name: p for name, p in model.named_parameters() if not is_adapter(name)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                value = initial_adapter(name, parameter.shape, seed)
                parameter.copy_(_shard_like(parameter, value, world.device, source_rank=None))
        if network.weights is not None:
            refuse_damage(network.weights, partial(damage_seen_by_all, world=world))
            source = open_weights(network.weights, network.network())
            stored = source.read(name for name in parameters if name in source.specs)
            for name, value in with_scales(stored, parameters):
                parameters[name].copy_(_shard_like(parameters[name], value, world.device, source_rank=None))
        else:
            whole = Nava(network.network()) if world.is_first else None
            if whole is not None:
                whole.init_weights(torch.Generator().manual_seed(seed))
            for name, parameter in parameters.items():
                value = torch.empty(parameter.shape) if whole is None else whole.get_parameter(name).detach()
                parameter.copy_(_shard_like(parameter, value, world.device, source_rank=0))
    return model


def _shard_like(parameter: DTensor, value: torch.Tensor, device: torch.device, *, source_rank: int | None) -> DTensor:
    """`value` laid out as `parameter`: scattered from one rank, or cut from the copy that every rank has (None)."""
    value = value.to(device, parameter.dtype)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=source_rank)
