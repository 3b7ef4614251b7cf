"""The small exact reductions, alone and together, with the wrong variants beside them."""

import pytest
import torch
from query_nets import LAYERS, NO_SKIPS, SIZE, error, net, oracle

from heedful.convert.queries import REDUCTIONS, audit, convert_queries
from heedful.convert.queries.frames import Frame, apply_frames
from heedful.convert.queries.norm_folding import fold_norms
from heedful.convert.queries.weights import DecoderWeights
from heedful.nn import IdentityQuery, Rotary

EXACT = 1e-12
ALL = tuple(range(LAYERS))
BELOW = SIZE * (SIZE - 1) // 2


def reduced(model, *names, **options):
    return convert_queries(model, reductions=names, eliminate_queries=False, **options)


def q_weight(model, layer):
    return model.blocks[layer].attention.rounds[0].query.q_proj.weight.detach().T


@pytest.mark.parametrize("fields", [{"norm": "rms"}, {"norm": "layer", "bias": True}, {"norm": "layer"}])
def test_folding_norms(fields):
    model = net(**fields)
    converted, report = reduced(model, "fold-norms")
    assert error(converted, model) < EXACT
    assert converted.config.norm == "rms", "LayerNorm becomes RMSNorm where the head is untied"
    assert all(bool((block.attention_norm.weight == 1).all()) for block in converted.blocks)
    assert report.reductions[0].layers == ALL
    assert report.removed == ()


def test_folding_shifts_makes_the_biases_that_it_needs():
    model = net(norm="layer", bias=True, attention_bias=False)
    converted, _ = reduced(model, "fold-norms")
    assert converted.config.head_bias
    assert converted.config.layers[0].bias
    assert converted.blocks[0].attention.o_proj.bias is None
    assert error(converted, model) < EXACT


def test_folding_under_a_tied_head_keeps_layernorm_and_the_final_gain():
    model = net(norm="layer", bias=True, tie_embeddings=True)
    converted, _ = reduced(model, "fold-norms")
    assert converted.config.norm == "layer"
    assert error(converted, model) < EXACT
    assert not bool((converted.final_norm.weight == 1).all())


def test_tied_layernorm_may_centre_the_sum_of_the_embeddings_but_not_the_table():
    weights = DecoderWeights.of(net(norm="layer", bias=True, tie_embeddings=True))
    expected = oracle(weights)
    fold_norms(weights)
    assert error(oracle(weights, centre_embedding=True), expected) < EXACT
    weights.tokens = weights.tokens - weights.tokens.mean(-1, keepdim=True)
    assert error(oracle(weights), expected) > 1e-3


@pytest.mark.parametrize("fields", [{"norm": "rms"}, {"norm": "layer", "bias": True}, {"norm": "rms", "qk_norm": True}])
@pytest.mark.parametrize("layer", [None, 2])
def test_one_rotation_makes_one_query_matrix_triangular(fields, layer):
    model = net(**fields, rotary=Rotary())
    converted, report = reduced(model, "rotation", layer=layer)
    assert error(converted, model) < EXACT
    triangular = layer or 0
    rotation = report.reductions[-1]
    assert (rotation.name, rotation.layers, rotation.entries) == ("rotation", (triangular,), BELOW)
    for index in ALL:
        assert bool((q_weight(converted, index).tril(-1) == 0).all()) is (index == triangular)


def test_a_tied_head_without_norms_lets_a_rotation_through():
    model = net(tie_embeddings=True)
    converted, report = reduced(model, "rotation")
    assert error(converted, model) < EXACT
    assert converted.config.tie_embeddings
    assert report.reductions[-1].entries == BELOW


@pytest.mark.parametrize("tied", [False, True])
def test_without_skips_every_layer_becomes_triangular_and_under_a_tied_head_all_but_the_first(tied):
    model = net(norm="rms", tie_embeddings=tied, **NO_SKIPS)
    converted, report = reduced(model, "rotation")
    assert error(converted, model) < EXACT
    expected = ALL[1:] if tied else ALL
    assert report.reductions[-1].layers == expected
    assert all(bool((q_weight(converted, index).tril(-1) == 0).all()) for index in expected)


@pytest.mark.parametrize("skip", ["attention_skip", "feed_forward_skip"])
def test_one_skip_leaves_a_rotation_for_each_layer(skip):
    model = net(norm="rms", **{skip: False})
    converted, report = reduced(model, "rotation")
    assert error(converted, model) < EXACT
    assert report.reductions[-1].layers == ALL


