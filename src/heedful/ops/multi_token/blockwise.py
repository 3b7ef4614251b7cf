"""Multi-token attention through the blockwise walk, as custom operators: linear memory, any device.

Forward and backward are registered operators with shape-only (fake) versions, so that `torch.compile` keeps one graph
around them. They lay out their lines on the host: with padding or documents a call waits for the device to read the
mask, and CUDA graphs are recorded up to the operator and after it. Saved for the backward pass are the inputs and
nothing else; each tile is computed again. The backward pass itself is not differentiable: second derivatives need the
reference, and the error says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, library

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


class _Call(NamedTuple):
    """The arguments of the operators, in the order of `_SCHEMA`."""

    query: Tensor
    key: Tensor
    value: Tensor
    kq_pre: Tensor | None
    kq_post: Tensor | None
    head_pre: Tensor | None
    head_post: Tensor | None
    key_padding: Tensor | None
    document_ids: Tensor | None
    seed: Tensor | None
    window: int | None
    exact_mask: bool
    is_causal: bool
    scale: float
    dropout_p: float
    context: int
    block: int | None
    mixer: str

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def parts(self) -> Parts:
        """The four parts."""
        return Parts(self.kq_pre, self.kq_post, self.head_pre, self.head_post)

    def walk(self) -> Walk:
        """Return how the call is walked through."""
        return Walk(
            mask=AttentionMask(window=self.window, key_padding=self.key_padding, document_ids=self.document_ids),
            is_causal=self.is_causal,
            scale=self.scale,
            context=self.context,
            block=self.block,
            pre=Reach.of(self.kq_pre),
            post=Reach.of(self.kq_post),
            dtype=self.query.dtype if self.mixer == "triton" else compute_dtype(self.query.dtype),
        )

    def mixers(self, needed: Sequence[bool] = (False, False, False, False)) -> Callable[[int], Mixer]:
        """Return what makes the mixer of each slice of the batch; `needed` are the parts whose gradient is wanted."""
        if self.mixer == "triton":
            from heedful.ops.multi_token.triton_mixer import TritonMixer as Chosen  # Triton is optional
        else:
            from heedful.ops.multi_token.torch_mixer import TorchMixer as Chosen
        parts = self.parts.to(compute_dtype(self.query.dtype))
        first = 0 if self.seed is None else int(self.seed)

        def mixer(number: int) -> Mixer:
            # Tiles add their number to the seed: 2^20 of them fit between two slices.
            seed = (first + (number << 20)) % 2**63
            return Chosen(parts, exact_mask=self.exact_mask, dropout_p=self.dropout_p, seed=seed, needed=needed)

        return mixer


_SCHEMA = (
    "Tensor query, Tensor key, Tensor value, Tensor? kq_pre, Tensor? kq_post, Tensor? head_pre, Tensor? head_post, "
    "Tensor? key_padding, Tensor? document_ids, Tensor? seed, int? window, bool exact_mask, bool is_causal, "
    "float scale, float dropout_p, int context, int? block, str mixer"
)
_TENSORS = 10  # the first arguments, which are tensors
# `lines_of` reads the mask, which a stream in capture forbids; a graph would also keep the first lines and seed.
_TAGS = (torch.Tag.cudagraph_unsafe,)


@library.custom_op("heedful::multi_token_blockwise", mutates_args=(), schema=f"({_SCHEMA}) -> Tensor", tags=_TAGS)
def _forward(*arguments: Any) -> Tensor:
    call = _Call(*arguments)
    with torch.autocast(call.query.device.type, enabled=False):
        return call.walk().forward(*call.inputs, call.mixers())


@library.custom_op(
    "heedful::multi_token_blockwise_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, bool[] needed, {_SCHEMA}) -> Tensor[]",
    tags=_TAGS,
)
def _backward(gradient: Tensor, needed: list[bool], *arguments: Any) -> list[Tensor]:
    """Return the gradients of query, key, value, then of those parts which are `needed`."""
    call = _Call(*arguments)
    with torch.autocast(call.query.device.type, enabled=False):
        *inputs, sums = call.walk().backward(gradient, *call.inputs, call.mixers(needed))
    found = [
        torch.zeros_like(part, memory_format=torch.contiguous_format) if one is None else one.to(part.dtype)
        for part, one, want in zip(call.parts, sums, needed, strict=True)
        if want and part is not None
    ]
    return [*inputs, *found]


@_forward.register_fake
def _(*arguments: Any) -> Tensor:
    call = _Call(*arguments)
    batch, heads, queries, _ = call.query.shape
    return call.value.new_empty(batch, heads, queries - call.context, call.value.shape[-1])


@_backward.register_fake
def _(gradient: Tensor, needed: list[bool], *arguments: Any) -> list[Tensor]:
    call = _Call(*arguments)
    parts = [part for part, want in zip(call.parts, needed, strict=True) if want and part is not None]
    return [tensor.new_empty(tensor.shape) for tensor in (*call.inputs, *parts)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    call = _Call(*ctx.saved_tensors, *ctx.options)
    wanted = ctx.needs_input_grad[3:7]
    needed = [want and part is not None for want, part in zip(wanted, call.parts, strict=True)]
    found = iter(_backward(gradient, needed, *call))
    inputs = [next(found), next(found), next(found)]
    parts = [next(found) if want else None for want in needed]
    return (*inputs, *parts, *[None] * (len(call) - 7))


def _refuse(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    raise ValueError(
        "the blockwise backend of multi-token attention has first derivatives only; for second derivatives use "
        "backend='reference'."
    )


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_refuse)
