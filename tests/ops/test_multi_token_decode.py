"""Decoding with a ring of past queries equals the whole computation: single tokens, pieces, ragged rows, drafts."""

import pytest
import torch
from multi_token_cases import COMBINATIONS, draw_inputs, draw_parts, masks

from heedful.ops import AttentionMask, multi_token_attention, multi_token_decode
from tolerance import assert_close

BACKENDS = ["reference", "blockwise"]


def constant(tensors):
    return [t.detach() for t in tensors]


def decode(inputs, parts, pieces, *, padding=None, past=None, start=0, keep=0, **options):
    query, key, value = inputs
    outputs = []
    for piece in pieces:
        end = start + piece
        mask = None if padding is None else AttentionMask(key_padding=padding[:, :end])
        output, past = multi_token_decode(
            query[:, :, start:end], past, key[:, :, :end], value[:, :, :end], mask=mask, keep=keep, **parts, **options
        )
        outputs.append(output)
        start = end
    return torch.cat(outputs, dim=2), past


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["double", "exact"])
@pytest.mark.parametrize("names", COMBINATIONS[1:], ids="-".join)
def test_pieces_of_any_length_equal_the_whole(names, form, backend):
    inputs = constant(draw_inputs(26))
    parts = {name: part.detach() for name, part in draw_parts(names).items()}
    padding = masks(26)["left padding"].key_padding
    options = {"key_query_mask": form, "backend": backend}
    for real in (None, padding):
        mask = None if real is None else AttentionMask(key_padding=real)
        whole = multi_token_attention(*inputs, mask=mask, **parts, key_query_mask=form, backend="reference")
        for pieces in ([1] * 26, [9, 1, 1, 7, 8], [25, 1], [3, 23]):
            found, past = decode(inputs, parts, pieces, padding=real, **options)
            assert_close(found, whole, pieces)
        halo = sum(parts[name].shape[1] - 1 for name in ("kq_pre", "kq_post") if name in parts)
        assert torch.equal(past, inputs[0][:, :, 26 - halo :])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rejected_tokens_are_taken_back(backend):
    """Speculation: read a draft of five tokens, keep two of them, go on with others."""
    inputs, other = constant(draw_inputs(26)), constant(draw_inputs(26, seed=1))
    parts = {n: p.detach() for n, p in draw_parts(("kq_pre", "kq_post", "head_pre", "head_post")).items()}
    mixed = [torch.cat([a[:, :, :12], b[:, :, 12:]], dim=2) for a, b in zip(inputs, other, strict=True)]
    whole = multi_token_attention(*mixed, **parts, backend="reference")
    _, past = decode(inputs, parts, [10, 5], keep=5, backend=backend)
    assert past.shape[2] == 3 + 5
    found, _ = decode(mixed, parts, [1, 4, 9], past=past[:, :, :-3], start=12, keep=5, backend=backend)
    assert_close(found, whole[:, :, 12:])


def test_gradients_flow_through_pieces():
    inputs = draw_inputs(12)
    parts = draw_parts(("kq_pre", "head_post"))
    whole = multi_token_attention(*inputs, **parts)[:, :, 8:]
    query, key, value = inputs
    piece, _ = multi_token_decode(query[:, :, 8:], query[:, :, :8], key, value, **parts, backend="blockwise")
    leaves = [*inputs, *parts.values()]
    for a, b in zip(torch.autograd.grad(piece.sum(), leaves), torch.autograd.grad(whole.sum(), leaves), strict=True):
        assert_close(a, b)


def test_the_ring_is_a_copy_and_keeps_nothing_alive():
    query, key, value = constant(draw_inputs(20))
    parts = {name: part.detach() for name, part in draw_parts(("kq_pre",)).items()}
    _, past = multi_token_decode(query, None, key, value, **parts)
    assert past.untyped_storage().nbytes() == past.numel() * past.element_size()


def test_wrong_pasts_are_named():
    query, key, value = constant(draw_inputs(20))
    parts = {name: part.detach() for name, part in draw_parts(("kq_pre", "kq_post")).items()}
    new = query[:, :, 19:]
    for past, message in (
        (None, "read 3 earlier queries, but past_query holds 0; keep what the last call returned"),
        (query[:, :, 17:19], "read 3 earlier queries, but past_query holds 2"),
        (query[:, :2, :19], r"past_query must fit query, \(2, 4, 19, 5\) in torch.float64 on cpu, got \(2, 2, 19, 5\)"),
        (query[:, :, :19].float(), "in torch.float64 on cpu, got .* in torch.float32 on cpu"),
        (query[:, :, :19].to("meta"), "on cpu, got .* on meta"),
        (query[0], r"past_query must fit query, \(2, 4, 'past', 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            multi_token_decode(new, past, key, value, **parts)
    with pytest.raises(ValueError, match="keep must be at least 0, got -1"):
        multi_token_decode(new, query[:, :, :19], key, value, **parts, keep=-1)
    with pytest.raises(ValueError, match="there are 20 queries and 19 keys"):
        multi_token_decode(query, None, key[:, :, :19], value[:, :, :19], **parts)
