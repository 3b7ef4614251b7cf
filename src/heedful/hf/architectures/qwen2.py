"""Qwen2: Llama with biases on queries, keys and values only, and sliding windows by layer."""

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
    common = llama_layer(config, dropout)
    layers = [
        AttentionConfig(**common, bias=True, output_bias=False, window=window) for window in layer_windows(config)
    ]
    return llama_decoder(config, dropout, attention=tuple(layers))


QWEN2 = Architecture(
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    honoured=(*LLAMA_FIELDS, "layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "rope_theta"),
    neutral={"mlp_bias": (False,)},
    decoder=_decoder,
    weights=llama_weights,
)
