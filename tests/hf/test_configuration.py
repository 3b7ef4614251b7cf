"""`HeedfulConfig`: Llama's words, the attention section, and the way to `DecoderConfig` and back."""

import json

import pytest
import torch
from tiny_hf import MECHANISMS, config_of
from transformers import AutoConfig

from heedful.hf import HeedfulConfig
from heedful.models import DecoderConfig, decoder_config
from heedful.nn import (
    AnnealedQuery,
    BlendedHeadOutput,
    Boosting,
    HeadOutput,
    LinearScaling,
    Llama3Scaling,
    MultiTokenRule,
    NonlinearQuery,
    NtkScaling,
    Rotary,
    YarnScaling,
    attention_config,
)

SIZES = {"vocab_size": 30, "num_layers": 3, "max_positions": 40, "hidden_size": 16, "num_heads": 4}
DECODERS = {
    "plain": {},
    "everything else": {
        "norm": "rms", "norm_position": "post", "norm_eps": 1e-3, "activation": "swiglu", "intermediate_size": 20,
        "bias": True, "attention_bias": False, "tie_embeddings": False, "head_bias": True, "dropout": 0.25,
        "attention_dropout": 0.125, "attention_output_dropout": 0.5, "activation_dropout": 0.0,
        "initializer_range": None, "scale_residual_init": True, "num_kv_heads": 2, "head_dim": 6, "qk_norm": True,
        "window": 5, "scale": 0.3, "output_bias": True,
    },
    "no norms, no skips, shared": {
        "norm": "none", "attention_skip": False, "feed_forward_skip": False, "share_layers": True,
        "position_embedding": "none", "activation": "gelu-tanh",
    },
    "linear scaling": {"rotary": Rotary(theta=500.0, scaling=LinearScaling(factor=2.0))},
    "llama3 scaling": {"rotary": Rotary(scaling=Llama3Scaling(original_max_positions=16))},
    "yarn scaling": {"rotary": Rotary(scaling=YarnScaling(factor=4.0, original_max_positions=16, beta_fast=20.0))},
    "ntk scaling, which transformers has no word for": {"rotary": Rotary(scaling=NtkScaling(factor=2.0))},
    "interleaved": {"rotary": Rotary(layout="interleaved")},
    "rotary and learned": {"rotary": Rotary(), "position_embedding": "learned"},
    "sections": {
        "query": NonlinearQuery(bottleneck=5), "rule": MultiTokenRule(query_kernel_size=2, pre_mixing=2),
        "boosting": Boosting(rounds=3, gate="head"), "head_output": HeadOutput(gate="elementwise"),
    },
    "upcycled sections": {
        "query": AnnealedQuery(target=NonlinearQuery(activation="silu")), "boosting": Boosting(gate="scaled-vector"),
        "head_output": BlendedHeadOutput(norm=False),
    },
}  # fmt: skip


@pytest.mark.parametrize("fields", DECODERS.values(), ids=DECODERS)
def test_a_native_configuration_comes_back_unchanged(fields, tmp_path):
    """Also through a file."""
    native = decoder_config("standard", **{**SIZES, **fields})
    config = HeedfulConfig.from_decoder(native)
    assert config.decoder_config() == native
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).decoder_config() == native


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_mechanism_comes_back_unchanged_and_presets_by_name(name):
    native = decoder_config(name, **SIZES)
    config = HeedfulConfig.from_decoder(native)
    assert config.decoder_config() == native
    if "+" not in name:
        assert config.attention == name


def test_layers_may_differ():
    layers = tuple(
        attention_config(name, hidden_size=16, num_heads=4, window=window, bias=bias)
        for name, window, bias in (("boosted", None, True), ("multi-token", 4, False), ("standard", 7, True))
    )
    native = DecoderConfig(vocab_size=30, num_layers=3, max_positions=40, attention=layers)
    config = HeedfulConfig.from_decoder(native)
    assert config.decoder_config() == native
    assert isinstance(config.attention, list)
    assert len(config.attention) == 3
    config = config_of(["standard", "boosted", {"preset": "multi-token", "head_output": None}])
    rules = [layer.rule.kind for layer in config.decoder_config().layers]
    assert rules == ["standard", "standard", "multi-token"]
    assert config.decoder_config().layers[2].head_output is None


