"""Finding the model of equal size or equal cost: the controls of a fair comparison.

A match varies one dimension of a model until its count is nearest to the target. Widths move in steps that keep heads
equal (and pairs of features whole), so matches are near, not exact; the count of the result is what should be reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from heedful.models.config import DecoderConfig
from heedful.models.counting import count_parameters, multiply_adds_per_token
from heedful.nn.config import AttentionConfig

Dimension = Literal["width", "feed-forward", "depth"]


def match_parameters(config: DecoderConfig, target: int, vary: Dimension = "width") -> DecoderConfig:
    """Return `config` with one dimension changed so that its total parameters are nearest to `target`.

    Args:
        config: the model to resize, usually a standard one.
        target: total number of parameters, embeddings included.
        vary: "width" (hidden size, in steps that 4 and the heads divide; the feed-forward layer keeps its ratio),
            "feed-forward" (intermediate size, in steps of 1) or "depth" (number of layers).

    Raises:
        ValueError: a target that even the smallest such model exceeds by far, or a model whose dimension cannot vary.
    """
    return _match(config, target, vary, lambda candidate: count_parameters(candidate).total)


def match_compute(config: DecoderConfig, target: int, context_length: int, vary: Dimension = "depth") -> DecoderConfig:
    """Return `config` with one dimension changed so that its multiply-adds per token are nearest to `target`.

    Args:
        config, vary: as in `match_parameters`.
        target: multiply-adds per token, as `multiply_adds_per_token` counts.
        context_length: the context to count with.

    Raises:
        ValueError: as in `match_parameters`.
    """
    return _match(config, target, vary, lambda candidate: multiply_adds_per_token(candidate, context_length))


def _match(config: DecoderConfig, target: int, vary: Dimension, count: Callable[[DecoderConfig], int]) -> DecoderConfig:
    resize, step = _resizer(config, vary)
    low, high = 1, 1
    while count(resize(high * step)) < target:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(resize(middle * step)) < target else (low, middle)
    best = min((resize(low * step), resize(high * step)), key=lambda candidate: abs(count(candidate) - target))
    if count(best) > 2 * target:
        raise ValueError(
            f"no {vary} of this model comes near {target:,}: the smallest counts {count(best):,}. Vary another "
            f"dimension."
        )
    return best


def _resizer(config: DecoderConfig, vary: Dimension) -> tuple[Callable[[int], DecoderConfig], int]:
    if vary == "depth":
        if isinstance(config.attention, tuple):
            raise ValueError(
                "the depth of a model with one attention configuration per layer cannot vary; vary its width."
            )
        return lambda layers: replace(config, num_layers=layers), 1
    if vary == "feed-forward":
        return lambda size: replace(config, intermediate_size=size), 1
    if vary != "width":
        raise ValueError(f"vary must be 'width', 'feed-forward' or 'depth', got {vary!r}.")
    if any(layer.head_dim is not None for layer in config.layers):
        raise ValueError(
            "the width of a model with a fixed head_dim cannot vary; leave head_dim out, or vary another dimension."
        )
    ratio = None if config.intermediate_size is None else config.intermediate_size / config.hidden_size

    def resize(width: int) -> DecoderConfig:
        def widen(layer: AttentionConfig) -> AttentionConfig:
            return replace(layer, hidden_size=width)

        given = config.attention
        attention = tuple(map(widen, given)) if isinstance(given, tuple) else widen(given)
        inner = None if ratio is None else max(1, round(ratio * width))
        return replace(config, attention=attention, intermediate_size=inner)

    # Every head gets whole features, and whole pairs of them where they are rotated.
    steps = (layer.num_heads * (1 if layer.rotary is None else 2) for layer in config.layers)
    return resize, math.lcm(4, *steps)
