"""Cross-entropy from hidden states, some tokens at a time: the logits of a large vocabulary never exist whole.

For hidden states h (N, D), head weight W (V, D), bias b (V,) and targets y, with logits s_i = W h_i + b and
lse_i = log sum_v exp s_iv, the sums over the scored tokens are

    cross-entropy = sum_i lse_i - s_i,y_i        objective = cross-entropy + z sum_i lse_i^2

and the gradient of the objective with respect to the logits is softmax(s_i) (1 + 2 z lse_i) - onehot(y_i). It is known
as soon as the logits are, so the gradients with respect to h, W and b are taken chunk by chunk in the forward pass, and
the backward pass only scales them: the logits of one chunk live at a time and none are computed twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from heedful.data.batches import IGNORED

LOGITS_OF_A_CHUNK = 2**26


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the objective and the cross-entropy of this module's formulas, sums in nats over the scored tokens.

    The products with W are computed in the type of `hidden`, or in autocast's where it is on; logits, softmax and sums
    in float32, the sum of W's gradient over the chunks included (all in float64 for float64). Besides the logits of a
    chunk (4 bytes each, 6 where the products are bfloat16) the forward pass makes one tensor like each of `hidden`,
    `weight` and `bias` (under autocast, two more like `weight` in bfloat16 that it frees at its end). The backward pass
    hands out those very tensors, so a second one through the same graph is an error, and so is a derivative of the
    gradient.

    Args:
        hidden: (..., D), floats.
        weight: (V, D).
        bias: (V,) or None.
        targets: int64, shaped as `hidden` without its last dimension; IGNORED is not scored.
        z_loss: the coefficient z.
        chunk_tokens: tokens at a time; None takes as many as make 2^26 logits. It changes the result by rounding only.

    Returns:
        objective, which gradients flow through, and cross-entropy, which none do; both 0-dimensional, float32 (float64
        for float64).
    """
    if not torch.is_grad_enabled():
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    result: Any = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, z_loss, chunk_tokens)
    return result


@torch.no_grad()
def chunked_token_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, chunk_tokens: int | None = None
) -> Tensor:
    """Return -log p(target) of every token in nats, (N,), 0 where it is IGNORED; without gradients.

    Arguments, precision and memory are those of `chunked_cross_entropy`.
    """
    head = _Head(hidden, weight, bias)
    return torch.cat([head.score(hidden, targets, part).losses for part in head.parts(hidden, chunk_tokens)])


class _Chunk(NamedTuple):
    """Some tokens, n of them, scored.

    Attributes:
        inputs: their hidden states, (n, D), in the type of the products.
        targets: (n, 1), with 0 for IGNORED.
        scored: (n,), 1 for a token that counts and 0 for one that does not.
        exponentials: exp(logits - their largest), (n, V).
        sums: of the exponentials, (n,).
        normalizers: logsumexp of the logits, (n,), 0 where not scored.
        losses: -log p(target), (n,), 0 where not scored.
    """

    inputs: Tensor
    targets: Tensor
    scored: Tensor
    exponentials: Tensor
    sums: Tensor
    normalizers: Tensor
    losses: Tensor


class _Head:
    """The head's weights in the type of its products."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        device = hidden.device.type
        cast = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64
        self.type = torch.get_autocast_dtype(device) if cast else hidden.dtype
        self.wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.weight = weight.to(self.type)
        self.bias = None if bias is None else bias.to(self.type)

    def parts(self, hidden: Tensor, chunk_tokens: int | None) -> list[slice]:
        """Return the tokens of each chunk."""
        tokens, size = hidden.shape[:-1].numel(), chunk_tokens or max(1, LOGITS_OF_A_CHUNK // self.weight.shape[0])
        return [slice(begin, begin + size) for begin in range(0, max(tokens, 1), size)]

    def score(self, hidden: Tensor, targets: Tensor, part: slice) -> _Chunk:
        """Score some tokens; the exponentials are in the memory of the logits."""
        inputs, targets = hidden.flatten(0, -2)[part].to(self.type), targets.flatten()[part]
        logits = torch.nn.functional.linear(inputs, self.weight, self.bias).to(self.wide)
        ignored = targets == IGNORED
        targets = targets.masked_fill(ignored, 0)[:, None]
        of_targets = logits.gather(1, targets).squeeze(1)
        largest = logits.amax(1)
        exponentials = logits.sub_(largest[:, None]).exp_()
        sums = exponentials.sum(1)
        normalizers = (largest + sums.log()).masked_fill(ignored, 0)
        losses = (normalizers - of_targets).masked_fill(ignored, 0)
        return _Chunk(inputs, targets, (~ignored).to(self.wide), exponentials, sums, normalizers, losses)


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

    def add(self, chunk: _Chunk, part: slice, z_loss: float) -> None:
        """Add what some tokens contribute; their exponentials are overwritten."""
        scales = chunk.scored * (1 + 2 * z_loss * chunk.normalizers) / chunk.sums
        slopes = chunk.exponentials.mul_(scales[:, None])  # the gradient of the logits
        slopes.scatter_add_(1, chunk.targets, -chunk.scored[:, None])
        if self.bias is not None:
            self.bias += slopes.sum(0)
        slopes = slopes.to(self.head.type)
        if self.hidden is not None:
            self.hidden.flatten(0, -2)[part] = slopes @ self.head.weight
        if self.weight is not None and self.head.type == self.head.wide:
            self.weight.addmm_(slopes.T, chunk.inputs)
        elif self.weight is not None:
            self.weight += slopes.T @ chunk.inputs


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
    ) -> tuple[Tensor, Tensor]:
        head = _Head(hidden, weight, bias)
        gradients = _Gradients(head, ctx.needs_input_grad[:3], hidden, weight, bias)

        def sums(part: slice) -> tuple[Tensor, Tensor]:  # a call, so that a chunk is freed before the next is made
            chunk = head.score(hidden, targets, part)
            if gradients.any:
                gradients.add(chunk, part, z_loss)
            return chunk.losses.sum(), chunk.normalizers.square().sum()

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
        return (*scaled, None, None, None)
