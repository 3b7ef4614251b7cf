"""q = gain [x, x W_rest]."""

import json

import pytest
import torch

import heedful.nn
from heedful.nn import Attention, AttentionConfig, IdentityQuery, LinearQuery, PartialIdentityQuery
from heedful.schema import from_mapping, to_mapping
from tolerance import assert_close

SIZES = {"hidden_size": 8, "num_heads": 3, "head_dim": 4}


def test_is_a_linear_query_whose_first_columns_are_the_identity():
    torch.manual_seed(1)
    layer = Attention(AttentionConfig(**SIZES, query=PartialIdentityQuery(gain=0.5), bias=True)).double()
    plain = Attention(AttentionConfig(**SIZES, query=LinearQuery(gain=0.5), bias=True)).double()
    rest = layer.rounds[0].query.rest_proj
    assert rest.weight.shape == (4, 8)
    state = {name: tensor for name, tensor in layer.state_dict().items() if ".query." not in name}
    state["rounds.0.query.q_proj.weight"] = torch.cat([torch.eye(8, dtype=torch.float64), rest.weight.detach()])
    state["rounds.0.query.q_proj.bias"] = torch.cat([torch.zeros(8, dtype=torch.float64), rest.bias.detach()])
    plain.load_state_dict(state)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert_close(layer(x)[0], plain(x)[0])


def test_configuration_round_trip_and_cost():
    config = AttentionConfig(**SIZES, query=PartialIdentityQuery(gain=2.0))
    assert from_mapping(AttentionConfig, json.loads(json.dumps(to_mapping(config)))) == config
    assert eval(repr(config), vars(heedful.nn)) == config
    assert config.query.multiply_adds(8, 12) == 32


@pytest.mark.parametrize("head_dim", [2, None])
def test_a_query_that_is_not_wider_is_refused(head_dim):
    with pytest.raises(ValueError, match=r"above hidden_size, got .* and 8; use IdentityQuery"):
        AttentionConfig(hidden_size=8, num_heads=4, head_dim=head_dim, query=PartialIdentityQuery())
    assert AttentionConfig(hidden_size=8, num_heads=4, query=IdentityQuery()).query_width == 8


def test_under_autocast():
    layer = Attention(AttentionConfig(**SIZES, query=PartialIdentityQuery()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = layer(torch.randn(1, 4, 8))
    assert bool(y.isfinite().all())