def test_a_rotation_per_layer_under_skips_needs_orthogonal_skip_matrices():
    model = net(norm="rms")
    weights = DecoderWeights.of(model)
    fold_norms(weights)
    rotations = [torch.linalg.qr(layer.query.weight).Q for layer in weights.layers]
    apply_frames(weights, [Frame(one) for one in [*(r for r in rotations for _ in range(2)), rotations[-1]]])
    into_next = [one.T @ other for one, other in zip(rotations, [*rotations[1:], rotations[-1]], strict=True)]
    assert error(oracle(weights, feed_forward_skips=into_next), model) < EXACT
    assert error(oracle(weights), model) > 0.1, "without the matrices"


def test_norms_do_not_let_other_bases_through():
    model = net(norm="rms")
    weights = DecoderWeights.of(model)
    fold_norms(weights)
    basis = weights.layers[1].query.weight.clone()
    apply_frames(weights, [Frame(basis)] * (2 * LAYERS + 1))
    assert error(weights.model(), model) > 0.05


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_query_key_gauge(groups):
    model = net(norm="layer", bias=True, num_kv_heads=groups)
    converted, report = reduced(model, "query-key-gauge")
    assert error(converted, model) < EXACT
    assert report.reductions[0].entries == LAYERS * groups * 144
    for index in ALL:
        for group in range(groups):
            columns = q_weight(converted, index)[:, group * (4 // groups) * 12 :][:, :12]
            blocks = columns.unflatten(0, (4, 12))
            assert any(torch.equal(block, torch.eye(12, dtype=torch.float64)) for block in blocks)


def test_value_output_gauge_ignores_rotary_positions_and_query_key_norm():
    model = net(norm="rms", rotary=Rotary(), qk_norm=True, num_kv_heads=2, bias=True)
    converted, report = reduced(model, "value-output-gauge")
    assert error(converted, model) < EXACT
    assert report.reductions[0].entries == LAYERS * 2 * 144


def test_key_and_value_biases_go():
    model = net(norm="layer", bias=True, num_kv_heads=2)
    converted, _ = reduced(model, "drop-key-bias", "fold-value-bias")
    assert error(converted, model) < EXACT
    attention = converted.blocks[0].attention.rounds[0]
    assert not bool(attention.k_proj.bias.any())
    assert not bool(attention.v_proj.bias.any())


def test_value_bias_folding_makes_an_output_bias():
    model = net(norm="rms", attention_bias=True, output_bias=False)
    converted, _ = reduced(model, "fold-value-bias")
    assert converted.blocks[0].attention.o_proj.bias is not None
    assert error(converted, model) < EXACT


def test_after_the_elimination_no_projection_keeps_a_bias():
    model = net(**NO_SKIPS, bias=True)
    converted, report = convert_queries(model, reductions=["drop-key-bias", "fold-value-bias"])
    layer = converted.config.layers[0]
    assert (layer.bias, layer.output_bias) == (False, True)
    assert error(converted, model) < EXACT
    assert report.net_saved == LAYERS * (SIZE * SIZE + 3 * SIZE)


@pytest.mark.parametrize("fields", [{"rotary": Rotary()}, {"qk_norm": True}])
def test_the_key_bias_matters_under_rotary_positions_and_norms(fields):
    model = net(norm="layer", bias=True, **fields)
    with pytest.raises(ValueError, match=r"'drop-key-bias' does not apply: (rotary|the norm)"):
        reduced(model, "drop-key-bias")
    wrong = DecoderWeights.of(model)
    for layer in wrong.layers:
        layer.key.bias.zero_()
    assert error(wrong.model(), model) > 1e-3


def test_orthogonal_query_subspaces_under_a_norm_let_the_queries_vanish():
    """Skip-free RMSNorm: generic heads give a triangular matrix with identity blocks, orthogonal ones the identity."""
    model = net(norm="rms", **NO_SKIPS)
    converted, report = reduced(model, "rotation", "query-key-gauge")
    assert error(converted, model) < EXACT * 10
    assert report.removed == ()
    diagonal = [q_weight(converted, 0)[i : i + 12, i : i + 12] for i in range(0, SIZE, 12)]
    assert all(torch.equal(block, torch.eye(12, dtype=torch.float64)) for block in diagonal)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in model.blocks:
            basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)).Q
            inside = torch.block_diag(*torch.randn(4, 12, 12, generator=generator, dtype=torch.float64))
            folded = (basis @ inside) / block.attention_norm.weight[:, None]
            block.attention.rounds[0].query.q_proj.weight.copy_(folded.T)
    converted, report = reduced(model, "rotation", "query-key-gauge")
    assert report.removed == ALL
    assert all(isinstance(layer.query, IdentityQuery) for layer in converted.config.layers)
    assert error(converted, model) < EXACT * 10


