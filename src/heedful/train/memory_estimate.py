"""How much memory a training step needs on each GPU, part by part, before there is a GPU.

Weights, gradients, optimiser state and what the processes send are counted from the shapes of the parameters.
Activations and working memory come from going through each kind of block, the embedding and the loss with fake tensors
(`heedful.train.simulated_step`), so no constant in here knows any mechanism. The parts of a step are then put together
in the order in which they run, and the moment that needs the most decides.

Not counted: what kernels allocate inside themselves, evaluation, and what is not torch's (driver, communication
library), for which see `heedful.train.hardware.Gpu.memory_bytes`. Compiled blocks save less than is counted here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from heedful.models.config import DecoderConfig
from heedful.models.decoder import DecoderLM
from heedful.train.config import TrainConfig
from heedful.train.simulated_parts import Parts, PartsRun, parts_of
from heedful.train.simulated_step import LiveBytes
from heedful.train.treatment import treatments

SHARDED = ("fsdp2", "hsdp")
ALLOCATOR_MARGIN = 0.1
"""Assumed share of memory that the caching allocator cannot give out because it is cut into pieces; not measured."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes on each GPU at the moment of a training step that needs the most.

    Attributes:
        moment: which moment that is.
        weights: this process's part of the weights, float32.
        optimizer: this process's part of the optimiser's state.
        average: this process's part of the averaged weights.
        gradients: this process's gradients that are complete, or wait for further micro-batches, at that moment.
        gathered: whole weights of the blocks in use and of the next one, sent for, and of embedding and head.
        communication: gradients on their way to the other processes.
        activations: what the forward pass has kept for the rest of the backward pass.
        working: what is made and dropped on the way, one block's recomputed activations and gradients included.
        attention: the part of `working` that one multi-token operation has alive inside itself.
        margin: share of the allocator that is lost in pieces, an assumption.
    """

    moment: str
    weights: int
    optimizer: int
    average: int
    gradients: int
    gathered: int
    communication: int
    activations: int
    working: int
    attention: int
    margin: int

    @property
    def tensors(self) -> int:
        """Bytes of all tensors alive, which is what `heedful.train.memory.peak_tensor_bytes` measures."""
        held = self.weights + self.optimizer + self.average + self.gradients + self.gathered + self.communication
        return held + self.activations + self.working

    @property
    def total(self) -> int:
        """Bytes that the GPU must have, margin included."""
        return self.tensors + self.margin


def estimate_memory(
    config: DecoderConfig,
    train: TrainConfig,
    *,
    strategy: Literal["single", "ddp", "fsdp2", "hsdp"],
    shard_size: int = 1,
    micro_batch: int,
    accumulation: int = 1,
    gpu: bool = True,
) -> StepMemory:
    """Return what a step of `config` needs.

    Args:
        config: the model.
        train: context length, precision, optimiser, loss and whether blocks are recomputed are read from it.
        strategy: how the model is spread, with "auto" resolved.
        shard_size: processes that share one copy of the weights with "fsdp2" and "hsdp".
        micro_batch: sequences that one process computes at a time.
        accumulation: micro-batches of each process in a step.
        gpu: multi-token attention and dropout as on a GPU; False for those of a CPU.
    """
    sharded = strategy in SHARDED
    low = sharded and train.parallel.gather_precision == "bfloat16"
    run = PartsRun(
        train=replace(train, parallel=replace(train.parallel, recompute_blocks=False)),  # the same parts either way
        accumulating=accumulation > 1,
        gpu=gpu,
        weights=torch.bfloat16 if low else torch.float32,
    )
    parts = parts_of(config, run, micro_batch)
    sizes = _sizes(config, train, shard_size if sharded else 1)
    held = {
        "weights": 4 * sizes.total,
        "optimizer": sizes.optimizer,
        "average": 4 * sizes.total if train.optimizer.ema_decay > 0 else 0,
    }
    again = accumulation > 1
    # Between micro-batches a sharded model does not send gradients, so it holds them whole.
    waiting = 4 * (sizes.total_whole if sharded else sizes.total) if again else 0
    width = 2 if low else 4
    largest = max(sizes.blocks_whole)
    fixed = {"gathered": 0, "communication": 0}
    if sharded:
        fixed["gathered"] = width * (sizes.root_whole + 2 * largest)
        fixed["communication"] = 4 * max(largest, sizes.root_whole)
    elif strategy == "ddp":
        fixed["communication"] = 4 * sizes.total  # the buckets, beside the gradients themselves
    # The gradients outside of the blocks are complete at the end only: a tied table has its second part from the
    # embedding, and sharded ones are sent together then.
    root = 0 if again else 4 * sizes.root
    if sharded:
        root = width * sizes.root_whole
    elif again and config.tie_embeddings:
        root = 4 * config.vocab_size * config.hidden_size
    moments = list(_moments(parts, sizes, waiting, root, recompute=train.parallel.recompute_blocks))
    complete = 4 * sizes.total + (waiting if sharded else 0)
    moments.append(_Moment("the optimiser's step", 0, complete, sizes.largest_update, 0))
    made = max(moments, key=lambda moment: moment.gradients + moment.activations + moment.working)
    memory = StepMemory(
        **held,
        **fixed,
        moment=made.name,
        gradients=made.gradients,
        activations=made.activations,
        working=made.working,
        attention=made.attention,
        margin=0,
    )
    return replace(memory, margin=math.ceil(ALLOCATOR_MARGIN * memory.tensors))


class _Moment(NamedTuple):
    name: str
    activations: int
    gradients: int
    working: int
    attention: int


class _Sizes(NamedTuple):
    """Numbers of weights: here, of which in each block and outside the blocks, and the same without sharding."""

    total: int
    blocks: list[int]
    root: int
    total_whole: int
    blocks_whole: list[int]
    root_whole: int
    optimizer: int
    largest_update: int


def _moments(parts: Parts, sizes: _Sizes, waiting: int, root: int, *, recompute: bool) -> Iterator[_Moment]:
    """Go through a step: what is kept, which gradients there are, and the peak of what runs."""
    before, copies = [parts.embedding.kept], [0]
    for block in parts.blocks:
        before.append(before[-1] + (block.output if recompute else block.kept))
        copies.append(copies[-1] + (block.copies if recompute else 0))  # else they are among what is kept
    for index, block in enumerate(parts.blocks):
        yield _Moment("the forward pass", before[index] + copies[index], waiting, block.forward, block.walk)
    here = waiting
    yield _Moment("the logits", before[-1] + copies[-1], here, parts.head.forward, 0)
    yield _Moment("the gradient of the logits", before[-1], here, parts.head.backward, 0)
    here += root
    for index in reversed(range(len(parts.blocks))):
        block = parts.blocks[index]
        yield _Moment("the backward pass of a block", before[index], here, block.backward, block.walk)
        here += 0 if waiting else 4 * sizes.blocks[index]
    yield _Moment("the gradient of the embedding", 0, here, parts.embedding.backward, 0)


@lru_cache(maxsize=64)
def _sizes(config: DecoderConfig, train: TrainConfig, shard_size: int) -> _Sizes:
    with torch.device("meta"):
        model = DecoderLM(config)

    def here(parameter: Tensor) -> int:
        rows = parameter.shape[0] if parameter.dim() else 1
        return -(-rows // shard_size) * (parameter.numel() // max(rows, 1))

    blocks = [list(block.parameters()) for block in model.blocks]
    inside = {id(parameter) for block in blocks for parameter in block}
    root = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    everything = [*root, *(parameter for block in blocks for parameter in block)]
    matrices = [one.parameter for one in treatments(model, train.optimizer) if one.method == "muon"]
    by_muon = sum(here(parameter) for parameter in matrices)
    total = sum(here(parameter) for parameter in everything)
    blocks_here = [sum(map(here, block)) for block in blocks]
    blocks_whole = [sum(parameter.numel() for parameter in block) for block in blocks]
    layers = len(model.block_list)
    if layers != len(blocks):  # one block everywhere: its gradient is complete only after the first layer
        blocks_here = [*blocks_here, *[0] * (layers - 1)]
        blocks_whole = blocks_whole * layers
    return _Sizes(
        total=total,
        blocks=blocks_here,
        root=sum(map(here, root)),
        total_whole=sum(parameter.numel() for parameter in everything),
        blocks_whole=blocks_whole,
        root_whole=sum(parameter.numel() for parameter in root),
        optimizer=4 * (2 * (total - by_muon) + by_muon),
        largest_update=_muon_bytes(max(matrices, key=lambda p: p.numel()).shape) if matrices else 0,
    )


def _muon_bytes(shape: torch.Size) -> int:
    """Return what torch's Muon makes and drops while it moves one matrix."""
    with FakeTensorMode():
        weight = nn.Parameter(torch.empty(shape))
        weight.grad = torch.empty(shape)
        optimizer = torch.optim.Muon([weight])
        optimizer.state[weight]["momentum_buffer"] = torch.empty(shape)
        known = [weight, weight.grad, optimizer.state[weight]["momentum_buffer"]]
        with LiveBytes(known) as memory:
            optimizer.step()
    return memory.peak
