"""Mistral: Llama without biases, and one sliding window for all layers."""

from __future__ import annotations

from typing import Any

from heedful.hf.architectures.shared import LLAMA_FIELDS, Architecture, llama_decoder, llama_layer, llama_weights
from heedful.models.config import DecoderConfig
from heedful.nn.config import AttentionConfig


def _decoder(config: Any, dropout: float | None) -> DecoderConfig:
    window = config.sliding_window
    kinds = set(getattr(config, "layer_types", None) or ())
    expected = "full_attention" if window is None else "sliding_attention"
    if not kinds <= {expected}:
        raise ValueError(
            f"mistral: sliding_window = {window} makes all layers {expected!r}, but layer_types has "
            f"{', '.join(sorted(map(repr, kinds)))}; alternating layers belong to other families."
        )
    layer = AttentionConfig(**llama_layer(config, dropout), window=window)
    return llama_decoder(config, dropout, attention=layer)


MISTRAL = Architecture(
    model_type="mistral",
    class_name="MistralForCausalLM",
    honoured=(*LLAMA_FIELDS, "sliding_window", "layer_types", "rope_theta"),
    neutral={"attention_bias": (False,), "mlp_bias": (False,)},
    decoder=_decoder,
    weights=llama_weights,
)
