"""Boosting: the identities that tie it to standard attention, and the gauge of its residual."""

import pytest
import torch
from layers_for_nn import HIDDEN, layer_of, run, text

from heedful.nn import Attention, Boosting, Rotary, attention_config
from tolerance import assert_close, largest_difference

GATES = ("vector", "head", "scalar", "none")
SOURCES = ("residual", "input")


def boosted(rounds=2, seed=1, bias=True, **fields):
    return layer_of("standard", seed=seed, bias=bias, boosting=Boosting(rounds=rounds, **fields))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kv_source", SOURCES)
def test_one_round_is_standard_attention_bit_for_bit(gate, kv_source):
    one = boosted(rounds=1, gate=gate, kv_source=kv_source)
    standard = layer_of("standard", bias=True)
    assert one.state_dict().keys() == standard.state_dict().keys()
    assert largest_difference(run(one, text()), run(standard, text())) == 0.0


@pytest.mark.parametrize("rounds", [2, 3, 4])
@pytest.mark.parametrize("kv_source", SOURCES)
@pytest.mark.parametrize("gate", ["vector", "none"])
@pytest.mark.parametrize("k", [-1.0, 0.5, 3.0])
def test_the_scale_and_sign_of_the_estimate_are_a_gauge(rounds, kv_source, gate, k):
    """Values times k, gate weights and output projection divided by k: the same function with x - F / k."""
    layer = boosted(rounds=rounds, kv_source=kv_source, gate=gate)
    other = boosted(rounds=rounds, kv_source=kv_source, gate=gate, residual_coefficient=1 / k)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for name, tensor in state.items():
        if ".v_proj." in name:
            tensor *= k
        elif (name.startswith("gates.") and name.endswith("weight")) or name == "o_proj.weight":
            tensor /= k
    other.load_state_dict(state)
    assert_close(run(other, text()), run(layer, text()))
    unchanged = boosted(rounds=rounds, kv_source=kv_source, gate=gate)
    unchanged.load_state_dict(state)
    assert largest_difference(run(unchanged, text()), run(layer, text())) > 1e-3, "the coefficient must matter"


@pytest.mark.parametrize("rounds", [2, 4])
def test_without_a_residual_both_key_value_sources_are_the_same(rounds):
    outputs = [run(boosted(rounds=rounds, kv_source=source, residual_coefficient=0.0), text()) for source in SOURCES]
    assert largest_difference(*outputs) == 0.0
    outputs = [run(boosted(rounds=rounds, kv_source=source), text()) for source in SOURCES]
    assert largest_difference(*outputs) > 1e-3


@pytest.mark.parametrize("gate", ["vector", "head", "scalar"])
def test_a_closed_gate_is_standard_and_an_open_one_the_plain_sum(gate):
    layer = boosted(rounds=3, gate=gate)
    standard = layer_of("standard", bias=True)
    standard.load_state_dict({name: layer.state_dict()[name] for name in standard.state_dict()})
    plain_sum = boosted(rounds=3, gate="none")
    plain_sum.load_state_dict({name: layer.state_dict()[name] for name in plain_sum.state_dict()})
    for logit, expected in ((-800.0, standard), (800.0, plain_sum)):
        with torch.no_grad():
            for module in layer.gates:
                (module.logit if gate == "scalar" else module.proj.bias).fill_(logit)
        assert largest_difference(run(layer, text()), run(expected, text())) == 0.0


def test_the_rounds_follow_the_published_recursion():
    """Three rounds written out, from the layer's own parts."""
    layer, x = boosted(rounds=3, residual_coefficient=0.7), text()
    estimate = _round(layer, 0, x, x)
    for m in (1, 2):
        residual = x - 0.7 * estimate
        correction = _round(layer, m, residual, residual)
        linear = layer.gates[m - 1].proj
        gate = torch.sigmoid(torch.cat([estimate, correction], -1) @ linear.weight.T + linear.bias)
        estimate = estimate + gate * correction
    assert_close(run(layer, x), layer.o_proj(estimate).detach())


def _round(layer, m, query_source, key_value_source):
    single = layer_of("standard", bias=True)
    prefix = f"rounds.{m}."
    state = {n.replace(prefix, "rounds.0."): t for n, t in layer.state_dict().items() if n.startswith(prefix)}
    state |= {"o_proj.weight": torch.eye(HIDDEN), "o_proj.bias": torch.zeros(HIDDEN)}
    single.load_state_dict(state)
    assert query_source is key_value_source
    return run(single, query_source)


def test_a_gate_per_head_gates_each_head_as_a_whole():
    layer, x = boosted(gate="head"), text()
    estimate, correction = torch.randn(2, 9, HIDDEN).double(), torch.randn(2, 9, HIDDEN).double()
    gate = layer.gates[0](estimate, correction).detach().unflatten(-1, (4, -1))
    assert largest_difference(gate, gate[..., :1].expand_as(gate)) == 0.0
    assert len(gate[0, 0, :, 0].unique()) == 4
    assert run(layer, x).shape == x.shape


@pytest.mark.parametrize(("start", "mean"), [(0.0, 0.5), (-4.0, 0.018), (2.0, 0.881)])
@pytest.mark.parametrize("gate", ["vector", "head", "scalar"])
def test_gates_start_where_they_are_told(gate, start, mean):
    config = attention_config(hidden_size=HIDDEN, num_heads=4, boosting=Boosting(gate=gate, gate_start=start))
    gates = Attention(config).gates[0](torch.zeros(1, 1, HIDDEN), torch.zeros(1, 1, HIDDEN))
    assert largest_difference(gates, torch.full_like(gates, mean)) < 1e-3


def test_every_round_rotates_its_own_queries_and_keys():
    x = text()
    with_rotary = layer_of("boosted", rotary=Rotary())
    without = layer_of("boosted")
    without.load_state_dict(with_rotary.state_dict())
    state = with_rotary.state_dict()
    for name, tensor in state.items():  # the first round blind to positions: what differs comes from the second
        if name.startswith("rounds.0") and ("q_proj" in name or "k_proj" in name):
            state[name] = torch.zeros_like(tensor)
    with_rotary.load_state_dict(state)
    without.load_state_dict(state)
    assert largest_difference(run(with_rotary, x), run(without, x)) > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        (
            {"gate": "vektor"},
            r"gate: expected one of 'vector', 'head', 'scalar', 'none', 'scaled-vector', got 'vektor'",
        ),
        ({"kv_source": "x"}, r"kv_source: expected one of 'residual', 'input', got 'x'"),
        ({"gate_bias": False, "gate_start": -2.0}, r"gate_start = -2.0 needs gate_bias = True"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Boosting(**fields)


def test_boosting_needs_heads_as_wide_as_the_input_from_the_second_round_on():
    with pytest.raises(ValueError, match=r"num_heads \* head_dim must be hidden_size; got 32 and 16"):
        layer_of("boosted", head_dim=8)
    layer_of("standard", head_dim=8, boosting=Boosting(rounds=1))
