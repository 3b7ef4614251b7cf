"""`HeedfulConfig`: a decoder in the words of transformers, and its translation from and to `DecoderConfig`."""

# No `from __future__ import annotations` here: with it, `strict` would not check the types of the fields.

import dataclasses
import difflib
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig

from heedful.hf.attention_section import describe_section, per_layer, resolve_section
from heedful.hf.rope import rope_parameters_of, rotary_of
from heedful.models.config import DecoderConfig
from heedful.nn.config import AttentionConfig
from heedful.ops.backends import BACKENDS
from heedful.schema import did_you_mean

ACTIVATIONS = {"silu": "swiglu", "gelu": "gelu", "gelu_new": "gelu-tanh"}
"""`hidden_act` -> the feed-forward layer: three matrices with silu, two with the others."""

ATTENTION_IMPLEMENTATIONS = ("auto", "eager", *BACKENDS)
"""Values of `attn_implementation`: our backends, and transformers' name for the plain equations."""

_ACCEPTED_BY_TRANSFORMERS = {
    *GenerationConfig().to_dict(),
    *(
        "num_labels",
        "torch_dtype",
        "name_or_path",
        "attn_implementation",
        "experts_implementation",
        "output_attentions",
    ),
}
"""What transformers itself may hand to a configuration besides fields."""


