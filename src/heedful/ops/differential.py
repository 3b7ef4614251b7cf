"""Differential attention: the difference of two attention maps.

Version 1 (arXiv 2410.05258) subtracts lambda times a second map, with one lambda per layer and values of doubled
width. Version 2 (its authors' later form) is ordinary grouped attention with twice the query heads, whose neighbours
are subtracted with one factor per token and head. They are two functions, because neither is a case of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heedful.ops.backends import choose_backend
from heedful.ops.masks import NO_MASK, AttentionMask
from heedful.ops.shapes import check_inputs, masked_softmax, read_values, scaled_scores
from heedful.ops.standard import sdpa, standard_attention

if TYPE_CHECKING:
    from jaxtyping import Float


def differential_attention(
    query: Float[Tensor, "b two_h n d"],
    key: Float[Tensor, "b two_g m d"],
    value: Float[Tensor, "b g m dv"],
    factor: Float[Tensor, ""] | Float[Tensor, " h"],
    *,
    mask: AttentionMask | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "b h n dv"]:
    """Differential attention, version 1, without its head norm.

        O_h = (softmax(mask(scale q_2h k_2g^T)) - factor softmax(mask(scale q_2h+1 k_2g+1^T))) V_g,   g = h G // H

    Args:
        query: (B, 2H, N, d): head h owns the neighbouring sub-heads 2h and 2h + 1.
        key: (B, 2G, M, d): group g owns the sub-heads 2g and 2g + 1; G divides H.
        value: (B, G, M, d_v), usually d_v = 2d.
        factor: lambda, one number or one per head.
        mask, is_causal, scale: as in `standard_attention`.
        dropout_p: the two maps are dropped independently.
        backend: "auto", "sdpa" (fused passes) or "reference".

    Returns:
        (B, H, N, d_v) in the values' type.

    Raises:
        ValueError: odd numbers of sub-heads, or shapes that do not fit.
    """
    if query.dim() != 4 or key.dim() != 4 or query.shape[1] % 2 or key.shape[1] % 2:
        raise ValueError(
            f"differential attention pairs neighbouring sub-heads: query and key need an even number of heads, got "
            f"{tuple(query.shape)} and {tuple(key.shape)}."
        )
    if tuple(factor.shape) not in ((), (query.shape[1] // 2,)):
        raise ValueError(
            f"factor must be one number or one per head, shape ({query.shape[1] // 2},), got {tuple(factor.shape)}."
        )
    first, second = (query[:, 0::2], key[:, 0::2]), (query[:, 1::2], key[:, 1::2])
    check_inputs(*first, value, mask=mask, dropout_p=dropout_p)
    mask = NO_MASK if mask is None else mask
    choice = choose_backend("differential", backend, differential_backends(dropout_p=dropout_p))
    factor = factor.reshape(-1, 1, 1).to(value.dtype) if choice.backend == "sdpa" else factor.reshape(-1, 1, 1)
    if choice.backend == "sdpa":
        options = {"mask": mask, "is_causal": is_causal, "scale": scale}
        # Two passes of the queries' width run on the flash kernel; one pass of doubled value width does not.
        parts = value.split(query.shape[-1], dim=-1) if dropout_p == 0.0 else (value,)
        one, two = (
            torch.cat([sdpa(q, k, part, dropout_p=dropout_p, **options) for part in parts], dim=-1)
            for q, k in (first, second)
        )
        return one - factor * two
    visible = mask.visible(query.shape[2], key.shape[2], is_causal=is_causal, device=query.device)
    maps = [masked_softmax(scaled_scores(q, k, scale), visible) for q, k in (first, second)]
    if dropout_p > 0.0:
        maps = [torch.nn.functional.dropout(weights, dropout_p) for weights in maps]
    return read_values(maps[0] - factor.to(maps[0].dtype) * maps[1], value, 0.0)


def differential_attention_v2(
    query: Float[Tensor, "b two_h n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m dv"],
    factor_logits: Float[Tensor, "b h n"],
    *,
    mask: AttentionMask | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "b h n dv"]:
    """Differential attention, version 2: grouped attention whose neighbouring heads are subtracted.

        Y = attention(Q, K, V),   O_h = Y_2h - sigmoid(factor_logits_h) Y_2h+1

    Args:
        query: (B, 2H, N, d); neighbours share one key/value head, so G must divide H.
        key: (B, G, M, d); value: (B, G, M, d_v).
        factor_logits: (B, H, N), one per head and token.
        mask, is_causal, scale, dropout_p, backend: as in `standard_attention`.

    Returns:
        (B, H, N, d_v) in the values' type.

    Raises:
        ValueError: an odd number of query heads, groups that split a pair, or shapes that do not fit.
    """
    if query.dim() != 4 or key.dim() != 4 or query.shape[1] % 2 or (query.shape[1] // 2) % max(key.shape[1], 1):
        raise ValueError(
            f"differential attention v2 needs two query heads per head and key heads that divide the heads, got "
            f"query {tuple(query.shape)} and key {tuple(key.shape)}."
        )
    expected = (query.shape[0], query.shape[1] // 2, query.shape[2])
    if tuple(factor_logits.shape) != expected:
        raise ValueError(
            f"factor_logits must have shape (batch, heads, queries) = {expected}, got {tuple(factor_logits.shape)}."
        )
    output = standard_attention(
        query, key, value, mask=mask, is_causal=is_causal, scale=scale, dropout_p=dropout_p, backend=backend
    )
    return output[:, 0::2] - torch.sigmoid(factor_logits)[..., None].to(output.dtype) * output[:, 1::2]


def differential_backends(*, dropout_p: float = 0.0) -> Mapping[str, str | None]:
    """Say which backends can run a call; both versions are made of plain attention passes."""
    return {"sdpa": None, "reference": None}
