"""Differential and twicing attention: special cases with known answers."""

import math

import pytest
import torch
from layers_for_nn import layer_of, run, text

from heedful.nn import Attention, attention_config
from heedful.nn.differential import depth_lambda
from heedful.ops import differential_attention, differential_attention_v2, standard_attention, twicing_attention
from tolerance import assert_close, largest_difference

BACKENDS = pytest.mark.parametrize("backend", ["reference", "sdpa"])


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@BACKENDS
def test_equal_maps_leave_one_minus_lambda_of_standard_attention(backend):
    query, key, value = draw(2, 3, 7, 4), draw(2, 3, 7, 4), draw(2, 3, 7, 8)
    twice = (query.repeat_interleave(2, 1), key.repeat_interleave(2, 1))
    factor = torch.tensor(0.3, dtype=torch.float64)
    expected = 0.7 * standard_attention(query, key, value, backend="reference")
    assert_close(differential_attention(*twice, value, factor, backend=backend), expected)


@BACKENDS
def test_lambda_zero_keeps_the_first_map_alone(backend):
    query, key, value = draw(2, 4, 7, 4), draw(2, 4, 7, 4), draw(2, 2, 7, 8)
    zero = torch.tensor(0.0, dtype=torch.float64)
    expected = standard_attention(query[:, 0::2], key[:, 0::2], value, backend="reference")
    assert_close(differential_attention(query, key, value, zero, backend=backend), expected)


@BACKENDS
def test_one_factor_per_head_goes_to_its_head(backend):
    query, key, value = draw(1, 4, 5, 4), draw(1, 4, 5, 4), draw(1, 2, 5, 8)
    factors = torch.tensor([0.2, -1.5], dtype=torch.float64)
    output = differential_attention(query, key, value, factors, backend=backend)
    for head, factor in enumerate(factors):
        alone = differential_attention(query, key, value, factor, backend=backend)
        assert_close(output[:, head], alone[:, head])