@strict
class HeedfulConfig(PreTrainedConfig):
    """Configuration of the heedful models in transformers.

    Fields are those of Llama's configuration where both have them; the rest:

    Attributes:
        attention: the mechanism of the layers: preset names, a table, or a list of these with one entry per layer; see
            `heedful.hf.attention_section`.
        intermediate_size: width of the feed-forward layer; None for the default of the activation.
        hidden_act: "silu" (SwiGLU), "gelu" (exact) or "gelu_new" (GPT-2's).
        norm: "rms", "layer" or "none"; `rms_norm_eps` is the epsilon of whichever.
        norm_position: "pre" or "post".
        position_embedding: "rotary" (by `rope_parameters`), "learned" or "none".
        mlp_bias: biases of the feed-forward layer and of LayerNorm.
        attention_bias: biases of query, key, value and output projections; `output_bias` in the section changes the
            last.
        hidden_dropout: as `dropout` of `DecoderConfig`.
        activation_dropout, attention_output_dropout: as in `DecoderConfig`.
        attention_skip, feed_forward_skip, share_layers: as in `DecoderConfig`.
        head_bias, scale_residual_init: as in `DecoderConfig`.
        layer_types: "full_attention" or "sliding_attention" per layer; None for `sliding_window` in all layers if it is
            given.

    Raises:
        ValueError: a misspelt field, a field of the native configurations, or values that do not fit together, with the
            reason. Other unknown names are kept as attributes, as transformers does.
    """

    model_type = "heedful"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  # a list, as the Trainer adds to it

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float | None = 0.02
    scale_residual_init: bool = False
    norm: str = "rms"
    norm_position: str = "pre"
    rms_norm_eps: float = 1e-6
    position_embedding: str = "rotary"
    rope_parameters: dict | None = None
    attention: str | dict | list = "standard"
    attention_bias: bool = False
    attention_dropout: int | float = 0.0
    activation_dropout: int | float | None = None
    attention_output_dropout: int | float = 0.0
    hidden_dropout: int | float = 0.0
    attention_skip: bool = True
    feed_forward_skip: bool = True
    share_layers: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    sliding_window: int | None = None
    layer_types: list | None = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse unknown fields, then everything that does not fit together."""
        self._refuse_unknown(kwargs)
        if self.layer_types is None:
            kind = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [kind] * self.num_hidden_layers
        super().__post_init__(**kwargs)
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id must be an id of the vocabulary, 0 to {self.vocab_size - 1}, got {self.pad_token_id}; "
                f"after adding a token call model.resize_token_embeddings first."
            )
        self.decoder_config()

    def _refuse_unknown(self, given: dict[str, Any]) -> None:
        """Refuse names that somebody meant for us; transformers keeps any other as an attribute that nothing reads."""
        own = [field.name for field in dataclasses.fields(type(self)) if not field.name.startswith("_")]
        layer = {field.name for field in dataclasses.fields(AttentionConfig)}
        native = {field.name for field in dataclasses.fields(DecoderConfig)}
        for name in given:
            if name in layer:
                raise ValueError(f"{name!r} is a field of a layer: write attention={{'preset': ..., {name!r}: ...}}.")
            if name in native:
                raise ValueError(
                    f"{name!r} is a field of DecoderConfig, which has another name here; see HeedfulConfig."
                )
            close = difflib.get_close_matches(name, own, n=1, cutoff=0.8)
            if close and name not in _ACCEPTED_BY_TRANSFORMERS:
                raise ValueError(f"HeedfulConfig has no field {name!r}. Did you mean {close[0]!r}?")

    def decoder_config(self) -> DecoderConfig:
        """Return the model as `DecoderConfig`; `attn_implementation` is the backend of all layers.

        Raises:
            ValueError: values that do not fit together, with the reason.
        """
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {self.hidden_act!r}.")
        if self.position_embedding not in ("rotary", "learned", "none"):
            raise ValueError(
                f"position_embedding must be 'rotary', 'learned' or 'none', got {self.position_embedding!r}."
            )
        sections = per_layer(self.attention, self.num_hidden_layers)
        layers = [
            resolve_section(section, self._outside(index), f"attention of layer {index}")
            for index, section in enumerate(sections)
        ]
        backend = backend_of(self._attn_implementation)
        if backend != "auto":
            layers = [dataclasses.replace(layer, backend=backend) for layer in layers]
        return DecoderConfig(
            vocab_size=self.vocab_size,
            num_layers=self.num_hidden_layers,
            max_positions=self.max_position_embeddings,
            attention=layers[0] if len(set(layers)) == 1 else tuple(layers),
            norm=self.norm,  # type: ignore[arg-type]  # DecoderConfig checks its choices
            norm_position=self.norm_position,  # type: ignore[arg-type]
            norm_eps=self.rms_norm_eps,
            attention_skip=self.attention_skip,
            feed_forward_skip=self.feed_forward_skip,
            share_layers=self.share_layers,
            activation=ACTIVATIONS[self.hidden_act],  # type: ignore[arg-type]
            intermediate_size=self.intermediate_size,
            position_embedding="learned" if self.position_embedding == "learned" else "none",
            bias=self.mlp_bias,
            tie_embeddings=self.tie_word_embeddings,
            head_bias=self.head_bias,
            dropout=float(self.hidden_dropout),
            activation_dropout=None if self.activation_dropout is None else float(self.activation_dropout),
            attention_output_dropout=float(self.attention_output_dropout),
            initializer_range=self.initializer_range,
            scale_residual_init=self.scale_residual_init,
        )

    def _outside(self, layer: int) -> dict[str, Any]:
        """Return what the fields outside the section say about a layer."""
        if len(self.layer_types or ()) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types must name {self.num_hidden_layers} layers, got {len(self.layer_types or ())}."
            )
        assert self.layer_types is not None
        kind, window = self.layer_types[layer], None
        if kind not in ("full_attention", "sliding_attention"):
            raise ValueError(f"layer_types must be 'full_attention' or 'sliding_attention', got {kind!r}.")
        if kind == "sliding_attention":
            if self.sliding_window is None:
                raise ValueError(f"layer {layer} is 'sliding_attention', but sliding_window is None.")
            window = self.sliding_window
        rotary = None
        if self.position_embedding == "rotary":
            rotary = rotary_of(self.rope_parameters, self.max_position_embeddings)
        return {
            "hidden_size": self.hidden_size,
            "num_heads": self.num_attention_heads,
            "num_kv_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "bias": self.attention_bias,
            "dropout": float(self.attention_dropout),
            "window": window,
            "rotary": rotary,
            "norm_eps": self.rms_norm_eps,
        }

    @classmethod
    def from_decoder(cls, decoder: DecoderConfig, **fields: Any) -> "HeedfulConfig":
        """Return the configuration whose `decoder_config()` is `decoder`, backends apart.

        Args:
            decoder: the model.
            fields: further fields, such as `eos_token_id`.
        """
        first = decoder.layers[0]
        rope = None if first.rotary is None else rope_parameters_of(first.rotary)
        windows = [layer.window for layer in decoder.layers]
        sizes = {window for window in windows if window is not None}
        sliding = next(iter(sizes)) if len(sizes) == 1 else None
        learned = decoder.position_embedding == "learned"
        common = {
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_layers,
            "num_attention_heads": first.num_heads,
            "num_key_value_heads": first.num_kv_heads,
            "head_dim": first.head_dim,
            "hidden_act": {ours: theirs for theirs, ours in ACTIVATIONS.items()}[decoder.activation],
            "max_position_embeddings": decoder.max_positions,
            "initializer_range": decoder.initializer_range,
            "scale_residual_init": decoder.scale_residual_init,
            "norm": decoder.norm,
            "norm_position": decoder.norm_position,
            "rms_norm_eps": decoder.norm_eps,
            "position_embedding": "learned" if learned else "none" if rope is None else "rotary",
            "rope_parameters": None if learned else rope,
            "attention_bias": first.bias,
            "attention_dropout": first.dropout,
            "activation_dropout": decoder.activation_dropout,
            "attention_output_dropout": decoder.attention_output_dropout,
            "hidden_dropout": decoder.dropout,
            "attention_skip": decoder.attention_skip,
            "feed_forward_skip": decoder.feed_forward_skip,
            "share_layers": decoder.share_layers,
            "mlp_bias": decoder.bias,
            "head_bias": decoder.head_bias,
            "sliding_window": sliding,
            "layer_types": [
                "full_attention" if sliding is None or window is None else "sliding_attention" for window in windows
            ],
            "tie_word_embeddings": decoder.tie_embeddings,
        }
        plain = cls(**common)
        sections = [describe_section(layer, plain._outside(index)) for index, layer in enumerate(decoder.layers)]
        same = all(section == sections[0] for section in sections)
        return cls(**{**common, "attention": sections[0] if same else sections, **fields})


def backend_of(attn_implementation: str | None) -> str:
    """Return the backend that transformers' `attn_implementation` asks for; "eager" is the reference, None "auto".

    Raises:
        ValueError: a name that is no backend.
    """
    name = "auto" if attn_implementation is None else attn_implementation
    if name not in ATTENTION_IMPLEMENTATIONS:
        raise ValueError(
            f"attn_implementation must be one of {', '.join(ATTENTION_IMPLEMENTATIONS)}, got {name!r}."
            f"{did_you_mean(name, ATTENTION_IMPLEMENTATIONS)}"
        )
    return "reference" if name == "eager" else name
