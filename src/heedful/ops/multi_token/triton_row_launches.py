"""Launching the Triton kernels that work along rows: softmax, head mixing and dropout, and the mixing's bundles.

Block sizes follow a stated rule: 2048 numbers at a time, split over the heads of a bundle; 8 heads when none are mixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from heedful.ops.multi_token import triton_row_kernels as kernels
from heedful.ops.multi_token.tiles import Tile
from heedful.ops.multi_token.triton_launches import Sight, blocks_of, launch, power_of_two, row_stride

if TYPE_CHECKING:
    from jaxtyping import Float

ROW_NUMBERS, MOST_HEADS = 2048, 8


class Bundles(NamedTuple):
    """Mixing matrices arranged for the row kernels: block-diagonal, for as many whole groups as fit into 16 heads."""

    matrix: Float[Tensor, "bundles ch ch"]
    bundle: int
    groups: int
    size: int

    @classmethod
    def of(cls, mixing: Float[Tensor, "groups size size"]) -> Bundles:
        """Arrange matrices [group, out, in]."""
        groups, size = mixing.shape[:2]
        together = max(1, 16 // size)
        width, bundles = max(16, power_of_two(size)), blocks_of(groups, together)
        result = cls(mixing.new_zeros(bundles, width, width), together * size, groups, size)
        whole = pad(mixing, (0, 0, 0, 0, 0, bundles * together - groups))
        result._diagonal(result.matrix).copy_(whole.unflatten(0, (bundles, together)))
        return result

    def gather(self, partial: Float[Tensor, "batch bundles rows ch ch"]) -> Float[Tensor, "groups size size"]:
        """Sum the gradients that the programs wrote and take the groups out of their bundles."""
        return self._diagonal(partial.sum((0, 2))).flatten(0, 1)[: self.groups]

    def _diagonal(self, matrix: Tensor) -> Float[Tensor, "bundles together size size"]:
        """Return a view of the blocks on the diagonal."""
        squares = matrix[:, : self.bundle, : self.bundle].unflatten(2, (-1, self.size)).unflatten(1, (-1, self.size))
        return squares.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def softmax(unmixed: Tensor, mixing: Bundles | None, attention: Tensor, tile: Tile, sight: Sight) -> Tensor:
    """Write the softmax of the (mixed) logits of the region `map` into `attention` and return it."""
    batch, heads, rows, columns = unmixed.shape
    width, bundle, block = _row_blocks(mixing, heads, columns)
    launch(
        kernels.softmax_kernel,
        batch * blocks_of(heads, bundle) * rows,
        unmixed,
        unmixed if mixing is None else mixing.matrix,
        attention,
        sight.first,
        sight.last,
        sight.real,
        row_stride(unmixed),
        row_stride(attention),
        heads,
        bundle,
        rows,
        columns,
        sight.line_batch,
        sight.real_batch,
        tile.map.top - tile.scores.top,
        tile.map.left,
        CH=width,
        BLOCK=block,
        MIXED=mixing is not None,
        HOLES=sight.holes,
        PRECISION=_mixing_precision(attention),
        num_warps=4,
    )
    return attention


def softmax_backward(
    gradient: Tensor, attention: Tensor, unmixed: Tensor, mixing: Bundles | None, result: Tensor, *, wanted: bool
) -> Tensor | None:
    """Write the gradient of the unmixed logits into `result`; return that of the mixing matrices if it is wanted."""
    batch, heads, rows, columns = attention.shape
    width, bundle, block = _row_blocks(mixing, heads, columns)
    partial = _partial(batch, heads, rows, bundle, width, attention.device) if wanted else None
    launch(
        kernels.softmax_backward_kernel,
        batch * blocks_of(heads, bundle) * rows,
        gradient,
        attention,
        unmixed,
        attention if mixing is None else mixing.matrix,
        result,
        attention if partial is None else partial,
        row_stride(gradient),
        row_stride(attention),
        row_stride(unmixed),
        row_stride(result),
        heads,
        bundle,
        rows,
        columns,
        CH=width,
        BLOCK=block,
        MIXED=mixing is not None,
        WANTED=wanted,
        PRECISION=_mixing_precision(attention),
        num_warps=4,
    )
    return None if partial is None or mixing is None else mixing.gather(partial)


def finish(
    unmixed: Tensor,
    mixing: Bundles | None,
    weights: Tensor,
    *,
    dropout_p: float,
    seed: int,
    gradient: Tensor | None = None,
    result: Tensor | None = None,
    wanted: bool = False,
) -> Tensor | None:
    """Write the mixed and dropped weights into `weights`.

    With the `gradient` of the weights also write that of `unmixed` into `result`, and return that of the mixing
    matrices if it is wanted.
    """
    batch, heads, rows, columns = unmixed.shape
    width, bundle, block = _row_blocks(mixing, heads, columns)
    partial = _partial(batch, heads, rows, bundle, width, unmixed.device) if wanted else None
    gradient_or_any = unmixed if gradient is None else gradient
    result_or_any = unmixed if result is None else result
    launch(
        kernels.finish_kernel,
        batch * blocks_of(heads, bundle) * rows,
        unmixed,
        unmixed if mixing is None else mixing.matrix,
        weights,
        gradient_or_any,
        result_or_any,
        unmixed if partial is None else partial,
        row_stride(unmixed),
        row_stride(weights),
        row_stride(gradient_or_any),
        row_stride(result_or_any),
        heads,
        bundle,
        rows,
        columns,
        seed,
        dropout_p,
        CH=width,
        BLOCK=block,
        MIXED=mixing is not None,
        DROPOUT=dropout_p > 0.0,
        BACKWARD=gradient is not None,
        WANTED=wanted,
        PRECISION=_mixing_precision(unmixed),
        num_warps=4,
    )
    return None if partial is None or mixing is None else mixing.gather(partial)


def _row_blocks(mixing: Bundles | None, heads: int, columns: int) -> tuple[int, int, int]:
    """Return the heads of a program as a power of two, those in use, and the columns of a block."""
    if mixing is None:
        width = bundle = min(MOST_HEADS, power_of_two(heads))
    else:
        width, bundle = mixing.matrix.shape[1], mixing.bundle
    return width, bundle, max(16, min(ROW_NUMBERS // width, power_of_two(columns)))


def _partial(batch: int, heads: int, rows: int, bundle: int, width: int, device: torch.device) -> Tensor:
    shape = (batch, blocks_of(heads, bundle), rows, width, width)
    return torch.empty(shape, dtype=torch.float32, device=device)


def _mixing_precision(storage: Tensor) -> str:
    """Return the same for mixing, whose operands are sums in float32; it is a small part of the work."""
    return "ieee" if storage.dtype == torch.float32 else "tf32x3"
