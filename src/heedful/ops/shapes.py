"""Checks and small tensor steps that every operation shares: shapes, precision, grouped heads, masked softmax.

Legend: B batch, H query heads, G key/value heads (dividing H), N queries, M keys, d head_dim, d_v value_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heedful.ops.masks import AttentionMask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def check_inputs(query: Tensor, key: Tensor, value: Tensor, *, mask: AttentionMask | None, dropout_p: float) -> None:
    """Refuse tensors that are not (B, H, N, d), (B, G, M, d), (B, G, M, d_v) of one floating type, and other batches'
    masks.

    Raises:
        ValueError: with what was expected and what came.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have shape (batch, heads, sequence, head_dim), got {tuple(tensor.shape)}.")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {tensor.dtype}.")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query, key and value must share one dtype, got {query.dtype}, {key.dtype} and {value.dtype}."
        )
    if not query.device == key.device == value.device:
        raise ValueError(
            f"query, key and value must be on one device, got {query.device}, {key.device} and {value.device}."
        )
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        raise ValueError(f"batch sizes differ: query {query.shape[0]}, key {key.shape[0]}, value {value.shape[0]}.")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must share head_dim, got {query.shape[-1]} and {key.shape[-1]}.")
    if key.shape[1:3] != value.shape[1:3]:
        raise ValueError(
            f"key and value must share heads and sequence, got {tuple(key.shape[1:3])} and {tuple(value.shape[1:3])}."
        )
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"the number of key/value heads must divide the query heads, got {key.shape[1]} and {query.shape[1]}."
        )
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}.")
    if mask is not None:
        mask.check_batch(query.shape[0])


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of scores, softmax and norms: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def repeat_heads(x: Float[Tensor, "b g n d"], heads: int) -> Float[Tensor, "b h n d"]:
    """Give each of the H query heads its key/value head: heads h*H/G ... share head h."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def scaled_scores(
    query: Float[Tensor, "b h n d"], key: Float[Tensor, "b g m d"], scale: float | None
) -> Float[Tensor, "b h n m"]:
    """Return S = scale * Q K^T in compute precision; scale None is 1/sqrt(d)."""
    wide = compute_dtype(query.dtype)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    keys = repeat_heads(key, query.shape[1]).to(wide)
    return (query.to(wide) * factor) @ keys.transpose(-1, -2)


def masked_softmax(logits: Float[Tensor, "b h n m"], visible: Bool[Tensor, "#b 1 n m"]) -> Float[Tensor, "b h n m"]:
    """Softmax over the visible keys; a row that sees nothing is zero, also in its gradient."""
    lowest = torch.finfo(logits.dtype).min  # not -inf: a row without visible keys must not become NaN
    return logits.masked_fill(~visible, lowest).softmax(-1).masked_fill(~visible, 0.0)


def read_values(
    weights: Float[Tensor, "b h n m"], value: Float[Tensor, "b g m dv"], dropout_p: float
) -> Float[Tensor, "b h n dv"]:
    """Return dropout(A) V in the values' type."""
    if dropout_p > 0.0:
        weights = torch.nn.functional.dropout(weights, dropout_p)
    return (weights @ repeat_heads(value, weights.shape[1]).to(weights.dtype)).to(value.dtype)
