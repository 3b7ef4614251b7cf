"""What the families share: which configuration fields are known, and the names of weights.

A configuration field is either *honoured* (the family's reader translates it), *without effect* on the model's
function, or accepted with its *neutral* values only. Everything else is refused: a field that nobody here knows may
change the function, and a model that is almost the original is worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from heedful.hf.rope import rotary_of
from heedful.models.config import DecoderConfig
from heedful.nn.rotary import Rotary, base_frequencies

WITHOUT_EFFECT = frozenset(
    {
        # about files, versions and how the model object is made
        *("_name_or_path", "architectures", "dtype", "model_type", "tokenizer_class", "torch_dtype", "torchscript"),
        *("transformers_version", "unsloth_fixed", "unsloth_version"),
        # about how a call runs or what it returns
        *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "chunk_size_feed_forward"),
        *("gradient_checkpointing", "output_attentions", "output_hidden_states", "pretraining_tp", "return_dict"),
        *("tie_last_hidden_states", "use_cache"),
        # about generation, other heads and other uses
        *("bos_token_id", "decoder_start_token_id", "eos_token_id", "finetuning_task", "id2label", "is_decoder"),
        *("label2id", "num_labels", "pad_token_id", "prefix", "problem_type", "sep_token_id", "task_specific_params"),
    }
)
"""Fields of every family that do not change the logits of a language model."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (None, 1.0),
    "pruned_heads": (None, {}),
    "rope_scaling": (None,),  # transformers moves it into rope_parameters
    "tie_encoder_decoder": (False,),
    "tie_word_embeddings": (True, False),  # the weights themselves say it
    "use_mrope": (False,),
}
"""Fields that are accepted with these values only."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How one family of models is read.

    Attributes:
        model_type: transformers' name of the family.
        class_name: the class of its causal language models.
        honoured: the configuration fields that `decoder` translates.
        neutral: further fields with the values that change nothing.
        without_effect: further fields that never change the logits.
        decoder: configuration and dropout (None for the checkpoint's) -> the native configuration; whether the output
            head is tied is left to the weights.
        weights: state dict -> the native state dict; ValueError for unknown names.
    """

    model_type: str
    class_name: str
    honoured: Collection[str]
    decoder: Callable[[Any, float | None], DecoderConfig]
    weights: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    without_effect: Collection[str] = ()

    def check_fields(self, config: Any) -> None:
        """Refuse what this import neither honours nor knows to be without effect.

        Raises:
            ValueError: with the field, its value, and what would be accepted.
        """
        neutral = {**NEUTRAL, **self.neutral}
        for name, value in config.to_dict().items():
            if name in self.honoured or name in WITHOUT_EFFECT or name in self.without_effect:
                continue
            if name in neutral:
                if value not in neutral[name]:
                    accepted = " or ".join(map(repr, neutral[name]))
                    raise ValueError(
                        f"{self.model_type}: {name} = {value!r} cannot be imported; only {accepted} keeps the function."
                    )
            elif value is not None:
                raise ValueError(
                    f"{self.model_type}: the configuration has {name} = {value!r}, which this import does not know and "
                    f"could not honour; remove the field if it has no effect on the model."
                )


LLAMA_FIELDS = (
    *("attention_dropout", "head_dim", "hidden_act", "hidden_size", "initializer_range", "intermediate_size"),
    *("max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps"),
    *("rope_parameters", "vocab_size"),
)
"""The fields that `llama_layer` and `llama_decoder` read."""


def llama_rotary(config: Any) -> Rotary:
    """Return the rotary positions of a configuration of Llama's shape.

    Raises:
        ValueError: forms that the native model does not have, with the reason.
    """
    parameters = config.rope_parameters
    theta = getattr(config, "rope_theta", None)
    if theta is not None and theta != (parameters or {}).get("rope_theta", theta):
        raise ValueError(f"rope_theta = {theta!r} and rope_parameters = {parameters!r} contradict each other.")
    return rotary_of(parameters, config.max_position_embeddings)


