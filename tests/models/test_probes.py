"""Probes: plain numbers of what each mechanism does, taken without disturbing the model."""

import json

import pytest
import torch
from tiny_models import logits_of, model_of, tokens_of

from heedful.models.probes import probe
from heedful.nn import PRESETS, Boosting
from heedful.nn.score_sizes import score_sizes
from heedful.ops import AttentionMask
from tolerance import largest_difference, relative_rounding

KEYS = {
    "standard": set(),
    "identity-query": set(),
    "nonlinear-query": {"nonlinear_ratio"},
    "nonlinear-query-linear-control": {"nonlinear_ratio"},
    "boosted": {"gate_mean", "gate_std", "gate_by_dimension", "further_rounds"},
    "boosted-input-kv": {"gate_mean", "gate_std", "gate_by_dimension", "further_rounds"},
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
    assert found["gate_by_dimension"][0] == pytest.approx(by_dimension.tolist(), abs=5.1e-5)  # 4 digits
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


MASKS = {
    "none": AttentionMask(),
    "window": AttentionMask(window=3),
    "padding": AttentionMask(key_padding=torch.tensor([[False] * 4 + [True] * 8, [True] * 11 + [False]])),
    "documents": AttentionMask(document_ids=torch.tensor([[0] * 5 + [1] * 7, [3] * 2 + [1] * 9 + [3]])),
    "all": AttentionMask(
        window=4, key_padding=torch.tensor([[True] * 10 + [False] * 2]), document_ids=torch.tensor([[0] * 6 + [1] * 6])
    ),
}


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("queries", [12, 7, 1])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_score_sizes_are_those_of_the_whole_scores_of_these_rows(mask, queries, is_causal):
    query, key = torch.randn(2, 6, queries, 4).double(), torch.randn(2, 3, 12, 4).double()
    scores = 0.7 * torch.einsum("bhgnd,bhmd->bhgnm", query.unflatten(1, (3, 2)), key).flatten(1, 2)
    visible = mask.visible(queries, 12, is_causal=is_causal).expand(2, 6, -1, -1)
    rows = {12: [2, 5, 8, 11], 7: [0, 2, 4, 6], 1: [0]}[queries]  # a quarter, two, three and all of the queries
    seen = scores[:, :, rows][visible[:, :, rows]]
    found = score_sizes(query, key, mask=mask, is_causal=is_causal, scale=0.7, rows=4)
    assert set(found) == ({"score_max", "score_std"} if seen.numel() else set())
    if found:
        assert found["score_max"] == pytest.approx(float(seen.max()), rel=relative_rounding())
        assert found["score_std"] == pytest.approx(float(seen.var(correction=0)) ** 0.5, rel=relative_rounding())


def test_rows_that_see_nothing_have_no_scores():
    mask = AttentionMask(key_padding=torch.zeros(1, 5, dtype=torch.bool))
    query = torch.randn(1, 1, 5, 2)
    assert score_sizes(query, query, mask=mask, is_causal=True, scale=None, rows=3) == {}


@pytest.mark.parametrize("name", PRESETS)
def test_every_round_of_every_mechanism_shows_its_scores(name):
    model, tokens = model_of(name), tokens_of()
    plain, layers = probe(model, tokens), probe(model, tokens, score_rows=3)
    for layer, same in zip(layers, plain, strict=True):
        for found in (layer, *layer.get("further_rounds", [])):
            assert found.pop("score_std") > 0
            assert isinstance(found.pop("score_max"), float)
        assert layer == same, "everything else is as without"


def test_the_scores_are_those_of_the_model_under_its_mask():
    documents = torch.tensor([[0] * 5 + [1] * 7])
    model, tokens = model_of("standard"), tokens_of(batch=1)
    packed = probe(model, tokens, AttentionMask(document_ids=documents), score_rows=12)
    parts = [probe(model, part, score_rows=12) for part in (tokens[:, :5], tokens[:, 5:])]
    for layer in (0, 1):
        largest = max(part[layer]["score_max"] for part in parts)
        assert packed[layer]["score_max"] == pytest.approx(largest, rel=relative_rounding())


def test_layers_that_share_a_block_show_different_numbers():
    layers = probe(model_of("boosted", share_layers=True), tokens_of(), score_rows=4)
    for key in ("gate_mean", "score_max"):
        assert layers[0][key] != layers[1][key]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at everything
def test_probing_a_compiled_model_in_training_changes_nothing_of_it():
    """Neither random state, nor gradients, nor modes, nor what was compiled."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def train_step():
        torch.manual_seed(3)
        model.zero_grad()
        model(tokens)[0].square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    torch._dynamo.reset()
    model, tokens = model_of("boosted+nonlinear-query", dropout=0.5), tokens_of()
    expected = probe(model, tokens, score_rows=4)
    model.train()
    model.final_norm.eval()
    modes = [module.training for module in model.modules()]
    for block in model.blocks:
        block.compile(backend=backend)
    before = train_step()
    graphs, random_state = len(compiled), torch.get_rng_state()
    assert graphs, "the blocks are compiled"
    found = probe(model, tokens, score_rows=4)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), before, strict=True))
    assert found == expected, "the hooks were heard"
    assert all(torch.equal(one, other) for one, other in zip(train_step(), before, strict=True))
    assert len(compiled) == graphs, "and nothing was compiled anew"
    torch._dynamo.reset()
