"""`parallelize`: a model spread over processes, block by block; models stay ignorant of it.

| strategy | weights, gradients, optimiser state | communication of a step |
|---|---|---|
| single | whole, in the one process | none |
| ddp | whole in every process | gradients summed |
| fsdp2 | a part of each parameter in every process | weights gathered per block, twice; gradients scattered |
| hsdp | as fsdp2 within groups of processes, copies over the groups | as fsdp2, and gradients summed over groups |

A mesh says it all: none is "single", one dimension named "replicate" is "ddp", one named "shard" is "fsdp2", both are
"hsdp".
"""

from __future__ import annotations

import datetime
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from heedful.train.parallel_config import ParallelConfig, Strategy

SHARDED = ("fsdp2", "hsdp")


def resolve_strategy(policy: ParallelConfig, world_size: int) -> Strategy:
    """Return the strategy with "auto" resolved.

    Raises:
        ValueError: "single" with several processes, or groups that do not divide them.
    """
    if policy.strategy == "auto":
        return "single" if world_size == 1 else "ddp"
    if policy.strategy == "single" and world_size > 1:
        raise ValueError(
            f"strategy 'single' is one process, but there are {world_size}; start it without torchrun, or choose "
            "'ddp', 'fsdp2' or 'hsdp'."
        )
    if policy.strategy == "hsdp" and world_size % _shard_size(policy):
        raise ValueError(f"shard_size must divide the number of processes, got {_shard_size(policy)} and {world_size}.")
    return policy.strategy


def build_mesh(policy: ParallelConfig, world_size: int, device_type: str) -> DeviceMesh | None:
    """Return how the processes are arranged, None for one process on its own; all of them must call it.

    The groups are made here because those that a mesh makes itself do not wait `timeout_seconds` but half an hour.
    """
    strategy = resolve_strategy(policy, world_size)
    if strategy == "single":
        return None
    if strategy != "hsdp":
        name = "replicate" if strategy == "ddp" else "shard"
        world = cast("dist.ProcessGroup", dist.group.WORLD)
        return DeviceMesh.from_group(world, device_type, mesh_dim_names=(name,))
    ranks = torch.arange(world_size).view(-1, _shard_size(policy))
    timeout = datetime.timedelta(seconds=policy.timeout_seconds)
    groups = [
        cast("dist.ProcessGroup", dist.new_subgroups_by_enumeration(lists.tolist(), timeout=timeout)[0])
        for lists in (ranks.T, ranks)
    ]
    return DeviceMesh.from_group(groups, device_type, mesh=ranks, mesh_dim_names=("replicate", "shard"))


def is_sharded(mesh: DeviceMesh | None) -> bool:
    """Return whether each process of a mesh holds only a part of the weights."""
    return mesh is not None and "shard" in (mesh.mesh_dim_names or ())


