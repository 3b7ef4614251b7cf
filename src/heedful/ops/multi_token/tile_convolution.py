"""Depthwise convolution of a tile and its two gradients, through the one fast path that CPU libraries have.

    y[i, j] = sum_ab theta[a, b] x[i + a, j + b]            valid positions only
    dx[r, c] = sum_ab theta[a, b] dy[r - a, c - b]
    dtheta[a, b] = sum_ij dy[i, j] x[i + a, j + b]

All three are `conv2d` with groups = channels on contiguous tensors without its padding argument, which is faster on a
CPU than every other form that was tried, ten times for the weight gradient (docs/log.md):

* the input gradient convolves the zero-padded dy with the turned kernel;
* the weight gradient cuts dy and x into pieces and takes each piece of dy as a *kernel* over its piece of x;
* oneDNN works on 16 float32 channels at a time, so that fewer heads are cut into parts, which become channels.

Legend: R rows, C columns of the result, c_q x c_k kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

if TYPE_CHECKING:
    from jaxtyping import Float

LANES = 16  # float32 numbers in one AVX-512 register
FLAT_COLUMNS = 256  # of a part of a tile with few rows; found by trial
MOST_PIECES = 512  # of the weight gradient at a time
PIECE = (16, 64)  # rows and columns of the pieces of the weight gradient; found by trial, neighbours are alike


def convolve(
    tile: Float[Tensor, "b h rows columns"], kernel: Float[Tensor, "h cq ck"]
) -> Float[Tensor, "b h out_rows out_columns"]:
    """Return the valid positions of the convolution, one kernel per head."""
    batch, heads, rows, columns = tile.shape
    row_taps, key_taps = kernel.shape[1:]
    shape = (rows - row_taps + 1, columns - key_taps + 1)  # of the result
    parts = _parts(batch * heads, shape) if tile.device.type == "cpu" else (1, 1)
    part = (-(-shape[0] // parts[0]), -(-shape[1] // parts[1]))  # rows and columns of a part of the result
    missing = (part[0] * parts[0] - shape[0], part[1] * parts[1] - shape[1])
    if any(missing):
        tile = pad(tile, (0, missing[1], 0, missing[0]))
    pieces = tile.contiguous()
    del tile  # a padded copy, perhaps: it need not live beside the next one
    if parts != (1, 1):  # b h row_parts column_parts rows columns
        pieces = pieces.unfold(2, part[0] + row_taps - 1, part[0]).unfold(3, part[1] + key_taps - 1, part[1])
    channels = batch * heads * parts[0] * parts[1]
    kernels = kernel.expand(batch, *kernel.shape).flatten(0, 1).repeat_interleave(parts[0] * parts[1], dim=0)
    pieces = pieces.reshape(1, channels, part[0] + row_taps - 1, part[1] + key_taps - 1)
    result = conv2d(pieces, kernels[:, None], groups=channels)
    if parts[1] > 1:
        result = result.view(batch * heads * parts[0], parts[1], *part).transpose(1, 2)
    result = result.reshape(batch, heads, parts[0] * part[0], parts[1] * part[1])
    return result[:, :, : shape[0], : shape[1]]


def convolve_input_gradient(
    gradient: Float[Tensor, "b h rows columns"], kernel: Float[Tensor, "h cq ck"]
) -> Float[Tensor, "b h in_rows in_columns"]:
    """Return the gradient with respect to the tile."""
    above, beside = kernel.shape[1] - 1, kernel.shape[2] - 1
    return convolve(pad(gradient, (beside, beside, above, above)), kernel.flip(1, 2))


def convolve_weight_gradient(
    gradient: Float[Tensor, "b h rows columns"], tile: Float[Tensor, "b h in_rows in_columns"]
) -> Float[Tensor, "h cq ck"]:
    """Return the gradient with respect to the kernel, summed over the batch."""
    batch, heads, rows, columns = gradient.shape
    above, beside = tile.shape[2] - rows, tile.shape[3] - columns
    piece = (min(PIECE[0], rows), min(PIECE[1], columns))
    extra = (-rows % piece[0], -columns % piece[1])
    if any(extra):  # zeros in the gradient: what they meet does not matter
        gradient = pad(gradient, (0, extra[1], 0, extra[0]))
        tile = pad(tile, (0, extra[1], 0, extra[0]))
    kernels = gradient.unfold(2, piece[0], piece[0]).unfold(3, piece[1], piece[1])
    pieces = tile.unfold(2, piece[0] + above, piece[0]).unfold(3, piece[1] + beside, piece[1])
    count = kernels.shape[2] * kernels.shape[3]
    together = max(1, MOST_PIECES // (batch * count))  # heads at a time: the copies of all would be half of all memory
    sums = []
    for start in range(0, heads, together):
        part = slice(start, min(start + together, heads))
        channels = batch * (part.stop - start) * count
        result = conv2d(
            pieces[:, part].reshape(1, channels, *pieces.shape[-2:]),
            kernels[:, part].reshape(channels, 1, *piece),
            groups=channels,
        )
        sums.append(result.view(batch, part.stop - start, count, above + 1, beside + 1).sum((0, 2)))
    return torch.cat(sums)


def _parts(channels: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Return into how many rows and columns of parts to cut each channel, to work on full registers of channels.

    Parts of rows lie one behind the other in the result; parts of columns must be put side by side again, so they are
    for tiles of few rows, as in decoding.
    """
    parts = 1
    while channels * parts % LANES and parts < LANES:
        parts *= 2
    if shape[0] >= 8 * parts:
        return parts, 1
    while shape[1] >= 2 * FLAT_COLUMNS * parts:
        parts *= 2
    return (1, parts) if shape[1] >= FLAT_COLUMNS // 4 * parts else (1, 1)
