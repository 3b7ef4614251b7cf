"""What a decoder costs: parameters, multiply-adds, cache; counted from the configuration, no weights allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from heedful.models.config import DecoderConfig
from heedful.models.decoder import DecoderLM
from heedful.nn.config import AttentionConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Numbers of parameters; tied parameters count once.

    Attributes:
        total: all.
        embeddings: token and learned position tables, and an untied head with its bias.
    """

    total: int
    embeddings: int

    @property
    def without_embeddings(self) -> int:
        """Blocks and norms alone."""
        return self.total - self.embeddings


def count_parameters(config: DecoderConfig) -> ParameterCount:
    """Count the parameters of `DecoderLM(config)` on the meta device."""
    with torch.device("meta"):
        model = DecoderLM(config)
    tables = (model.token_embedding, model.position_embedding, model.head)
    embeddings = sum(parameter.numel() for table in tables if table is not None for parameter in table.parameters())
    if model.head_bias is not None:
        embeddings += model.head_bias.numel()
    return ParameterCount(total=sum(parameter.numel() for parameter in model.parameters()), embeddings=embeddings)


def multiply_adds_per_token(config: DecoderConfig, context_length: int) -> int:
    """Return the multiply-adds of one token's forward pass in a full context, on average over the context.

    Matrix products and changes of the attention map count; norms, softmax and biases do not. Every query is counted
    with all `context_length` keys (or its window), hidden ones included, as the papers count.
    """
    width = config.hidden_size
    feed_forward = (3 if config.activation == "swiglu" else 2) * width * config.feed_forward_size
    layers = sum(attention_multiply_adds(layer, context_length) + feed_forward for layer in config.layers)
    return layers + config.vocab_size * width


def training_flops_per_token(config: DecoderConfig, context_length: int) -> int:
    """Return the floating-point operations of one token's forward and backward pass.

    A multiply-add is two operations, and the backward pass of a product is two products, so 6 times
    `multiply_adds_per_token`. What is computed again in the backward pass is not counted, as usual for model FLOPs.
    """
    return 6 * multiply_adds_per_token(config, context_length)


def attention_multiply_adds(config: AttentionConfig, context_length: int) -> int:
    """Return the multiply-adds per token of one attention layer, projections included."""
    heads, sizes, width = config.heads, config.sizes, config.hidden_size
    keys = min(config.window or context_length, context_length)
    cost = config.rule.cost(sizes)
    key_value_width = heads.key_heads * sizes.head_dim + heads.value_heads * heads.value_dim
    one_round = config.query.multiply_adds(width, config.query_width) + width * key_value_width
    one_round += cost.per_pair * keys + cost.per_token
    gates = 0
    if config.boosting is not None:
        gates = (config.rounds - 1) * config.boosting.gate_multiply_adds(config.heads_width, heads.output_heads)
    return config.rounds * one_round + gates + config.heads_width * width


def cache_bytes_per_token(config: DecoderConfig, bytes_per_value: int = 4) -> int:
    """Return how many bytes each position of a sequence occupies while decoding: keys, values, and further streams."""
    total = 0
    for layer in config.layers:
        heads, sizes = layer.heads, layer.sizes
        values = heads.key_heads * sizes.head_dim + heads.value_heads * heads.value_dim
        total += layer.rounds * (values + layer.rule.memory_values_per_token(sizes))
    return total * bytes_per_value


def fixed_cache_bytes(config: DecoderConfig, bytes_per_value: int = 4) -> int:
    """Return how many bytes a sequence occupies besides, whatever its length: past queries."""
    values = sum(layer.rounds * layer.rule.memory_values(layer.sizes) for layer in config.layers)
    return values * bytes_per_value
