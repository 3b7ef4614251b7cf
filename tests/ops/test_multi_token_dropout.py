"""Dropout in the blockwise walk: the right share, the right scale, another pattern in every tile, the same backward."""

import torch
from multi_token_cases import draw_inputs, draw_parts

from heedful.ops import multi_token_attention
from tolerance import assert_close


def dropped(length, probability, seed=0):
    """The final weights with and without dropout, read out by values that are the unit vectors."""
    query, key, _ = (t.detach() for t in draw_inputs(length, batch=2, kv_heads=4))
    value = torch.eye(length, dtype=torch.float64).expand(2, 4, -1, -1)
    parts = {name: part.detach() for name, part in draw_parts(("kq_pre", "head_post")).items()}
    torch.manual_seed(seed)
    found = multi_token_attention(query, key, value, **parts, dropout_p=probability, backend="blockwise")
    return found, multi_token_attention(query, key, value, **parts, backend="blockwise")


def test_the_right_share_is_dropped_and_the_rest_scaled():
    found, whole = dropped(300, 0.3)
    visible = torch.ones(300, 300, dtype=torch.bool).tril().expand_as(whole)
    kept = found != 0.0
    assert_close(found[kept], (whole / 0.7)[kept])
    assert not bool(kept[~visible].any())
    share = 1.0 - float(kept[visible].double().mean())
    deviation = (0.3 * 0.7 / int(visible.sum())) ** 0.5
    assert abs(share - 0.3) < 5 * deviation


def test_tiles_slices_and_calls_have_patterns_of_their_own():
    found, _ = dropped(300, 0.5)
    kept = found != 0.0
    rows = kept[0, 0, 128:, :128]  # rows of the second and third tile, columns which all of them see
    for other in (rows[1:], kept[0, 1, 128:, :128], kept[1, 0, 128:, :128]):
        shared = min(len(other), len(rows))
        agreement = float((other[:shared] == rows[:shared]).double().mean())
        assert abs(agreement - 0.5) < 5 * (0.25 / (shared * 128)) ** 0.5
    first, second = kept[0, 0, 10:128, :10], kept[0, 0, 138:256, :10]  # the same places in two tiles
    assert abs(float((first == second).double().mean()) - 0.5) < 5 * (0.25 / first.numel()) ** 0.5
    assert not torch.equal(found, dropped(300, 0.5, seed=1)[0])
    assert torch.equal(found, dropped(300, 0.5)[0])


def test_the_backward_pass_drops_the_same_weights():
    inputs, parts = draw_inputs(9, batch=3), draw_parts(("kq_pre", "kq_post", "head_pre", "head_post"))

    def function(query, key, value, *tensors):
        torch.manual_seed(7)
        named = dict(zip(parts, tensors, strict=True))
        return multi_token_attention(query, key, value, **named, dropout_p=0.4, backend="blockwise")

    assert torch.autograd.gradcheck(function, (*inputs, *parts.values()), fast_mode=True)


def test_the_global_generator_moves_on_by_one_draw():
    inputs = [t.detach() for t in draw_inputs(9)]
    parts = {name: part.detach() for name, part in draw_parts(("kq_pre",)).items()}
    torch.manual_seed(0)
    torch.randint(2**62, ())
    expected = torch.get_rng_state()
    torch.manual_seed(0)
    first = multi_token_attention(*inputs, **parts, dropout_p=0.5, backend="blockwise")
    assert torch.equal(torch.get_rng_state(), expected)
    assert not torch.equal(first, multi_token_attention(*inputs, **parts, dropout_p=0.5, backend="blockwise"))
