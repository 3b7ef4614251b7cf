"""Multi-token attention as the paper's equations (arXiv 2504.00927), on maps of size N x M, in any float type.

This is what every faster form is proved against: any device, twice differentiable, all four parts.

Legend: S scores, A weights, i query row, j key, theta = kernel (H, c_q, c_k), a and b its taps. Tap [a, b] multiplies
row r = i - (c_q - 1) + a and key c = j - (c_k - 1)//2 + b, so the identity kernel is 1 at [-1, (c_k - 1)//2].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from heedful.ops.masks import AttentionMask
from heedful.ops.shapes import masked_softmax, read_values, scaled_scores

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def multi_token_reference(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m dv"],
    *,
    kq_pre: Float[Tensor, "h cq ck"] | None,
    kq_post: Float[Tensor, "h cq_post ck_post"] | None,
    head_pre: Float[Tensor, "groups size size"] | None,
    head_post: Float[Tensor, "groups_post size_post size_post"] | None,
    exact_mask: bool,
    mask: AttentionMask,
    is_causal: bool,
    scale: float | None,
    dropout_p: float,
) -> Float[Tensor, "b h n dv"]:
    """Compute the eight steps below; arguments as in `multi_token_attention`. Memory O(B H N M)."""
    visible = mask.visible(query.shape[2], key.shape[2], is_causal=is_causal, device=query.device)
    logits = scaled_scores(query, key, scale)
    if kq_pre is not None:
        logits = convolve_map(logits, kq_pre, mask, visible, exact_mask=exact_mask)
    if head_pre is not None:
        logits = mix_heads(logits, head_pre)
    weights = masked_softmax(logits, visible)
    if kq_post is not None:  # hidden weights are zero already, so both mask forms agree here
        weights = convolve_map(weights, kq_post, mask, visible, exact_mask=False).masked_fill(~visible, 0.0)
    if head_post is not None:
        weights = mix_heads(weights, head_post)
    return read_values(weights, value, dropout_p)


def convolve_map(
    attention_map: Float[Tensor, "b h n m"],
    kernel: Float[Tensor, "h cq ck"],
    mask: AttentionMask,
    visible: Bool[Tensor, "#b 1 n m"],
    *,
    exact_mask: bool,
) -> Float[Tensor, "b h n m"]:
    """Convolve each head's map with its kernel over queries (past only) and keys.

        double mask:  y[i, j] = sum_ab theta[a, b] 1[(r, c) visible] x[r, c]      (eq. 5)
        exact mask:   y[i, j] = sum_ab theta[a, b] 1[(i, c) visible] x[r, c]      (eq. 4)

    with r and c as in the legend; terms outside the map are zero, and so are rows r that are padding or of another
    document than i.
    """
    rows, keys = attention_map.shape[-2:]
    heads, row_taps, key_taps = kernel.shape
    kernel = kernel.to(attention_map.dtype)
    before, after = (key_taps - 1) // 2, key_taps // 2
    if not exact_mask:
        attention_map = attention_map.masked_fill(~visible, 0.0)
        if mask.document_ids is None:  # the same mask for every tap: one two-dimensional convolution
            padded = pad(attention_map, (before, after, row_taps - 1, 0))
            return conv2d(padded, kernel[:, None], groups=heads)
    total = torch.zeros((), dtype=attention_map.dtype, device=attention_map.device)
    for a in range(row_taps):
        shift = row_taps - 1 - a
        shifted = pad(attention_map, (0, 0, shift, 0))[..., :rows, :]
        if exact_mask:
            shifted = shifted.masked_fill(~visible, 0.0)
        joined = mask.joined_rows(rows, keys, shift)
        if joined is not None:
            shifted = shifted.masked_fill(~joined, 0.0)
        total = total + conv2d(pad(shifted, (before, after)), kernel[:, None, a : a + 1], groups=heads)
    return total


def mix_heads(
    attention_map: Float[Tensor, "b h n m"], mixing: Float[Tensor, "groups size size"]
) -> Float[Tensor, "b h n m"]:
    """Mix the maps of each group of consecutive heads: y_o = sum_g mixing[group, o, g] x_g (eq. 7)."""
    grouped = attention_map.unflatten(1, (mixing.shape[0], -1))
    return torch.einsum("kog,bkgnm->bkonm", mixing.to(attention_map.dtype), grouped).flatten(1, 2)
