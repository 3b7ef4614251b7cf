"""Looking at the attention rounds of a model: the maps of some layers, and the model with its first rounds only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from heedful.models.decoder import DecoderLM
from heedful.models.probes import evaluating, uncompiled
from heedful.nn.attention import Attention
from heedful.nn.attention_maps import recorded_maps


def telling_layers(model: DecoderLM) -> list[int]:
    """Return the first and the last of the layers whose attention has the most parameters: those that carry the whole
    mechanism where only some layers do.
    """
    sizes = [sum(p.numel() for p in block.attention.parameters()) for block in model.block_list]
    largest = [layer for layer, size in enumerate(sizes) if size == max(sizes)]
    return sorted({largest[0], largest[-1]})


@torch.no_grad()
def layer_maps(model: DecoderLM, tokens: Tensor, layers: Sequence[int]) -> dict[int, list[Tensor]]:
    """Return the attention maps of some layers by layer, one per round, each (B, output heads, T, T).

    Args:
        model: it runs in evaluation mode; modes and compiled code stay as they are.
        tokens: (B, T) int64.
        layers: which; every map holds B H T^2 numbers.
    """
    blocks = model.block_list
    # A block that several layers share is looked at once, and its calls are told apart by their order.
    attentions: list[Attention] = list(dict.fromkeys(blocks[layer].attention for layer in layers))
    with recorded_maps(attentions) as recorded, evaluating(model), uncompiled():
        model.hidden_states(tokens)
    found = {}
    for layer in layers:
        attention = blocks[layer].attention
        rounds, call = len(attention.rounds), sum(other.attention is attention for other in blocks[:layer])
        found[layer] = recorded[attentions.index(attention)][call * rounds : (call + 1) * rounds]
    return found


@contextmanager
def first_rounds_only(model: DecoderLM) -> Iterator[None]:
    """Leave out the corrections of all further rounds inside the context: every gate gives 0, so F = F_0.

    The model was trained with its corrections, so what is left is not what training with one round would have given.
    """

    def close(gate: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    handles = [gate.register_forward_hook(close) for block in model.block_list for gate in block.attention.gates]
    try:
        with uncompiled():
            yield
    finally:
        for handle in handles:
            handle.remove()
