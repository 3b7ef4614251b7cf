"""Launching the Triton kernels that convolve and hide: one function for each step, on tensors of a tile.

Block sizes follow a stated rule, without tuning at run time: convolutions take 128 places (rows x strips of 16
columns), 16 rows where there are as many, or 32 places when all row taps stand beside each other (gradient of the
kernel). Overlapping windows and the halo's rows are shared through the first cache.

Scratch tensors have rows of a multiple of 16 numbers, so that rows start aligned whatever the tile's width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from heedful.ops.multi_token import triton_kernels as kernels
from heedful.ops.multi_token.tiles import Region, Tile

PLACES, GRADIENT_PLACES, MOST_ROWS = 128, 32, 16
HIDE_COLUMNS = 64
ALIGNMENT = 16


class Sight(NamedTuple):
    """What the lines of a tile may see, as the kernels want it."""

    first: Tensor
    last: Tensor
    real: Tensor
    line_batch: int
    real_batch: int
    holes: bool

    @classmethod
    def of(cls, tile: Tile) -> Sight:
        """Take it from a tile, without copies."""
        first, last = tile.first, tile.last
        if first.shape != last.shape or first.stride() != last.stride() or first.stride(-1) != 1:
            first, last = (tensor.contiguous() for tensor in torch.broadcast_tensors(first, last))
        real = first if tile.real is None else tile.real.contiguous().view(torch.uint8)
        line_batch, real_batch = (tensor.stride(0) if tensor.shape[0] > 1 else 0 for tensor in (first, real))
        return cls(first, last, real, line_batch, real_batch, tile.real is not None)


def launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Run a kernel; what it is given is known to it alone."""
    kernel[(programs,)](*arguments, **options)


def blocks_of(total: int, size: int) -> int:
    """Return how many blocks cover a total."""
    return -(-total // size)


def power_of_two(number: int) -> int:
    """Return the least power of two that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()


def row_stride(tensor: Tensor) -> int:
    """Return how far rows are apart; planes must be `rows` times as far apart."""
    return tensor.shape[3] if tensor.is_contiguous() else tensor.stride(2)


def scratch(like: Tensor, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty (b, H, rows, columns) whose rows start aligned."""
    stride = blocks_of(columns, ALIGNMENT) * ALIGNMENT
    shape = (*like.shape[:2], rows, stride)
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)[..., :columns]


def hide(tensor: Tensor, region: Region, tile: Tile, sight: Sight) -> Tensor:
    """Set what is invisible in a region's tensor to zero, in place."""
    batch, heads, rows, _ = tensor.shape
    for start, stop in tile.edges(region):
        blocks = blocks_of(rows, MOST_ROWS) * blocks_of(stop - start, HIDE_COLUMNS)
        launch(
            kernels.hide_kernel,
            batch * heads * blocks,
            tensor,
            sight.first,
            sight.last,
            sight.real,
            row_stride(tensor),
            heads,
            rows,
            start,
            stop,
            sight.line_batch,
            sight.real_batch,
            region.top - tile.scores.top,
            region.left,
            ROWS=MOST_ROWS,
            COLUMNS=HIDE_COLUMNS,
            HOLES=sight.holes,
            num_warps=4,
        )
    return tensor


def convolve(
    x: Tensor, kernel: Tensor, y: Tensor, tile: Tile, sight: Sight, *, exact: bool = False, turned: bool = False
) -> Tensor:
    """Write the convolution of x into y and return it.

    Args:
        kernel: (H, c_q, c_k) float32, contiguous.
        exact: leave out what the line of the result (of x when `turned`) does not see.
        turned: the adjoint: `kernel` is flipped in both directions and x is surrounded by zeros.
    """
    batch, heads, x_rows, x_columns = x.shape
    y_rows, y_columns = y.shape[2:]
    row_taps, key_taps = kernel.shape[1:]
    rows = min(MOST_ROWS, power_of_two(y_rows))
    strips = PLACES // rows
    blocks = blocks_of(y_rows, rows) * blocks_of(y_columns, strips * 16)
    mask = kernels.NO_MASK
    if exact:
        mask = kernels.RESULT_MASK if turned else kernels.INPUT_MASK
    launch(
        kernels.convolve_kernel,
        batch * heads * blocks,
        x,
        kernel,
        y,
        sight.first,
        sight.last,
        sight.real,
        row_stride(x),
        row_stride(y),
        heads,
        x_rows,
        x_columns,
        y_rows,
        y_columns,
        row_taps - 1 if turned else 0,
        key_taps - 1 if turned else 0,
        sight.line_batch,
        sight.real_batch,
        tile.map.top - tile.scores.top,
        tile.scores.left,
        ROW_TAPS=row_taps,
        KEY_TAPS=key_taps,
        ROWS=rows,
        STRIPS=strips,
        MASK=mask.value,
        HOLES=sight.holes,
        PRECISION=_product_precision(x),
        num_warps=4,
        num_stages=2,
    )
    return y


def kernel_gradient(gradient: Tensor, x: Tensor, like: Tensor, tile: Tile, sight: Sight, *, exact: bool) -> Tensor:
    """Return the gradient (H, c_q, c_k) of the kernel, shaped as `like`, in float32; `exact` as in `convolve`."""
    batch, heads, y_rows, y_columns = gradient.shape
    row_taps, key_taps = like.shape[1:]
    rows = min(MOST_ROWS, power_of_two(y_rows))
    row_blocks = blocks_of(y_rows, rows)
    partial = torch.empty(batch, heads, row_blocks, row_taps, key_taps, dtype=torch.float32, device=x.device)
    launch(
        kernels.kernel_gradient_kernel,
        batch * heads * row_blocks,
        gradient,
        x,
        partial,
        sight.first,
        sight.last,
        sight.real,
        row_stride(gradient),
        row_stride(x),
        heads,
        x.shape[2],
        x.shape[3],
        y_rows,
        y_columns,
        sight.line_batch,
        sight.real_batch,
        tile.map.top - tile.scores.top,
        tile.scores.left,
        ROW_TAPS=row_taps,
        KEY_TAPS=key_taps,
        TAPS=power_of_two(row_taps),
        ROWS=rows,
        STRIPS=GRADIENT_PLACES // rows,
        MASK=(kernels.INPUT_MASK if exact else kernels.NO_MASK).value,
        HOLES=sight.holes,
        PRECISION=_product_precision(x),
        num_warps=4,
        num_stages=2,
    )
    return partial.sum((0, 2))


def _product_precision(tensor: Tensor) -> str:
    """Return how products are formed: numbers of 16 bits are exact in tf32, those of 32 bits need all of theirs."""
    return "ieee" if tensor.dtype == torch.float32 else "tf32"
