"""Counting parameters, multiply-adds and caches: the published numbers, and formulas written out here."""

import functools
from dataclasses import replace

import pytest
import torch
from tiny_models import config_of

from heedful.models import DecoderLM, decoder_config
from heedful.models.counting import (
    attention_multiply_adds,
    cache_bytes_per_token,
    count_parameters,
    multiply_adds_per_token,
)
from heedful.nn import PRESETS, Boosting, DifferentialV2Rule, MultiTokenRule, NonlinearQuery, Rotary


def boosted_paper(names="standard", width=256, layers=4, **fields):
    return decoder_config(
        names,
        vocab_size=16384,
        num_layers=layers,
        max_positions=256,
        hidden_size=width,
        num_heads=4,
        bias=True,
        **fields,
    )


def nonlinear_paper(names="standard", width=768, heads=12, **fields):
    return decoder_config(names, vocab_size=50304, num_layers=12, max_positions=1024, hidden_size=width,
                          num_heads=heads, **fields)  # fmt: skip


MULTI_TOKEN_SIZES = {"300M": (1024, 20, 16), "550M": (1280, 24, 10), "880M": (1536, 24, 16), "1B": (2048, 24, 16)}


def multi_token_paper(size, names="standard", **fields):
    width, layers, heads = MULTI_TOKEN_SIZES[size]
    return decoder_config(
        names, vocab_size=128_256, num_layers=layers, max_positions=2048, hidden_size=width, num_heads=heads,
        norm="rms", activation="swiglu", position_embedding="none", rotary=Rotary(theta=1e5, layout="interleaved"),
        **fields,
    )  # fmt: skip


@functools.cache
def multi_token_total(size, names="standard"):
    return count_parameters(multi_token_paper(size, names)).total


def extra(size, names):
    return multi_token_total(size, names) - multi_token_total(size)


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (boosted_paper(), 7_419_392),
        (boosted_paper("twicing"), 7_419_392),
        (boosted_paper("boosted"), 8_734_208),
        (boosted_paper("boosted-input-kv"), 8_734_208),
        (boosted_paper(width=288), 8_789_184),
        (boosted_paper(layers=6), 8_998_912),
        (boosted_paper(boosting=Boosting(rounds=3)), 10_049_024),
        (boosted_paper(boosting=Boosting(rounds=4)), 11_363_840),
        (boosted_paper(boosting=Boosting(gate="none")), 8_208_896),
    ],
)
def test_totals_of_the_boosted_paper(config, total):
    assert count_parameters(config).total == total


@pytest.mark.parametrize(
    ("config", "without_embeddings"),
    [
        (nonlinear_paper(), 84_953_856),
        (nonlinear_paper("identity-query"), 77_875_968),
        (nonlinear_paper("nonlinear-query"), 84_972_288),
        (nonlinear_paper("nonlinear-query-linear-control"), 84_972_288),
        (nonlinear_paper(intermediate_size=3648), 95_570_688),
        (nonlinear_paper(intermediate_size=3456), 92_031_744),
        (nonlinear_paper(intermediate_size=3552), 93_801_216),
        (nonlinear_paper(intermediate_size=3840), 99_109_632),
        (nonlinear_paper(width=816), 95_903_664),
        (nonlinear_paper(width=744), 79_727_784),
        (nonlinear_paper("identity-query", intermediate_size=3456), 84_953_856),
        (nonlinear_paper(intermediate_size=2688), 77_875_968),
    ],
)
def test_totals_of_the_nonlinear_query_paper_without_embeddings(config, without_embeddings):
    assert count_parameters(config).without_embeddings == without_embeddings


def test_totals_of_the_nonlinear_query_paper_with_embeddings():
    assert count_parameters(nonlinear_paper()).total == 124_373_760
    assert count_parameters(nonlinear_paper("identity-query")).total == 117_295_872


@pytest.mark.parametrize(
    ("names", "total"),
    [
        ("standard", 876_553_728),
        ("differential", 876_567_552),
        ("talking-heads", 876_566_016),
        ("multi-token", 876_583_320),
        ("multi-token-v1", 876_553_728 + 9_408),
        ("differential-v2", 933_766_656),
    ],
)
def test_totals_of_the_multi_token_paper(names, total):
    assert multi_token_total("880M", names) == total


