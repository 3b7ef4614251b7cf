"""Qwen3: Llama with RMSNorm on each query and key head, heads of any width, and sliding windows by layer."""

from __future__ import annotations

from typing import Any

from heedful.hf.architectures.shared import (
    LLAMA_FIELDS,
    Architecture,
    layer_windows,
    llama_decoder,
    llama_layer,
    llama_weights,
)
from heedful.models.config import DecoderConfig
from heedful.nn.config import AttentionConfig


def _decoder(config: Any, dropout: float | None) -> DecoderConfig:
    common = {**llama_layer(config, dropout), "bias": config.attention_bias, "qk_norm": True}
    layers = [AttentionConfig(**common, window=window) for window in layer_windows(config)]
    return llama_decoder(config, dropout, attention=tuple(layers))


QWEN3 = Architecture(
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    honoured=(
        *(*LLAMA_FIELDS, "attention_bias", "layer_types", "sliding_window", "use_sliding_window", "max_window_layers"),
        "rope_theta",
    ),
    neutral={"mlp_bias": (False,)},
    decoder=_decoder,
    weights=llama_weights,
)
