"""Twicing attention (arXiv 2503.00687): attend once, then attend to what the first pass missed.

With the softmax map A, output = A V + A (V - A V) = A U, where U = 2 V - A V. A is never squared: two passes of plain
attention. Row t of U needs row t of A only, so U is all that decoding must keep beside the keys and the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heedful.ops.backends import choose_backend
from heedful.ops.masks import NO_MASK, AttentionMask
from heedful.ops.shapes import check_inputs, masked_softmax, read_values, repeat_heads, scaled_scores
from heedful.ops.standard import sdpa

if TYPE_CHECKING:
    from jaxtyping import Float


def twicing_attention(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m dv"],
    *,
    past_corrected: Float[Tensor, "b h past dv"] | None = None,
    mask: AttentionMask | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "b h n dv"]:
    """Twicing attention, the kernel 2A - A^2 in two passes.

        A = softmax(mask(scale Q K^T)),   U = 2 V - A V,   O = A U

    Args:
        query: (B, H, N, d), the last N of the M positions.
        key: (B, G, M, d); value: (B, G, M, d_v); G divides H.
        past_corrected: (B, H, M - N, d_v), the rows of U of the positions before the first query, as `twicing_step`
            returned them. Needed exactly when N < M.
        mask, is_causal, scale: as in `standard_attention`.
        dropout_p: both passes use the same dropped map, so dropout takes the reference form.
        backend: "auto", "sdpa" (two fused passes) or "reference".

    Returns:
        (B, H, N, d_v) in the values' type.

    Raises:
        ValueError: shapes that do not fit; N < M without `past_corrected`; dropout with "sdpa".
    """
    return twicing_step(
        query,
        key,
        value,
        past_corrected=past_corrected,
        mask=mask,
        is_causal=is_causal,
        scale=scale,
        dropout_p=dropout_p,
        backend=backend,
    )[0]


def twicing_step(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m dv"],
    *,
    past_corrected: Float[Tensor, "b h past dv"] | None = None,
    mask: AttentionMask | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h m dv"]]:
    """Return `twicing_attention` and U (B, H, M, d_v), which the next step takes as `past_corrected`."""
    check_inputs(query, key, value, mask=mask, dropout_p=dropout_p)
    mask = NO_MASK if mask is None else mask
    batch, heads, queries, _ = query.shape
    keys, width = key.shape[2], value.shape[-1]
    past = keys - queries
    mask.check(queries, keys, is_causal=True)
    given = None if past_corrected is None else tuple(past_corrected.shape)
    if given != (None if past == 0 else (batch, heads, past, width)) and not (
        past == 0 and given == (batch, heads, 0, width)
    ):
        raise ValueError(
            f"twicing attention with {queries} queries and {keys} keys needs past_corrected of shape "
            f"{(batch, heads, past, width) if past else None} (the corrected values of earlier calls), got {given}."
        )
    choice = choose_backend("twicing", backend, twicing_backends(dropout_p=dropout_p))
    new_values = repeat_heads(value[:, :, past:], heads)
    if choice.backend == "sdpa":
        first = sdpa(query, key, value, mask=mask, is_causal=is_causal, scale=scale)
        corrected = _append(past_corrected, 2 * new_values - first)
        output = sdpa(query, repeat_heads(key, heads), corrected, mask=mask, is_causal=is_causal, scale=scale)
        return output, corrected
    visible = mask.visible(queries, keys, is_causal=is_causal, device=query.device)
    weights = masked_softmax(scaled_scores(query, key, scale), visible)
    if dropout_p > 0.0:
        weights = torch.nn.functional.dropout(weights, dropout_p)
    corrected = _append(past_corrected, 2 * new_values - read_values(weights, value, 0.0))
    return read_values(weights, corrected, 0.0), corrected


def twicing_backends(*, dropout_p: float = 0.0) -> Mapping[str, str | None]:
    """Say which backends can run a call."""
    refusal = "both passes must use the same dropped attention map, and two fused calls draw different ones"
    return {"sdpa": refusal if dropout_p > 0.0 else None, "reference": None}


def _append(past: Tensor | None, new: Tensor) -> Tensor:
    return new if past is None else torch.cat([past, new], dim=2)
