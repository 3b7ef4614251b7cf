"""Standard softmax attention: A = softmax(mask(scale Q K^T)), output A V."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heedful.ops.backends import choose_backend
from heedful.ops.masks import NO_MASK, AttentionMask
from heedful.ops.shapes import check_inputs, masked_softmax, read_values, scaled_scores

if TYPE_CHECKING:
    from jaxtyping import Float


def standard_attention(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m dv"],
    *,
    mask: AttentionMask | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "b h n dv"]:
    """Standard attention, one softmax average per head.

        O = dropout(softmax(mask(scale Q K^T))) V

    Args:
        query: (B, H, N, d); the queries are the last N of the M positions.
        key: (B, G, M, d) with G dividing H; consecutive query heads share a key head.
        value: (B, G, M, d_v).
        mask: padding, packed documents, sliding window.
        is_causal: key j is visible to query i only if j <= i.
        scale: factor on the scores, default 1/sqrt(d).
        dropout_p: probability of dropping a weight; applied whenever it is above 0, so pass 0 in evaluation.
        backend: "auto", "sdpa" or "reference". SDPA's CPU flash kernel has no second derivative; the reference has.

    Returns:
        (B, H, N, d_v) in the values' type. Scores and softmax are computed in float32, or float64 for float64.
        Memory: "reference" O(B H N M); "sdpa" O(B H N d), and O(B N M) bits of mask when there is one.

    Raises:
        ValueError: shapes, types, masks or backends that do not fit, with what was expected.
    """
    check_inputs(query, key, value, mask=mask, dropout_p=dropout_p)
    mask = NO_MASK if mask is None else mask
    choice = choose_backend("standard", backend, standard_backends(dropout_p=dropout_p))
    if choice.backend == "sdpa":
        return sdpa(query, key, value, mask=mask, is_causal=is_causal, scale=scale, dropout_p=dropout_p)
    visible = mask.visible(query.shape[2], key.shape[2], is_causal=is_causal, device=query.device)
    weights = masked_softmax(scaled_scores(query, key, scale), visible)
    return read_values(weights, value, dropout_p)


def standard_backends(*, dropout_p: float = 0.0) -> Mapping[str, str | None]:
    """Say which backends can run a call; SDPA drops weights itself, so every call can use either."""
    return {"sdpa": None, "reference": None}


def sdpa(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m dv"],
    *,
    mask: AttentionMask,
    is_causal: bool,
    scale: float | None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "b h n dv"]:
    """Run torch's SDPA with our conventions: the queries are the last positions, empty rows give zero.

    torch's `is_causal` aligns the first query with the first key, so it serves only N = M; other cases pass a mask.
    """
    queries, keys = query.shape[2], key.shape[2]
    attend = torch.nn.functional.scaled_dot_product_attention
    grouped = query.shape[1] != key.shape[1]
    plain = mask.keys is None and mask.window is None
    if plain and (not is_causal or queries == keys or queries == 1):
        mask.check(queries, keys, is_causal=is_causal)
        causal = is_causal and queries > 1
        return attend(query, key, value, dropout_p=dropout_p, is_causal=causal, scale=scale, enable_gqa=grouped)
    visible = mask.visible(queries, keys, is_causal=is_causal, device=query.device)
    if mask.key_padding is None:  # without padding every query sees at least itself
        return attend(query, key, value, attn_mask=visible, dropout_p=dropout_p, scale=scale, enable_gqa=grouped)
    # A row that sees nothing would be 0/0 inside the kernel: let it see everything, then drop its output.
    empty = ~visible.any(-1, keepdim=True)
    output = attend(query, key, value, attn_mask=visible | empty, dropout_p=dropout_p, scale=scale, enable_gqa=grouped)
    return output.masked_fill(empty, 0.0)
