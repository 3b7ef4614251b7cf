"""`DecoderConfig` and `decoder_config`: defaults, choice by layer, round trips, refusals."""

import json
import tomllib
from dataclasses import replace

import pytest
from tiny_models import config_of

from heedful.models import DecoderConfig, decoder_config
from heedful.nn import PRESETS, MultiTokenRule, Rotary, TwicingRule, YarnScaling, attention_config
from heedful.schema import from_mapping, to_mapping
from toml_values import as_toml

SIZES = {"vocab_size": 50, "num_layers": 3, "max_positions": 8, "hidden_size": 16, "num_heads": 4}


@pytest.mark.parametrize("names", [*PRESETS, {0: "boosted+nonlinear-query", 2: "multi-token"}])
def test_json_and_toml_rebuild_whole_models(names):
    rotary = Rotary(scaling=YarnScaling(factor=2.0, original_max_positions=4))
    for fields in ({}, {"rotary": rotary, "position_embedding": "none", "initializer_range": None, "norm": "rms"}):
        config = decoder_config(names, **SIZES, **fields)
        plain = to_mapping(config)
        assert from_mapping(DecoderConfig, json.loads(json.dumps(plain))) == config
        assert from_mapping(DecoderConfig, tomllib.loads(f"model = {as_toml(plain)}")["model"]) == config


def test_a_mapping_chooses_by_layer_with_string_or_integer_keys():
    config = decoder_config({"1": "twicing", 2: "boosted"}, default="nonlinear-query", **SIZES)
    assert config.layers == tuple(
        attention_config(names, hidden_size=16, num_heads=4, layer_index=index)
        for index, names in enumerate(("nonlinear-query", "twicing", "boosted"))
    )


def test_fields_of_the_attention_reach_every_layer():
    config = decoder_config({1: "twicing"}, num_kv_heads=2, window=5, rotary=Rotary(), **SIZES)
    assert {(layer.num_kv_heads, layer.window, layer.rotary) for layer in config.layers} == {(2, 5, Rotary())}


@pytest.mark.parametrize(
    ("activation", "hidden", "expected"),
    [("gelu", 64, 256), ("swiglu", 1536, 4096), ("swiglu", 1024, 2816), ("swiglu", 1280, 3584), ("swiglu", 2048, 5632)],
)
def test_the_default_feed_forward_sizes_are_the_published_ones(activation, hidden, expected):
    config = decoder_config(activation=activation, **{**SIZES, "hidden_size": hidden})
    assert config.feed_forward_size == expected
    assert replace(config, intermediate_size=7).feed_forward_size == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"intermediate_size": 0}, "intermediate_size must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"activation_dropout": 2.0}, r"activation_dropout must be in \[0, 1\), got 2.0"),
        ({"attention_output_dropout": -0.5}, r"attention_output_dropout must be in \[0, 1\), got -0.5"),
        ({"is_causal": False}, "a decoder's attention must be causal"),
        ({"hiden_size": 32}, r"no field 'hiden_size'\. Did you mean 'hidden_size'"),
        ({"layer_index": 3}, "no field 'layer_index'"),
        ({"position_embedding": "rotary"}, "position_embedding: expected one of 'learned', 'none', got 'rotary'"),
        ({"norm": "rmsnorm"}, "norm: expected one of 'layer', 'rms', 'none', got 'rmsnorm'"),
        ({"norm_position": "sandwich"}, "norm_position: expected one of 'pre', 'post', got 'sandwich'"),
        ({"activation": "relu"}, "activation: expected one of 'gelu', 'gelu-tanh', 'swiglu', got 'relu'"),
        ({"num_heads": 3}, "num_heads must divide hidden_size, got 3 and 16"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        decoder_config(**{**SIZES, **fields})


@pytest.mark.parametrize("missing", ["vocab_size", "num_layers", "max_positions", "hidden_size", "num_heads"])
def test_sizes_without_a_default_are_asked_for(missing):
    with pytest.raises(ValueError, match=rf"needs {missing}=\.\.\., which has no default"):
        decoder_config(**{name: value for name, value in SIZES.items() if name != missing})


@pytest.mark.parametrize("layer", [3, "3", -1, "first", 1.5])
def test_layers_that_do_not_exist_are_refused(layer):
    with pytest.raises(ValueError, match=rf"layer {layer!r} does not exist; layers are 0 to 2"):
        decoder_config({layer: "twicing"}, **SIZES)


def test_layer_tuples_must_fit_the_model():
    config = config_of(num_layers=3)
    layers = config.layers
    with pytest.raises(ValueError, match="attention gives 2 layers but num_layers is 3"):
        replace(config, attention=layers[:2])
    wide = attention_config(hidden_size=32, num_heads=4)
    with pytest.raises(ValueError, match=r"all layers must share hidden_size, got \[16, 32\]"):
        replace(config, attention=(*layers[:2], wide))


def test_errors_in_a_file_name_the_place():
    mapping = to_mapping(decoder_config({1: "twicing"}, **SIZES))
    mapping["attention"][1]["rule"]["kind"] = "twiceing"
    with pytest.raises(ValueError, match=r"run/config\.json\.attention\[1\]\.rule\.kind: .* Did you mean 'twicing'"):
        from_mapping(DecoderConfig, mapping, "run/config.json")
    mapping["attention"][1] = to_mapping(attention_config("twicing", hidden_size=16, num_heads=4)) | {"hedas": 1}
    with pytest.raises(ValueError, match=r"attention\[1\]: unknown key 'hedas'") as caught:
        from_mapping(DecoderConfig, mapping, "run/config.json")
    assert len(str(caught.value)) < 200, "one sentence, not the whole file"


def test_equal_configurations_are_equal_values():
    assert decoder_config("twicing", **SIZES) == decoder_config(rule=TwicingRule(), **SIZES)
    assert hash(decoder_config("multi-token", **SIZES)) == hash(decoder_config("multi-token", **SIZES))
    assert decoder_config(rule=MultiTokenRule(), **SIZES) != decoder_config("multi-token", **SIZES)
