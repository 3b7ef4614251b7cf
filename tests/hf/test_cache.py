"""Caches: what they refuse, and taking tokens back."""

import pytest
import torch
from tiny_hf import MECHANISMS, config_of, tokens_of
from tiny_hf import model_of as single_precision_model_of
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, QuantizedCache, StaticCache

from heedful.hf import make_cache
from tolerance import assert_close


def model_of(*arguments, **fields):
    return single_precision_model_of(*arguments, **fields).double()


def read(model, tokens, cache):
    with torch.no_grad():
        return model(tokens, past_key_values=cache).logits


@pytest.mark.parametrize("name", MECHANISMS)
def test_tokens_that_were_recorded_can_be_taken_back(name):
    """Also several calls on; what follows is as if they had never been read."""
    model, tokens, other = model_of(name), tokens_of(12), tokens_of(12, seed=1)
    expected = read(model, tokens, None)
    cache = make_cache(model.config)
    read(model, tokens[:, :8], cache)
    cache.activate_past_recording()
    read(model, other[:, :3], cache)
    read(model, other[:, 3:5], cache)
    cache.crop(-5)
    assert_close(read(model, tokens[:, 8:10], cache), expected[:, 8:10])
    cache.crop(-1)
    assert_close(read(model, tokens[:, 9:], cache), expected[:, 9:])
    cache.crop(0)
    assert int(cache.get_seq_length()) == 12


def test_without_recording_a_convolution_refuses_and_everything_else_takes_back():
    model, tokens = model_of("multi-token"), tokens_of(12)
    cache = make_cache(model.config)
    read(model, tokens, cache)
    with pytest.raises(ValueError, match=r"call cache\.activate_past_recording\(\) before the tokens are read"):
        cache.crop(-1)
    cache.reset()
    long = tokens.repeat(1, 3)
    read(model, long[:, :32], cache)
    cache.activate_past_recording()
    read(model, long[:, 32:], cache)
    cache.crop(-3)
    with pytest.raises(ValueError, match="cannot take back 2 tokens: this layer convolves over queries and kept what"):
        cache.crop(-2)  # four tokens were recorded, and three of them are gone already
    model = model_of("boosted+twicing")
    expected, cache = read(model, tokens, None), make_cache(model.config)
    read(model, tokens, cache)
    cache.crop(-7)
    assert_close(read(model, tokens[:, 5:], cache), expected[:, 5:])


def test_wrong_numbers_of_tokens_are_refused():
    model, cache = model_of(), make_cache(config_of())
    read(model, tokens_of(5), cache)
    with pytest.raises(ValueError, match=r"crop takes the negative number of tokens to remove, got 3"):
        cache.crop(3)
    with pytest.raises(ValueError, match=r"cannot take back 6 tokens: the cache holds 5"):
        cache.crop(-6)


@pytest.mark.parametrize("max_length", [None, 16])
def test_a_cache_can_be_used_again_after_a_reset(max_length):
    model, tokens = model_of("boosted+multi-token"), tokens_of()
    cache = make_cache(model.config, max_length)
    first = read(model, tokens, cache)
    cache.reset()
    assert int(cache.get_seq_length()) == 0
    assert_close(read(model, tokens, cache), first)


@pytest.mark.parametrize("max_length", [None, 16])
def test_rows_can_be_repeated_and_chosen(max_length):
    model, tokens = model_of("boosted+nonlinear-query+multi-token"), tokens_of()
    expected = read(model, tokens, None)
    cache = make_cache(model.config, max_length)
    read(model, tokens[:, :7], cache)
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([4, 0]))
    found = read(model, tokens[:, 7:].flip(0), cache)
    assert_close(found, expected[:, 7:].flip(0))


def test_a_cache_of_another_model_is_refused():
    model, tokens = model_of("multi-token"), tokens_of()
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4))
    with torch.no_grad():
        output = llama(tokens, use_cache=True)
    foreign = output["cache" if "cache" in output else "past_key_values"]
    with pytest.raises(ValueError, match="this cache was filled by another model: it has 3 layers, 0 of them"):
        read(model, tokens, foreign)
    cache = make_cache(model.config)
    read(model, tokens, cache)
    with pytest.raises(ValueError, match="filled by a model with other attention layers"):
        read(model_of("boosted"), tokens, cache)
    with pytest.raises(ValueError, match="it has 3 layers, 3 of them of a heedful model, and this model has 4"):
        read(model_of("multi-token", num_hidden_layers=4), tokens, cache)
    with pytest.raises(ValueError, match="cannot be updated by another model"):
        cache.update(torch.zeros(2, 4, 1, 8), torch.zeros(2, 4, 1, 8), 0)


def test_caches_that_cannot_hold_what_layers_remember_are_refused():
    model, tokens = model_of(), tokens_of()
    with pytest.raises(ValueError, match="offloaded caches are not supported"):
        read(model, tokens, DynamicCache(config=model.config, offloading=True))
    windowed = model_of(sliding_window=4)
    with pytest.raises(ValueError, match="does not say how many positions it is for"):
        read(windowed, tokens, StaticCache(config=windowed.config, max_cache_len=20))

    class Quantized(QuantizedCache):
        def __init__(self):
            super(QuantizedCache, self).__init__(layers=[])

    with pytest.raises(ValueError, match="cannot use a Quantized"):
        read(model, tokens, Quantized())


def test_more_positions_than_there_is_room_for_are_refused():
    model, tokens = model_of(), tokens_of()
    with pytest.raises(ValueError, match="has room for 8 positions; it holds 0 and got 11 more"):
        read(model, tokens, make_cache(model.config, 8))
    cache = make_cache(model.config, 12)
    read(model, tokens, cache)
    with pytest.raises(ValueError, match=r"room for 12 positions; it holds 11 and got 2 more"):
        read(model, tokens[:, :2], cache)
    with pytest.raises(ValueError, match="max_position_embeddings = 64, got 66; shorten"):
        read(model, tokens.repeat(1, 6), None)
    cache = make_cache(model.config)
    read(model, tokens, cache)
    with pytest.raises(ValueError, match="the cache holds 2 rows, but this call has 3"):
        read(model, tokens_of(batch=3), cache)
    with pytest.raises(ValueError, match="a static cache of a heedful model cannot take tokens back"):
        make_cache(model.config, 12).crop(-1)


def test_what_a_cache_says_about_itself():
    growing, constant = make_cache(config_of()), make_cache(config_of(), 12)
    assert (growing.is_compileable, constant.is_compileable) == (False, True)
    assert (growing.get_max_length(), constant.get_max_length()) == (-1, 12)
    assert len(growing) == len(constant) == 3


def test_the_backend_may_change_in_the_middle_of_a_text():
    model, tokens = model_of("multi-token"), tokens_of()
    expected, cache = read(model, tokens, None), make_cache(model.config)
    read(model, tokens[:, :5], cache)
    model.set_attn_implementation("blockwise")
    assert_close(read(model, tokens[:, 5:], cache), expected[:, 5:])
    with pytest.raises(ValueError, match="offloaded caches are not supported"):
        cache.layers[0].offload()


@torch.no_grad()
def test_a_compiled_step_stops_where_the_cache_is_full():
    model, tokens, cache = model_of(), tokens_of(), make_cache(config_of(), 6)
    read(model, tokens[:, :5], cache)
    step = torch.compile(model.forward, fullgraph=True, backend="eager")
    step(tokens[:, 5:6], past_key_values=cache)
    with pytest.raises(RuntimeError, match="have room for 6 positions"):
        step(tokens[:, 6:7], past_key_values=cache)
    torch.compiler.reset()
