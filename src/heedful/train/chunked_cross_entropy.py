"""Cross-entropy from hidden states, some tokens at a time: the logits of a large vocabulary never exist whole.

For hidden states h (N, D), head weight W (V, D), bias b (V,) and targets y, with logits s_i = W h_i + b and
lse_i = log sum_v exp s_iv, the sums over the scored tokens are

    cross-entropy = sum_i lse_i - s_i,y_i        objective = cross-entropy + z sum_i lse_i^2

and the gradient of the objective with respect to the logits is softmax(s_i) (1 + 2 z lse_i) - onehot(y_i). It is known
as soon as the logits are, so the gradients with respect to h, W and b are taken chunk by chunk in the forward pass, and
the backward pass only scales them: the logits of one chunk live at a time and none are computed twice.

The products are torch's. Softmax, losses and the gradient of the logits are those of
`heedful.train.cross_entropy_rows`: one Triton kernel on a GPU, torch's operations elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from heedful.train.cross_entropy_rows import RowScorer, ScoredRows, choose_rows

LOGITS_OF_A_CHUNK = 2**26


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,
    rows: RowScorer | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the objective and the cross-entropy of this module's formulas, sums in nats over the scored tokens.

    The products with W are computed in the type of `hidden`, or in autocast's where it is on; softmax and sums in
    float32, the sum of W's gradient over the chunks included (all in float64 for float64). Besides the logits of a
    chunk (for the Triton kernel in the type of the products, so 2 bytes each in bfloat16; in torch 4 bytes each, 6
    where the products are bfloat16) the forward pass makes one tensor like each of `hidden`, `weight` and `bias` (under
    autocast, two more like `weight` in bfloat16 that it frees at its end). The backward pass hands out those very
    tensors, so a second one through the same graph is an error, and so is a derivative of the gradient.

    Args:
        hidden: (..., D), floats.
        weight: (V, D).
        bias: (V,) or None.
        targets: int64, shaped as `hidden` without its last dimension; IGNORED is not scored.
        z_loss: the coefficient z.
        chunk_tokens: tokens at a time; None takes as many as make 2^26 logits. It changes the result by rounding only.
        rows: `torch_rows` or `triton_rows`; None takes the kernel where it runs: `choose_rows` says where.

    Returns:
        objective, which gradients flow through, and cross-entropy, which none do; both 0-dimensional, float32 (float64
        for float64).
    """
    if not torch.is_grad_enabled():
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    result: Any = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, z_loss, chunk_tokens, rows)
    return result


@torch.no_grad()
def chunked_token_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    chunk_tokens: int | None = None,
    rows: RowScorer | None = None,
) -> Tensor:
    """Return -log p(target) of every token in nats, (N,), 0 where it is IGNORED; without gradients.

    Arguments, precision and memory are those of `chunked_cross_entropy`.
    """
    head = _Head(hidden, weight, bias, rows)

    def losses(part: slice) -> Tensor:  # a call, so that a chunk is freed before the next is made
        return head.score(hidden, targets, part, gradient=False).rows.losses

    return torch.cat([losses(part) for part in head.parts(hidden, chunk_tokens)])


class _Chunk(NamedTuple):
    """Some tokens, n of them, scored.

    Attributes:
        inputs: their hidden states, (n, D), in the type of the products.
        rows: losses, normalizers and, where wanted, the gradient of the logits, (n, V).
    """

    inputs: Tensor
    rows: ScoredRows


class _Head:
    """The head's weights in the type of its products, and what scores its logits."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: RowScorer | None = None) -> None:
        device = hidden.device.type
        cast = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64
        self.type = torch.get_autocast_dtype(device) if cast else hidden.dtype
        self.wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.weight = weight.to(self.type)
        self.bias = None if bias is None else bias.to(self.type)
        self.rows = rows or choose_rows(hidden.device, self.type)

    def parts(self, hidden: Tensor, chunk_tokens: int | None) -> list[slice]:
        """Return the tokens of each chunk."""
        tokens, size = hidden.shape[:-1].numel(), chunk_tokens or max(1, LOGITS_OF_A_CHUNK // self.weight.shape[0])
        return [slice(begin, begin + size) for begin in range(0, max(tokens, 1), size)]

    def score(self, hidden: Tensor, targets: Tensor, part: slice, *, z_loss: float = 0.0, gradient: bool) -> _Chunk:
        """Score some tokens, with the gradient of their logits or without."""
        inputs = hidden.flatten(0, -2)[part].to(self.type)
        logits = torch.nn.functional.linear(inputs, self.weight, self.bias)
        return _Chunk(inputs, self.rows(logits, targets.flatten()[part], z_loss=z_loss, gradient=gradient))


class _Gradients:
    """The gradients of the objective, filled chunk by chunk; None where they are not wanted."""

    def __init__(
        self, head: _Head, wanted: tuple[bool, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> None:
        self.head, self.any = head, any(wanted)
        # Contiguous whatever `hidden` is, so that its rows can be written through a view.
        self.hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=head.wide) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=head.wide) if bias is not None and wanted[2] else None

    def add(self, inputs: Tensor, slopes: Tensor, part: slice) -> None:
        """Add what some tokens contribute by the gradient of their logits."""
        if self.bias is not None:
            # Before the rounding for the products, except that the kernel's slopes are rounded already: by u |slope|
            # each (u = 2^-8 in bfloat16), so their sum is off by u times the sum of their sizes at most.
            self.bias += slopes.sum(0, dtype=self.head.wide)
        slopes = slopes.to(self.head.type)
        if self.hidden is not None:
            self.hidden.flatten(0, -2)[part] = slopes @ self.head.weight
        if self.weight is not None and self.head.type == self.head.wide:
            self.weight.addmm_(slopes.T, inputs)
        elif self.weight is not None:
            self.weight += slopes.T @ inputs


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        z_loss: float,
        chunk_tokens: int | None,
        rows: RowScorer | None,
    ) -> tuple[Tensor, Tensor]:
        head = _Head(hidden, weight, bias, rows)
        gradients = _Gradients(head, ctx.needs_input_grad[:3], hidden, weight, bias)

        def sums(part: slice) -> tuple[Tensor, Tensor]:  # a call, so that a chunk is freed before the next is made
            inputs, (losses, normalizers, slopes) = head.score(
                hidden, targets, part, z_loss=z_loss, gradient=gradients.any
            )
            if slopes is not None:
                gradients.add(inputs, slopes, part)
            return losses.sum(), normalizers.square().sum()

        with torch.autocast(hidden.device.type, enabled=False):  # the types are chosen; it would cast W in every chunk
            cross_entropy, penalty = (
                torch.stack(of_chunks).sum()
                for of_chunks in zip(*(sums(part) for part in head.parts(hidden, chunk_tokens)), strict=True)
            )
        ctx.save_for_backward(
            gradients.hidden,
            None if gradients.weight is None else gradients.weight.to(weight.dtype),
            None if gradients.bias is None or bias is None else gradients.bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(cross_entropy)
        return cross_entropy + z_loss * penalty, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # In place: no second tensor of the weight's size is made, and autograd, which notices, refuses to come again.
        scaled = (None if saved is None else saved.mul_(grad_outputs[0]) for saved in ctx.saved_tensors)
        return (*scaled, None, None, None, None)
