"""Multi-token attention through the blockwise walk, as custom operators: linear memory, any device.

Forward and backward are registered operators with shape-only (fake) versions, so that `torch.compile` keeps one graph
around them. Saved for the backward pass are the inputs and nothing else; each tile is computed again. The backward pass
itself is not differentiable: second derivatives need the reference, and the error says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from heedful.ops.masks import AttentionMask
from heedful.ops.multi_token.parts import Parts, Reach
from heedful.ops.multi_token.walk import Mixer, Walk
from heedful.ops.shapes import compute_dtype


def multi_token_blockwise(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: Parts,
    *,
    exact_mask: bool,
    mask: AttentionMask,
    is_causal: bool,
    scale: float | None,
    dropout_p: float,
    context: int = 0,
    block: int | None = None,
    mixer: str = "torch",
) -> Tensor:
    """Compute multi-token attention block by block; arguments as in `multi_token_attention`.

    Args:
        context: the first `context` queries only feed the convolutions; they have no output.
        block: rows of a block; None for the rule of `walk.block_sizes`.
        mixer: "torch" or "triton".

    Returns:
        (B, H, N - context, d_v). Memory: O(B H (N d + block M)) and a few tiles, backward pass included.
    """
    mask.check(query.shape[2], key.shape[2], is_causal=is_causal)
    # Drawn on the CPU whatever the device: reading a number back from a GPU would wait for it.
    seed = torch.randint(2**62, (), dtype=torch.int64, device="cpu") if dropout_p > 0.0 else None
    return _forward(
        query,
        key,
        value,
        *parts,
        mask.key_padding,
        mask.document_ids,
        seed,
        mask.window,
        exact_mask,
        is_causal,
        query.shape[-1] ** -0.5 if scale is None else scale,
        dropout_p,
        context,
        block,
        mixer,
    )


_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? kq_pre, Tensor? kq_post, Tensor? head_pre, Tensor? head_post, "
    "Tensor? key_padding, Tensor? document_ids, Tensor? seed, int? window, bool exact_mask, bool is_causal, "
    "float scale, float dropout_p, int context, int? block, str mixer"
)  # written out: read from annotations they would hang on what decorates the functions


@torch.library.custom_op("heedful::multi_token_blockwise", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kq_pre: Tensor | None,
    kq_post: Tensor | None,
    head_pre: Tensor | None,
    head_post: Tensor | None,
    key_padding: Tensor | None,
    document_ids: Tensor | None,
    seed: Tensor | None,
    window: int | None,
    exact_mask: bool,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    context: int,
    block: int | None,
    mixer: str,
) -> Tensor:
    parts = Parts(kq_pre, kq_post, head_pre, head_post)
    mask = AttentionMask(window=window, key_padding=key_padding, document_ids=document_ids)
    walk = _walk(query, parts, mask, is_causal, scale, context, block, mixer)
    options = {"storage": query.dtype, "exact_mask": exact_mask, "dropout_p": dropout_p, "seed": seed}
    mixers = _mixers(parts, mixer, **options)
    with torch.autocast(query.device.type, enabled=False):
        return walk.forward(query, key, value, mixers)


@torch.library.custom_op(
    "heedful::multi_token_blockwise_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, {_ARGUMENTS}, bool[] needed) -> Tensor[]",
)
def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kq_pre: Tensor | None,
    kq_post: Tensor | None,
    head_pre: Tensor | None,
    head_post: Tensor | None,
    key_padding: Tensor | None,
    document_ids: Tensor | None,
    seed: Tensor | None,
    window: int | None,
    exact_mask: bool,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    context: int,
    block: int | None,
    mixer: str,
    needed: list[bool],
) -> list[Tensor]:
    """Return the gradients of query, key, value, then of those parts which are `needed`."""
    parts = Parts(kq_pre, kq_post, head_pre, head_post)
    mask = AttentionMask(window=window, key_padding=key_padding, document_ids=document_ids)
    walk = _walk(query, parts, mask, is_causal, scale, context, block, mixer)
    wanted = (needed[0], needed[1], needed[2], needed[3])
    options = {"storage": query.dtype, "exact_mask": exact_mask, "dropout_p": dropout_p, "seed": seed}
    mixers = _mixers(parts, mixer, **options, needed=wanted)
    with torch.autocast(query.device.type, enabled=False):
        *inputs, part_gradients = walk.backward(gradient, query, key, value, mixers)
    found = [
        torch.zeros_like(part, memory_format=torch.contiguous_format) if one is None else one.to(part.dtype)
        for part, one, want in zip(parts, part_gradients, wanted, strict=True)
        if want and part is not None
    ]
    return [*inputs, *found]


def _mixers(
    parts: Parts,
    kind: str,
    *,
    storage: torch.dtype,
    exact_mask: bool,
    dropout_p: float,
    seed: Tensor | None,
    needed: tuple[bool, bool, bool, bool] = (False, False, False, False),
) -> Callable[[int], Mixer]:
    """Return what makes the mixer of each slice of the batch."""
    if kind == "triton":
        from heedful.ops.multi_token.triton_mixer import TritonMixer as Chosen  # Triton is optional
    else:
        from heedful.ops.multi_token.torch_mixer import TorchMixer as Chosen
    wide = parts.to(compute_dtype(storage))
    first = 0 if seed is None else int(seed)

    def mixer(number: int) -> Mixer:
        # Tiles add their number to the seed: 2^20 of them fit between two slices.
        own = (first + (number << 20)) % 2**63
        return Chosen(wide, exact_mask=exact_mask, dropout_p=dropout_p, seed=own, needed=needed)

    return mixer


def _walk(
    query: Tensor,
    parts: Parts,
    mask: AttentionMask,
    is_causal: bool,
    scale: float,
    context: int,
    block: int | None,
    mixer: str,
) -> Walk:
    return Walk(
        mask=mask,
        is_causal=is_causal,
        scale=scale,
        context=context,
        block=block,
        pre=Reach.of(parts.kq_pre),
        post=Reach.of(parts.kq_post),
        dtype=query.dtype if mixer == "triton" else compute_dtype(query.dtype),
    )


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> Tensor:
    context = others[12]
    return value.new_empty(query.shape[0], query.shape[1], query.shape[2] - context, value.shape[-1])


@_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> list[Tensor]:
    needed = others[-1]
    parts = [part for part, want in zip(others[:4], needed, strict=True) if want and part is not None]
    return [tensor.new_empty(tensor.shape) for tensor in (query, key, value, *parts)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:10])
    ctx.options = inputs[10:]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    needed = [
        wanted and tensor is not None for wanted, tensor in zip(ctx.needs_input_grad[3:7], tensors[3:7], strict=True)
    ]
    found = iter(_backward(gradient, *tensors, *ctx.options, needed))
    inputs = [next(found), next(found), next(found)]
    parts = [next(found) if want else None for want in needed]
    return (*inputs, *parts, *[None] * (3 + len(ctx.options)))


def _refuse(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    raise ValueError(
        "the blockwise backend of multi-token attention has first derivatives only; for second derivatives use "
        "backend='reference'."
    )


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_refuse)