def test_llamas_words_reach_the_layers():
    config = config_of(
        num_key_value_heads=2, head_dim=10, attention_bias=True, attention_dropout=0.5, rms_norm_eps=1e-3,
        sliding_window=3, layer_types=["full_attention", "sliding_attention", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 77.0}, hidden_act="gelu_new", tie_word_embeddings=True,
    )  # fmt: skip
    decoder = config.decoder_config()
    first, second, _ = decoder.layers
    assert (first.num_kv_heads, first.head_dim, first.bias, first.dropout, first.norm_eps) == (2, 10, True, 0.5, 1e-3)
    assert (first.window, second.window) == (None, 3)
    assert first.rotary == Rotary(theta=77.0)
    assert (decoder.activation, decoder.tie_embeddings, decoder.max_positions) == ("gelu-tanh", True, 64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "multi-tokn"}, r"attention of layer 0: unknown preset 'multi-tokn'.*Did you mean 'multi-token'"),
        ({"attention": {"preset": "boosted", "bosting": None}}, r"unknown key 'bosting'\. Did you mean 'boosting'"),
        ({"attention": {"hidden_size": 3}}, "'hidden_size' is a field of the model, not of the attention section"),
        ({"attention": {"preset": 3}}, "attention of layer 0.preset: expected preset names"),
        ({"attention": ["standard"]}, "a list must have one entry per layer: expected 3, got 1"),
        ({"attention": ["standard", 3, "standard"]}, "attention of layer 1: expected preset names or a table, got 3"),
        ({"attention": {"rule": {"kind": "multi-token", "pre_mixing": 3}}}, "groups of 3 needs a number of heads"),
        ({"num_atention_heads": 3}, r"has no field 'num_atention_heads'\. Did you mean 'num_attention_heads'"),
        ({"qk_norm": True}, r"'qk_norm' is a field of a layer: write attention="),
        ({"num_layers": 2}, "'num_layers' is a field of DecoderConfig, which has another name here"),
        ({"num_attention_heads": 5}, "num_heads must divide hidden_size, got 5 and 32"),
        ({"hidden_act": "relu"}, "hidden_act must be one of silu, gelu, gelu_new, got 'relu'"),
        ({"position_embedding": "alibi"}, "position_embedding must be 'rotary', 'learned' or 'none', got 'alibi'"),
        ({"norm": "layernorm"}, "norm: expected one of 'layer', 'rms', 'none', got 'layernorm'"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer 0 is 'sliding_attention', but sliding_window is None"),
        ({"layer_types": ["linear_attention"] * 3}, "must be 'full_attention' or 'sliding_attention'"),
        ({"rope_parameters": {"rope_type": "ntk", "factor": 2.0}}, "rope_type must be one of default, linear"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor must be a number, got None"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor must be 1",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 2.0}},
            r"attention_factor must be 0\.1 ln\(factor\) \+ 1 = 1\.13863, got 2\.0",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0}}, "mscale is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "truncate must be true"),
        ({"rope_parameters": {"rope_type": "default", "beta": 1.0}}, "unknown settings beta for rope_type 'default'"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(Exception, match=message) as caught:
        config_of(**{"attention": "standard", **fields})
    assert isinstance(caught.value, (ValueError, TypeError)) or "Strict" in type(caught.value).__name__


def test_a_misspelt_field_of_a_file_is_refused(tmp_path):
    config_of().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written["atention"] = written.pop("attention")
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"has no field 'atention'\. Did you mean 'attention'"):
        AutoConfig.from_pretrained(tmp_path)


def test_the_dtype_and_labels_of_transformers_pass():
    config = HeedfulConfig(dtype="bfloat16", num_labels=5, max_length=7, torch_dtype="bfloat16")
    assert config.dtype == torch.bfloat16
    assert config.num_labels == 5
