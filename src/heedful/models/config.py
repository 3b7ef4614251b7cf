"""`DecoderConfig`: a whole decoder in one frozen value, and `decoder_config`, which builds one from preset names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from heedful.nn.config import AttentionConfig
from heedful.nn.presets import attention_config
from heedful.schema import check_choices, did_you_mean


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer; the attention layers carry widths, heads and rotary positions.

    Attributes:
        vocab_size: number of tokens.
        num_layers: number of blocks.
        max_positions: the longest context; the size of the learned position table, and the limit checked for.
        attention: one configuration for all layers, or a tuple with one per layer.
        norm: "layer" (LayerNorm), "rms" (RMSNorm) or "none" (no norm anywhere, the final one included).
        norm_position: "pre" normalises the input of each sublayer, "post" the sum after it; both end with a final norm.
        norm_eps: epsilon of these norms.
        attention_skip, feed_forward_skip: whether the input of a sublayer is added to its output.
        share_layers: all layers are one block, applied num_layers times; its attention is that of layer 0.
        activation: "gelu" (two matrices, exact GELU), "gelu-tanh" (the same with GPT-2's approximation) or "swiglu"
            (three matrices).
        intermediate_size: width of the feed-forward layer; None for 4 hidden_size with "gelu" and "gelu-tanh", and for
            8/3 hidden_size rounded down, then up to a multiple of 256, with "swiglu".
        position_embedding: "learned" adds a table to the token embeddings, "none" adds nothing (rotary positions live
            in `attention`).
        bias: biases of the feed-forward layer and of LayerNorm.
        tie_embeddings: the output head shares the token embedding.
        head_bias: a bias on the logits.
        dropout: after the embedding, after the activation and after the feed-forward layer, in training.
        activation_dropout: after the activation; None for `dropout`.
        attention_output_dropout: after the attention's output projection, in training.
        initializer_range: standard deviation of the normal initial weights; None for hidden_size^-0.5, cut at three
            deviations. Biases start at 0.
        scale_residual_init: divide the initial deviation of each block's two output projections by sqrt(2 num_layers).

    Raises:
        ValueError: sizes that do not fit together.
    """

    vocab_size: int
    num_layers: int
    max_positions: int
    attention: AttentionConfig | tuple[AttentionConfig, ...]
    norm: Literal["layer", "rms", "none"] = "layer"
    norm_position: Literal["pre", "post"] = "pre"
    norm_eps: float = 1e-5
    attention_skip: bool = True
    feed_forward_skip: bool = True
    share_layers: bool = False
    activation: Literal["gelu", "gelu-tanh", "swiglu"] = "gelu"
    intermediate_size: int | None = None
    position_embedding: Literal["learned", "none"] = "learned"
    bias: bool = False
    tie_embeddings: bool = True
    head_bias: bool = False
    dropout: float = 0.0
    activation_dropout: float | None = None
    attention_output_dropout: float = 0.0
    initializer_range: float | None = 0.02
    scale_residual_init: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("vocab_size", "num_layers", "max_positions", "intermediate_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        for name in ("dropout", "activation_dropout", "attention_output_dropout"):
            probability = getattr(self, name)
            if probability is not None and not 0.0 <= probability < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {probability}.")
        for name in ("norm_eps", "initializer_range"):
            number = getattr(self, name)
            if number is not None and not 0.0 <= number < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {number}.")
        if isinstance(self.attention, tuple):
            if len(self.attention) != self.num_layers:
                raise ValueError(
                    f"attention gives {len(self.attention)} layers but num_layers is {self.num_layers}; give one "
                    f"each, or one for all."
                )
            widths = {layer.hidden_size for layer in self.attention}
            if len(widths) > 1:
                raise ValueError(f"all layers must share hidden_size, got {sorted(widths)}.")
        if self.share_layers and isinstance(self.attention, tuple) and len(set(self.attention)) > 1:
            raise ValueError("share_layers applies one block everywhere: give one attention configuration for all.")
        if not all(layer.is_causal for layer in self.layers):
            raise ValueError("a decoder's attention must be causal; set is_causal=True.")

    @property
    def layers(self) -> tuple[AttentionConfig, ...]:
        """The attention configuration of each layer, with its index set."""
        given = self.attention if isinstance(self.attention, tuple) else (self.attention,) * self.num_layers
        return tuple(layer.for_layer(0 if self.share_layers else index) for index, layer in enumerate(given))

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        return (self.attention[0] if isinstance(self.attention, tuple) else self.attention).hidden_size

    @property
    def feed_forward_size(self) -> int:
        """The width of the feed-forward layer with the default resolved."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        if self.activation != "swiglu":
            return 4 * self.hidden_size
        return -(-(8 * self.hidden_size // 3) // 256) * 256


def decoder_config(
    preset: str | Mapping[int | str, str] = "standard", *, default: str = "standard", **fields: Any
) -> DecoderConfig:
    """Build a decoder from preset names and fields of `DecoderConfig` and `AttentionConfig`.

    Args:
        preset: preset names such as "boosted+multi-token" for all layers, or a mapping from layer index to preset names
            for a choice by layer; other layers then take `default`.
        default: preset of the layers that a mapping does not name.
        fields: any field of the two configurations by name. `bias` and `dropout` set both, unless `attention_bias` or
            `attention_dropout` says otherwise for the attention; `norm_eps` sets both. With `rotary` there is no
            learned position table unless `position_embedding` asks for it.

    Raises:
        ValueError: unknown presets, layers or fields; sizes that do not fit.
    """
    decoder_fields = {field.name for field in dataclasses.fields(DecoderConfig)} - {"attention"}
    attention_fields = {field.name for field in dataclasses.fields(AttentionConfig)} - {"layer_index"}
    known = decoder_fields | attention_fields | {"attention_bias", "attention_dropout"}
    for field in fields:
        if field not in known:
            raise ValueError(f"a decoder has no field {field!r}.{did_you_mean(field, known)}")
    for field in ("vocab_size", "num_layers", "max_positions"):
        if field not in fields:
            raise ValueError(f"decoder_config needs {field}=..., which has no default.")
    attention = {name: value for name, value in fields.items() if name in attention_fields}
    for name in ("bias", "dropout"):
        if f"attention_{name}" in fields:
            attention[name] = fields[f"attention_{name}"]
    decoder = {name: value for name, value in fields.items() if name in decoder_fields}
    if attention.get("rotary") is not None:
        decoder.setdefault("position_embedding", "none")
    if isinstance(preset, str):
        return DecoderConfig(attention=attention_config(preset, **attention), **decoder)
    chosen = [default] * fields["num_layers"]
    for layer, names in preset.items():
        if not str(layer).isdecimal() or int(layer) >= len(chosen):
            raise ValueError(f"layer {layer!r} does not exist; layers are 0 to {len(chosen) - 1}.")
        chosen[int(layer)] = names
    return DecoderConfig(attention=tuple(attention_config(names, **attention) for names in chosen), **decoder)
