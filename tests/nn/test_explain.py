"""`explain`: which backend runs and why, and requests that cannot be obeyed."""

import pytest
import torch

import heedful
from heedful.nn import PRESETS, Attention, MultiTokenRule, attention_config

NEEDS_THE_MAP = {"talking-heads", "multi-token", "multi-token-v1"}
SIZES = {"hidden_size": 16, "num_heads": 4}


@pytest.mark.parametrize("name", PRESETS)
def test_auto_takes_the_fused_backend_unless_the_mechanism_needs_the_map(name):
    choice = heedful.explain(name)
    if name in NEEDS_THE_MAP:
        assert choice == ("blockwise", "linear memory, and the fastest on a CPU")
    else:
        assert choice.backend == "sdpa"
        assert "fastest exact backend" in choice.reason


@pytest.mark.parametrize("name", PRESETS)
def test_every_backend_is_either_obeyed_or_refused_with_the_reason(name):
    for backend in heedful.ops.BACKENDS:
        try:
            choice = heedful.explain(name, backend=backend)
        except ValueError as error:
            text = str(error)
            assert backend in text
            assert ("has no" in text and "it has" in text) or ("cannot run this call" in text and "Use 'auto'" in text)
        else:
            assert choice == (backend, "requested")
            layer = Attention(attention_config(name, backend=backend, **SIZES))
            assert layer(torch.randn(1, 3, 16))[0].shape == (1, 3, 16)


def test_dropout_in_training_changes_the_choice_for_twicing_only_while_it_acts():
    config = attention_config("twicing", dropout=0.1, **SIZES)
    assert heedful.explain(config).backend == "sdpa"
    choice = heedful.explain(config, training=True)
    assert choice.backend == "reference"
    assert "same dropped attention map" in choice.reason
    assert heedful.explain("twicing", training=True).backend == "sdpa", "a preset alone has no dropout"


def test_layers_without_convolutions_and_mixing_run_fused():
    rule = MultiTokenRule(pre_mixing=None, post_mixing=None)
    assert heedful.explain(attention_config(rule=rule, layer_index=1, **SIZES)).backend == "sdpa"
    assert heedful.explain(attention_config(rule=rule, layer_index=2, **SIZES)).backend == "blockwise"


def test_the_choice_follows_device_length_and_type():
    explain = heedful.explain
    assert explain("multi-token", length=16).backend == "reference"
    assert "so small that the plain equations" in explain("multi-token", length=16).reason
    assert explain("multi-token", length=1, context=8192).backend == "blockwise"
    assert explain("multi-token", length=1, context=2048).backend == "blockwise", "past queries count as rows"
    assert explain("multi-token", length=16, batch=64).backend == "blockwise"


def test_on_cuda_triton_is_preferred_where_it_can_run(monkeypatch):
    from heedful.ops.multi_token import choice

    monkeypatch.setattr(choice, "_TRITON_INSTALLED", True)
    assert heedful.explain("multi-token", device="cuda").backend == "triton"
    double = heedful.explain("multi-token", device="cuda", dtype=torch.float64)
    assert double.backend == "blockwise"
    assert "triton cannot be used: it computes in float32" in double.reason
    wide = attention_config(rule=MultiTokenRule(key_kernel_size=17), hidden_size=64, num_heads=2)
    assert "kernels up to 8 x 15; this call has 6 x 17" in heedful.explain(wide, device="cuda").reason


def test_mixed_outputs_of_heads_with_shared_values_need_no_map():
    rule = MultiTokenRule(pre_convolution=False, post_convolution=False, pre_mixing=None, post_mixing=2)
    shared = attention_config(rule=rule, num_kv_heads=2, **SIZES)
    assert heedful.explain(shared) == ("sdpa", "the mixed heads share their values, so outputs are mixed")
    assert heedful.explain(attention_config(rule=rule, **SIZES)).backend == "blockwise"
    windowed = attention_config(rule=rule, num_kv_heads=2, window=5, **SIZES)
    assert heedful.explain(windowed).backend == "blockwise", "SDPA's mask would be N x M"
    dropped = attention_config(rule=rule, num_kv_heads=2, dropout=0.1, **SIZES)
    assert heedful.explain(dropped).backend == "sdpa"
    assert heedful.explain(dropped, training=True).backend == "blockwise"


def test_unknown_backends_and_presets_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"unknown backend 'referense'\. Did you mean 'reference'"):
        heedful.explain("standard", backend="referense")
    with pytest.raises(ValueError, match=r"unknown preset 'twice' in 'twice'\. Did you mean 'twicing'"):
        heedful.explain("twice")


def test_no_possible_backend_lists_every_reason():
    from heedful.ops.backends import choose_backend

    with pytest.raises(ValueError, match=r"sdpa cannot be used: a; blockwise cannot be used: b"):
        choose_backend("some", "auto", {"sdpa": "a", "blockwise": "b"})


def test_a_layer_may_ask_for_a_cuda_backend_before_it_is_moved_there(monkeypatch):
    from heedful.ops.multi_token import choice

    monkeypatch.setattr(choice, "_TRITON_INSTALLED", True)
    config = attention_config("multi-token", hidden_size=64, num_heads=2, backend="triton")
    layer = Attention(config)
    assert heedful.explain(config, device="cuda") == ("triton", "requested")
    for call in (lambda: layer(torch.randn(1, 3, 64)), lambda: heedful.explain(config)):
        with pytest.raises(ValueError, match=r"triton backend cannot run this call .* needs a CUDA device; .* on cpu"):
            call()
    with pytest.raises(ValueError, match="it takes head_dim 32 to 256; this call has 4"):
        attention_config("multi-token", backend="triton", **SIZES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cudda"}, "device must be one of torch's, such as 'cpu' or 'cuda', got 'cudda'"),
        ({"length": 10, "context": 5}, "context at least length, got length 10, context 5 and batch 1"),
        ({"length": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_calls_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        heedful.explain("multi-token", **options)
