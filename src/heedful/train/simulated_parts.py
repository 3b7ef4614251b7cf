"""The parts of a decoder's training step, each gone through by itself: embedding, kinds of blocks, head with loss."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from heedful.models.blocks import Block, build_norm
from heedful.models.config import DecoderConfig
from heedful.nn.config import AttentionConfig
from heedful.ops.backends import Situation
from heedful.train.chunked_cross_entropy import LOGITS_OF_A_CHUNK, chunked_cross_entropy
from heedful.train.config import TrainConfig
from heedful.train.cross_entropy_rows import KERNEL_TYPES, torch_rows, triton_rows
from heedful.train.simulated_step import Footprint, footprint

Module = TypeVar("Module", bound=nn.Module)
FEW_SEQUENCES = 4


class Parts(NamedTuple):
    """What the parts of a step need; `blocks` has one entry for each layer."""

    embedding: Footprint
    blocks: list[Footprint]
    head: Footprint


class PartsRun(NamedTuple):
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


def parts_of(config: DecoderConfig, run: PartsRun, micro_batch: int) -> Parts:
    """Go through the embedding, each kind of block, and the loss."""
    few = FEW_SEQUENCES if micro_batch > 2 * FEW_SEQUENCES else micro_batch
    body = _body(config, run, few)
    if few != micro_batch:  # every further sequence needs the same
        two, steps = _body(config, run, 2 * few), micro_batch / few - 1
        body = [_extrapolated(one, other, steps) for one, other in zip(body, two, strict=True)]
    return Parts(body[0], body[1:], _loss(config, run, micro_batch * run.train.context_length))


@lru_cache(maxsize=256)
def _body(config: DecoderConfig, run: PartsRun, micro_batch: int) -> list[Footprint]:
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


def _loss(config: DecoderConfig, run: PartsRun, tokens: int) -> Footprint:
    """Return the final norm, the head and the loss of so many tokens."""
    chunk = run.train.loss.chunk_tokens or max(1, LOGITS_OF_A_CHUNK // config.vocab_size)
    if tokens <= 4 * chunk:
        return _loss_at_once(config, run, tokens)
    two, four = (_loss_at_once(config, run, number * chunk) for number in (2, 4))
    return _extrapolated(two, four, tokens / (2 * chunk) - 1)  # every chunk needs the same


@lru_cache(maxsize=256)
def _loss_at_once(config: DecoderConfig, run: PartsRun, tokens: int) -> Footprint:
    """Go through the loss as `TrainingLoss` takes it; a GPU is taken to have Triton, whose kernel needs less memory."""
    loss = run.train.loss
    with FakeTensorMode():
        head = _gathered(_Head(config), run.weights)

        def compute(hidden: Tensor) -> Tensor:
            targets = torch.zeros(hidden.shape[:2], dtype=torch.int64)
            objective, _ = chunked_cross_entropy(
                head.final_norm(hidden),
                head.weight,
                head.bias,
                targets,
                z_loss=loss.z_loss,
                chunk_tokens=loss.chunk_tokens,
                rows=triton_rows if run.gpu and run.weights in KERNEL_TYPES else torch_rows,
            )
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
    """The end of a decoder: the norm before the head, and the head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.final_norm = build_norm(config)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.vocab_size)) if config.head_bias else None