def test_all_reductions_together_and_what_they_save():
    model = net(norm="layer", bias=True, num_kv_heads=2)
    converted, report = reduced(model, *reversed(REDUCTIONS))
    assert [one.name for one in report.reductions] == list(REDUCTIONS)
    assert error(converted, model) < EXACT * 10
    entries = {one.name: one.entries for one in report.reductions}
    planned = {one.name: one.entries for one in audit(model).reductions}
    assert entries["rotation"] == planned["rotation"] == BELOW
    assert entries["fold-norms"] == planned["fold-norms"]
    # The triangular layer's block below the diagonal was 0 already.
    assert entries["query-key-gauge"] == planned["query-key-gauge"] - 2 * (12 * 11 // 2)


def test_biases_that_are_zero_from_the_start_go_as_well():
    model = net(norm="layer", bias=True)
    with torch.no_grad():
        for block in model.blocks:
            for name in ("k_proj", "v_proj"):
                getattr(block.attention.rounds[0], name).bias.zero_()
            block.attention.rounds[0].query.q_proj.bias.zero_()
    converted, report = reduced(model, "drop-key-bias", "fold-value-bias")
    assert (converted.config.layers[0].bias, converted.config.layers[0].output_bias) == (False, True)
    assert report.net_saved == LAYERS * 3 * SIZE
    assert error(converted, model) < EXACT


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_layers_that_read_the_stream_as_it_stands_keep_their_norm_and_their_basis(norm):
    model = net({1: "nonlinear-query", 2: "boosted"}, norm=norm, bias=True, **NO_SKIPS)
    converted, report = reduced(model, "fold-norms", "value-output-gauge", "drop-key-bias")
    assert converted.config.norm == norm
    assert [one.layers for one in report.reductions] == [(0, 3), (0, 1, 3), (0, 1, 3)]
    assert not bool((converted.blocks[1].attention_norm.weight == 1).all())
    assert error(converted, model) < EXACT
    if norm == "rms":
        converted, report = reduced(model, "rotation")
        assert report.reductions[-1].layers == (0, 3)
        assert error(converted, model) < EXACT


def test_degenerate_blocks_are_left_alone():
    model = net(norm="rms")
    with torch.no_grad():
        model.blocks[0].attention.rounds[0].query.q_proj.weight[:12] = 0.0
    converted, report = reduced(model, "query-key-gauge")
    assert error(converted, model) < EXACT
    assert report.reductions[0].entries == (LAYERS * 4 - 1) * 144


@pytest.mark.parametrize(
    ("fields", "name", "reason"),
    [
        ({}, "fold-norms", "there are no norms"),
        ({"norm": "layer", "norm_position": "post"}, "fold-norms", "post-norm"),
        ({"norm": "layer", "norm_position": "post"}, "rotation", "post-norm"),
        ({"norm": "rms", "tie_embeddings": True}, "rotation", "every state is tied"),
        ({"norm": "layer", "tie_embeddings": True}, "rotation", "LayerNorm stays LayerNorm"),
        ({"norm": "rms", "rotary": Rotary()}, "query-key-gauge", "few matrices commute"),
        ({"norm": "rms", "qk_norm": True}, "query-key-gauge", "normalised after"),
        ({"norm": "rms"}, "drop-key-bias", "no biases"),
        ({"norm": "rms"}, "fold-value-bias", "no biases"),
    ],
)
def test_reductions_that_do_not_apply_say_why(fields, name, reason):
    model = net(**fields)
    assert not next(one for one in audit(model).reductions if one.name == name).layers
    if fields or name != "rotation":
        names = (name,) if name != "rotation" or fields.get("norm_position") != "post" else ("rotation",)
        with pytest.raises(ValueError, match=reason):
            reduced(model, *names)


@pytest.mark.parametrize(
    ("names", "name", "reason"),
    [
        ("boosted", "query-key-gauge", "boosting"),
        ("boosted", "value-output-gauge", "boosting"),
        ("multi-token", "value-output-gauge", "norm or gate"),
        ("talking-heads", "value-output-gauge", "plain averages"),
        ("differential", "query-key-gauge", "pairs its heads"),
        ("nonlinear-query", "query-key-gauge", "not x W_Q"),
    ],
)
def test_reductions_in_other_mechanisms_say_why(names, name, reason):
    with pytest.raises(ValueError, match=reason):
        reduced(net(names, norm="rms"), name)


def test_multi_token_scores_are_free_for_the_query_key_gauge():
    model = net("multi-token", norm="rms")
    assert error(reduced(model, "query-key-gauge")[0], model) < EXACT


def test_unknown_names_and_nothing_to_do():
    with pytest.raises(ValueError, match=r"no reduction 'rotations'\. Did you mean 'rotation'"):
        convert_queries(net(), reductions=["rotations"])
    with pytest.raises(ValueError, match="nothing to do"):
        convert_queries(net(), eliminate_queries=False)
