"""What an architecture allows, in words: which layers have a removable W_Q, which states share a basis, and why not.

The hidden states of a decoder are numbered 0, 1, ..., 2L: state 2l enters the attention of layer l, state 2l + 1 its
feed-forward layer, state 2L the head. A skip forces the states on both of its sides into one basis, and so does one
block that serves several layers.
"""

from __future__ import annotations

from heedful.models import DecoderConfig
from heedful.nn import AttentionConfig, DifferentialV2Rule, IdentityQuery, LinearQuery, PartialIdentityQuery

# Rules that see queries and keys only through the scores of each head: any change that keeps the scores is exact.
RULES_ON_SCORES = ("standard", "twicing", "talking-heads", "multi-token")
# Rules that only rescale rows of one softmax map: adding a constant to a row of scores changes nothing.
RULES_ON_ONE_SOFTMAX = ("standard", "twicing")


def why_reads_are_not_linear(layer: AttentionConfig) -> str | None:
    """Return why a change of basis cannot pass through this layer's reads of the stream, or None if it can.

    An identity query reads the stream as it stands, and so do nonlinear queries, boosting's further rounds and the
    factors of differential attention, version 2.
    """
    if layer.rounds > 1:
        return (
            f"boosting runs {layer.rounds} rounds: the further ones read x - a F, so a change of the stream's basis "
            "would have to change the heads F as well, which the softmax average does not allow"
        )
    if isinstance(layer.rule, DifferentialV2Rule):
        return "the factors of differential attention, version 2, are read from the stream as it stands"
    if isinstance(layer.query, IdentityQuery | PartialIdentityQuery):
        return "the query already is the stream itself, so the stream must stay as it is"
    if not isinstance(layer.query, LinearQuery):
        return f"the query is {layer.query.kind}, not x W_Q, and takes the stream as it stands"
    return None


def why_no_query_key_gauge(layer: AttentionConfig) -> str | None:
    """Return why W_Q M and W_K M^-T would not give the same scores for every invertible M, or None."""
    if why_reads_are_not_linear(layer) is not None:
        return why_reads_are_not_linear(layer)
    if layer.rotary is not None:
        return "rotary positions turn queries and keys after their projections, and few matrices commute with that"
    if layer.qk_norm:
        return "queries and keys are normalised after their projections"
    if layer.rule.kind not in RULES_ON_SCORES:
        return f"the rule {layer.rule.kind!r} pairs its heads in another way"
    return None


def why_key_bias_matters(layer: AttentionConfig) -> str | None:
    """Return why a constant added to all keys could change the output, or None.

    Without rotations and norms it adds q_i . b_K to all scores of a row, which a softmax ignores.
    """
    if layer.rounds > 1:
        return "boosting keeps several rounds, which are left as they are"
    if layer.rotary is not None:
        return "rotary positions turn the key bias differently at every position"
    if layer.qk_norm:
        return "the norm of the keys mixes the bias with the rest"
    if layer.rule.kind not in RULES_ON_ONE_SOFTMAX:
        return f"the rule {layer.rule.kind!r} is more than one softmax over the scores"
    return None


def why_values_are_not_free(layer: AttentionConfig) -> str | None:
    """Return why W_V M and M^-1 W_O would not give the same output for every invertible M, or None."""
    if layer.rounds > 1:
        return "boosting reads the heads before the output projection"
    if layer.head_output is not None:
        return "the heads pass a norm or gate before the output projection"
    if layer.rule.kind not in RULES_ON_ONE_SOFTMAX:
        return f"the rule {layer.rule.kind!r} does not read plain averages of values"
    return None


def stream_classes(config: DecoderConfig) -> list[int]:
    """Return, for each of the 2L + 1 states, the smallest state that must share its basis."""
    parents = list(range(2 * config.num_layers + 1))

    def root(state: int) -> int:
        while parents[state] != state:
            state = parents[state]
        return state

    def join(first: int, second: int) -> None:
        low, high = sorted((root(first), root(second)))
        parents[high] = low

    for layer in range(config.num_layers):
        if config.attention_skip:
            join(2 * layer, 2 * layer + 1)
        if config.feed_forward_skip:
            join(2 * layer + 1, 2 * layer + 2)
        if config.share_layers:
            join(0, 2 * layer + 2)
            join(1, 2 * layer + 1)
    return [root(state) for state in range(len(parents))]


def why_norms_forbid(config: DecoderConfig) -> str | None:
    """Return why norms keep every W_Q of this decoder, or None for a decoder without norms."""
    if config.norm == "none":
        return None
    name = "LayerNorm" if config.norm == "layer" else "RMSNorm"
    if config.norm_position == "post":
        return (
            f"{name} stands after the sum of each sublayer (post-norm, as in BERT): only rotations commute with it, so "
            "W_Q cannot become the identity"
        )
    if config.attention_skip and config.feed_forward_skip:
        return (
            f"{name} stands before the attention and skips pass it by (pre-norm, as in GPT-2 and Llama): the norm "
            "lets only rotations through, and the skips tie the rotations of all layers, so W_Q cannot become the "
            "identity without changing the logits"
        )
    return (
        f"{name} stands before the attention: it lets only rotations through, which make W_Q triangular but not the "
        "identity"
    )


def describe(config: DecoderConfig) -> dict[str, str]:
    """Return the traits that decide, as words."""
    layers = config.layers
    norm = {"none": "none", "layer": "LayerNorm", "rms": "RMSNorm"}[config.norm]
    skips = [name for name, on in (("attention", config.attention_skip), ("MLP", config.feed_forward_skip)) if on]
    heads = {f"{layer.num_heads} x {layer.sizes.head_dim}, {layer.heads.key_heads} key heads" for layer in layers}
    return {
        "norm": norm if config.norm == "none" else f"{norm}, {config.norm_position}-norm",
        "skips": " and ".join(skips) or "none",
        "layers": f"{config.num_layers}" + (" (one shared block)" if config.share_layers else ""),
        "hidden size": str(config.hidden_size),
        "heads": "; ".join(sorted(heads)),
        "query": ", ".join(sorted({layer.query.kind for layer in layers})),
        "rule": ", ".join(sorted({layer.rule.kind for layer in layers})),
        "boosting": ", ".join(sorted({f"{layer.rounds} rounds" if layer.rounds > 1 else "none" for layer in layers})),
        "positions": "rotary" if any(layer.rotary is not None for layer in layers) else config.position_embedding,
        "query-key norm": _yes_no(any(layer.qk_norm for layer in layers)),
        "biases": _yes_no(config.bias or any(layer.bias for layer in layers)),
        "head": "tied to the token embedding" if config.tie_embeddings else "untied",
        "activation": config.activation,
    }


def _yes_no(flag: bool) -> str:
    return "yes" if flag else "no"
