"""The multi-token rule: which layers carry what, the two mask forms, and the smallest state that decodes exactly."""

import math
from dataclasses import replace

import pytest
import torch
from layers_for_nn import decode, layer_of, run, text

from heedful.nn import Attention, AttentionState, HeadOutput, MultiTokenRule, TalkingHeadsRule, attention_config
from heedful.nn.differential import depth_lambda
from heedful.ops import multi_token_attention
from tolerance import assert_close, largest_difference

ONE_MAP = {"hidden_size": 16, "num_heads": 4}


def maps(kernel_size, key_query_mask, tokens=12, seed=0):
    """Final weights of a call with a pre-softmax kernel only: values are the unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, 2, tokens, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    kernel = torch.randn(2, *kernel_size, generator=generator, dtype=torch.float64)
    unit = torch.eye(tokens, dtype=torch.float64).expand(1, 2, tokens, tokens)
    return multi_token_attention(query, key, unit, kq_pre=kernel, key_query_mask=key_query_mask)[0]


@pytest.mark.parametrize("kernel_size", [(2, 1), (2, 3), (3, 4), (3, 5), (4, 2), (6, 11)])
def test_exact_and_double_mask_have_the_same_logits_but_near_the_diagonal(kernel_size):
    c_q, c_k = kernel_size
    exact, double = (maps(kernel_size, form) for form in ("exact", "double"))
    # log A is the logit up to one number per row, so a difference of logs that is constant along a row means none.
    difference = exact.log() - double.log()
    band = c_q - 1 + c_k // 2
    distance = torch.arange(12)[:, None] - torch.arange(12)[None, :]
    seen_differences = 0
    for i in range(12):
        far = difference[:, i, : i + 1][:, distance[i, : i + 1] >= band]
        near = difference[:, i, : i + 1][:, distance[i, : i + 1] < band]
        if far.shape[1]:
            shift = far[:, :1]
            assert largest_difference(far, shift.expand_as(far)) < 1e-10
            seen_differences += int(((near - shift).abs() > 1e-6).sum())
    assert band >= 12 or seen_differences > 0, "inside of the band they do differ"


@pytest.mark.parametrize("key_taps", [1, 2, 3, 6, 11])
def test_exact_and_double_mask_agree_for_a_single_query_row(key_taps):
    assert largest_difference(maps((1, key_taps), "exact"), maps((1, key_taps), "double")) == 0.0


def test_an_even_kernel_has_one_more_key_ahead_than_behind():
    """A kernel of four keys with its one at tap 3 reads two keys ahead; identity sits at tap (4 - 1) // 2 = 1."""
    scores = torch.arange(1.0, 6.0).double()
    query = torch.ones(1, 1, 1, 1).double()
    for tap, offset in enumerate((-1, 0, 1, 2)):
        kernel = torch.zeros(1, 1, 4).double()
        kernel[0, 0, tap] = 1.0
        shifted = torch.tensor([scores[j + offset] if 0 <= j + offset < 5 else 0.0 for j in range(5)])
        output = multi_token_attention(
            query, scores[None, None, :, None], torch.eye(5).double()[None, None], kq_pre=kernel, scale=1.0
        )
        assert_close(output[0, 0, 0], torch.softmax(shifted, -1))


def test_convolutions_are_in_layers_2_6_10_and_mixing_everywhere():
    rule = MultiTokenRule()
    assert [layer for layer in range(24) if rule.convolves(layer)] == [2, 6, 10, 14, 18, 22]
    assert rule.convolves(None), "a layer that stands alone carries them"
    for index in (0, 1, 2, 3, 6):
        names = {name for name, _ in Attention(attention_config("multi-token", layer_index=index, **ONE_MAP))
                 .rounds[0].rule.named_parameters()}  # fmt: skip
        kernels = {"kq_pre", "kq_post"} if index in (2, 6) else set()
        assert names == {"head_pre", "head_post", *kernels}


