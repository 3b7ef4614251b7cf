"""Query maps: the published statistics at the start, the place of the factor 1/2, the control, other widths."""

import math
from dataclasses import replace

import pytest
import torch
from layers_for_nn import layer_of, run, text

from heedful.models import DecoderLM, decoder_config
from heedful.nn import Attention, IdentityQuery, LinearQuery, NonlinearQuery, attention_config
from tolerance import assert_close, largest_difference

WIDTH = 768


@pytest.fixture(scope="module")
def paper_scale():
    """The query map of a model of the paper's width with the paper's initialisation, and inputs of unit mean square."""
    torch.manual_seed(0)
    config = decoder_config(
        "nonlinear-query", vocab_size=2, num_layers=1, max_positions=2, hidden_size=WIDTH, num_heads=12,
        intermediate_size=1,
    )  # fmt: skip
    query = DecoderLM(config).block_list[0].attention.rounds[0].query
    inputs = torch.nn.functional.rms_norm(torch.randn(512, WIDTH), (WIDTH,))
    return query, inputs


@torch.no_grad()
def test_the_start_has_the_published_statistics(paper_scale):
    query, n = paper_scale
    before = query.up_proj(torch.nn.functional.gelu(query.down_proj(query.input_norm(n))))
    f = query.correction(n)
    # 512 x 768 outputs, but only 384 x 768 random weights: their spread moves a standard deviation by about
    # 1/sqrt(2 * 384 * 768) of itself for W_2, and each of the 384 columns of W_1 by 1/sqrt(2 * 768): < 1 % together.
    assert float(before.std()) == pytest.approx(0.128, rel=0.02)
    assert float(f.std()) == pytest.approx(1.000, rel=0.001)
    assert float(query(n).std()) == pytest.approx(0.707, rel=0.005)
    cosine = torch.nn.functional.cosine_similarity(n, f, dim=-1)
    assert abs(float(cosine.mean())) < 5 / math.sqrt(512 * WIDTH) + 1 / WIDTH
    linear = torch.randn(WIDTH, WIDTH) * 0.02
    assert float((n @ linear).std()) == pytest.approx(0.554, rel=0.01)


@torch.no_grad()
def test_the_correction_is_the_published_formula(paper_scale):
    query, n = paper_scale
    n = n[:4].double() * torch.tensor([[0.1], [1.0], [3.0], [10.0]]).double()
    query = query.double()
    rms = n / (n.square().mean(-1, keepdim=True) + 1e-5).sqrt() * query.input_norm.weight
    h = rms @ query.down_proj.weight.T
    h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))  # exact GELU
    h = h @ query.up_proj.weight.T
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    assert_close(query(n), (n + h * query.output_norm.weight) / 2)
    query.float()


