"""The mixer in plain torch: from the scores of a tile to its weights, and back.

    X = mask_0(S),  L = head_pre * (kq_pre conv X),  A = softmax(mask_-inf(L)),
    W = mask_0(kq_post conv A),  B = dropout(head_post * W)

The backward pass is written by hand, on the recomputed tile. A tile holds only part of the rows that feed a line's
gradient, which is no harm: every step after the recomputation is linear in the gradient, so partial results add up.

Exact mask: the condition on the key depends on the output line, so X is masked once per row tap instead of once. That
differs from one convolution only in the columns where some line of the tile does not see everything (`Tile.edges`);
those columns alone take the slow way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heedful.ops.multi_token.parts import Parts
from heedful.ops.multi_token.tile_convolution import (
    convolve,
    convolve_input_gradient,
    convolve_weight_gradient,
)
from heedful.ops.multi_token.tiles import Tile

if TYPE_CHECKING:
    from jaxtyping import Float


class TorchMixer:
    """Mixer of one call; gathers the gradients of the parts over all tiles.

    Args:
        parts: the four parts, in the type of the computation.
        exact_mask: form of the mask in the pre convolution.
        needed: for each part whether its gradient is wanted.
        dropout_p: probability of dropping a weight.
        seed: of the dropped weights; each tile draws from seed + its number, so the backward pass drops the same ones.
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
        self.parts = parts
        self.exact_mask = exact_mask
        self.dropout_p = dropout_p
        self.seed = seed
        self.gradients = parts.gradient_sums(needed)

    def forward(self, scores: Float[Tensor, "b h rows columns"], tile: Tile) -> Float[Tensor, "b h n m"]:
        """Return the weights B of a tile. `scores` may be overwritten."""
        logits = self._convolved_scores(scores, tile)
        if self.parts.head_pre is not None:
            logits = mix(logits, self.parts.head_pre)
        weights = self._softmax(logits, tile)
        del logits
        if self.parts.kq_post is not None:
            weights = tile.hide(convolve(weights, self.parts.kq_post), tile.weights, 0.0)
        if self.parts.head_post is not None:
            weights = mix(weights, self.parts.head_post)
        if self.dropout_p > 0.0:
            weights = weights * self._kept(weights, tile)
        return weights

    def backward(
        self,
        scores: Float[Tensor, "b h rows columns"],
        gradient: Float[Tensor, "b h n m"],
        tile: Tile,
    ) -> tuple[Float[Tensor, "b h n m"], Float[Tensor, "b h rows columns"]]:
        """Return the weights B and the gradient of the scores, given that of B. Both inputs may be overwritten."""
        parts, gradients = self.parts, self.gradients
        convolved = self._convolved_scores(scores, tile)
        logits = convolved if parts.head_pre is None else mix(convolved, parts.head_pre)
        if gradients.head_pre is None:
            convolved = None
        attention = self._softmax(logits, tile)
        del logits
        weights = attention
        if parts.kq_post is not None:
            weights = tile.hide(convolve(weights, parts.kq_post), tile.weights, 0.0)
        unmixed = weights
        if parts.head_post is not None:
            weights = mix(weights, parts.head_post)
        if self.dropout_p > 0.0:
            kept = self._kept(weights, tile)
            weights, gradient = weights * kept, gradient * kept
            del kept
        if gradients.head_post is not None:
            gradients.head_post.add_(mix_weight_gradient(gradient, unmixed, gradients.head_post))
        del unmixed
        if parts.head_post is not None:
            gradient = mix(gradient, parts.head_post.transpose(1, 2))
        if parts.kq_post is not None:
            gradient = tile.hide(gradient, tile.weights, 0.0)
            if gradients.kq_post is not None:
                gradients.kq_post.add_(convolve_weight_gradient(gradient, attention))
            gradient = convolve_input_gradient(gradient, parts.kq_post)
        gradient = torch._softmax_backward_data(gradient, attention, -1, attention.dtype)
        del attention
        if gradients.head_pre is not None:
            assert convolved is not None
            gradients.head_pre.add_(mix_weight_gradient(gradient, convolved, gradients.head_pre))
        del convolved
        if parts.head_pre is not None:
            gradient = mix(gradient, parts.head_pre.transpose(1, 2))
        if parts.kq_pre is not None:
            gradient = self._convolution_gradient(gradient, scores, parts.kq_pre, tile)
        return weights, gradient

    def _softmax(self, logits: Tensor, tile: Tile) -> Tensor:
        tile.hide(logits, tile.map, torch.finfo(logits.dtype).min)  # not -inf: a blind line must not become NaN
        attention = torch.softmax(logits, -1)
        return tile.hide(attention, tile.map, 0.0) if tile.has_blind_lines else attention

    def _kept(self, weights: Tensor, tile: Tile) -> Tensor:
        """Return 1/(1-p) for the weights that are kept, 0 for the dropped ones."""
        generator = torch.Generator(weights.device).manual_seed(self.seed + tile.number)
        kept = torch.empty_like(weights).bernoulli_(1.0 - self.dropout_p, generator=generator)
        return kept.div_(1.0 - self.dropout_p)

    def _convolved_scores(self, scores: Tensor, tile: Tile) -> Tensor:
        kernel = self.parts.kq_pre
        if kernel is None:
            return scores
        if not self.exact_mask:
            return convolve(tile.hide(scores, tile.scores, 0.0), kernel)
        convolved = convolve(scores, kernel)
        for start, stop in self._exact_columns(tile):
            columns = slice(start, stop + kernel.shape[2] - 1)  # of the scores that these columns read
            seen = tile.visible(tile.map, tile.scores, columns.start, columns.stop)
            total = torch.zeros_like(convolved[..., start:stop])
            for tap in range(kernel.shape[1]):
                shifted = scores[:, :, tap : tap + tile.map.rows, columns] * seen
                total += convolve(shifted, kernel[:, tap : tap + 1])
            convolved[..., start:stop] = total
        return convolved

    def _convolution_gradient(self, gradient: Tensor, scores: Tensor, kernel: Tensor, tile: Tile) -> Tensor:
        """Return the gradient of the scores and add that of the kernel."""
        kernel_gradient = self.gradients.kq_pre
        if not self.exact_mask:
            if kernel_gradient is not None:
                kernel_gradient.add_(convolve_weight_gradient(gradient, scores))
            return tile.hide(convolve_input_gradient(gradient, kernel), tile.scores, 0.0)
        exact = [(columns, gradient[..., slice(*columns)].clone()) for columns in self._exact_columns(tile)]
        for columns, _ in exact:
            gradient[..., slice(*columns)] = 0.0
        if kernel_gradient is not None:
            kernel_gradient.add_(convolve_weight_gradient(gradient, scores))
        result = convolve_input_gradient(gradient, kernel)
        for (start, stop), part in exact:
            columns = slice(start, stop + kernel.shape[2] - 1)
            seen = tile.visible(tile.map, tile.scores, columns.start, columns.stop)
            for tap in range(kernel.shape[1]):
                rows = slice(tap, tap + tile.map.rows)
                if kernel_gradient is not None:
                    shifted = scores[:, :, rows, columns] * seen
                    kernel_gradient[:, tap : tap + 1] += convolve_weight_gradient(part, shifted)
                result[:, :, rows, columns] += convolve_input_gradient(part, kernel[:, tap : tap + 1]) * seen
        return result

    def _exact_columns(self, tile: Tile) -> list[tuple[int, int]]:
        """Return the columns of the map whose taps reach an edge of the scores."""
        reach = tile.scores.columns - tile.map.columns
        columns = [(max(start - reach, 0), min(stop, tile.map.columns)) for start, stop in tile.edges(tile.scores)]
        if len(columns) == 2 and columns[0][1] >= columns[1][0]:  # the two edges meet
            columns = [(0, tile.map.columns)]
        return [(start, stop) for start, stop in columns if start < stop]


def mix(tile: Float[Tensor, "b h n m"], mixing: Float[Tensor, "groups size size"]) -> Float[Tensor, "b h n m"]:
    """Mix the maps of each group of consecutive heads: y_o = sum_g mixing[group, o, g] x_g."""
    grouped = tile.reshape(tile.shape[0], *mixing.shape[:2], -1)
    return torch.matmul(mixing, grouped).view(tile.shape)


def mix_weight_gradient(
    gradient: Float[Tensor, "b h n m"], tile: Float[Tensor, "b h n m"], like: Float[Tensor, "groups size size"]
) -> Float[Tensor, "groups size size"]:
    """Return d mixing[group, o, g] = <dy_o, x_g>, summed over batch, rows and keys."""
    shape = (tile.shape[0], *like.shape[:2], -1)
    return torch.matmul(gradient.reshape(shape), tile.reshape(shape).transpose(-1, -2)).sum(0)