def test_version_one_has_no_post_kernel_no_pre_mixing_and_mixes_pairs():
    layer = Attention(attention_config("multi-token-v1", layer_index=2, **ONE_MAP))
    shapes = {name: tuple(p.shape) for name, p in layer.rounds[0].rule.named_parameters()}
    assert shapes == {"kq_pre": (4, 6, 11), "head_post": (2, 2, 2)}
    assert layer.head_output.gate is None
    assert layer.head_output.scale == 1 - depth_lambda(2)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 9), (3, 4), (6, 2), (6, 11)])
def test_kernels_of_any_size_start_as_the_identity(sizes):
    rule = MultiTokenRule(query_kernel_size=sizes[0], key_kernel_size=sizes[1], pre_mixing=2, post_mixing=4)
    layer = Attention(attention_config(rule=rule, **ONE_MAP)).double().eval()
    standard = Attention(attention_config(**ONE_MAP)).double().eval()
    standard.load_state_dict({name: layer.state_dict()[name] for name in standard.state_dict()})
    assert_close(run(layer, text()), run(standard, text()))
    assert layer.rounds[0].rule.kq_pre.detach().sum() == 4


def test_mixing_all_heads_without_kernels_is_talking_heads():
    talking = layer_of("talking-heads")
    multi = layer_of("standard", rule=MultiTokenRule(pre_convolution=False, post_convolution=False))
    multi.load_state_dict(talking.state_dict())
    assert largest_difference(run(multi, text()), run(talking, text())) == 0.0


def test_the_toy_model_of_the_paper_is_a_pre_kernel_alone():
    rule = MultiTokenRule(
        post_convolution=False, query_kernel_size=2, key_kernel_size=9, pre_mixing=None, post_mixing=None,
        convolution_every=1, convolution_offset=0,
    )  # fmt: skip
    sizes = {"hidden_size": 256, "num_heads": 2, "layer_index": 3}
    with torch.device("meta"):
        with_kernel = Attention(attention_config(rule=rule, **sizes))
        standard = Attention(attention_config(**sizes))
    extra = sum(p.numel() for p in with_kernel.parameters()) - sum(p.numel() for p in standard.parameters())
    assert 4 * extra == 144


@pytest.mark.parametrize("names", ["multi-token", "multi-token-v1", "talking-heads", "boosted+multi-token"])
def test_dropout_is_off_in_evaluation_and_on_in_training(names):
    layer, x = layer_of(names, dropout=0.5), text()
    assert largest_difference(run(layer, x), run(layer, x)) == 0.0
    assert largest_difference(run(layer, x), run(layer_of(names), x)) == 0.0
    layer.train()
    assert largest_difference(run(layer, x), run(layer, x)) > 1e-3


def kernels(pre, post, c_q=3):
    return MultiTokenRule(pre_convolution=pre, post_convolution=post, query_kernel_size=c_q, key_kernel_size=4,
                          pre_mixing=2, post_mixing=4)  # fmt: skip


@pytest.mark.parametrize(("pre", "post", "halo"), [(True, False, 2), (False, True, 2), (True, True, 4)])
@pytest.mark.parametrize("key_query_mask", ["double", "exact"])
def test_the_remembered_queries_suffice_and_none_is_superfluous(pre, post, halo, key_query_mask):
    layer = layer_of("standard", rule=replace(kernels(pre, post), key_query_mask=key_query_mask))
    x = text(12)
    expected = run(layer, x)[:, 8:]
    _, state = decode(layer, x[:, :8], [8])
    memory = state.rounds[0].memory
    assert memory.shape == (2, 4, halo, 4)
    assert_close(decode(layer, x[:, 8:], [1] * 4, state)[0], expected)
    shorter = AttentionState(rounds=(replace(state.rounds[0], memory=memory[:, :, 1:]),))
    with pytest.raises(ValueError, match=f"read {halo} earlier queries, but past_query holds {halo - 1}"):
        decode(layer, x[:, 8:], [1], shorter)
    wrong = memory.clone()
    wrong[:, :, 0] += 1.0
    changed = AttentionState(rounds=(replace(state.rounds[0], memory=wrong),))
    assert largest_difference(decode(layer, x[:, 8:], [1], changed)[0], expected[:, :1]) > 1e-6


