"""The public multi-token operation: validation, choice of the backend, dispatch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from heedful.ops.backends import Situation, choose_backend
from heedful.ops.masks import NO_MASK, AttentionMask
from heedful.ops.multi_token.blockwise import multi_token_blockwise
from heedful.ops.multi_token.choice import CallSizes, PartSizes, multi_token_backends
from heedful.ops.multi_token.mixed_outputs import mixed_outputs
from heedful.ops.multi_token.parts import Parts
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
    block_size: int | None = None,
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
        backend: "auto", or one of

            * "reference": the equations on whole maps, O(B H N M) memory, twice differentiable;
            * "blockwise": block by block, on any device, O(B H (N d + block M)) memory forward and backward;
            * "triton": the same with a fused CUDA kernel between the products, tiles in the storage type;
            * "sdpa": where no part but head_post is given.

            Of these only "reference" has second derivatives. `heedful.explain` says which one "auto" takes.
        block_size: rows of a block of "blockwise" and "triton"; None for the rule: tiles of about 2^21 numbers (2^24
            on CUDA), but never fewer than 64 rows or more than 128. It changes speed, memory and rounding only.

    Returns:
        (B, H, N, d_v) in the values' type. Rows of the final weights need not sum to one. Scores, convolutions, mixing
        and softmax are computed in float32 (float64 for float64); "triton" rounds scores, weights and their gradients
        to the storage type in between. A query which sees nothing has output and gradient zero.

    Raises:
        ValueError: parameters whose shapes, types or devices do not fit, more queries than keys, unknown mask forms,
            impossible backends, a block size below 1.
    """
    return run_multi_token(
        query,
        key,
        value,
        Parts(kq_pre, kq_post, head_pre, head_post),
        key_query_mask=key_query_mask,
        mask=mask,
        is_causal=is_causal,
        scale=scale,
        dropout_p=dropout_p,
        backend=backend,
        block_size=block_size,
    )


def run_multi_token(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: Parts,
    *,
    key_query_mask: str,
    mask: AttentionMask | None,
    is_causal: bool,
    scale: float | None,
    dropout_p: float,
    backend: str,
    block_size: int | None,
    context: int = 0,
) -> Tensor:
    """Check, choose and compute; the first `context` queries only feed the convolutions and have no output."""
    check_inputs(query, key, value, mask=mask, dropout_p=dropout_p)
    _check_parts(query, key, parts)
    if key_query_mask not in ("double", "exact"):
        raise ValueError(f"key_query_mask must be 'double' or 'exact', got {key_query_mask!r}.")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be at least 1 row, got {block_size}.")
    mask = NO_MASK if mask is None else mask
    heads, queries, head_dim = query.shape[1:]
    masked = mask.window is not None or mask.keys is not None
    candidates = multi_token_backends(
        PartSizes.of(parts),
        CallSizes(heads, key.shape[1], head_dim, dropout_p),
        Situation(query.device.type, query.dtype, queries, key.shape[2], query.shape[0], masked),
    )
    choice = choose_backend("multi-token", backend, candidates)
    options = {"mask": mask, "is_causal": is_causal, "scale": scale}
    if queries == context:  # nothing to compute; torch's own kernel knows empty inputs and their gradients
        return sdpa(query[:, :, context:], key, value, dropout_p=dropout_p, **options)
    if choice.backend in ("blockwise", "triton"):
        return multi_token_blockwise(
            query,
            key,
            value,
            parts,
            exact_mask=key_query_mask == "exact",
            dropout_p=dropout_p,
            context=context,
            block=block_size,
            mixer="triton" if choice.backend == "triton" else "torch",
            **options,
        )
    if choice.backend == "sdpa" and parts.head_post is not None:
        return mixed_outputs(query[:, :, context:], key, value, parts.head_post, **options)
    if choice.backend == "sdpa":
        return sdpa(query[:, :, context:], key, value, dropout_p=dropout_p, **options)
    exact = key_query_mask == "exact"
    output = multi_token_reference(
        query, key, value, **parts._asdict(), exact_mask=exact, dropout_p=dropout_p, **options
    )
    return output[:, :, context:]


def _check_parts(query: Tensor, key: Tensor, parts: Parts) -> None:
    heads = query.shape[1]
    if query.shape[2] > key.shape[2]:
        raise ValueError(
            f"queries are the last of the key positions, but there are {query.shape[2]} queries and {key.shape[2]} "
            f"keys."
        )
    for name, part in parts._asdict().items():
        if part is None:
            continue
        if name.startswith("kq") and (part.dim() != 3 or part.shape[0] != heads or 0 in part.shape):
            raise ValueError(f"{name} must have shape (heads = {heads}, c_q, c_k), got {tuple(part.shape)}.")
        if name.startswith("head") and (
            part.dim() != 3 or part.shape[1] != part.shape[2] or part.shape[0] * part.shape[1] != heads
        ):
            raise ValueError(
                f"{name} must have shape (heads / c_h, c_h, c_h) with {heads} heads in all, got {tuple(part.shape)}."
            )
        if not part.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {part.dtype}.")
        if part.device != query.device:
            raise ValueError(f"{name} must be on the device of query, {query.device}, got {part.device}.")
