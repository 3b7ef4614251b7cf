"""Multi-token attention as the published code computes it: whole maps, one torch operation per step, plain autograd.

This is what the fast backends are measured against. The steps and their number types are those of the published
layer (scores, convolutions and mixing in the storage type, softmax in float32); where it spends time on anything else,
such as masks that are copied for every head, this file does not.

Legend: S scores, A weights, i query, j key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

import heedful.nn.multi_token
from heedful.ops import AttentionMask


def materialised_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kq_pre: Tensor | None = None,
    kq_post: Tensor | None = None,
    head_pre: Tensor | None = None,
    head_post: Tensor | None = None,
) -> Tensor:
    """Compute causal multi-token attention with the double mask; arguments as in `multi_token_attention`."""
    heads, length = query.shape[1:3]
    repeats = heads // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    maps = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if kq_pre is not None:
        maps = _convolve(maps.masked_fill(hidden, 0.0), kq_pre)
    if head_pre is not None:
        maps = _mix(maps, head_pre)
    exact = torch.promote_types(query.dtype, torch.float32)
    maps = maps.masked_fill(hidden, float("-inf")).softmax(-1, dtype=exact).to(query.dtype)
    if kq_post is not None:
        maps = _convolve(maps, kq_post).masked_fill(hidden, 0.0)
    if head_post is not None:
        maps = _mix(maps, head_post)
    return maps @ value


def _convolve(maps: Tensor, kernel: Tensor) -> Tensor:
    heads, rows, keys = kernel.shape
    padded = pad(maps, ((keys - 1) // 2, keys // 2, rows - 1, 0))
    return conv2d(padded, kernel[:, None], groups=heads)


def _mix(maps: Tensor, mixing: Tensor) -> Tensor:
    """Multiply the heads of each group by its matrix."""
    groups, size = mixing.shape[:2]
    flat = maps.reshape(maps.shape[0], groups, size, -1)
    return (mixing @ flat).view(maps.shape)


@contextmanager
def materialised_layers() -> Iterator[None]:
    """Let every multi-token layer compute the materialised form while this lasts; training and prefill only.

    Raises:
        ValueError: from a layer's call that the published code has no form for, such as packed documents.
    """
    with patch.object(heedful.nn.multi_token, "multi_token_decode", _in_place_of_decode):
        yield


def _in_place_of_decode(
    query: Tensor,
    past_query: Tensor | None,
    key: Tensor,
    value: Tensor,
    *,
    key_query_mask: str,
    mask: AttentionMask,
    is_causal: bool,
    scale: float | None,
    dropout_p: float,
    backend: str,
    keep: int,
    **parts: Any,
) -> tuple[Tensor, Tensor]:
    plain = mask.keys is None and mask.window is None and is_causal and scale is None and dropout_p == 0.0
    if past_query is not None or not plain or key_query_mask != "double" or query.shape[2] != key.shape[2]:
        raise ValueError("the materialised form is for whole causal sequences with the double mask, without dropout.")
    return materialised_attention(query, key, value, **parts), query[:, :, :0]