def test_the_layer_with_equal_halves_is_scaled_normed_standard_attention():
    layer = layer_of("differential", layer_index=3)
    state = layer.state_dict()
    for name in ("rounds.0.query.q_proj.weight", "rounds.0.k_proj.weight"):
        pairs = state[name].unflatten(0, (2, 2, 4))
        state[name] = pairs[:, :1].expand(-1, 2, -1, -1).flatten(0, 2)
    state["o_proj.weight"] = torch.eye(16).double()
    layer.load_state_dict(state)
    attention_round, x = layer.rounds[0], text()
    query, key = (
        projection(x).unflatten(-1, (2, 2, 4))[..., 0, :].transpose(1, 2)
        for projection in (attention_round.query, attention_round.k_proj)
    )
    value = attention_round.v_proj(x).unflatten(-1, (2, 8)).transpose(1, 2)
    plain = (1 - attention_round.rule.factor()) * standard_attention(query, key, value, backend="reference")
    normed = plain / (plain.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.head_output.norm.weight
    expected = (1 - depth_lambda(3)) * normed.transpose(1, 2).flatten(2)
    assert_close(run(layer, x), expected)


def test_lambda_starts_at_its_depths_value_and_may_leave_the_unit_interval():
    assert depth_lambda(None) == depth_lambda(0) == pytest.approx(0.2)
    assert depth_lambda(5) == pytest.approx(0.8 - 0.6 * math.exp(-1.5))
    rule = Attention(attention_config("differential", hidden_size=512, num_heads=4, layer_index=5)).rounds[0].rule
    # lq . lk has deviation 0.1^2 sqrt(128); two of them, exponentiated.
    assert abs(float(rule.factor().detach()) - depth_lambda(5)) < 5 * 0.01 * math.sqrt(2 * 128)
    with torch.no_grad():
        rule.lambda_q1.fill_(1.0)
        rule.lambda_k1.fill_(0.02)
        rule.lambda_q2.zero_()
    assert float(rule.factor().detach()) == pytest.approx(math.exp(128 * 0.02) - 1 + depth_lambda(5), rel=1e-5)


def test_differential_refuses_odd_heads():
    for fields in ({"num_heads": 3}, {"num_heads": 4, "num_kv_heads": 1}):
        with pytest.raises(ValueError, match="num_heads and num_kv_heads must be even, got"):
            attention_config("differential", hidden_size=12, **fields)


@BACKENDS
def test_version_two_with_a_closed_factor_is_standard_on_the_even_heads(backend):
    query, key, value = draw(2, 4, 7, 4), draw(2, 2, 7, 4), draw(2, 2, 7, 4)
    closed = torch.full((2, 2, 7), -800.0, dtype=torch.float64)
    output = differential_attention_v2(query, key, value, closed, backend=backend)
    assert_close(output, standard_attention(query[:, 0::2], key, value, backend="reference"))


@BACKENDS
def test_version_two_with_identical_pairs_is_scaled_standard(backend):
    query, key, value, logits = draw(2, 2, 7, 4), draw(2, 1, 7, 4), draw(2, 1, 7, 4), draw(2, 2, 7)
    output = differential_attention_v2(query.repeat_interleave(2, 1), key, value, logits, backend=backend)
    plain = standard_attention(query, key, value, backend="reference")
    assert_close(output, (1 - torch.sigmoid(logits))[..., None] * plain)


def test_version_two_takes_its_factors_from_where_its_queries_come_from():
    """In a boosted layer the second round's factors come from the residual, also where its keys come from x."""
    layer, x = layer_of("boosted-input-kv+differential-v2"), text()
    seen = []
    layer.rounds[1].rule.lambda_proj.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    run(layer, x)
    assert largest_difference(seen[0], x) > 1e-3


def test_the_three_forms_of_twicing_agree_also_under_one_dropped_map():
    query, key, value = draw(2, 3, 8, 4), draw(2, 3, 8, 4), draw(2, 3, 8, 5)
    causal = torch.ones(8, 8).tril().bool()
    a = (query @ key.transpose(-1, -2) / 2).masked_fill(~causal, -math.inf).softmax(-1)
    torch.manual_seed(5)
    dropped = torch.nn.functional.dropout(a, 0.4)
    for weights, dropout_p in ((a, 0.0), (dropped, 0.4)):
        squared = (2 * weights - weights @ weights) @ value
        residual = weights @ value + weights @ (value - weights @ value)
        torch.manual_seed(5)
        output = twicing_attention(query, key, value, dropout_p=dropout_p, backend="reference")
        assert_close(output, squared)
        assert_close(output, residual)


def test_twicing_weights_can_be_negative_so_outputs_can_leave_the_hull():
    """Three tokens that each attend to the next: 2A - A^2 has rows (0, 2, -1)."""
    queries = 1e3 * torch.eye(3, dtype=torch.float64)[[1, 2, 0]]
    kernel = twicing_attention(
        queries[None, None], torch.eye(3).double()[None, None], torch.eye(3).double()[None, None], is_causal=False
    )
    assert_close(kernel[0, 0], torch.tensor([[0.0, 2, -1], [-1, 0, 2], [2, -1, 0]]).double())


def test_a_token_that_no_query_attends_to_stays_unread_in_twicing():
    query, key, value = draw(1, 1, 6, 4), draw(1, 1, 6, 4), draw(1, 1, 6, 3).requires_grad_()
    query = query.abs()
    key[0, 0, 3] = -1e4
    (gradient,) = torch.autograd.grad(
        twicing_attention(query, key, value, is_causal=False, backend="reference").sum(), value
    )
    # The identity part 2V of U is weighted by A too, so the unread token has no way into the output.
    assert float(gradient[0, 0, 3].abs().max()) == 0.0
    assert float(gradient[0, 0, :3].abs().min()) > 0.0