def parallelize(
    model: nn.Module,
    mesh: DeviceMesh | None,
    policy: ParallelConfig,
    *,
    device: torch.device,
    compile_blocks: bool = False,
) -> None:
    """Bring `model` to `device` as mesh and policy say, in place; the names of its parameters stay as they are.

    The values are those of the first process, sent tensor by tensor; every other process may hold the model on the meta
    device. With a sharded strategy the parameters become DTensors, and no process but the first ever holds all of them.

    Args:
        compile_blocks: compile each block with `torch.compile`; equal blocks share the compiled code.

    Raises:
        ValueError: a model that shares a block between layers, or has parameters of two names or without a dimension,
            cannot be sharded.
    """
    if is_sharded(mesh):
        _require_shardable(model)
    for block in transformer_blocks(model):
        if policy.recompute_blocks:
            _recompute(block)
        if compile_blocks:
            block.compile()
    if mesh is None:
        model.to(device)
    elif is_sharded(mesh):
        _shard(model, mesh, policy, device)
    else:
        if any(tensor.is_meta for _, tensor in named_tensors(model)):
            ties = _tied_names(model)
            model.to_empty(device=device)
            _tie_again(model, ties)
        model.to(device)
        with torch.no_grad():
            for _, tensor in named_tensors(model):
                dist.broadcast(tensor, src=0)


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the parts of a model that are sharded, compiled and recomputed one by one: its `blocks`, or all of it."""
    blocks = getattr(model, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList) and len(blocks) else [model]


def gradient_module(loss: nn.Module, mesh: DeviceMesh | None) -> nn.Module:
    """Return what the loop calls: `loss` itself, or with "ddp" the module that also sums gradients over processes."""
    if mesh is None or is_sharded(mesh):
        return loss
    known = inspect.signature(DistributedDataParallel).parameters
    # Buffers are the same everywhere from the start; torch 2.13 has a new name for not sending them each time.
    buffers: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
    }
    return DistributedDataParallel(loss, process_group=mesh.get_group(), init_sync=False, **buffers)


@contextmanager
def synchronising(module: nn.Module, *, synchronise: bool) -> Iterator[None]:
    """Run a micro-batch that sends its gradients or, before the last of a step, only adds them up.

    Args:
        module: what `gradient_module` returned.
    """
    if isinstance(module, DistributedDataParallel):
        with nullcontext() if synchronise else module.no_sync():
            yield
        return
    model = getattr(module, "model", None)
    if isinstance(model, FSDPModule):
        model.set_is_last_backward(synchronise)
        model.set_requires_gradient_sync(synchronise)
    yield


def reshard(model: nn.Module) -> None:
    """Drop gathered weights: a forward pass without a backward pass leaves some, and they would be stale later."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its values: itself, or what the processes hold parts of (all of them must ask)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Return copies of a model's state dict on the CPU, gathered tensor by tensor; empty where `keep` is False.

    All processes must call it, and only those that keep the result need memory for it.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        gathered = whole(tensor.detach())
        if keep:
            weights[name] = gathered.to("cpu", copy=True)
    return weights


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters and buffers, each once, those that are not saved included."""
    return [*model.named_parameters(), *model.named_buffers()]


def _require_shardable(model: nn.Module) -> None:
    if getattr(getattr(model, "config", None), "share_layers", False):
        raise ValueError(
            "a model that shares one block between its layers cannot be sharded: its gradients would be sent before "
            "they are complete. Use strategy 'ddp'."
        )
    tied = _tied_names(model)
    if tied:
        one, other = next(iter(tied.items()))
        raise ValueError(
            f"a parameter of two names cannot be sharded, and {other} is also {one}: use it under one name in the "
            "model, as DecoderLM does with tied embeddings, or use strategy 'ddp'."
        )
    scalars = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
    if scalars:
        raise ValueError(
            f"parameters without a dimension cannot be sharded, and {scalars[0]} is one: give it the shape (1,), or "
            "use strategy 'ddp'."
        )


def _tied_names(model: nn.Module) -> dict[str, str]:
    """Return the further names of parameters that have several, each with the first."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    everything = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in everything if first[id(parameter)] != name}


def _tie_again(model: nn.Module, ties: dict[str, str]) -> None:
    """Give the parameters that lost it their second name back: memory is given out name by name."""
    for name, first in ties.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, model.get_parameter(first))


def _shard(model: nn.Module, mesh: DeviceMesh, policy: ParallelConfig, device: torch.device) -> None:
    initial: dict[str, Tensor] = {}
    if dist.get_rank() == 0:
        initial = {name: tensor.detach().cpu() for name, tensor in named_tensors(model)}
    low = torch.bfloat16 if policy.gather_precision == "bfloat16" else None
    precision = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    model.to("meta")
    for block in transformer_blocks(model):
        if block is not model:
            fully_shard(block, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    # The embeddings and the head are used at both ends of the forward pass, so they stay gathered in between.
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    if hasattr(model, "hidden_states"):
        register_fsdp_forward_method(model, "hidden_states")
    model.to_empty(device=device)
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            value = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if dist.get_rank() == 0:
                value.copy_(initial.pop(name))
            dist.broadcast(value, src=0)
            if isinstance(tensor, DTensor):
                _take_part(tensor, value)
            else:
                tensor.copy_(value)


def _take_part(tensor: DTensor, value: Tensor) -> None:
    """Copy this process's part of `value`, which every process holds, without sending anything."""
    replicated = DTensor.from_local(value, tensor.device_mesh, [Replicate()] * tensor.device_mesh.ndim, run_check=False)
    tensor.to_local().copy_(replicated.redistribute(tensor.device_mesh, tensor.placements).to_local())


def _recompute(block: nn.Module) -> None:
    forward = block.forward

    def recomputing(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        return checkpoint(partial(forward, **options), *arguments, use_reentrant=False)

    block.forward = recomputing


def _shard_size(policy: ParallelConfig) -> int:
    """Return how many processes share one copy with "hsdp": those of one machine unless the policy says otherwise."""
    return policy.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
