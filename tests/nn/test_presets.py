"""Presets, their sums, and the configuration of a layer: what a name means, and what is refused with which words."""

import itertools
import json
import tomllib
from dataclasses import replace

import pytest
import torch

import heedful.nn
from heedful.nn import (
    PRESETS,
    Attention,
    AttentionConfig,
    Boosting,
    HeadOutput,
    MultiTokenRule,
    NonlinearQuery,
    Rotary,
    TwicingRule,
    YarnScaling,
    attention_config,
)
from heedful.nn.presets import preset_sections
from heedful.schema import from_mapping, to_mapping
from toml_values import as_toml

SIZES = {"hidden_size": 64, "num_heads": 4}
PAIRS = [f"{a}+{b}" for a, b in itertools.combinations(PRESETS, 2)]


@pytest.mark.parametrize("names", PAIRS)
def test_every_pair_builds_or_is_refused_with_both_names(names):
    first, second = names.split("+")
    sections = [set(PRESETS[name].sections) for name in (first, second)]
    if sections[0] & sections[1]:
        with pytest.raises(ValueError, match=rf"'{first}' and '{second}' both choose .*; keep one"):
            attention_config(names, **SIZES)
    elif second == "differential-v2" and "query" in sections[0]:
        with pytest.raises(ValueError, match=rf"'{first}\+{second}' does not fit: .* got 128 and 64; choose"):
            attention_config(names, **SIZES)
    else:
        config = attention_config(names, **SIZES)
        assert Attention(config).config == config


@pytest.mark.parametrize("names", [n for n in PAIRS if not set.intersection(*(set(PRESETS[p].sections)
                                                                             for p in n.split("+")))])  # fmt: skip
def test_a_sum_is_the_union_of_its_presets_sections_in_any_order(names):
    first, second = names.split("+")
    expected = {**PRESETS[first].sections, **PRESETS[second].sections}
    assert preset_sections(names) == preset_sections(f"{second} + {first}") == expected


def test_a_sum_leaves_no_mechanism_out():
    config = attention_config("boosted+nonlinear-query+multi-token", **SIZES)
    assert config.boosting == Boosting()
    assert config.query == NonlinearQuery()
    assert config.rule == MultiTokenRule()
    assert config.head_output == HeadOutput(gate="scalar")


def test_standard_adds_nothing_to_a_sum():
    assert attention_config("standard+twicing", **SIZES) == attention_config("twicing", **SIZES)


def test_a_given_field_replaces_the_presets_section_as_a_whole():
    assert attention_config("boosted-input-kv", boosting=Boosting(rounds=3), **SIZES).boosting == Boosting(rounds=3)
    assert attention_config("multi-token", head_output=None, **SIZES).head_output is None


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("boost", "boosted"),
        ("nonlinear_query", "nonlinear-query"),
        ("multitoken", "multi-token"),
        ("diferential-v2", "differential-v2"),
        ("boosted+twiceing", "twicing"),
    ],
)
def test_an_unknown_preset_suggests_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown preset .* Did you mean '{nearest}'"):
        attention_config(name, **SIZES)


@pytest.mark.parametrize("name", ["", "+", "boosted+", "zzz"])
def test_a_hopeless_preset_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"unknown preset .* Known: boosted, boosted-input-kv, differential"):
        attention_config(name, **SIZES)


def test_a_preset_twice_is_refused():
    with pytest.raises(ValueError, match="'boosted' stands twice in 'boosted\\+twicing\\+boosted'; name it once"):
        attention_config("boosted+twicing+boosted", **SIZES)


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ValueError, match=r"no field 'num_head'\. Did you mean 'num_heads'"):
        attention_config("standard", hidden_size=64, num_head=4)
    with pytest.raises(ValueError, match=r"needs num_heads=\.\.\., which has no default"):
        attention_config("standard", hidden_size=64)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_what_it_is_and_where_from(name):
    assert PRESETS[name].description
    assert PRESETS[name].source


RICH = {
    "num_kv_heads": 2,
    "rotary": Rotary(layout="interleaved", scaling=YarnScaling(factor=2.0, original_max_positions=64)),
    "window": 7,
    "dropout": 0.25,
    "scale": 0.3,
    "layer_index": 3,
    "output_bias": True,
}


@pytest.mark.parametrize("names", [*PRESETS, "boosted+nonlinear-query+multi-token", "nonlinear-query+multi-token-v1"])
def test_repr_json_and_toml_rebuild_every_preset(names):
    for fields in ({}, RICH):
        config = attention_config(names, **SIZES, **fields)
        assert eval(repr(config), vars(heedful.nn)) == config
        plain = to_mapping(config)
        assert from_mapping(AttentionConfig, json.loads(json.dumps(plain))) == config
        assert from_mapping(AttentionConfig, tomllib.loads(f"layer = {as_toml(plain)}")["layer"]) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"num_heads": -1}, "num_heads must be at least 1, got -1"),
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"num_heads": 5}, "num_heads must divide hidden_size, got 5 and 64; change one or give head_dim"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads, got 3 and 4"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, r"dropout must be in \[0, 1\), got nan"),
        ({"backend": "spda"}, "unknown backend 'spda'. Did you mean 'sdpa'"),
        ({"backend": "blockwise"}, "standard attention has no blockwise backend; it has sdpa, reference"),
        ({"rule": TwicingRule(), "backend": "sdpa", "dropout": 0.1}, "both passes must use the same dropped"),
    ],
)
def test_contradictory_layers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        attention_config("standard", **{**SIZES, **fields})


def test_the_place_of_a_layer_is_part_of_its_configuration():
    config = attention_config("multi-token", **SIZES)
    assert config.for_layer(3) == replace(config, layer_index=3)
    assert Attention(config.for_layer(3)).rounds[0].rule.kq_pre is None
    assert Attention(config.for_layer(2)).rounds[0].rule.kq_pre is not None


def test_a_layer_refuses_inputs_of_another_shape():
    layer = Attention(attention_config("standard", **SIZES))
    for shape in ((2, 5, 32), (5, 64), (2, 3, 5, 64)):
        with pytest.raises(ValueError, match=r"hidden_size = 64\), got \("):
            layer(torch.zeros(shape))
    bidirectional = Attention(attention_config("standard", is_causal=False, **SIZES))
    with pytest.raises(ValueError, match="not causal cannot be decoded"):
        bidirectional(torch.zeros(1, 5, 64), None, bidirectional.empty_state())


def test_biases_of_the_projections_can_be_chosen_apart_from_the_output():
    for bias, output_bias, expected in ((True, None, (True, True)), (False, True, (False, True)),
                                        (True, False, (True, False))):  # fmt: skip
        layer = Attention(attention_config("standard", bias=bias, output_bias=output_bias, **SIZES))
        assert (layer.rounds[0].k_proj.bias is not None, layer.o_proj.bias is not None) == expected
