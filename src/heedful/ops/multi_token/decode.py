"""Decoding with multi-token attention: one or several new tokens against all keys.

Row i of the map depends on the c_q - 1 rows before it, for each convolution in use; those rows of scores are computed
again from the last queries, which the caller keeps. So a step costs (1 + halo) rows of scores and one of everything
else, linear in the number of keys, and nothing besides keys, values and `halo` queries is remembered.

    halo = (c_q of kq_pre - 1) + (c_q of kq_post - 1)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from heedful.ops.masks import AttentionMask
from heedful.ops.multi_token.api import run_multi_token
from heedful.ops.multi_token.parts import Parts, Reach

if TYPE_CHECKING:
    from jaxtyping import Float


def multi_token_decode(
    query: Float[Tensor, "b h n d"],
    past_query: Float[Tensor, "b h past d"] | None,
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m dv"],
    *,
    kq_pre: Float[Tensor, "h cq ck"] | None = None,
    kq_post: Float[Tensor, "h cq_post ck_post"] | None = None,
    head_pre: Float[Tensor, "groups size size"] | None = None,
    head_post: Float[Tensor, "groups_post size_post size_post"] | None = None,
    key_query_mask: Literal["double", "exact"] = "double",
    mask: AttentionMask | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
    keep: int = 0,
) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h kept d"]]:
    """Attend with N new queries after P past ones; the same numbers as the last N rows of the full computation.

    Args:
        query: (B, H, N, d) the new queries, the last N of the M positions. N = 1 for plain decoding, more for chunked
            prefill or the verification of drafted tokens.
        past_query: (B, H, P, d) the queries just before them: at least `halo`, or all there are; further ones are kept
            but not read. None at the start of a text.
        key, value: (B, G, M, ...) of all positions, the new ones last.
        kq_pre, kq_post, head_pre, head_post, key_query_mask, mask, is_causal, scale, dropout_p, backend: as in
            `multi_token_attention`; the mask covers all M positions, so padded rows of different lengths decode
            together.
        keep: how many past queries to return besides the `halo` that the next step needs: going back by k tokens (a
            rejected draft) drops the last k of them, and the next step needs `halo` after that.

    Returns:
        The output (B, H, N, d_v), and the last halo + keep queries for the next call, (B, H, up to halo + keep, d): a
        copy, which keeps nothing else alive. Computation O(B H (N + halo) M d), memory the same without d.

    Raises:
        ValueError: as `multi_token_attention`, a past that does not fit the queries, or one which is too short.
    """
    parts = Parts(kq_pre, kq_post, head_pre, head_post)
    halo = Reach.of(kq_pre).rows + Reach.of(kq_post).rows
    if query.dim() != 4 or key.dim() != 4:
        raise ValueError(
            f"query and key must have shape (batch, heads, sequence, head_dim), got {tuple(query.shape)} and "
            f"{tuple(key.shape)}."
        )
    if keep < 0:
        raise ValueError(f"keep must be at least 0, got {keep}.")
    rows, past = query, 0
    if past_query is not None:
        expected = (*query.shape[:2], past_query.shape[2] if past_query.dim() == 4 else "past", query.shape[3])
        same = past_query.dtype == query.dtype and past_query.device == query.device
        if tuple(past_query.shape) != expected or not same:
            raise ValueError(
                f"past_query must fit query, {expected} in {query.dtype} on {query.device}, got "
                f"{tuple(past_query.shape)} in {past_query.dtype} on {past_query.device}."
            )
        rows, past = torch.cat([past_query, query], dim=2), past_query.shape[2]
    needed = max(min(halo, key.shape[2] - query.shape[2]), 0)
    if past < needed:
        raise ValueError(
            f"the convolutions read {needed} earlier queries, but past_query holds {past}; keep what the last call "
            f"returned, and more (`keep`) if tokens are taken back."
        )
    used = rows[:, :, past - needed :]
    output = run_multi_token(
        used,
        key,
        value,
        parts,
        key_query_mask=key_query_mask,
        mask=mask,
        is_causal=is_causal,
        scale=scale,
        dropout_p=dropout_p,
        backend=backend,
        block_size=None,
        context=needed,
    )
    return output, rows[:, :, max(rows.shape[2] - halo - keep, 0) :].clone()
