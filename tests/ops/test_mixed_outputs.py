"""Head mixing after the softmax without maps equals the reference, for shared and for separate values."""

import pytest
from multi_token_cases import draw_inputs, draw_parts, masks, value_and_gradients

from heedful.ops import multi_token_attention
from tolerance import assert_close


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("value_width", [3, 8])
def test_outputs_and_gradients_equal_the_reference(kv_heads, group, value_width):
    parts = draw_parts(("head_post",), post_group=group)
    for queries in (23, 9, 1):
        inputs = draw_inputs(23, queries, kv_heads=kv_heads, value_width=value_width)
        for kind, mask in masks(23).items():
            for is_causal in (True, False):
                options = {"mask": mask, "is_causal": is_causal, "scale": 0.4}
                found = value_and_gradients(inputs, parts, backend="sdpa", **options)
                for a, b in zip(found, value_and_gradients(inputs, parts, backend="reference", **options), strict=True):
                    assert_close(a, b, kind)


def test_dropout_acts_on_mixed_weights_and_is_refused():
    inputs, parts = draw_inputs(5), draw_parts(("head_post",))
    with pytest.raises(ValueError, match="dropout acts on the mixed weights"):
        multi_token_attention(*inputs, **parts, dropout_p=0.1, backend="sdpa")
    with pytest.raises(ValueError, match="mixing before the softmax need the attention map"):
        multi_token_attention(*inputs, **draw_parts(("head_pre",)), backend="sdpa")
    assert multi_token_attention(*inputs, **parts, dropout_p=0.1).shape == (2, 4, 5, 3)