def test_a_deeper_control_of_the_multi_token_paper():
    assert count_parameters(replace(multi_token_paper("880M"), num_layers=25)).total == 904_868_352


@pytest.mark.parametrize(
    ("size", "base", "second", "first", "differential", "talking"),
    [
        ("300M", 388_277_248, 23_380, 7_200, 7_680, 10_240),
        ("550M", 651_818_240, 18_888, 7_512, 18_432, 4_800),
        ("1B", 1_495_894_016, 31_128, 10_176, 18_432, 12_288),
    ],
)
def test_increments_at_the_other_sizes(size, base, second, first, differential, talking):
    assert multi_token_total(size) == base
    assert extra(size, "multi-token") == second
    assert extra(size, "multi-token-v1") == first
    assert extra(size, "differential") == differential
    assert extra(size, "talking-heads") == talking


@pytest.mark.parametrize(("key_taps", "added"), [(9, 144), (15, 240)])
def test_the_toy_model_of_the_multi_token_paper(key_taps, added):
    def toy(**fields):
        return decoder_config(
            vocab_size=32, num_layers=4, max_positions=321, hidden_size=256, num_heads=2, norm="rms",
            activation="swiglu", intermediate_size=768, position_embedding="none", rotary=Rotary(theta=1e5), **fields,
        )  # fmt: skip

    rule = MultiTokenRule(
        post_convolution=False, query_kernel_size=2, key_kernel_size=key_taps, pre_mixing=None, post_mixing=None,
        convolution_every=1, convolution_offset=0,
    )  # fmt: skip
    assert count_parameters(toy()).total == 3_418_368
    assert count_parameters(toy(rule=rule)).total == 3_418_368 + added


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_parameters_follow_the_formula_of_the_boosted_paper(rounds):
    vocabulary, positions, width, layers = 101, 37, 24, 3
    config = decoder_config(
        vocab_size=vocabulary, num_layers=layers, max_positions=positions, hidden_size=width, num_heads=4, bias=True,
        boosting=Boosting(rounds=rounds),
    )  # fmt: skip
    d = width
    layer = rounds * (3 * d * d + 3 * d) + (rounds - 1) * (2 * d * d + d) + d * d + d + 8 * d * d + 5 * d + 4 * d
    assert count_parameters(config).total == vocabulary * d + positions * d + layers * layer + 2 * d


@pytest.mark.parametrize("names", [*PRESETS, "boosted+nonlinear-query+multi-token"])
def test_the_meta_count_is_the_number_of_real_weights(names):
    for fields in ({}, {"tie_embeddings": False, "position_embedding": "none", "num_kv_heads": 2, "bias": True}):
        config = config_of(names, **fields)
        model = DecoderLM(config)
        count = count_parameters(config)
        assert count.total == sum(p.numel() for p in model.parameters())
        tables = [model.token_embedding.weight]
        tables += [] if model.head is None else [model.head.weight]
        tables += [] if model.position_embedding is None else [model.position_embedding.weight]
        assert count.embeddings == sum(table.numel() for table in tables)
        assert count.without_embeddings == count.total - count.embeddings


def test_counting_draws_no_random_numbers():
    before = torch.get_rng_state()
    count_parameters(config_of("differential"))
    count_parameters(config_of("multi-token", initializer_range=None))
    assert torch.equal(torch.get_rng_state(), before)


def test_multiply_adds_follow_the_boosted_paper():
    d, context = 256, 256
    boosted, deeper = boosted_paper("boosted"), boosted_paper(layers=6)
    assert multiply_adds_per_token(boosted, context) == 9_699_328
    assert multiply_adds_per_token(deeper, context) == 9_699_328, "six standard layers cost exactly the same"
    assert multiply_adds_per_token(boosted_paper(), context) == 4 * 393_216 + 4 * 8 * d * d + 16384 * d
    assert attention_multiply_adds(boosted_paper().layers[0], context) == 393_216
    assert attention_multiply_adds(boosted_paper("twicing").layers[0], context) == 458_752
    assert attention_multiply_adds(boosted.layers[0], context) == 851_968
    assert attention_multiply_adds(boosted_paper(width=288).layers[0], context) == 479_232
    for rounds in (1, 2, 3, 4):
        config = boosted_paper(boosting=Boosting(rounds=rounds))
        layer = rounds * (3 * d * d + 2 * context * d) + (rounds - 1) * 2 * d * d + d * d + 8 * d * d
        assert multiply_adds_per_token(config, context) == 4 * layer + 16384 * d


