"""Head mixing after the softmax alone, without any map: any fused attention kernel does the work.

    O_o = sum_g w[o, g] A_g V_o

Where the heads of a group share their values, that is a mixture of standard outputs, w (A V). Otherwise every head g
reads the values of all heads of its group side by side, and O_o picks its own part of each reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from heedful.ops.masks import AttentionMask
from heedful.ops.shapes import compute_dtype, repeat_heads
from heedful.ops.standard import sdpa

if TYPE_CHECKING:
    from jaxtyping import Float


def mixed_outputs(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m dv"],
    head_post: Float[Tensor, "groups size size"],
    *,
    mask: AttentionMask,
    is_causal: bool,
    scale: float | None,
) -> Float[Tensor, "b h n dv"]:
    """Return attention with mixing after the softmax; arguments as in `multi_token_attention`.

    Memory: O(B H N d_v), times c_h where the heads of a group have different values, and O(B N M) bits of mask where
    there is a window, padding or documents.
    """
    groups, size = head_post.shape[:2]
    mixing = head_post.to(compute_dtype(query.dtype))
    heads, width = query.shape[1], value.shape[-1]
    if (heads // key.shape[1]) % size == 0:
        read = sdpa(query, key, value, mask=mask, is_causal=is_causal, scale=scale)
        mixed = torch.einsum("kog,bkgnv->bkonv", mixing, read.unflatten(1, (groups, size)).to(mixing.dtype))
        return mixed.flatten(1, 2).to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    grouped = repeat_heads(value, heads).unflatten(1, (groups, size))
    beside = grouped.permute(0, 1, 3, 2, 4).flatten(3)  # b groups m (o v)
    values = beside[:, :, None].expand(-1, -1, size, -1, -1).flatten(1, 2)
    keys = repeat_heads(key, heads)
    missing = values.shape[-1] - keys.shape[-1]
    if missing > 0:  # fused CPU kernels want one width for all three; zeros change no score
        query, keys = pad(query, (0, missing)), pad(keys, (0, missing))
    else:
        values = pad(values, (0, -missing))
    read = sdpa(query, keys, values, mask=mask, is_causal=is_causal, scale=scale)
    parts = read[..., : size * width].unflatten(-1, (size, width)).unflatten(1, (groups, size)).to(mixing.dtype)
    return torch.einsum("kog,bkgnov->bkonv", mixing, parts).flatten(1, 2).to(value.dtype)
