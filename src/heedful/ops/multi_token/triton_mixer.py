"""The mixer in Triton: the same steps as the torch mixer, on tiles in 16 bits or float32, with sums in float32.

    X = mask_0(S),  Y = kq_pre conv X,  A = softmax(mask_-inf(head_pre * Y))
    W = mask_0(kq_post conv A),  B = dropout(head_post * W)

Forward: hide, convolution, softmax with mixing, convolution, hide, mixing with dropout: at most six kernels. Stored are
Y in float32, since a convolution can enlarge logits, and A and W in the type of the tile. Backward: these again, then

    dW = head_post^T * (kept dB),  dA = kq_post^T conv dW,  dY = head_pre^T * (A (dA - <A, dA>)),  dS = kq_pre^T conv dY

with the gradients of the parts as sums over the tile in float32, in a fixed order. Gradients between these steps are
stored in the type of the tile.

Counted, not measured: per score, forward, tensor cores do 32 c_q multiply-adds for each convolution and 16 or 32 for
each mixing and pass. With all four parts and 16 bits 24 bytes are moved forward and about 58 backward, meant to stay in
the second cache.

This module imports no Triton until a mixer is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heedful.ops.multi_token.parts import Parts
from heedful.ops.multi_token.tiles import Tile

if TYPE_CHECKING:
    from jaxtyping import Float

STORAGE = (torch.bfloat16, torch.float16, torch.float32)


class TritonMixer:
    """Mixer of one call; gathers the gradients of the parts over all tiles.

    Args:
        parts: the four parts, in float32.
        exact_mask: form of the mask in the pre convolution.
        needed: for each part whether its gradient is wanted.
        dropout_p: probability of dropping a weight.
        seed: of the dropped weights; each tile draws from seed + its number, so the backward pass drops the same ones.

    Tiles are bfloat16, float16 or float32. Results are the same in every run.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        exact_mask: bool,
        dropout_p: float = 0.0,
        seed: int = 0,
        needed: Sequence[bool] = (False, False, False, False),
    ) -> None:
        from heedful.ops.multi_token import triton_launches, triton_row_launches

        for name, part in zip(Parts._fields, parts, strict=True):
            if part is not None and part.dtype != torch.float32:
                raise ValueError(f"the Triton mixer computes in float32; {name} must be float32, got {part.dtype}.")
        self.launch, self.rows = triton_launches, triton_row_launches
        self.parts = Parts(*(None if part is None else part.contiguous() for part in parts))
        self.turned = tuple(
            None if kernel is None else kernel.flip(1, 2).contiguous() for kernel in (parts.kq_pre, parts.kq_post)
        )
        self.mixing = tuple(
            None if mixing is None else triton_row_launches.Bundles.of(mixing)
            for mixing in (self.parts.head_pre, self.parts.head_post)
        )
        self.exact_mask = exact_mask
        self.dropout_p = dropout_p
        self.seed = seed
        self.gradients = parts.gradient_sums(needed)

    def forward(self, scores: Float[Tensor, "b h rows columns"], tile: Tile) -> Float[Tensor, "b h n m"]:
        """Return the weights B of a tile, in its type. `scores` may be overwritten."""
        with torch.cuda.device_of(scores):
            _, _, attention, unmixed = self._until_finish(_checked(scores), tile)
            del attention
            return self._finished(unmixed, tile)

    def backward(
        self,
        scores: Float[Tensor, "b h rows columns"],
        gradient: Float[Tensor, "b h n m"],
        tile: Tile,
    ) -> tuple[Float[Tensor, "b h n m"], Float[Tensor, "b h rows columns"]]:
        """Return the weights B and the gradient of the scores, given that of B. Both inputs may be overwritten."""
        with torch.cuda.device_of(scores):
            return self._backward(_checked(scores), _checked(gradient), tile)

    def _until_finish(self, scores: Tensor, tile: Tile) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return X, Y, A and W."""
        launch, sight, parts = self.launch, self.launch.Sight.of(tile), self.parts
        convolved = scores
        if parts.kq_pre is not None:
            if not self.exact_mask:
                launch.hide(scores, tile.scores, tile, sight)
            convolved = launch.scratch(scores, tile.map.rows, tile.map.columns, torch.float32)
            launch.convolve(scores, parts.kq_pre, convolved, tile, sight, exact=self.exact_mask)
        plain = parts.kq_post is None
        attention = (_whole if plain else launch.scratch)(scores, tile.map.rows, tile.map.columns)
        self.rows.softmax(convolved, self.mixing[0], attention, tile, sight)
        if parts.kq_post is None:
            return scores, convolved, attention, attention
        unmixed = _whole(scores, tile.weights.rows, tile.weights.columns)
        launch.convolve(attention, parts.kq_post, unmixed, tile, sight)
        return scores, convolved, attention, launch.hide(unmixed, tile.weights, tile, sight)

    def _finished(self, unmixed: Tensor, tile: Tile) -> Tensor:
        if self.mixing[1] is None and self.dropout_p == 0.0:
            return unmixed
        weights = _whole(unmixed, tile.weights.rows, tile.weights.columns)
        self.rows.finish(
            unmixed, self.mixing[1], weights, dropout_p=self.dropout_p, seed=(self.seed + tile.number) % 2**63
        )
        return weights

    def _backward(self, scores: Tensor, gradient: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
        launch, sight, sums = self.launch, self.launch.Sight.of(tile), self.gradients
        scores, convolved, attention, unmixed = self._until_finish(scores, tile)
        weights = unmixed
        if self.mixing[1] is not None or self.dropout_p > 0.0:
            weights = _whole(unmixed, tile.weights.rows, tile.weights.columns)
            result = launch.scratch(unmixed, tile.weights.rows, tile.weights.columns)
            found = self.rows.finish(
                unmixed,
                self.mixing[1],
                weights,
                dropout_p=self.dropout_p,
                seed=(self.seed + tile.number) % 2**63,
                gradient=gradient,
                result=result,
                wanted=sums.head_post is not None,
            )
            _add(sums.head_post, found)
            gradient = result
        if self.turned[1] is not None:
            launch.hide(gradient, tile.weights, tile, sight)
            if sums.kq_post is not None:
                found = launch.kernel_gradient(gradient, attention, sums.kq_post, tile, sight, exact=False)
                _add(sums.kq_post, found)
            result = launch.scratch(attention, tile.map.rows, tile.map.columns)
            gradient = launch.convolve(gradient, self.turned[1], result, tile, sight, turned=True)
        plain = self.turned[0] is None
        result = (_whole if plain else launch.scratch)(attention, tile.map.rows, tile.map.columns)
        wanted = sums.head_pre is not None
        found = self.rows.softmax_backward(gradient, attention, convolved, self.mixing[0], result, wanted=wanted)
        _add(sums.head_pre, found)
        gradient = result
        if self.turned[0] is None:
            return weights, gradient
        if sums.kq_pre is not None:
            found = launch.kernel_gradient(gradient, scores, sums.kq_pre, tile, sight, exact=self.exact_mask)
            _add(sums.kq_pre, found)
        result = _whole(scores, tile.scores.rows, tile.scores.columns)
        launch.convolve(gradient, self.turned[0], result, tile, sight, exact=self.exact_mask, turned=True)
        return weights, result if self.exact_mask else launch.hide(result, tile.scores, tile, sight)


def _whole(like: Tensor, rows: int, columns: int) -> Tensor:
    """Return an empty contiguous tile, for what the walk takes."""
    return torch.empty(*like.shape[:2], rows, columns, dtype=like.dtype, device=like.device)


def _checked(tensor: Tensor) -> Tensor:
    if tensor.dtype not in STORAGE:
        raise ValueError(f"the Triton mixer takes tiles in bfloat16, float16 or float32, got {tensor.dtype}.")
    return tensor.contiguous()


def _add(total: Tensor | None, found: Tensor | None) -> None:
    if total is not None and found is not None:
        total.add_(found)
