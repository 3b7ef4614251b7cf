"""Probes: plain numbers of what each mechanism does, taken without disturbing the model."""

import json

import pytest
import torch
from tiny_models import logits_of, model_of, tokens_of

from heedful.models.probes import probe
from heedful.nn import PRESETS, Boosting
from tolerance import largest_difference

KEYS = {
    "standard": set(),
    "identity-query": set(),
    "nonlinear-query": {"nonlinear_ratio"},
    "nonlinear-query-linear-control": {"nonlinear_ratio"},
    "boosted": {"gate_mean", "gate_std", "further_rounds"},
    "boosted-input-kv": {"gate_mean", "gate_std", "further_rounds"},
    "twicing": set(),
    "differential": {"lambda"},
    "differential-v2": set(),
    "talking-heads": {"head_pre", "head_post"},
    "multi-token-v1": {"head_post"},
    "multi-token": {"kq_pre", "kq_post", "head_pre", "head_post", "head_gate_mean"},
}


@pytest.mark.parametrize("name", PRESETS)
def test_each_mechanism_shows_its_own_keys_as_plain_numbers(name):
    layers = probe(model_of(name), tokens_of())
    assert [layer["layer"] for layer in layers] == [0, 1]
    assert set(layers[1]) - {"layer"} == KEYS[name]
    assert json.loads(json.dumps(layers)) == layers


def test_sums_show_every_part_and_every_round():
    layers = probe(model_of("boosted+nonlinear-query+multi-token", boosting=Boosting(rounds=3)), tokens_of())
    assert set(layers[1]) - {"layer"} == KEYS["boosted"] | KEYS["nonlinear-query"] | KEYS["multi-token"]
    assert len(layers[1]["gate_mean"]) == len(layers[1]["gate_std"]) == len(layers[1]["further_rounds"]) == 2
    assert set(layers[1]["further_rounds"][1]) == {"nonlinear_ratio", "kq_pre", "kq_post", "head_pre", "head_post"}
    assert "kq_pre" not in layers[0], "only the second layer of the tiny model convolves"


def test_the_numbers_are_those_of_the_forward_pass():
    model, tokens = model_of("boosted+nonlinear-query"), tokens_of()
    gates, corrections = [], []
    attention = model.block_list[0].attention
    attention.gates[0].register_forward_hook(lambda module, inputs, output: gates.append(output.detach()))
    query = attention.rounds[0].query
    query.register_forward_hook(lambda module, inputs, output: corrections.append((inputs[0], output)))
    logits_of(model, tokens)
    by_dimension = gates[0].flatten(0, 1).mean(0)
    x, q = corrections[0]
    found = probe(model, tokens)[0]
    assert found["gate_mean"][0] == pytest.approx(float(by_dimension.mean()))
    assert found["gate_std"][0] == pytest.approx(float(by_dimension.std(correction=0)))
    assert found["nonlinear_ratio"] == pytest.approx(float((2 * q - x).norm() / x.norm()))


def test_probing_leaves_no_trace():
    model, tokens = model_of("boosted+multi-token", dropout=0.5), tokens_of()
    before = logits_of(model, tokens)
    model.train()
    first = probe(model, tokens)
    assert model.training
    assert probe(model, tokens) == first, "dropout is off meanwhile"
    assert all(not module._forward_hooks for module in model.modules())
    assert largest_difference(logits_of(model.eval(), tokens), before) == 0.0
    with pytest.raises(ValueError, match="max_positions"):
        probe(model, torch.zeros(1, 99, dtype=torch.long))
    assert all(not module._forward_hooks for module in model.modules()), "also after an error"
