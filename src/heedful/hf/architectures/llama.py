"""Llama: pre-RMSNorm, SwiGLU, rotary positions, grouped queries, optional biases."""

from __future__ import annotations

from typing import Any

from heedful.hf.architectures.shared import LLAMA_FIELDS, Architecture, llama_decoder, llama_layer, llama_weights
from heedful.models.config import DecoderConfig
from heedful.nn.config import AttentionConfig


def _decoder(config: Any, dropout: float | None) -> DecoderConfig:
    layer = AttentionConfig(**llama_layer(config, dropout), bias=config.attention_bias)
    return llama_decoder(config, dropout, attention=layer, bias=config.mlp_bias)


LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    honoured=(*LLAMA_FIELDS, "attention_bias", "mlp_bias", "rope_theta"),
    decoder=_decoder,
    weights=llama_weights,
)
