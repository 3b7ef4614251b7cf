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
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from heedful.models.blocks import Block, build_norm
from heedful.models.config import DecoderConfig
from heedful.models.decoder import DecoderLM
from heedful.nn.config import AttentionConfig
from heedful.ops.backends import Situation
from heedful.train.chunked_cross_entropy import LOGITS_OF_A_CHUNK
from heedful.train.config import TrainConfig
from heedful.train.loss import TrainingLoss
from heedful.train.simulated_step import Footprint, LiveBytes, footprint
from heedful.train.treatment import treatments

Module = TypeVar("Module", bound=nn.Module)
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
    run = _Run(
        train=replace(train, parallel=replace(train.parallel, recompute_blocks=False)),  # the same parts either way
        accumulating=accumulation > 1,
        gpu=gpu,
        weights=torch.bfloat16 if low else torch.float32,
    )
    parts = _parts(config, run, micro_batch)
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


FEW_SEQUENCES = 4


class _Moment(NamedTuple):
    name: str
    activations: int
    gradients: int
    working: int
    attention: int


class _Parts(NamedTuple):
    embedding: Footprint
    blocks: list[Footprint]
    head: Footprint


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


def _moments(parts: _Parts, sizes: _Sizes, waiting: int, root: int, *, recompute: bool) -> Iterator[_Moment]:
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


class _Run(NamedTuple):
    """What the figures of a part depend on besides its sizes."""

    train: TrainConfig
    accumulating: bool
    gpu: bool
    weights: torch.dtype

    @property
    def modes(self) -> dict[str, Any]:
        """The arguments of `footprint`, except for what it goes through."""
        return {
            "accumulating": self.accumulating,
            "bfloat16": self.train.precision == "bfloat16",
            "gpu": self.gpu,
        }


def _parts(config: DecoderConfig, run: _Run, micro_batch: int) -> _Parts:
    """Go through the embedding, each kind of block, and the loss."""
    few = FEW_SEQUENCES if micro_batch > 2 * FEW_SEQUENCES else micro_batch
    body = _body(config, run, few)
    if few != micro_batch:  # every further sequence needs the same
        two, steps = _body(config, run, 2 * few), micro_batch / few - 1
        body = [_extrapolated(one, other, steps) for one, other in zip(body, two, strict=True)]
    return _Parts(body[0], body[1:], _loss(config, run, micro_batch * run.train.context_length))


@lru_cache(maxsize=256)
def _body(config: DecoderConfig, run: _Run, micro_batch: int) -> list[Footprint]:
    """Return the embedding and the block of each layer."""
    length, width, weights = run.train.context_length, config.hidden_size, run.weights
    with FakeTensorMode():
        words = nn.Parameter(torch.empty(config.vocab_size, width, dtype=weights))
        places = nn.Parameter(torch.empty(config.max_positions, width, dtype=weights))
        learned = config.position_embedding == "learned"
        tokens = torch.zeros((micro_batch, length), dtype=torch.int64)

        def embed(source: Tensor) -> Tensor:
            hidden = nn.functional.embedding(tokens, words)
            if learned:
                hidden = hidden + nn.functional.embedding(tokens[0], places)
            return nn.functional.dropout(hidden, config.dropout)

        # A tied table has a gradient already, from the head.
        modes = {**run.modes, "accumulating": run.accumulating or config.tie_embeddings}
        body = [footprint(embed, torch.empty(()), [words, places] if learned else [words], **modes)]
        found: dict[AttentionConfig, Footprint] = {}
        for layer in config.layers:
            kind = _kind(layer, run.train, micro_batch, gpu=run.gpu)
            if kind not in found:
                block = _gathered(Block(config, kind), weights)
                source = torch.empty((micro_batch, length, width), dtype=weights, requires_grad=True)

                def compute(hidden: Tensor, block: Block = block) -> Tensor:
                    return block(hidden, None, None)[0]

                found[kind] = footprint(compute, source, list(block.parameters()), **run.modes)
            body.append(found[kind])
    return body


def _loss(config: DecoderConfig, run: _Run, tokens: int) -> Footprint:
    """Return the final norm, the head and the loss of so many tokens."""
    chunk = run.train.loss.chunk_tokens or max(1, LOGITS_OF_A_CHUNK // config.vocab_size)
    if tokens <= 4 * chunk:
        return _loss_at_once(config, run, tokens)
    two, four = (_loss_at_once(config, run, number * chunk) for number in (2, 4))
    return _extrapolated(two, four, tokens / (2 * chunk) - 1)  # every chunk needs the same


@lru_cache(maxsize=256)
def _loss_at_once(config: DecoderConfig, run: _Run, tokens: int) -> Footprint:
    with FakeTensorMode():
        head = _gathered(_Head(config), run.weights)
        loss = TrainingLoss(head, run.train.loss)

        def compute(hidden: Tensor) -> Tensor:
            head.hidden = hidden
            targets = torch.zeros(hidden.shape[:2], dtype=torch.int64)
            objective, _ = loss(targets, targets, None)
            head.hidden = None
            return objective

        source = torch.empty((1, tokens, config.hidden_size), dtype=run.weights, requires_grad=True)
        return footprint(compute, source, list(head.parameters()), **run.modes)


def _extrapolated(one: Footprint, two: Footprint, steps: float) -> Footprint:
    """Return `one` with `steps` times the difference to `two` added to each figure."""
    return Footprint(**{name: math.ceil(n + steps * (getattr(two, name) - n)) for name, n in vars(one).items()})


def _kind(layer: AttentionConfig, train: TrainConfig, micro_batch: int, *, gpu: bool) -> AttentionConfig:
    """Return a layer's attention with the backend of the device written into it, the same for layers of one kind.

    The Triton backend saves what the blockwise one saves, and differs inside only, where its tiles are 16 bits wide
    and the blockwise ones, which are counted, 32.
    """
    device = "cuda" if gpu else "cpu"
    dtype = torch.bfloat16 if train.precision == "bfloat16" else torch.float32
    length = train.context_length
    situation = Situation(device=device, dtype=dtype, queries=length, keys=length, batch=micro_batch)
    backend = layer.choose_backend(situation, training=True).backend
    convolves = getattr(layer.rule, "convolves", None)
    index = None if convolves is None or convolves(layer.layer_index) else _plain_index(layer)
    return replace(layer, layer_index=index, backend="blockwise" if backend == "triton" else backend)


def _plain_index(layer: AttentionConfig) -> int:
    """Return the first layer index without convolutions."""
    rule: Any = layer.rule
    return next(index for index in range(rule.convolution_every) if not rule.convolves(index))


def _gathered(module: Module, dtype: torch.dtype) -> Module:
    """Give a module parameters of the type they are gathered in; fake ones cannot change theirs."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(torch.empty_like(parameter, dtype=dtype)))
    return module


class _Head(nn.Module):
    """The end of a decoder: what `TrainingLoss` asks of a model, for hidden states that are given."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.hidden: Tensor | None = None
        self.final_norm = build_norm(config)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.vocab_size)) if config.head_bias else None

    def hidden_states(self, tokens: Tensor, mask: Any = None) -> Tensor:
        """Return the given states after the final norm."""
        assert self.hidden is not None
        return self.final_norm(self.hidden)

    def head_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias."""
        return self.weight, self.bias
