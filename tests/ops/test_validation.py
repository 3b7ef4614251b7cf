"""Every refusal of an operation says what was expected and what came."""

import pytest
import torch

from heedful.ops import (
    differential_attention,
    differential_attention_v2,
    multi_token_attention,
    standard_attention,
    talking_heads_attention,
    twicing_attention,
)


def tensor(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


Q, K = tensor(2, 4, 5, 8), tensor(2, 2, 5, 8)

WRONG_INPUTS = [
    ((Q[0], K, K), {}, r"query must have shape \(batch, heads, sequence, head_dim\), got \(4, 5, 8\)"),
    ((Q, K[..., None], K), {}, r"key must have shape .* got \(2, 2, 5, 8, 1\)"),
    ((Q, K, K[0, 0]), {}, r"value must have shape .* got \(5, 8\)"),
    ((Q.long(), K, K), {}, r"query must be a floating-point tensor, got torch.int64"),
    ((Q, K.double(), K), {}, r"share one dtype, got torch.float32, torch.float64 and torch.float32"),
    ((Q, K[:1], K), {}, r"batch sizes differ: query 2, key 1, value 2"),
    ((Q, tensor(2, 2, 5, 6), K), {}, r"share head_dim, got 8 and 6"),
    ((Q, K, K[:, :, :4]), {}, r"share heads and sequence, got \(2, 5\) and \(2, 4\)"),
    ((Q, K, tensor(2, 1, 5, 8)), {}, r"share heads and sequence, got \(2, 5\) and \(1, 5\)"),
    ((Q, tensor(2, 3, 5, 8), tensor(2, 3, 5, 8)), {}, r"must divide the query heads, got 3 and 4"),
    ((Q, K[:, :0], K[:, :0]), {}, r"must divide the query heads, got 0 and 4"),
    ((Q, K, K), {"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\), got 1.0"),
    ((Q, K, K), {"dropout_p": -0.1}, r"dropout_p must be in \[0, 1\), got -0.1"),
    ((Q, K, K), {"backend": "refrence"}, r"unknown backend 'refrence'\. Did you mean 'reference'"),
]


@pytest.mark.parametrize("operation", [standard_attention, twicing_attention, multi_token_attention])
@pytest.mark.parametrize(("tensors", "options", "message"), WRONG_INPUTS)
def test_wrong_inputs_are_named(operation, tensors, options, message):
    with pytest.raises(ValueError, match=message):
        operation(*tensors, **options)


@pytest.mark.parametrize("operation", [standard_attention, twicing_attention])
def test_backends_which_a_mechanism_has_not_are_named(operation):
    with pytest.raises(ValueError, match=r"has no triton backend; it has sdpa, reference"):
        operation(Q, K, K, backend="triton")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kq_pre": tensor(3, 2, 3)}, r"kq_pre must have shape \(heads = 4, c_q, c_k\), got \(3, 2, 3\)"),
        ({"kq_post": tensor(4, 1, 2, 3)}, r"kq_post must have shape \(heads = 4, c_q, c_k\), got \(4, 1, 2, 3\)"),
        ({"kq_pre": tensor(4, 0, 3)}, r"kq_pre must have shape .* got \(4, 0, 3\)"),
        ({"head_pre": tensor(4, 4)}, r"head_pre must have shape \(heads / c_h, c_h, c_h\) with 4 heads.*got \(4, 4\)"),
        ({"head_post": tensor(1, 2, 2)}, r"head_post must have shape .* got \(1, 2, 2\)"),
        ({"head_post": tensor(2, 2, 1)}, r"head_post must have shape .* got \(2, 2, 1\)"),
        ({"key_query_mask": "triple"}, r"key_query_mask must be 'double' or 'exact', got 'triple'"),
        (
            {"kq_pre": tensor(4, 1, 1), "backend": "sdpa"},
            r"sdpa backend cannot run this call of multi-token attention: .* attention map.* Use 'auto'",
        ),
        ({"kq_pre": tensor(4, 1, 1, dtype=torch.long)}, r"kq_pre must be a floating-point tensor, got torch.int64"),
        ({"kq_pre": tensor(4, 1, 1).to("meta")}, r"kq_pre must be on the device of query, cpu, got meta"),
        ({"kq_pre": tensor(4, 1, 1), "backend": "triton"}, r"needs a CUDA device; this call is on cpu"),
        ({"block_size": 0}, r"block_size must be at least 1 row, got 0"),
        ({"backend": "triton"}, r"triton backend cannot run this call .* needs a CUDA device; this call is on cpu"),
    ],
)
def test_wrong_multi_token_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        multi_token_attention(Q, K, K, **parameters)


