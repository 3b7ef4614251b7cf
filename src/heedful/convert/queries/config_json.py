"""A verdict from a Hugging Face `config.json` alone, for architectures that a `DecoderLM` cannot express as well.

Only what the architecture itself decides is said here; condition numbers and shared matrices need the weights
(`audit`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from heedful.convert.queries.report import Verdict


class Family(NamedTuple):
    """How models of a type are built.

    Attributes:
        norm: the kind of norm, in words.
        placement: "pre", "post" (after the sum), "sandwich" (before and after each sublayer), "branch" (on the
            sublayer's output only), "parallel" (one pre-norm, attention and MLP side by side).
        rotary: positions are rotary.
        tied: the head is tied unless the configuration says otherwise.
        query_key_norm: a norm of queries and keys.
        exception: why this type has no plain W_Q at all; empty where it has.
    """

    norm: str
    placement: str
    rotary: bool = True
    tied: bool = False
    query_key_norm: bool = False
    exception: str = ""


_LLAMA = Family("RMSNorm", "pre")
_FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "internlm2", "granite", "smollm3"), _LLAMA),
    **dict.fromkeys(("qwen3", "qwen3_moe"), Family("RMSNorm", "pre", query_key_norm=True)),
    "phi3": _LLAMA,
    "olmo": Family("LayerNorm without gains", "pre"),
    **dict.fromkeys(("olmo2", "olmo3"), Family("RMSNorm", "branch", query_key_norm=True)),
    "gemma": Family("RMSNorm", "pre", tied=True),
    "gemma2": Family("RMSNorm", "sandwich", tied=True),
    **dict.fromkeys(("gemma3", "gemma3_text"), Family("RMSNorm", "sandwich", tied=True, query_key_norm=True)),
    **dict.fromkeys(("glm4", "glm"), Family("RMSNorm", "sandwich")),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), Family("LayerNorm", "pre", rotary=False, tied=True)),
    "gpt_neo": Family("LayerNorm", "pre", rotary=False, tied=True),
    **dict.fromkeys(("bloom", "mpt"), Family("LayerNorm", "pre", rotary=False, tied=True)),
    "starcoder2": Family("LayerNorm", "pre"),
    "stablelm": Family("LayerNorm", "pre"),
    "opt": Family("LayerNorm", "pre", rotary=False, tied=True),
    "gptj": Family("LayerNorm", "parallel"),
    "gpt_neox": Family("LayerNorm", "parallel"),
    "phi": Family("LayerNorm", "parallel"),
    "falcon": Family("LayerNorm", "parallel", tied=True),
    **dict.fromkeys(("cohere", "cohere2"), Family("LayerNorm without shifts", "parallel", tied=True)),
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "camembert"),
        Family("LayerNorm", "post", rotary=False, tied=True),
    ),
    "openai-gpt": Family("LayerNorm", "post", rotary=False, tied=True),
    "bart": Family("LayerNorm", "post", rotary=False, tied=True),
    "t5": Family("RMSNorm", "pre", rotary=False, tied=True),
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3"),
        Family("RMSNorm", "pre", exception="queries pass a low-rank map with a norm inside; there is no square W_Q"),
    ),
    **dict.fromkeys(
        ("mamba", "mamba2", "rwkv"), Family("RMSNorm", "pre", exception="these layers have no attention and no W_Q")
    ),
}


@dataclass(frozen=True, kw_only=True)
class ConfigAudit:
    """The verdict on an architecture.

    Attributes:
        model_type: as the configuration names it.
        verdict: "no" or "approximate"; no published type is norm-free, so none is "exact".
        reasons: why, one sentence each.
        still_exact: the small exact reductions that the architecture allows.
    """

    model_type: str
    verdict: Verdict
    reasons: tuple[str, ...]
    still_exact: tuple[str, ...]


def audit_config_json(config: Mapping[str, Any]) -> ConfigAudit:
    """Judge an architecture by its Hugging Face configuration.

    Args:
        config: the parsed `config.json`; a `text_config` inside is taken in its place.

    Raises:
        ValueError: not a configuration with a model_type.
    """
    inner = config.get("text_config")
    config = {**config, **inner} if isinstance(inner, Mapping) else config
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError("expected a Hugging Face config.json with a 'model_type'; found none.")
    family = _FAMILIES.get(model_type)
    if family is None:
        return ConfigAudit(
            model_type=model_type,
            verdict="no",
            reasons=(
                f"not exact, refused: where the norms and skips of {model_type!r} stand is not known here, and a "
                "change of basis without that knowledge would change the logits",
            ),
            still_exact=(),
        )
    if family.exception:
        return ConfigAudit(
            model_type=model_type, verdict="no", reasons=(f"refused: {family.exception}",), still_exact=()
        )
    family = _as_configured(family, config)
    reasons = [f"not exact, refused: {_placement_reason(family)}"]
    width, heads = (
        config.get("hidden_size", config.get("n_embd")),
        config.get("num_attention_heads", config.get("n_head")),
    )
    head_dim = config.get("head_dim")
    if isinstance(width, int) and isinstance(heads, int) and isinstance(head_dim, int) and heads * head_dim != width:
        reasons.append(
            f"the queries are {heads * head_dim} wide and the stream {width}, so even W_Q := I would not fill them"
            if heads * head_dim > width
            else f"the queries are {heads * head_dim} wide, fewer than the stream's {width}"
        )
    if family.tied:
        reasons.append(
            "the head is tied to the embedding, which fixes the basis of the last state by that of the first"
        )
    fits = not (
        isinstance(head_dim, int) and isinstance(heads, int) and isinstance(width, int) and heads * head_dim > width
    )
    return ConfigAudit(
        model_type=model_type,
        verdict="approximate" if fits else "no",
        reasons=tuple(reasons),
        still_exact=_still_exact(family, config),
    )


def _as_configured(family: Family, config: Mapping[str, Any]) -> Family:
    """Take the switches into account that move a type from one class to another."""
    if config.get("model_type") == "opt" and config.get("do_layer_norm_before") is False:
        family = family._replace(placement="post")
    if config.get("model_type") == "gpt_neox" and config.get("use_parallel_residual") is False:
        family = family._replace(placement="pre")
    tied = config.get("tie_word_embeddings")
    return family if not isinstance(tied, bool) else family._replace(tied=tied)


def _placement_reason(family: Family) -> str:
    norm = family.norm
    if family.placement == "post":
        return f"post-norm, {norm} after each sum: only rotations pass it, and the normed stream itself goes on"
    if family.placement == "sandwich":
        return (
            f"sandwich norm, {norm} before and after each sublayer: the inner norms' gains act on what is written into "
            "the stream, so not even rotations pass"
        )
    if family.placement == "branch":
        return (
            f"{norm} on the output of each sublayer before it is added: W_Q reads the bare stream, but its gains act "
            "on all that is written there, so no change of basis passes"
        )
    if family.placement == "parallel":
        return (
            f"{norm} before the two parallel branches, with a skip: only rotations pass the norm, and the skip ties "
            "those of all layers"
        )
    return f"pre-norm, {norm} before each sublayer, with skips: only rotations pass the norm, and the skips tie them"


def _still_exact(family: Family, config: Mapping[str, Any]) -> tuple[str, ...]:
    possible = ["value-output gauge: one identity block of W_V per key/value head"]
    gauge = not family.rotary and not family.query_key_norm
    if gauge:
        possible.append("query-key gauge: one identity block of W_Q per key head")
        possible.append("key bias dropped, where there is one")
    if family.placement in ("pre", "parallel"):
        possible.append("gains of the norms folded into the next maps" + (", the final one excepted" * family.tied))
        if not family.tied:
            possible.append("one rotation of the stream: one triangular W_Q in the whole model")
    if not config.get("attn_logit_softcapping"):
        possible.append("value bias folded into the output bias, where there is one")
    return tuple(possible)
