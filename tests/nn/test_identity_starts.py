"""Mechanisms in the forms that start as the plain layer: for weights that were trained without them."""

import pytest
import torch

from heedful.nn import (
    AnnealedQuery,
    Attention,
    AttentionConfig,
    BlendedHeadOutput,
    Boosting,
    HeadOutput,
    IdentityQuery,
    MultiTokenRule,
    NonlinearQuery,
)
from heedful.schema import from_mapping
from tolerance import assert_close

SIZES = {"hidden_size": 16, "num_heads": 4, "num_kv_heads": 2}
FORMS = {
    "boosting": {"boosting": Boosting(rounds=3, gate="scaled-vector")},
    "boosting from the input": {"boosting": Boosting(kv_source="input", gate="scaled-vector", gate_bias=False)},
    "added nonlinear query": {"query": NonlinearQuery(anchor="linear", gain=1.0, output_gain_start=0.0)},
    "annealed query": {"query": AnnealedQuery()},
    "head norm and gate": {"head_output": BlendedHeadOutput()},
    "a gate per channel": {"head_output": BlendedHeadOutput(norm=False, gate="elementwise")},
    "multi-token": {"rule": MultiTokenRule()},
}


def plain_and(fields):
    """A plain layer, and one with these fields that took over its weights; other weights are random."""
    torch.manual_seed(0)
    plain = Attention(AttentionConfig(**SIZES)).double()
    layer = Attention(AttentionConfig(**SIZES, **fields)).double()
    taken = layer.load_state_dict(plain.state_dict(), strict=False)
    assert not taken.unexpected_keys
    return plain, layer, set(taken.missing_keys)


@pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)
def test_it_starts_as_the_plain_layer(fields):
    plain, layer, new = plain_and(fields)
    assert new
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    assert_close(layer(x)[0], plain(x)[0])


@pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)
def test_every_new_parameter_moves_within_two_steps(fields):
    _, layer, new = plain_and(fields)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, target = torch.randn(2, 2, 9, 16, dtype=torch.float64)
    moved = set()
    for step in range(2):
        if step == 1:  # the training moves the coefficient
            for module in layer.modules():
                if hasattr(module, "set_coefficient"):
                    module.set_coefficient(0.1)
        optimizer.zero_grad()
        (layer(x)[0] - target).square().mean().backward()
        moved |= {name for name, p in layer.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
    buffers = {name for name, _ in layer.named_buffers()}
    assert new - buffers <= moved


def test_annealing_ends_at_the_nonlinear_query():
    """At a = 1 the layer is the published one, whatever W_Q holds."""
    torch.manual_seed(0)
    annealed = Attention(AttentionConfig(**SIZES, query=AnnealedQuery()))
    published = Attention(AttentionConfig(**SIZES, query=NonlinearQuery()))
    query = annealed.rounds[0].query
    query.set_coefficient(1.0)
    weights = {name.replace("query.target.", "query."): tensor for name, tensor in annealed.state_dict().items()}
    published.load_state_dict({name: weights[name] for name in published.state_dict()})
    x = torch.randn(2, 9, 16)
    assert torch.equal(annealed(x)[0], published(x)[0])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        query.set_coefficient(1.5)


def test_settings_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="must have anchor 'identity' or 'none', got 'linear'"):
        AnnealedQuery(target=NonlinearQuery(anchor="linear"))
    with pytest.raises(ValueError, match=r"output_gain_start = 0\.0 is the gain of the output norm"):
        NonlinearQuery(output_norm="none", output_gain_start=0.0)
    with pytest.raises(ValueError, match="unknown or missing kind None"):
        from_mapping(AttentionConfig, {**SIZES, "head_output": {"norm": True}})


def test_the_blended_head_output_reaches_the_published_one():
    """At s = 1 the norm is the published norm."""
    torch.manual_seed(0)
    blended = Attention(AttentionConfig(**SIZES, head_output=BlendedHeadOutput(gate="none")))
    published = Attention(AttentionConfig(**SIZES, head_output=HeadOutput()))
    published.load_state_dict(blended.state_dict(), strict=False)
    with torch.no_grad():
        blended.head_output.share.fill_(1.0)
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(blended(x)[0], published(x)[0])


def test_identity_query_is_not_an_identity_start():
    """The counterexample: not every new query keeps the function."""
    torch.manual_seed(0)
    plain = Attention(AttentionConfig(**SIZES))
    layer = Attention(AttentionConfig(**SIZES, query=IdentityQuery()))
    layer.load_state_dict({k: v for k, v in plain.state_dict().items() if "q_proj" not in k})
    x = torch.randn(2, 9, 16)
    assert (layer(x)[0] - plain(x)[0]).abs().max() > 0.01
