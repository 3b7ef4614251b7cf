"""GPT-2: pre-LayerNorm, GELU, learned positions, biases everywhere, weights stored as (in, out).

In training GPT-2 drops after the embedding (`embd_pdrop`), on the attention weights (`attn_pdrop`) and after both
sublayers (`resid_pdrop`); the native model has one `dropout` for the first and the last of these places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from heedful.hf.architectures.shared import Architecture, renamed
from heedful.models.config import DecoderConfig
from heedful.nn.config import AttentionConfig

_ACTIVATIONS = {"gelu_new": "gelu-tanh", "gelu": "gelu"}


def _scale(config: Any, layer: int) -> float | None:
    """Return the factor on the scores of a layer; None for the usual 1/sqrt(head_dim)."""
    if config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx:
        return None
    scale = 1.0 / math.sqrt(config.n_embd // config.n_head) if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


def _decoder(config: Any, dropout: float | None) -> DecoderConfig:
    if config.activation_function not in _ACTIVATIONS:
        raise ValueError(
            f"activation_function = {config.activation_function!r} cannot be imported; expected one of "
            f"{', '.join(map(repr, _ACTIVATIONS))}."
        )
    if dropout is None and config.embd_pdrop != config.resid_pdrop:
        raise ValueError(
            f"embd_pdrop = {config.embd_pdrop} and resid_pdrop = {config.resid_pdrop} differ, but the native model has "
            f"one dropout for both; choose it with dropout=..., 0 for none."
        )
    if getattr(config, "n_ctx", config.n_positions) != config.n_positions:
        raise ValueError(f"n_ctx = {config.n_ctx} and n_positions = {config.n_positions} contradict each other.")
    common = {
        "hidden_size": config.n_embd,
        "num_heads": config.n_head,
        "bias": True,
        "dropout": float(config.attn_pdrop) if dropout is None else dropout,
        "norm_eps": config.layer_norm_epsilon,
    }
    residual = float(config.resid_pdrop) if dropout is None else dropout
    return DecoderConfig(
        vocab_size=config.vocab_size,
        num_layers=config.n_layer,
        max_positions=config.n_positions,
        attention=tuple(AttentionConfig(**common, scale=_scale(config, layer)) for layer in range(config.n_layer)),
        norm="layer",
        norm_eps=config.layer_norm_epsilon,
        activation=_ACTIVATIONS[config.activation_function],  # type: ignore[arg-type]  # one of DecoderConfig's
        intermediate_size=config.n_inner,
        position_embedding="learned",
        bias=True,
        dropout=residual,
        activation_dropout=0.0,
        attention_output_dropout=residual,
        initializer_range=config.initializer_range,
        scale_residual_init=True,  # as the original draws its output projections
    )


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the native state dict: linear weights transposed, the fused projection cut into q, k and v."""
    native: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = renamed(name, outside=_OUTSIDE, layers="transformer.h.", inside=_INSIDE)
        if tensor.dim() == 2 and ours.startswith("blocks."):
            tensor = tensor.T
        if ".c_attn." not in ours:
            native[ours] = tensor.contiguous()
            continue
        for part, rows in zip(("query.q_proj", "k_proj", "v_proj"), tensor.chunk(3, dim=0), strict=True):
            native[ours.replace("c_attn", part)] = rows.contiguous()
    return native


_OUTSIDE = {
    "transformer.wte": "token_embedding",
    "transformer.wpe": "position_embedding",
    "transformer.ln_f": "final_norm",
    "lm_head": "head",
}
_INSIDE = {
    "ln_1": "attention_norm",
    "ln_2": "feed_forward_norm",
    "attn.c_attn": "attention.rounds.0.c_attn",
    "attn.c_proj": "attention.o_proj",
    "mlp.c_fc": "feed_forward.up_proj",
    "mlp.c_proj": "feed_forward.down_proj",
}

GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    honoured=(
        *("activation_function", "attn_pdrop", "embd_pdrop", "initializer_range", "layer_norm_epsilon", "n_ctx"),
        *("n_embd", "n_head", "n_inner", "n_layer", "n_positions", "resid_pdrop", "scale_attn_by_inverse_layer_idx"),
        *("scale_attn_weights", "vocab_size"),
    ),
    without_effect=(
        "reorder_and_upcast_attn",  # the same sums, rounded elsewhere
        *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
    ),
    decoder=_decoder,
    weights=_weights,
)