def test_a_nonlinear_query_costs_what_its_projection_did():
    standard, nonlinear = nonlinear_paper(), nonlinear_paper("nonlinear-query")
    assert multiply_adds_per_token(standard, 1024) == multiply_adds_per_token(nonlinear, 1024)
    identity = multiply_adds_per_token(nonlinear_paper("identity-query"), 1024)
    assert multiply_adds_per_token(standard, 1024) - identity == 12 * 768 * 768


def test_maps_cost_what_the_multi_token_specification_says():
    """Per pair and head: 2d; plus 2 c_q c_k in convolving layers and 2 c_h; differential 2d and, in version 2, 4d."""
    heads, d, context = 16, 96, 2048

    def per_pair(names, layer):
        config = multi_token_paper("880M", names).layers[layer]
        wide, narrow = (attention_multiply_adds(config, n) for n in (context, context - 1))
        return (wide - narrow) / heads

    assert per_pair("standard", 2) == per_pair("differential", 2) == 2 * d
    assert per_pair("talking-heads", 2) == 2 * d + 2 * heads
    assert per_pair("multi-token", 2) == 2 * d + 2 * 66 + 2 * heads
    assert per_pair("multi-token", 3) == 2 * d + 2 * heads
    assert per_pair("multi-token-v1", 2) == 2 * d + 66 + 2
    assert per_pair("differential-v2", 2) == 4 * d
    assert per_pair("twicing", 2) == 3 * d


def test_the_whole_multi_token_model_costs_2_7_percent_more_over_causal_pairs():
    standard, multi_token = multi_token_paper("880M"), multi_token_paper("880M", "multi-token")
    causal = 2048 // 2  # keys that a query sees on average
    more = multiply_adds_per_token(multi_token, causal) / multiply_adds_per_token(standard, causal) - 1
    assert more == pytest.approx(0.027, abs=0.0005)


def test_differential_v2_pays_for_its_projections():
    width, heads, context = 64, 4, 32
    sizes = {"vocab_size": 8, "num_layers": 1, "max_positions": 32, "hidden_size": width, "num_heads": heads}
    config = decoder_config(rule=DifferentialV2Rule(), **sizes).layers[0]
    projections = width * 2 * width + 2 * width * width + width * width + width * heads
    assert attention_multiply_adds(config, context) == projections + 4 * width * context


def test_a_window_limits_the_keys_that_are_counted():
    inside, full = config_of(window=5), config_of()
    assert multiply_adds_per_token(inside, 100) == multiply_adds_per_token(full, 5)
    assert multiply_adds_per_token(inside, 3) == multiply_adds_per_token(full, 3)


@pytest.mark.parametrize("names", ["standard", "boosted", "differential", "nonlinear-query", "boosted+differential"])
def test_projections_are_counted_as_the_layer_has_them(names):
    """With no context at all, what remains is one multiply-add for every weight of a matrix in the layer."""
    config = config_of(names, num_kv_heads=2)
    layer = DecoderLM(config).block_list[0].attention
    matrices = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    pairs = attention_multiply_adds(config.layers[0], 2) - attention_multiply_adds(config.layers[0], 1)
    assert attention_multiply_adds(config.layers[0], 1) - pairs == matrices


def test_grouped_heads_shrink_the_cache():
    full, grouped = config_of(), config_of(num_kv_heads=1)
    assert cache_bytes_per_token(full) == 4 * cache_bytes_per_token(grouped)
    boosted = config_of("boosted+nonlinear-query", query=NonlinearQuery(bottleneck=3))
    assert cache_bytes_per_token(boosted) == 2 * cache_bytes_per_token(full)