def llama_layer(config: Any, dropout: float | None) -> dict[str, Any]:
    """Return the fields of `AttentionConfig` that all families of Llama's shape have in common."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return {
        "hidden_size": config.hidden_size,
        "num_heads": heads,
        "num_kv_heads": None if kv_heads in (None, heads) else kv_heads,
        "head_dim": None if head_dim * heads == config.hidden_size else head_dim,
        "rotary": llama_rotary(config),
        "norm_eps": config.rms_norm_eps,
        "dropout": float(config.attention_dropout or 0.0) if dropout is None else dropout,
    }


def llama_decoder(config: Any, dropout: float | None, **fields: Any) -> DecoderConfig:
    """Return a decoder of Llama's shape: pre-RMSNorm, SwiGLU, rotary positions.

    Raises:
        ValueError: another activation than silu.
    """
    if config.hidden_act != "silu":
        raise ValueError(
            f"hidden_act = {config.hidden_act!r} cannot be imported: the native three-matrix layer is SwiGLU; expected "
            f"'silu'."
        )
    return DecoderConfig(
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        max_positions=config.max_position_embeddings,
        norm="rms",
        norm_eps=config.rms_norm_eps,
        activation="swiglu",
        intermediate_size=config.intermediate_size,
        position_embedding="none",
        dropout=dropout or 0.0,
        initializer_range=config.initializer_range,
        **fields,
    )


def layer_windows(config: Any) -> list[int | None]:
    """Return each layer's sliding window from `layer_types` and `sliding_window`.

    Raises:
        ValueError: unknown kinds of layers, another number of them, or a window that is not given.
    """
    kinds, window = config.layer_types, config.sliding_window
    if len(kinds) != config.num_hidden_layers:
        raise ValueError(f"layer_types must name {config.num_hidden_layers} layers, got {len(kinds)}.")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise ValueError(f"layer_types must be 'full_attention' or 'sliding_attention', got {kind!r}.")
        if kind == "sliding_attention" and window is None:
            raise ValueError("layer_types has 'sliding_attention', but sliding_window is not given or not in use.")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def renamed(name: str, *, outside: Mapping[str, str], layers: str, inside: Mapping[str, str]) -> str:
    """Return our name of a weight.

    Args:
        name: `prefix.kind`, where kind is weight or bias.
        outside: our prefix of each prefix outside the layers.
        layers: what stands before a layer's number.
        inside: our prefix of each prefix inside a layer.

    Raises:
        ValueError: a name that is in neither table.
    """
    prefix, _, kind = name.rpartition(".")
    if kind in ("weight", "bias"):
        if prefix in outside:
            return f"{outside[prefix]}.{kind}"
        if prefix.startswith(layers):
            number, _, rest = prefix.removeprefix(layers).partition(".")
            if number.isdecimal() and rest in inside:
                return f"blocks.{number}.{inside[rest]}.{kind}"
    raise ValueError(
        f"the model has a weight {name!r} that a model of this family does not have; adapters and quantised weights "
        f"must be merged before the import."
    )


def llama_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the native state dict of a model of Llama's shape; every tensor is the same one under another name."""
    return {renamed(name, outside=_OUTSIDE, layers="model.layers.", inside=_INSIDE): t for name, t in state.items()}


_OUTSIDE = {"model.embed_tokens": "token_embedding", "model.norm": "final_norm", "lm_head": "head"}
_INSIDE = {
    "self_attn.q_proj": "attention.rounds.0.query.q_proj",
    "self_attn.k_proj": "attention.rounds.0.k_proj",
    "self_attn.v_proj": "attention.rounds.0.v_proj",
    "self_attn.q_norm": "attention.rounds.0.q_norm",
    "self_attn.k_norm": "attention.rounds.0.k_norm",
    "self_attn.o_proj": "attention.o_proj",
    "mlp.gate_proj": "feed_forward.gate_proj",
    "mlp.up_proj": "feed_forward.up_proj",
    "mlp.down_proj": "feed_forward.down_proj",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
}


def check_rotary(model: torch.nn.Module, rotary: Rotary, head_dim: int) -> None:
    """Compare our frequencies with those which the original will use; for settings that mean something else there.

    Raises:
        ValueError: they differ by more than rounding.
    """
    inner = getattr(model, "model", None)
    theirs = getattr(inner, "rotary_emb", None)
    frequencies = getattr(theirs, "inv_freq", None)
    if not isinstance(frequencies, Tensor) or frequencies.device.type == "meta":
        return
    scaling = rotary.scaling
    ours = base_frequencies(rotary.theta, head_dim) if scaling is None else scaling.frequencies(rotary.theta, head_dim)
    amplitude = 1.0 if scaling is None else scaling.amplitude
    # Theirs are powers in float32, whatever type the model was turned into later.
    bound = 64 * max(torch.finfo(frequencies.dtype).eps, torch.finfo(torch.float32).eps)
    found = frequencies.detach().double().cpu()
    same = found.shape == ours.shape and bool(((found - ours).abs() <= bound * ours).all())
    if not same or abs(float(getattr(theirs, "attention_scaling", 1.0)) - amplitude) > 1e-6:
        raise ValueError(
            f"the model's rotary frequencies are not those of its rope_parameters here ({rotary}); this form of rotary "
            f"positions cannot be imported."
        )