def test_the_second_bottleneck_matrix_is_not_scaled_with_depth():
    torch.manual_seed(0)
    config = decoder_config(
        "nonlinear-query", vocab_size=2, num_layers=8, max_positions=2, hidden_size=128, num_heads=2,
        scale_residual_init=True,
    )  # fmt: skip
    attention = DecoderLM(config).block_list[0].attention
    assert float(attention.rounds[0].query.up_proj.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(attention.o_proj.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)


def _half_in_query_and_in_scale(**fields):
    half_in_query = layer_of("nonlinear-query", **fields)
    half_in_scale = layer_of("standard", query=NonlinearQuery(gain=1.0), scale=0.5 / math.sqrt(4), **fields)
    half_in_scale.load_state_dict(half_in_query.state_dict())
    return run(half_in_query, text()), run(half_in_scale, text())


def test_half_in_the_query_is_half_in_the_scale_also_in_the_last_bit():
    assert largest_difference(*_half_in_query_and_in_scale(backend="reference")) == 0.0
    assert_close(*_half_in_query_and_in_scale(backend="sdpa"))


def test_a_norm_on_the_query_removes_the_half_in_the_query_but_not_in_the_scale():
    assert largest_difference(*_half_in_query_and_in_scale(qk_norm=True)) > 1e-3
    halved = layer_of("nonlinear-query", qk_norm=True, norm_eps=1e-30)
    whole = layer_of("standard", qk_norm=True, query=NonlinearQuery(gain=1.0), norm_eps=1e-30)
    whole.load_state_dict(halved.state_dict())
    assert_close(run(halved, text()), run(whole, text()))


def test_the_control_differs_in_its_activation_alone():
    nonlinear, control = layer_of("nonlinear-query"), layer_of("nonlinear-query-linear-control")
    shapes = [{name: t.shape for name, t in layer.state_dict().items()} for layer in (nonlinear, control)]
    assert shapes[0] == shapes[1]
    control.load_state_dict(nonlinear.state_dict())
    assert largest_difference(run(nonlinear, text()), run(control, text())) > 1e-3
    query, x = control.rounds[0].query, text(40, batch=1)[0]
    up, down, gain = query.up_proj.weight, query.down_proj.weight, query.input_norm.weight
    centred = (x * gain) @ down.T @ up.T
    centred = (centred - centred.mean(-1, keepdim=True)) * query.output_norm.weight
    ratio = query.correction(x) / centred
    per_token = ratio.mean(-1, keepdim=True).expand_as(ratio)
    # Linear up to one positive number per token; entries near zero are ratios of rounding errors.
    usable = centred.abs() > 1e-3
    assert largest_difference((ratio / per_token)[usable], torch.ones_like(ratio)[usable]) < 1e-9


@pytest.mark.parametrize("qk_norm", [False, True])
def test_with_output_gains_of_zero_it_is_the_identity_query(qk_norm):
    nonlinear = layer_of("nonlinear-query", qk_norm=qk_norm)
    with torch.no_grad():
        nonlinear.rounds[0].query.output_norm.weight.zero_()
    identity = layer_of("identity-query", qk_norm=qk_norm)
    identity.load_state_dict({name: nonlinear.state_dict()[name] for name in identity.state_dict()})
    assert largest_difference(run(nonlinear, text()), run(identity, text())) == 0.0


def test_identity_is_linear_with_half_a_unit_matrix_and_takes_slices_for_heads():
    identity = layer_of("identity-query")
    linear = layer_of("standard")
    state = {**identity.state_dict(), "rounds.0.query.q_proj.weight": torch.eye(16).double() / 2}
    linear.load_state_dict(state)
    assert_close(run(identity, text()), run(linear, text()))


def test_a_linear_query_with_anchor_adds_the_input_before_the_gain():
    anchored = layer_of("standard", query=LinearQuery(anchor="identity", gain=0.5))
    linear = layer_of("standard")
    state = anchored.state_dict()
    weight = state["rounds.0.query.q_proj.weight"]
    linear.load_state_dict({**state, "rounds.0.query.q_proj.weight": (weight + torch.eye(16)) / 2})
    assert_close(run(anchored, text()), run(linear, text()))


def test_a_linear_anchor_with_output_gains_of_zero_keeps_a_linear_checkpoint():
    linear = layer_of("standard")
    added = layer_of("standard", query=NonlinearQuery(anchor="linear", gain=1.0))
    state = {**added.state_dict(), **linear.state_dict()}
    state["rounds.0.query.output_norm.weight"] = torch.zeros(16)
    added.load_state_dict(state)
    assert largest_difference(run(added, text()), run(linear, text())) == 0.0
    added(text())[0].square().sum().backward()
    moved = {name for name, p in added.rounds[0].query.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"q_proj.weight", "output_norm.weight"}, "only the gain can move away from the start"


@pytest.mark.parametrize("query", [IdentityQuery(), NonlinearQuery(), LinearQuery(anchor="identity")])
def test_an_identity_anchor_between_widths_is_refused_until_a_rule_is_chosen(query):
    for head_dim, good, bad in ((2, "slice", "tile"), (8, "tile", "slice")):
        sizes = {"hidden_size": 16, "num_heads": 4, "head_dim": head_dim}
        with pytest.raises(ValueError, match=rf"got {4 * head_dim} and 16; choose anchor_fit='{good}'"):
            attention_config("standard", query=query, **sizes)
        with pytest.raises(ValueError, match=rf"anchor_fit='{bad}' does not fit.*use '{good}'"):
            attention_config("standard", query=replace(query, anchor_fit=bad), **sizes)
        attention_config("standard", query=replace(query, anchor_fit=good), **sizes)


def test_without_an_anchor_any_width_is_fine():
    for anchor in ("none", "linear"):
        layer = layer_of("standard", head_dim=3, query=NonlinearQuery(anchor=anchor))
        assert run(layer, text()).shape == text().shape


def test_slice_takes_the_first_entries_and_tile_repeats_them():
    x = torch.arange(4.0).expand(1, 1, 4)
    small = IdentityQuery(gain=1.0, anchor_fit="slice").build(4, 2, 1, bias=False)
    assert small(x).tolist() == [[[0.0, 1.0]]]
    large = IdentityQuery(gain=1.0, anchor_fit="tile").build(4, 6, 3, bias=False)
    assert large(x).tolist() == [[[0.0, 1.0, 2.0, 3.0, 0.0, 1.0]]]
    equal = IdentityQuery(gain=1.0, anchor_fit="tile").build(4, 4, 2, bias=False)
    assert torch.equal(equal(x), x)


@pytest.mark.parametrize(("heads", "head_dim"), [(4, 4), (4, 2), (4, 8), (3, 5)])
def test_the_matched_bottleneck_has_as_many_weights_as_the_query_projection(heads, head_dim):
    width = heads * head_dim
    r = NonlinearQuery().bottleneck_size(16, width)
    assert abs(r * (16 + width) - 16 * width) <= (16 + width) / 2
    if width == 16:
        assert r == 8


def test_a_head_scoped_output_norm_normalises_each_head_by_itself():
    layer = layer_of("standard", query=NonlinearQuery(output_norm_scope="head"))
    query = layer.rounds[0].query
    with torch.no_grad():
        query.output_norm.weight.fill_(1.0)
    heads = query.correction(text()).detach().unflatten(-1, (4, 4))
    assert largest_difference(heads.mean(-1), torch.zeros_like(heads.mean(-1))) < 1e-12
    spread = heads.std(-1, correction=0)
    assert float((spread - 1).abs().max()) < 0.1  # epsilon beside small variances
    assert query.output_norm.weight.shape == (16,)


@pytest.mark.parametrize("activation", ["silu", "relu", "relu-squared"])
def test_other_activations_and_norms_compute_what_they_say(activation):
    query = NonlinearQuery(activation=activation, input_norm="layer", output_norm="none", anchor="none", gain=1.0)
    module = query.build(6, 6, 3, bias=True).double()
    x = torch.randn(5, 6).double()
    hidden = torch.nn.functional.layer_norm(x, (6,)) @ module.down_proj.weight.T + module.down_proj.bias
    expected = {
        "silu": hidden * torch.sigmoid(hidden),
        "relu": hidden.clamp(min=0),
        "relu-squared": hidden.clamp(min=0) ** 2,
    }[activation]
    assert_close(module(x), expected @ module.up_proj.weight.T + module.up_proj.bias)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NonlinearQuery(bottleneck=0), "bottleneck must be at least 1 or None, got 0"),
        (lambda: NonlinearQuery(activation="tanh"), "activation: expected one of 'gelu', .* got 'tanh'"),
        (lambda: NonlinearQuery(output_norm="batch"), "output_norm: expected one of .* got 'batch'"),
        (lambda: LinearQuery(anchor="linear"), "anchor: expected one of 'none', 'identity', got 'linear'"),
        (lambda: IdentityQuery(anchor_fit="pad"), "anchor_fit: expected one of .* got 'pad'"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_query_biases_follow_the_layers_bias():
    names = {name for name, _ in Attention(attention_config("nonlinear-query", hidden_size=8, num_heads=2, bias=True))
             .rounds[0].query.named_parameters()}  # fmt: skip
    assert {"down_proj.bias", "up_proj.bias", "output_norm.bias"} <= names
    assert "input_norm.bias" not in names, "an RMSNorm has no bias"