def test_more_queries_than_keys_are_refused_also_without_causality():
    for is_causal in (True, False):
        with pytest.raises(ValueError, match=r"there are 5 queries and 4 keys"):
            multi_token_attention(Q, K[:, :, :4], K[:, :, :4], kq_pre=tensor(4, 2, 3), is_causal=is_causal)


def test_inputs_on_several_devices_are_named():
    with pytest.raises(ValueError, match=r"must be on one device, got cpu, meta and cpu"):
        multi_token_attention(Q, K.to("meta"), K)


@pytest.mark.parametrize("name", ["head_pre", "head_post"])
def test_talking_heads_needs_square_matrices_of_all_heads(name):
    matrices = {"head_pre": torch.eye(4), "head_post": torch.eye(4), name: torch.eye(2)}
    with pytest.raises(ValueError, match=rf"{name} must have shape \(heads, heads\) = \(4, 4\), got \(2, 2\)"):
        talking_heads_attention(Q, K, K, **matrices)


def test_twicing_needs_the_corrected_values_of_the_past_and_nothing_else():
    last = Q[:, :, 3:]
    with pytest.raises(
        ValueError, match=r"2 queries and 5 keys needs past_corrected of shape \(2, 4, 3, 8\).*got None"
    ):
        twicing_attention(last, K, K)
    with pytest.raises(ValueError, match=r"of shape \(2, 4, 3, 8\).*got \(2, 2, 3, 8\)"):
        twicing_attention(last, K, K, past_corrected=K[:, :, :3])
    with pytest.raises(ValueError, match=r"needs past_corrected of shape None.*got \(2, 4, 3, 8\)"):
        twicing_attention(Q, K, K, past_corrected=Q[:, :, :3])
    assert twicing_attention(Q, K, K, past_corrected=Q[:, :, :0]).shape == Q.shape


def test_twicing_refuses_dropout_in_fused_passes_and_says_why():
    with pytest.raises(ValueError, match="both passes must use the same dropped attention map"):
        twicing_attention(Q, K, K, dropout_p=0.1, backend="sdpa")
    assert twicing_attention(Q, K, K, dropout_p=0.1).shape == Q.shape


@pytest.mark.parametrize(
    ("query", "key", "value", "factor", "message"),
    [
        (Q[:, :3], K, K[:, :1], tensor(), r"even number of heads, got \(2, 3, 5, 8\) and \(2, 2, 5, 8\)"),
        (Q, K[:, :1], K[:, :1], tensor(), r"even number of heads, got \(2, 4, 5, 8\) and \(2, 1, 5, 8\)"),
        (Q, K, K[:, :1], tensor(3), r"one number or one per head, shape \(2,\), got \(3,\)"),
        (Q, K, K[:, :1], tensor(2, 2), r"one number or one per head, shape \(2,\), got \(2, 2\)"),
        (Q, K, K, tensor(), r"key and value must share heads and sequence, got \(1, 5\) and \(2, 5\)"),
        (Q[0], K, K, tensor(), r"got \(4, 5, 8\)"),
    ],
)
def test_wrong_differential_inputs_are_named(query, key, value, factor, message):
    with pytest.raises(ValueError, match=message):
        differential_attention(query, key, value, factor)


@pytest.mark.parametrize(
    ("query", "key", "logits", "message"),
    [
        (Q[:, :3], K[:, :1], tensor(2, 1, 5), r"two query heads per head.*got query \(2, 3, 5, 8\)"),
        (Q, tensor(2, 4, 5, 8), tensor(2, 2, 5), r"key heads that divide the heads.*key \(2, 4, 5, 8\)"),
        (Q, K[0, 0, 0], tensor(2, 2, 5), r"key \(8,\)"),
        (Q, K, tensor(2, 4, 5), r"\(batch, heads, queries\) = \(2, 2, 5\), got \(2, 4, 5\)"),
    ],
)
def test_wrong_differential_v2_inputs_are_named(query, key, logits, message):
    with pytest.raises(ValueError, match=message):
        differential_attention_v2(query, key, key, logits)
