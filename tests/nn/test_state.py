"""Decoding states are immutable values of the promised size: going back, branching, and counting their bytes."""

import copy

import pytest
import torch
from layers_for_nn import decode, layer_of, run, text

from heedful.models import decoder_config
from heedful.models.counting import cache_bytes_per_token, fixed_cache_bytes
from heedful.nn import PRESETS, MultiTokenRule, Rotary
from heedful.support import SUMS
from tolerance import assert_close, largest_difference

ALL = [*PRESETS, *SUMS]


@pytest.mark.parametrize("names", ALL)
def test_an_earlier_state_can_be_continued_twice(names):
    """Speculation and rollback: reading on changes nothing about the state read from."""
    layer = layer_of(names, rotary=Rotary(), num_kv_heads=2)
    x, other = text(12), text(13)[:, :12]
    _, state = decode(layer, x, [7])
    before = copy.deepcopy([(r.key, r.value, r.memory) for r in state.rounds])
    first, _ = decode(layer, x[:, 7:], [1, 1, 3], state)
    decode(layer, other[:, 7:], [3, 2], state)
    again, _ = decode(layer, x[:, 7:], [1, 1, 3], state)
    assert largest_difference(first, again) == 0.0
    for kept, (key, value, memory) in zip(state.rounds, before, strict=True):
        for now, then in ((kept.key, key), (kept.value, value), (kept.memory, memory)):
            assert (now is None) == (then is None)
            assert now is None or torch.equal(now, then)
    assert_close(first, run(layer, x)[:, 7:])


@pytest.mark.parametrize("names", ALL)
def test_a_state_holds_exactly_the_bytes_that_are_counted(names):
    fields = {"hidden_size": 16, "num_heads": 4, "num_kv_heads": 2}
    config = decoder_config(names, vocab_size=4, num_layers=3, max_positions=64, **fields)
    for index in (1, 2):  # without and with convolutions
        layer = layer_of(names, num_kv_heads=2, layer_index=index)
        _, state = decode(layer, text(30, batch=3), [30])
        one = decoder_config(names, vocab_size=4, num_layers=1, max_positions=64, **fields)
        counted = 30 * cache_bytes_per_token(one, 8)
        past_queries = fixed_cache_bytes(config, 8) if index == 2 else 0
        assert state.nbytes() == 3 * (counted + past_queries)
        assert state.length == 30


def test_boosting_keeps_a_cache_per_round_twicing_one_more_stream_and_kernels_ten_queries():
    fields = {"vocab_size": 4, "num_layers": 1, "max_positions": 64, "hidden_size": 64, "num_heads": 4}
    standard = cache_bytes_per_token(decoder_config("standard", **fields))
    assert standard == 2 * 64 * 4
    assert cache_bytes_per_token(decoder_config("boosted", **fields)) == 2 * standard
    assert cache_bytes_per_token(decoder_config("twicing", **fields)) == 3 * standard // 2
    for names in ("differential", "differential-v2", "multi-token", "talking-heads", "nonlinear-query"):
        assert cache_bytes_per_token(decoder_config(names, **fields)) == standard
    everywhere = MultiTokenRule(convolution_every=1, convolution_offset=0)
    assert fixed_cache_bytes(decoder_config(rule=everywhere, **fields)) == 10 * 64 * 4
    assert fixed_cache_bytes(decoder_config("multi-token", **fields)) == 0, "layer 0 carries no kernels"
    assert cache_bytes_per_token(decoder_config("standard", num_kv_heads=1, **fields), 2) == 2 * 16 * 2


def test_a_call_without_a_state_returns_none():
    layer = layer_of("multi-token")
    assert layer(text())[1] is None
    assert layer.empty_state().length == layer.empty_state().nbytes() == 0


@pytest.mark.parametrize("names", ALL)
def test_rejected_tokens_are_taken_back(names):
    """A draft of five tokens is read at once, two are kept, three others follow; then one more step back."""
    layer = layer_of(names, rotary=Rotary(), num_kv_heads=2)
    x, other = text(16), text(17)[:, :16]
    x[:, 12:] = other[:, 12:]
    draft = torch.cat([x[:, :12], text(18)[:, 12:15]], dim=1)
    _, state = decode(layer, draft, [10, 5], layer.empty_state(rollback=5))
    state = state.rollback(3)
    assert state.length == 12
    found, state = decode(layer, x[:, 12:], [3, 1], state)
    assert_close(found, run(layer, x)[:, 12:])
    found, _ = decode(layer, x[:, 11:], [5], state.rollback(2).rollback(3))
    assert_close(found, run(layer, x)[:, 11:])


def test_a_state_goes_back_only_as_far_as_it_was_made_for():
    layer = layer_of("multi-token")
    _, state = decode(layer, text(9), [9], layer.empty_state(rollback=4))
    with pytest.raises(ValueError, match=r"go back by 0 to 4 tokens, got 5; .* made with empty_state\(rollback=4\)"):
        state.rollback(5)
    with pytest.raises(ValueError, match="go back by 0 to 1 tokens, got 2"):
        state.rollback(3).rollback(2)
    with pytest.raises(ValueError, match="got -1"):
        state.rollback(-1)
    _, short = decode(layer, text(2), [2], layer.empty_state(rollback=4))
    with pytest.raises(ValueError, match="go back by 0 to 2 tokens, got 3; it holds 2 tokens"):
        short.rollback(3)
    assert short.rollback(2).length == 0
    with pytest.raises(ValueError, match="0 or more tokens, got -2"):
        layer.empty_state(rollback=-2)


@pytest.mark.parametrize("names", ["multi-token", "standard"])
def test_a_state_that_went_back_must_first_go_on_again(names):
    """Else the past queries would not suffice: three back, one on, then at most two of the four."""
    layer = layer_of(names)
    x = text(30)
    _, state = decode(layer, x[:, :25], [25], layer.empty_state(rollback=4))
    _, state = decode(layer, x[:, 22:23], [1], state.rollback(3))
    with pytest.raises(ValueError, match="go back by 0 to 2 tokens, got 3"):
        state.rollback(3)
    found, state = decode(layer, x[:, 21:], [2, 7], state.rollback(2))
    assert_close(found, run(layer, x)[:, 21:])
    assert state.rollback(4).length == 26


def test_going_back_costs_as_many_queries_as_one_may_go_back():
    layer = layer_of("multi-token")
    for spare in (0, 4):
        _, state = decode(layer, text(30), [30], layer.empty_state(rollback=spare))
        assert state.rounds[0].memory.shape[2] == layer.rounds[0].rule.halo + spare
