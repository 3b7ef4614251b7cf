"""The attention maps of a layer, for looking at: every score rule is linear in its values, so the values of the unit
matrix give its map.

    map(q, k) = score_rule(q, k, I)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from heedful.nn.attention import Attention, AttentionRound


@contextmanager
def recorded_maps(layers: list[Attention]) -> Iterator[list[list[Tensor]]]:
    """Record the maps of all calls of some layers inside the context, on the reference backend, without dropout.

    Args:
        layers: the layers to look at.

    Yields:
        One list per layer, which each call of the layer extends by one map per round: (B, output heads, N, M), row i
        of a head being the weights with which it reads the values of all positions (below zero and above one are
        possible where maps are subtracted or convolved).

    Raises:
        ValueError: at a call with remembered values (a rule that keeps more than keys and values of each position):
            their maps are gone; pass the whole text without a state.
    """
    maps: list[list[Tensor]] = [[] for _ in layers]
    handles = [
        cast(AttentionRound, attention_round).rule.register_forward_hook(_Recorder(layer, found), with_kwargs=True)
        for layer, found in zip(layers, maps, strict=True)
        for attention_round in layer.rounds
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """A forward hook of a score rule that calls the rule once more, with the unit matrix for values."""

    def __init__(self, layer: Attention, found: list[Tensor]) -> None:
        self.layer, self.found, self.busy = layer, found, False

    @torch.no_grad()
    def __call__(self, rule: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        if self.busy:  # this is our own call
            return
        query, key, value = inputs
        config = self.layer.config
        if options["memory"] is not None and config.rule.memory_values_per_token(config.sizes):
            raise ValueError(
                "attention maps of this mechanism need the whole text in one call: its remembered values tell nothing "
                "about the maps that made them. Call without a cache."
            )
        unit = torch.eye(key.shape[2], dtype=value.dtype, device=value.device).expand(*value.shape[:2], -1, -1)
        self.busy = True
        try:
            found, _ = rule(query, key, unit, **{**options, "backend": "reference", "dropout_p": 0.0})
        finally:
            self.busy = False
        self.found.append(found)
