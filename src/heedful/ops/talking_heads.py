"""Talking-heads attention: dense mixing of all heads' maps before and after the softmax.

The form used as a baseline of multi-token attention: as many heads before, inside and after the softmax, no kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from heedful.ops.masks import AttentionMask
from heedful.ops.multi_token import multi_token_attention

if TYPE_CHECKING:
    from jaxtyping import Float


def talking_heads_attention(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m dv"],
    head_pre: Float[Tensor, "h h"],
    head_post: Float[Tensor, "h h"],
    *,
    mask: AttentionMask | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "b h n dv"]:
    """Talking-heads attention.

        L_o = sum_g head_pre[o, g] S_g,   A = softmax(mask(L)),   O_o = (sum_g head_post[o, g] A_g) V_o

    Args:
        query, key, value: as in `standard_attention`.
        head_pre, head_post: (H, H) as [out, in]; the identity gives standard attention.
        mask, is_causal, scale, dropout_p, backend: as in `multi_token_attention`.

    Returns:
        (B, H, N, d_v) in the values' type. The mixed weights are not renormalised.

    Raises:
        ValueError: matrices that are not (H, H), or shapes that do not fit.
    """
    heads = query.shape[1]
    for name, mixing in (("head_pre", head_pre), ("head_post", head_post)):
        if tuple(mixing.shape) != (heads, heads):
            raise ValueError(f"{name} must have shape (heads, heads) = {(heads, heads)}, got {tuple(mixing.shape)}.")
    return multi_token_attention(
        query,
        key,
        value,
        head_pre=head_pre[None],
        head_post=head_post[None],
        mask=mask,
        is_causal=is_causal,
        scale=scale,
        dropout_p=dropout_p,
        backend=backend,
    )
