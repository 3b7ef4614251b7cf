"""The mask object by itself, and what must hold for every operation under it."""

import pytest
import torch

from heedful.ops import (
    AttentionMask,
    differential_attention,
    differential_attention_v2,
    multi_token_attention,
    standard_attention,
    talking_heads_attention,
    twicing_attention,
)

REAL, PAD = True, False


def visible(mask, queries, keys, is_causal=True):
    return mask.visible(queries, keys, is_causal=is_causal)


def rows(*strings):
    """`rows("x..", "xx.")`: x where a query sees a key."""
    return torch.tensor([[character == "x" for character in row] for row in strings])


def test_queries_are_the_last_positions():
    assert torch.equal(visible(AttentionMask(), 2, 4)[0, 0], rows("xxx.", "xxxx"))


def test_a_window_of_one_is_the_token_itself_in_both_directions():
    for is_causal in (True, False):
        assert torch.equal(visible(AttentionMask(window=1), 3, 3, is_causal)[0, 0], torch.eye(3, dtype=torch.bool))


def test_a_window_without_causality_reaches_both_ways():
    assert torch.equal(visible(AttentionMask(window=2), 3, 3, False)[0, 0], rows("xx.", "xxx", ".xx"))


def test_padding_hides_rows_and_columns():
    mask = AttentionMask(key_padding=torch.tensor([[PAD, REAL, REAL, PAD]]))
    assert torch.equal(visible(mask, 4, 4)[0, 0], rows("....", ".x..", ".xx.", "...."))


def test_an_id_that_comes_back_is_another_document():
    mask = AttentionMask(document_ids=torch.tensor([[7, 7, 3, 7]]))
    assert torch.equal(visible(mask, 4, 4, False)[0, 0], rows("xx..", "xx..", "..x.", "...x"))
    assert torch.equal(mask.segments(), torch.tensor([[0, 0, 1, 2]]))


def test_all_conditions_must_hold_together():
    mask = AttentionMask(
        window=2, key_padding=torch.tensor([[PAD, REAL, REAL, REAL]]), document_ids=torch.tensor([[0, 0, 0, 1]])
    )
    assert torch.equal(visible(mask, 3, 4)[0, 0], rows(".x..", ".xx.", "...x"))


def test_one_described_row_combines_with_many():
    mask = AttentionMask(
        key_padding=torch.tensor([[REAL, REAL], [PAD, REAL]]), document_ids=torch.tensor([[0, 0]]), window=5
    )
    assert visible(mask, 2, 2).shape == (2, 1, 2, 2)
    assert mask.positions().tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("padding", "documents", "expected"),
    [
        ([1, 1, 1], None, [0, 1, 2]),
        ([0, 0, 1, 1, 1], None, [0, 0, 0, 1, 2]),
        ([1, 0, 1, 0, 1], None, [0, 1, 1, 2, 2]),  # only real tokens count; what padding gets does not matter
        (None, [4, 4, 4, 1, 1, 4], [0, 1, 2, 0, 1, 0]),
        ([0, 1, 1, 0, 1, 1], [5, 5, 5, 6, 6, 6], [0, 0, 1, 0, 0, 1]),
        ([0, 0, 0], [1, 1, 2], [0, 0, 0]),
    ],
)
def test_positions_count_the_real_tokens_of_each_document(padding, documents, expected):
    mask = AttentionMask(
        key_padding=None if padding is None else torch.tensor([padding]).bool(),
        document_ids=None if documents is None else torch.tensor([documents]),
    )
    real = torch.ones(len(expected)).bool() if padding is None else torch.tensor(padding).bool()
    assert torch.equal(mask.positions()[0][real], torch.tensor(expected)[real])
    assert int(mask.positions().min()) >= 0
    assert int(mask.positions().max()) < len(expected), "padding, too, must stay inside a position table"


def test_positions_are_left_open_where_they_simply_count():
    assert AttentionMask().positions() is None
    assert AttentionMask(window=3).positions() is None


def test_cumulative_lengths_name_documents_and_allow_empty_ones():
    mask = AttentionMask.from_cumulative_lengths(torch.tensor([0, 2, 2, 5]), window=3)
    assert mask.segments().tolist() == [[0, 0, 1, 1, 1]]
    assert mask.window == 3


@pytest.mark.parametrize("lengths", [[1, 3], [0], [0, 4, 2], []])
def test_cumulative_lengths_must_rise_from_zero(lengths):
    with pytest.raises(ValueError, match=r"cumulative_lengths must rise from 0.*got \["):
        AttentionMask.from_cumulative_lengths(torch.tensor(lengths))


def test_the_narrower_of_two_windows_counts():
    assert AttentionMask(window=3).with_window(5).window == 3
    assert AttentionMask(window=5).with_window(3).window == 3
    assert AttentionMask().with_window(4).window == 4
    mask = AttentionMask(window=2)
    assert mask.with_window(None) is mask


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 0}, r"window must be at least 1.*got 0"),
        ({"key_padding": torch.ones(3, dtype=torch.bool)}, r"key_padding must have shape \(batch, keys\), got \(3,\)"),
        ({"key_padding": torch.ones(1, 3)}, r"key_padding must be bool, True for a real token, got torch.float32"),
        ({"key_padding": torch.ones(1, 3, dtype=torch.long)}, r"key_padding must be bool.*got torch.int64"),
        ({"document_ids": torch.ones(1, 3, dtype=torch.bool)}, r"document_ids must be integers, got torch.bool"),
        ({"document_ids": torch.ones(1, 3)}, r"document_ids must be integers, got torch.float32"),
        ({"document_ids": torch.ones(1, 3, 1, dtype=torch.int)}, r"document_ids must have shape.*got \(1, 3, 1\)"),
        (
            {"key_padding": torch.ones(1, 3, dtype=torch.bool), "document_ids": torch.ones(1, 4, dtype=torch.long)},
            r"key_padding covers 3 positions and document_ids 4",
        ),
        (
            {"key_padding": torch.ones(2, 3, dtype=torch.bool), "document_ids": torch.ones(3, 3, dtype=torch.long)},
            r"share their batch size or have 1, got \[2, 3\]",
        ),
    ],
)
def test_a_mask_refuses_what_it_cannot_mean(fields, message):
    with pytest.raises(ValueError, match=message):
        AttentionMask(**fields)


