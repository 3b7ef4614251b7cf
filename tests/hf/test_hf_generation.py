"""`generate` with every cache, batch and strategy equals the greedy continuation without a cache, token for token."""

import pytest
import torch
from tiny_hf import MECHANISMS, greedy, model_of, tokens_of
from transformers import DynamicCache, StaticCache

from heedful.hf import make_cache

HARD = ("boosted+nonlinear-query+multi-token", "boosted+twicing", "multi-token-v1", "differential-v2")
"""Mechanisms that remember everything there is to remember: past queries, further rounds, corrected values."""


def uncached(model, tokens, new=10, **options):
    """The continuation by whole passes, computed here and not by `generate`."""
    mask = options.get("attention_mask", torch.ones_like(tokens))
    with torch.no_grad():
        for _ in range(new):
            chosen = model(tokens, attention_mask=mask, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            tokens, mask = torch.cat([tokens, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)
    return tokens


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", MECHANISMS)
def test_generating_with_a_cache_equals_whole_passes(name, cache):
    model, tokens = model_of(name), tokens_of()
    assert torch.equal(greedy(model, tokens, cache_implementation=cache), uncached(model, tokens))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", MECHANISMS)
def test_rows_padded_on_the_left_continue_as_they_would_alone(name, cache):
    model, long, short = model_of(name), tokens_of(9, batch=1), tokens_of(4, batch=1, seed=1)
    batch = torch.cat([long, torch.nn.functional.pad(short, (5, 0))])
    mask = torch.ones_like(batch)
    mask[1, :5] = 0
    both = greedy(model, batch, attention_mask=mask, cache_implementation=cache)
    assert torch.equal(both[:1], uncached(model, long))
    assert torch.equal(both[1:, 5:], uncached(model, short))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", HARD)
def test_beam_search_reorders_everything_that_is_remembered(name, cache):
    model, tokens = model_of(name), tokens_of()
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    found = greedy(model, tokens, num_beams=3, attention_mask=mask, cache_implementation=cache)
    assert torch.equal(found, greedy(model, tokens, num_beams=3, attention_mask=mask, use_cache=False))
    assert not torch.equal(found, greedy(model, tokens, attention_mask=mask))  # the search changed something


@pytest.mark.parametrize("size", [1, 2, 4, 11])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", HARD)
def test_a_prompt_read_in_pieces_gives_the_same(name, cache, size):
    model, tokens = model_of(name), tokens_of()
    found = greedy(model, tokens, cache_implementation=cache, prefill_chunk_size=size)
    assert torch.equal(found, uncached(model, tokens))


@pytest.mark.parametrize("name", MECHANISMS)
def test_drafts_of_another_model_change_nothing(name):
    """Rejected drafts are taken back: by a bad assistant nearly all, by the model itself none."""
    model, tokens = model_of(name), tokens_of(batch=1)
    expected = uncached(model, tokens, new=14)
    for assistant in (model_of(name, seed=1), model):
        assistant.generation_config.num_assistant_tokens = 5
        found = greedy(model, tokens, new=14, assistant_model=assistant)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", HARD)
def test_drafts_looked_up_in_the_prompt_change_nothing(name):
    model, tokens = model_of(name), tokens_of(5, batch=1).repeat(1, 3)
    found = greedy(model, tokens, new=14, prompt_lookup_num_tokens=3)
    assert torch.equal(found, uncached(model, tokens, new=14))


@pytest.mark.parametrize("name", HARD)
def test_layers_with_windows_generate_with_both_caches(name):
    model, tokens = (
        model_of(name, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
        tokens_of(),
    )
    expected = uncached(model, tokens)
    for cache in ("dynamic", "static"):
        assert torch.equal(greedy(model, tokens, cache_implementation=cache), expected)
    assert not torch.equal(expected, uncached(model_of(name), tokens))  # the window hides something


@pytest.mark.parametrize(
    "fields",
    [
        {"position_embedding": "learned"},
        {"num_key_value_heads": 2, "head_dim": 6},
        {"share_layers": True},
        {"norm": "layer", "norm_position": "post", "mlp_bias": True, "hidden_act": "gelu_new", "head_bias": True},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ],
)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_every_kind_of_decoder_generates(fields, cache):
    model, tokens = model_of("multi-token", **fields), tokens_of()
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    found = greedy(model, tokens, attention_mask=mask, cache_implementation=cache)
    assert torch.equal(found, uncached(model, tokens, attention_mask=mask))


@pytest.mark.parametrize("name", HARD)
def test_several_samples_of_a_prompt_share_their_cache(name):
    model, tokens = model_of(name), tokens_of(batch=1)
    torch.manual_seed(0)
    cached = model.generate(tokens, do_sample=True, num_return_sequences=3, max_new_tokens=6, pad_token_id=0)
    torch.manual_seed(0)
    whole = model.generate(
        tokens, do_sample=True, num_return_sequences=3, max_new_tokens=6, pad_token_id=0, use_cache=False
    )
    assert torch.equal(cached, whole)
    assert len({tuple(row) for row in cached.tolist()}) > 1


@pytest.mark.parametrize(
    "make",
    [
        DynamicCache,
        lambda: None,
        "config",
        "static",
        "own",
        "own static",
    ],
)
def test_a_conversation_goes_on_with_the_cache_of_the_last_turn(make):
    """Users pass the caches of transformers, or ours; all of them carry what the layers remember."""
    model, tokens = model_of("boosted+nonlinear-query+multi-token"), tokens_of()
    made = {
        "config": lambda: DynamicCache(config=model.config),
        "static": lambda: StaticCache(config=model.config, max_cache_len=40),
        "own": lambda: make_cache(model.config),
        "own static": lambda: make_cache(model.config, 40),
    }
    cache = made.get(make, make)()
    with torch.no_grad():
        outputs = model(tokens[:, :6], past_key_values=cache, use_cache=True)
        cache = outputs["cache"] if "cache" in outputs else outputs["past_key_values"]
        later = model(tokens[:, 6:], past_key_values=cache).logits
        whole = model(tokens).logits
    torch.testing.assert_close(later, whole[:, 6:], rtol=1e-4, atol=1e-4)
    assert int(cache.get_seq_length()) == 11
