"""The exact cases: all logits stay, and the wrong variants of the same algebra fail visibly."""

from dataclasses import replace

import pytest
import torch
from query_nets import LAYERS, NO_SKIPS, SIZE, error, logits, net, oracle, tokens

from heedful.convert.queries import audit, convert_queries
from heedful.convert.queries.frames import Frame, apply_frames
from heedful.convert.queries.plan import query_frame
from heedful.convert.queries.weights import DecoderWeights
from heedful.models import DecoderLM, load_decoder
from heedful.nn import IdentityQuery, LinearQuery, PartialIdentityQuery, Rotary
from heedful.ops.masks import AttentionMask

EXACT = 1e-11
ALL = tuple(range(LAYERS))

CASES = {
    "no skips": (NO_SKIPS, ALL),
    "no skips, GQA, RoPE, SwiGLU": (dict(NO_SKIPS, num_kv_heads=2, rotary=Rotary(), activation="swiglu"), ALL),
    "no skips, MQA, RoPE, QK-norm": (dict(NO_SKIPS, num_kv_heads=1, rotary=Rotary(), qk_norm=True), ALL),
    "no skips, interleaved RoPE, window": (dict(NO_SKIPS, rotary=Rotary(layout="interleaved"), window=5), ALL),
    "no skips, biases": (dict(NO_SKIPS, bias=True), ALL),
    "no skips, tied head": (dict(NO_SKIPS, tie_embeddings=True), ALL),
    "no skips, tied head, biases": (dict(NO_SKIPS, tie_embeddings=True, bias=True), ALL),
    "no skips, heads narrower than the stream": (dict(NO_SKIPS, head_dim=6), ALL),
    "no skips, narrower heads with biases, tied": (dict(NO_SKIPS, head_dim=6, bias=True, tie_embeddings=True), ALL),
    "no skips, heads wider than the stream": (dict(NO_SKIPS, head_dim=24, bias=True), ALL),
    "no skips, wider heads, QK-norm": (dict(NO_SKIPS, head_dim=24, qk_norm=True, rotary=Rotary()), ALL),
    "attention skip": ({"feed_forward_skip": False, "num_kv_heads": 2, "bias": True}, ALL),
    "attention skip, tied": ({"feed_forward_skip": False, "bias": True, "tie_embeddings": True}, ALL),
    "attention skip, biases of q, k, v only": (
        {"feed_forward_skip": False, "attention_bias": True, "output_bias": False, "rotary": Rotary()},
        ALL,
    ),
    "MLP skip": ({"attention_skip": False, "num_kv_heads": 2, "bias": True}, ALL),
    "MLP skip, tied": ({"attention_skip": False, "num_kv_heads": 2, "bias": True, "tie_embeddings": True}, ALL),
    "both skips, layer 0": ({"bias": True, "layer": 0}, (0,)),
    "both skips, layer 2, GQA, RoPE": ({"bias": True, "num_kv_heads": 2, "rotary": Rotary(), "layer": 2}, (2,)),
    "both skips, shared block": ({"share_layers": True, "bias": True}, (0,)),
    "no skips, shared block": (dict(NO_SKIPS, share_layers=True, bias=True, rotary=Rotary()), (0,)),
    "head bias": (dict(NO_SKIPS, head_bias=True, bias=True, share_layers=True), (0,)),
    "gain and scale of its own": (dict(NO_SKIPS, query=LinearQuery(gain=0.7), scale=0.4), ALL),
    "anchored linear query": (dict(NO_SKIPS, query=LinearQuery(anchor="identity", gain=0.5)), ALL),
}