def test_lengths_that_do_not_fit_are_refused():
    described = AttentionMask(document_ids=torch.zeros(1, 5, dtype=torch.long))
    for queries, keys, mask, is_causal in (
        (3, 4, described, True),
        (6, 5, described, False),
        (5, 4, AttentionMask(), True),
        (5, 4, AttentionMask(window=2), False),
    ):
        with pytest.raises(ValueError, match=f"{keys} keys"):
            mask.visible(queries, keys, is_causal=is_causal)
    AttentionMask().check(5, 4, is_causal=False)  # plain cross-attention has no order between queries and keys


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# name -> (tensors to differentiate, function of (tensors, options)); 4 query heads, batch 2, 5 tokens
OPERATIONS = {
    "standard": (
        lambda: [draw(2, 4, 5, 2), draw(2, 2, 5, 2), draw(2, 2, 5, 3)],
        standard_attention,
        ("reference", "sdpa"),
    ),
    "twicing": (
        lambda: [draw(2, 4, 5, 2), draw(2, 2, 5, 2), draw(2, 2, 5, 3)],
        twicing_attention,
        ("reference", "sdpa"),
    ),
    "differential": (
        lambda: [draw(2, 4, 5, 2), draw(2, 4, 5, 2), draw(2, 2, 5, 4), draw(2)],
        differential_attention,
        ("reference", "sdpa"),
    ),
    "differential-v2": (
        lambda: [draw(2, 4, 5, 2), draw(2, 2, 5, 2), draw(2, 2, 5, 3), draw(2, 2, 5)],
        differential_attention_v2,
        ("reference", "sdpa"),
    ),
    "talking-heads": (
        lambda: [draw(2, 4, 5, 2), draw(2, 2, 5, 2), draw(2, 2, 5, 3), draw(4, 4), draw(4, 4)],
        talking_heads_attention,
        ("reference",),
    ),
    "multi-token": (
        lambda: [
            draw(2, 4, 5, 2),
            draw(2, 2, 5, 2),
            draw(2, 2, 5, 3),
            draw(4, 3, 4),
            draw(4, 2, 3),
            draw(2, 2, 2),
            draw(1, 4, 4),
        ],
        lambda q, k, v, pre, post, mix_pre, mix_post, **options: multi_token_attention(
            q, k, v, kq_pre=pre, kq_post=post, head_pre=mix_pre, head_post=mix_post, **options
        ),
        ("reference",),
    ),
}
CASES = [(name, backend) for name, (_, _, backends) in OPERATIONS.items() for backend in backends]


@pytest.mark.parametrize(("name", "backend"), CASES)
@pytest.mark.parametrize("is_causal", [True, False])
def test_a_wholly_padded_row_gives_zeros_and_takes_no_gradient(name, backend, is_causal):
    make, operation, _ = OPERATIONS[name]
    tensors = make()
    mask = AttentionMask(key_padding=torch.tensor([[PAD] * 5, [PAD, REAL, REAL, PAD, REAL]]))
    output = operation(*tensors, mask=mask, is_causal=is_causal, backend=backend)
    assert float(output[0].detach().abs().max()) == 0.0
    assert float(output[1, :, 0].detach().abs().max()) == 0.0, "a padded query of a live row"
    gradients = torch.autograd.grad(output.square().sum(), tensors)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert all(float(gradient[0].abs().max()) == 0.0 for gradient in gradients[:3])


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_a_mask_for_another_text_is_refused(name, backend):
    make, operation, _ = OPERATIONS[name]
    tensors = make()
    for padding, message in (
        (torch.ones(2, 4, dtype=torch.bool), "4 positions but there are 5 keys"),
        (torch.ones(3, 5, dtype=torch.bool), "3 rows but the batch has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            operation(*tensors, mask=AttentionMask(key_padding=padding), backend=backend)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_mask_with_more_rows_than_a_batch_of_one_does_not_multiply_the_batch(name):
    make, operation, _ = OPERATIONS[name]
    tensors = [tensor[:1] if index < 3 or tensor.dim() == 3 else tensor for index, tensor in enumerate(make())]
    if name == "multi-token":
        tensors[3:] = make()[3:]
    with pytest.raises(ValueError, match="2 rows but the batch has 1"):
        operation(*tensors, mask=AttentionMask(key_padding=torch.ones(2, 5, dtype=torch.bool)))


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_more_queries_than_keys_are_refused_under_a_causal_mask(name, backend):
    make, operation, _ = OPERATIONS[name]
    tensors = make()
    tensors[1], tensors[2] = tensors[1][:, :, :4], tensors[2][:, :, :4]
    with pytest.raises(ValueError, match="5 queries and 4 keys"):
        operation(*tensors, backend=backend)


def test_cross_attention_without_causality_takes_any_two_lengths():
    query, key = draw(1, 2, 5, 2), draw(1, 2, 3, 2)
    for backend in ("reference", "sdpa"):
        output = standard_attention(query, key, key, is_causal=False, backend=backend)
        expected = torch.softmax(query @ key.transpose(-1, -2) / 2**0.5, -1) @ key
        assert float((output - expected).detach().abs().max()) < 1e-14