def test_the_layer_passes_its_mask_form_on():
    exact, double = (
        layer_of("standard", rule=replace(kernels(True, False), key_query_mask=form)) for form in ("exact", "double")
    )
    assert largest_difference(run(exact, text()), run(double, text())) > 1e-3


def test_a_kernel_of_one_row_and_a_layer_without_kernels_remember_no_queries():
    one_row = layer_of("standard", rule=kernels(True, True, c_q=1))
    without = layer_of("multi-token", layer_index=1)
    for layer in (one_row, without):
        _, state = decode(layer, text(), [9])
        assert state.rounds[0].memory is None


def test_the_memory_holds_its_few_queries_and_not_the_prompt_they_came_from():
    layer = layer_of("standard", rule=kernels(True, True))
    _, state = decode(layer, text(50), [50])
    memory = state.rounds[0].memory
    assert memory.untyped_storage().nbytes() == memory.numel() * memory.element_size()


def test_head_output_steps_are_norm_then_scale_or_gate():
    heads = torch.randn(2, 3, 4, 5).double()
    config = attention_config(head_output=HeadOutput(gate="scalar"), head_dim=5, hidden_size=16, num_heads=4)
    steps = Attention(config).double().head_output
    torch.nn.init.normal_(steps.norm.weight)
    torch.nn.init.normal_(steps.gate.bias)
    normed = heads / (heads.square().mean(-1, keepdim=True) + 1e-5).sqrt() * steps.norm.weight
    gate = torch.sigmoid((normed * steps.gate.weight[0]).sum(-1, keepdim=True) + steps.gate.bias)
    assert_close(steps(heads), normed * gate)
    elementwise = Attention(replace(config, head_output=HeadOutput(norm=False, gate="elementwise"))).double()
    assert elementwise.head_output.gate.weight.shape == (5, 5)
    assert_close(elementwise.head_output(heads), heads * torch.sigmoid(elementwise.head_output.gate(heads)))
    scaled = Attention(replace(config, head_output=HeadOutput(depth_scale=True), layer_index=7)).double()
    plain = heads / (heads.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert_close(scaled.head_output(heads), plain * (1 - (0.8 - 0.6 * math.exp(-2.1))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiTokenRule(query_kernel_size=0), "kernel sizes must be at least 1, got 0 x 11"),
        (
            lambda: MultiTokenRule(convolution_every=2),
            r"convolution_offset must lie in \[0, convolution_every\), got 2",
        ),
        (lambda: MultiTokenRule(convolution_every=0, convolution_offset=0), r"got 0 and 0"),
        (
            lambda: MultiTokenRule(key_query_mask="both"),
            "key_query_mask: expected one of 'double', 'exact', got 'both'",
        ),
        (lambda: MultiTokenRule(pre_mixing="every"), "pre_mixing: expected .*'all', got 'every'"),
        (lambda: HeadOutput(gate="vector"), "gate: expected one of 'none', 'scalar', 'elementwise', got 'vector'"),
        (lambda: HeadOutput(depth_scale=True, gate="scalar"), "depth_scale and gate are alternatives"),
        (
            lambda: attention_config(rule=MultiTokenRule(pre_mixing=3), **ONE_MAP),
            "groups of 3 needs a number of heads divisible by it, got 4 heads",
        ),
        (lambda: attention_config(rule=MultiTokenRule(post_mixing=0), **ONE_MAP), "groups of 0"),
        (lambda: attention_config("multi-token", backend="sdpa", **ONE_MAP), "SDPA does not give"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_talking_heads_has_two_matrices_of_all_heads_per_layer():
    layer = Attention(attention_config(rule=TalkingHeadsRule(), **ONE_MAP))
    assert {n: tuple(p.shape) for n, p in layer.rounds[0].rule.named_parameters()} == {
        "head_pre": (1, 4, 4),
        "head_post": (1, 4, 4),
    }
