"""The public multi-token operation: validation, choice of the backend, dispatch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from heedful.ops.backends import choose_backend
from heedful.ops.masks import NO_MASK, AttentionMask
from heedful.ops.multi_token.reference import multi_token_reference
from heedful.ops.shapes import check_inputs
from heedful.ops.standard import sdpa

if TYPE_CHECKING:
    from jaxtyping import Float


def multi_token_attention(
    query: Float[Tensor, "b h n d"],
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
) -> Float[Tensor, "b h n dv"]:
    """Multi-token attention: convolutions over queries, keys and heads of the attention map.

        L = head_pre * (kq_pre conv mask_0(S)),   S = scale Q K^T
        A = softmax(mask_-inf(L))
        O = dropout(head_post * mask_0(kq_post conv A)) V

    Each of the four parts may be absent. With none of them this is standard attention.

    Args:
        query: (B, H, N, d), the last N of the M positions. Score rows of earlier queries, which a convolution would
            read, count as zero: when decoding, pass the last c_q - 1 queries (2 (c_q - 1) with both convolutions) too
            and drop their outputs.
        key: (B, G, M, d) with G dividing H; value: (B, G, M, d_v).
        kq_pre, kq_post: kernels (H, c_q, c_k), one per query head, any sizes. Tap [a, b] multiplies the entry of query
            i - (c_q - 1) + a and key j - (c_k - 1)//2 + b; identity is 1 at [-1, (c_k - 1)//2].
        head_pre, head_post: (H/c_h, c_h, c_h) as [group, out, in], groups of consecutive heads.
        key_query_mask: "double" hides key > query before the convolution (the published models); "exact" hides only
            keys after the query of the output row, as the definition in the paper asks. They differ on the diagonals
            0 <= i - j < c_q - 1 + c_k//2 only.
        mask: padding, packed documents, sliding window. Convolutions never read padding or another document. With a
            window, "double" hides what lies outside of row r's window, "exact" what lies outside of row i's.
        is_causal, scale, dropout_p: as in `standard_attention`; dropout acts on the final weights.
        backend: "auto", "reference", or "sdpa" when no part is given.

    Returns:
        (B, H, N, d_v) in the values' type. Rows of the final weights need not sum to one. Scores, convolutions, mixing
        and softmax are computed in float32 (float64 for float64). Memory of the reference: O(B H N M).

    Raises:
        ValueError: parameters whose shapes do not fit the heads, unknown mask forms, impossible backends.
    """
    check_inputs(query, key, value, mask=mask, dropout_p=dropout_p)
    heads = query.shape[1]
    for name, kernel in (("kq_pre", kq_pre), ("kq_post", kq_post)):
        if kernel is not None and (kernel.dim() != 3 or kernel.shape[0] != heads or 0 in kernel.shape):
            raise ValueError(f"{name} must have shape (heads = {heads}, c_q, c_k), got {tuple(kernel.shape)}.")
    for name, mixing in (("head_pre", head_pre), ("head_post", head_post)):
        if mixing is None:
            continue
        if mixing.dim() != 3 or mixing.shape[1] != mixing.shape[2] or mixing.shape[0] * mixing.shape[1] != heads:
            raise ValueError(
                f"{name} must have shape (heads / c_h, c_h, c_h) with {heads} heads in all, got {tuple(mixing.shape)}."
            )
    if key_query_mask not in ("double", "exact"):
        raise ValueError(f"key_query_mask must be 'double' or 'exact', got {key_query_mask!r}.")
    mask = NO_MASK if mask is None else mask
    changes_map = any(part is not None for part in (kq_pre, kq_post, head_pre, head_post))
    choice = choose_backend("multi-token", backend, multi_token_backends(changes_map=changes_map))
    if choice.backend == "sdpa":
        return sdpa(query, key, value, mask=mask, is_causal=is_causal, scale=scale, dropout_p=dropout_p)
    return multi_token_reference(
        query,
        key,
        value,
        kq_pre=kq_pre,
        kq_post=kq_post,
        head_pre=head_pre,
        head_post=head_post,
        exact_mask=key_query_mask == "exact",
        mask=mask,
        is_causal=is_causal,
        scale=scale,
        dropout_p=dropout_p,
    )


def multi_token_backends(*, changes_map: bool = True) -> Mapping[str, str | None]:
    """Say which backends can run a call; `changes_map`: at least one kernel or head mixing is given."""
    refusal = "convolutions and head mixing need the attention map, which SDPA does not give" if changes_map else None
    return {"sdpa": refusal, "reference": None}