@pytest.mark.parametrize("case", list(CASES))
def test_exact_cases(case):
    fields, removed = CASES[case]
    layer = fields.get("layer")
    model = net(**{name: value for name, value in fields.items() if name != "layer"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    converted, report = convert_queries(model, layer=layer, tokens=tokens())
    assert report.removed == removed
    assert report.lossless
    assert report.verification is not None
    assert report.verification.random_tokens < EXACT
    assert report.verification.given_tokens is not None
    assert report.verification.given_tokens < EXACT
    assert error(converted, model) < EXACT
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), "the source changed"
    for index in removed:
        query = converted.config.layers[index].query
        assert isinstance(query, IdentityQuery | PartialIdentityQuery)
        assert converted.config.layers[index].scale is not None, "the scale is written down"
    assert report.parameters_after == sum(parameter.numel() for parameter in converted.parameters())


@pytest.mark.parametrize("names", ["multi-token", "talking-heads", "twicing", "differential"])
def test_other_rules_with_one_linear_query_are_exact_too(names):
    model = net(names, **NO_SKIPS)
    converted, report = convert_queries(model)
    assert report.removed == ALL
    assert error(converted, model) < EXACT


def test_decoding_padding_and_packing_still_agree():
    model = net(**NO_SKIPS, bias=True, num_kv_heads=2, rotary=Rotary())
    converted, _ = convert_queries(model)
    packed = AttentionMask(document_ids=torch.tensor([[0] * 5 + [1] * 7, [0] * 12]))
    with torch.no_grad():
        assert error(converted(tokens(), packed)[0], model(tokens(), packed)[0]) < EXACT
        state, pieces = converted.empty_state(), []
        for piece in tokens().split([1, 4, 7], dim=1):
            out, state = converted(piece, state=state)
            pieces.append(out)
    assert error(torch.cat(pieces, 1), logits(model)) < EXACT


def test_counts_of_the_savings():
    square = SIZE * SIZE
    assert convert_queries(net(**NO_SKIPS))[1].net_saved == LAYERS * square
    assert convert_queries(net(**NO_SKIPS, bias=True))[1].net_saved == LAYERS * (square + SIZE)
    assert convert_queries(net())[1].net_saved == square
    assert convert_queries(net(**NO_SKIPS, head_dim=6))[1].net_saved == LAYERS * SIZE * 24
    wide, report = convert_queries(net(**NO_SKIPS, head_dim=24))
    assert report.net_saved == LAYERS * square
    assert all(layer.query == PartialIdentityQuery() for layer in wide.config.layers)
    shared = convert_queries(net(share_layers=True))[1]
    assert shared.net_saved == square
    assert audit(net(share_layers=True)).net_saved == square


def test_the_shift_of_a_tied_model_goes_onto_the_positions_and_never_onto_the_embedding():
    model = net(**NO_SKIPS, tie_embeddings=True, bias=True)
    converted, _ = convert_queries(model)
    assert error(converted, model) < EXACT
    shift = model.blocks[0].attention.rounds[0].query.q_proj.bias
    with torch.no_grad():
        converted.position_embedding.weight.sub_(shift)
        converted.token_embedding.weight.add_(shift)
    assert error(converted, model) > 0.1


def test_scaled_basis():
    """T = W_Q / c: the scores make up for it, but a norm of the queries would undo that."""
    model = net(**NO_SKIPS)
    converted, _ = convert_queries(model, divisor=3.7)
    assert error(converted, model) < EXACT
    assert converted.config.layers[0].scale == pytest.approx(3.7 / 12**0.5)

    normed = net(**NO_SKIPS, qk_norm=True)
    converted, _ = convert_queries(normed, divisor=3.7)
    assert error(converted, normed) < EXACT
    layer = converted.config.layers[0]
    assert layer.query == IdentityQuery(gain=3.7)
    assert layer.scale == pytest.approx(12**-0.5)
    without_gain = _with_layers(converted, query=IdentityQuery(gain=1.0))
    assert 1e-9 < error(without_gain, normed) < 1e-3, "the norm's epsilon alone"
    assert error(_with_layers(without_gain, scale=3.7 * layer.scale), normed) > 0.1


def test_scaled_basis_with_wide_heads_and_biases():
    for fields in ({}, {"qk_norm": True}):
        model = net(**NO_SKIPS, head_dim=24, bias=True, **fields)
        assert error(convert_queries(model, divisor=0.3)[0], model) < EXACT


def test_the_first_columns_of_a_wide_query_become_the_identity():
    weights = DecoderWeights.of(net(**NO_SKIPS, head_dim=24))
    layer = weights.layers[0]
    frame = query_frame(layer)
    frame.read(layer.query)
    assert torch.allclose(layer.query.weight[:, :SIZE], torch.eye(SIZE, dtype=torch.float64), atol=2e-12)


def test_both_skips_all_layers_need_skip_matrices():
    model = net()
    weights = DecoderWeights.of(model)
    assert error(oracle(weights), model) < EXACT
    bases = [query_frame(layer).matrix for layer in weights.layers]
    states = [Frame(basis) for basis in bases for _ in range(2)]
    for layer in weights.layers:
        layer.query = None
    apply_frames(weights, [*states, states[-1]])
    into_next = [torch.linalg.solve(one, other) for one, other in zip(bases, [*bases[1:], bases[-1]], strict=True)]
    assert error(oracle(weights, feed_forward_skips=into_next), model) < EXACT
    assert error(oracle(weights), model) > 0.1, "without the matrices"


def test_a_tied_head_with_both_skips_needs_one_matrix():
    model = net(tie_embeddings=True)
    weights = DecoderWeights.of(model)
    basis = query_frame(weights.layers[1]).matrix
    weights.layers[1].query = None
    apply_frames(weights, [Frame(basis)] * (2 * LAYERS + 1))
    gram = basis.T @ basis
    assert error(oracle(weights, head=torch.linalg.inv(gram)), model) < EXACT
    assert error(oracle(weights), model) > 0.1
    untied, report = convert_queries(model, layer=1, untie_head=True)
    assert error(untied, model) < EXACT
    assert report.head_untied


def test_a_head_is_untied_only_where_that_is_needed():
    assert not convert_queries(net(**NO_SKIPS, tie_embeddings=True), untie_head=True)[1].head_untied
    shared = net(**NO_SKIPS, share_layers=True, tie_embeddings=True, bias=True)
    converted, report = convert_queries(shared, untie_head=True)
    assert report.head_untied
    assert converted.config.head_bias, "the last state carries the same shift as the first"
    assert error(converted, shared) < EXACT
    rotary = net(**NO_SKIPS, tie_embeddings=True, bias=True, rotary=Rotary())
    converted, report = convert_queries(rotary)
    assert report.removed == (1, 2, 3), "layer 0 has a bias that only the embedding could carry"
    assert "untie the head" in report.kept["0"]
    assert error(converted, rotary) < EXACT
    converted, report = convert_queries(rotary, untie_head=True)
    assert report.removed == ALL
    assert error(converted, rotary) < EXACT


def _block_diagonal(blocks):
    return torch.block_diag(*blocks)


@pytest.mark.parametrize(
    ("fields", "kind", "possible"),
    [
        ({"bias": True}, "any", True),
        ({"num_kv_heads": 2}, "any", True),
        ({"rotary": Rotary()}, "any", False),
        ({"rotary": Rotary()}, "complex", True),
        ({"rotary": Rotary(layout="interleaved")}, "complex", True),
        ({"qk_norm": True}, "any", False),
        ({"qk_norm": True, "rotary": Rotary()}, "same", True),
    ],
)
def test_both_skips_all_layers_where_query_matrices_differ_by_heads_only(fields, kind, possible):
    """The impossibility test, from its other side: W_Q of all layers equal up to what the heads' gauge can undo."""
    model = net(**fields)
    generator = torch.Generator().manual_seed(3)
    groups = fields.get("num_kv_heads", 4)
    layout = fields["rotary"].layout if "rotary" in fields else "half"
    with torch.no_grad():
        first = model.blocks[0].attention.rounds[0].query.q_proj.weight.T.clone()
        for block in list(model.blocks)[1:]:
            blocks = [_block(kind, layout, generator) for _ in range(groups) for _ in range(1)]
            repeated = [one for one in blocks for _ in range(4 // groups)]
            block.attention.rounds[0].query.q_proj.weight.copy_((first @ _block_diagonal(repeated)).T)
    found = audit(model)
    assert (found.removable == ALL) is possible
    if possible:
        converted, report = convert_queries(model)
        assert report.removed == ALL
        assert error(converted, model) < EXACT
    else:
        assert len(found.removable) == 1
        assert sum("up to a change inside its heads" in layer.reason for layer in found.layers) == 3


def _block(kind, layout, generator):
    if kind == "same":
        return torch.eye(12, dtype=torch.float64)
    if kind == "any":
        return torch.randn(12, 12, generator=generator, dtype=torch.float64)
    a, b = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    if layout == "half":
        return torch.cat([torch.cat([a.diag(), b.diag()], 1), torch.cat([-b.diag(), a.diag()], 1)])
    return torch.block_diag(
        *(torch.stack([torch.stack([x, y]), torch.stack([-y, x])]) for x, y in zip(a, b, strict=True))
    )


def test_mixed_layers_keep_the_ones_that_read_the_stream_as_it_stands():
    mixed = {1: "nonlinear-query", 2: "boosted"}
    model = net(mixed, **NO_SKIPS)
    converted, report = convert_queries(model)
    assert report.removed == (0, 3)
    assert "nonlinear" in report.kept["1"]
    assert "boosting" in report.kept["2"]
    assert error(converted, model) < EXACT


def test_save_and_load_keep_scale_and_logits(tmp_path):
    model = net(**NO_SKIPS, head_dim=24, bias=True, scale=0.3)
    converted, _ = convert_queries(model)
    converted.save(tmp_path)
    again = load_decoder(tmp_path)
    assert again.config == converted.config
    assert again.config.layers[0].scale == 0.3
    assert torch.equal(logits(again), logits(converted))
    assert all(parameter.requires_grad for parameter in converted.parameters())


def _with_layers(model, **changes):
    """The same weights under other attention settings."""
    layers = tuple(replace(layer, **changes) for layer in model.config.layers)
    other = DecoderLM(replace(model.config, attention=layers)).double().eval()
    other.load_state_dict(model.state_dict())
    return other
