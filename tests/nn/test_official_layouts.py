"""Official parameter layouts that the golden files do not reach: key paddings, residual queries, wrong names."""

import pytest
import torch
from layers_for_nn import layer_of, run, text

from heedful.convert.official import (
    from_boosted,
    from_boosted_retrieval,
    from_differential,
    from_multi_token,
    from_nonlinear_query,
)
from heedful.nn import Attention, LinearQuery, MultiTokenRule, attention_config
from tolerance import assert_close

CONVERTERS = {
    "boosted": from_boosted,
    "retrieval": from_boosted_retrieval,
    "nonlinear": lambda parameters: from_nonlinear_query(parameters, "residual_gelu"),
    "multi-token": from_multi_token,
    "differential": from_differential,
}


def convolved(scores, kernel, before):
    """One head's masked scores under a kernel whose key taps begin `before` keys to the left, by explicit sums."""
    tokens = scores.shape[0]
    result = torch.zeros_like(scores)
    for i in range(tokens):
        for j in range(tokens):
            for a in range(kernel.shape[0]):
                for b in range(kernel.shape[1]):
                    r, c = i - (kernel.shape[0] - 1) + a, j - before + b
                    if r >= 0 and 0 <= c <= r:
                        result[i, j] += kernel[a, b] * scores[r, c]
    return result


@pytest.mark.parametrize(("key_padding", "before"), [("left", 2), ("right", 0), ("both", 1)])
def test_kernels_of_each_key_padding_become_ours(key_padding, before):
    official = {name: torch.randn(8, 8).double() for name in ("wq.weight", "wk.weight", "wv.weight")}
    official |= {"wo.weight": torch.eye(8).double(), "mta_kernel": torch.randn(2, 1, 2, 3).double()}
    rule = MultiTokenRule(
        post_convolution=False, query_kernel_size=2, key_kernel_size=3 if key_padding == "both" else 5,
        pre_mixing=None, post_mixing=None,
    )  # fmt: skip
    layer = Attention(attention_config(rule=rule, hidden_size=8, num_heads=2)).double().eval()
    layer.load_state_dict(from_multi_token(official, key_padding=key_padding))
    x = text(6, batch=1, hidden=8)
    heads = []
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        query, key, value = (x[0] @ official[name][rows].T for name in ("wq.weight", "wk.weight", "wv.weight"))
        scores = convolved((query @ key.T / 2).tril(), official["mta_kernel"][head, 0], before)
        weights = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf")).softmax(-1)
        heads.append(weights @ value)
    assert_close(run(layer, x)[0], torch.cat(heads, -1))


def test_official_group_kernels_are_transposed_and_full_matrices_are_not():
    grouped = {"head_kernel": torch.randn(2, 2, 2)}
    state = from_multi_token(grouped)
    assert torch.equal(state["rounds.0.rule.head_post"], grouped["head_kernel"].transpose(1, 2))
    full = {"wpsm.weight": torch.randn(4, 4), "wposm.weight": torch.randn(4, 4)}
    state = from_multi_token(full)
    assert torch.equal(state["rounds.0.rule.head_pre"][0], full["wpsm.weight"])
    assert torch.equal(state["rounds.0.rule.head_post"][0], full["wposm.weight"])


def test_the_residual_mode_adds_the_input_and_halves_the_scores():
    official = {"c_attn.weight": torch.randn(24, 8).double(), "c_proj.weight": torch.eye(8).double()}
    config = attention_config(query=LinearQuery(anchor="identity", gain=0.5), hidden_size=8, num_heads=2)
    layer = Attention(config).double().eval()
    layer.load_state_dict(from_nonlinear_query(official, "residual"))
    x = text(5, batch=1, hidden=8)
    query, key, value = (x[0] @ official["c_attn.weight"].T).chunk(3, dim=-1)
    query = query + x[0]
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = query[:, head] @ key[:, head].T / (2 * 4**0.5)
        heads.append(scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf")).softmax(-1) @ value[:, head])
    assert_close(run(layer, x)[0], torch.cat(heads, -1))


def test_the_identity_mode_has_fused_keys_and_values_only():
    official = {"c_attn.weight": torch.randn(16, 8), "c_proj.weight": torch.randn(8, 8)}
    layer = Attention(attention_config("identity-query", hidden_size=8, num_heads=2))
    layer.load_state_dict(from_nonlinear_query(official, "identity"))
    assert torch.equal(layer.rounds[0].v_proj.weight.detach(), official["c_attn.weight"][8:])


@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize("name", ["layers.0.attn.norm.weight", "wq.scale", "unheard_of"])
def test_an_unknown_parameter_is_named(converter, name):
    with pytest.raises(ValueError, match=f"unknown parameter '{name}'; expected"):
        CONVERTERS[converter]({name: torch.zeros(2, 2)})


def test_a_gate_without_its_round_is_not_dropped_in_silence():
    rows = {"W_qkvs.0.weight": torch.zeros(6, 2), "W_out.weight": torch.zeros(2, 2)}
    assert "o_proj.weight" in from_boosted(rows)
    with pytest.raises(ValueError, match=r"unknown parameter 'gates\.0\.0\.weight'"):
        from_boosted({**rows, "gates.0.0.weight": torch.zeros(2, 4)})


def test_wrong_modes_are_refused():
    with pytest.raises(ValueError, match=r"mode must be 'original', .* got 'gelu'"):
        from_nonlinear_query({}, "gelu")
    with pytest.raises(ValueError, match="key_padding must be 'both', 'left' or 'right', got 'centre'"):
        from_multi_token({}, key_padding="centre")


@pytest.mark.parametrize("names", ["boosted", "standard", "differential"])
def test_what_is_converted_is_loaded_strictly(names):
    """Names go there and back: the official names of our own layer's parameters give its state dict."""
    layer = layer_of(names, bias=names != "differential")
    state = layer.state_dict()

    def fused(m, kind):
        prefix = f"rounds.{m}."
        return torch.cat([state[f"{prefix}{part}.{kind}"] for part in ("query.q_proj", "k_proj", "v_proj")])

    if names == "differential":
        theirs = {"query.q_proj": "q_proj", "o_proj": "out_proj", "head_output.norm": "subln"}
        official = {}
        for name, tensor in state.items():
            name = name.removeprefix("rounds.0.").removeprefix("rule.")
            for ours, other in theirs.items():
                name = name.replace(ours, other)
            official[name] = tensor
        converted = from_differential(official)
    else:
        rounds = 2 if names == "boosted" else 1
        official = {f"W_qkvs.{m}.{k}": fused(m, k) for m in range(rounds) for k in ("weight", "bias")}
        official |= {f"W_out.{k}": state[f"o_proj.{k}"] for k in ("weight", "bias")}
        if names == "boosted":
            official |= {f"gates.0.0.{k}": state[f"gates.0.proj.{k}"] for k in ("weight", "bias")}
        converted = from_boosted(official)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)
