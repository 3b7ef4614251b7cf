"""The blockwise walk: attention in blocks of queries whose map never exists as a whole, forward and backward.

    for each block:  S = Q K^T (GEMM),  B = mixer(S),  O = B V (GEMM)
    backward:        S again,  dB = dO V^T,  (B, dS) = mixer backward,  dV += B^T dO,  dQ += dS K,  dK += dS^T Q

The mixer does everything between the two products; the walk knows neither convolutions nor softmax. Memory: a few tiles
of (slice of the batch) x H x (block rows + halo) x M numbers, and copies of the inputs' size.

Legend: B batch, H query heads, G key/value heads, N queries, M keys, d head_dim, d_v value_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad

from heedful.ops.masks import AttentionMask
from heedful.ops.multi_token.allocation import keep_freed_memory
from heedful.ops.multi_token.lines import Lines, lines_of
from heedful.ops.multi_token.parts import Parts, Reach
from heedful.ops.multi_token.tiles import Region, Tile, rounded_width, tiles

if TYPE_CHECKING:
    from jaxtyping import Float

TILE_NUMBERS = 2**21  # 8 MiB, found by trial with a shared cache of 32 MiB
CUDA_TILE_NUMBERS = 2**24  # 32 MiB in 16 bits, for 50 MiB of second cache; other sizes were not tried
MOST_ROWS, FEWEST_ROWS = 128, 64


@runtime_checkable
class Mixer(Protocol):
    """What stands between the two matrix products of a tile."""

    gradients: Parts

    def forward(self, scores: Tensor, tile: Tile) -> Tensor:
        """Return the weights (b, H, region `weights`) for the scores (b, H, region `scores`), zero outside the map."""
        ...

    def backward(self, scores: Tensor, gradient: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
        """Return the weights and the gradient of the scores; add the parts' gradients to `gradients`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How one call is walked through.

    Attributes:
        mask, is_causal, scale: as in the operation.
        context: the first `context` queries are read by the convolutions only and have no output.
        block: rows of a block, or None for the stated rule (`block_sizes`).
        pre, post: reach of the two convolutions.
        dtype: type of the tiles and products; sums over blocks are kept in float32 or wider.
    """

    mask: AttentionMask
    is_causal: bool
    scale: float
    context: int
    block: int | None
    pre: Reach
    post: Reach
    dtype: torch.dtype

    def forward(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b g m d"],
        value: Float[Tensor, "b g m dv"],
        mixer_of: Callable[[int], Mixer],
    ) -> Float[Tensor, "b h rest dv"]:
        """Return the output of the queries after the context; `mixer_of(n)` makes the mixer of the n-th batch slice."""
        batch, heads, queries, _ = query.shape
        output = value.new_zeros(batch, heads, queries - self.context, value.shape[-1])
        for number, part in enumerate(self._slices(query, key, value)):
            mixer = mixer_of(number)
            shape = (part.query.shape[0], heads, part.lines.count, value.shape[-1])
            result = torch.zeros(shape, dtype=self.dtype, device=query.device)
            for tile in part.tiles():
                weights = mixer.forward(part.scores(tile), tile)
                part.read_out(weights, tile, into=result)
                del weights
            output[part.batch] = part.from_lines(result)[:, :, self.context :]
        return output

    def backward(
        self,
        gradient: Float[Tensor, "b h rest dv"],
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b g m d"],
        value: Float[Tensor, "b g m dv"],
        mixer_of: Callable[[int], Mixer],
    ) -> tuple[Tensor, Tensor, Tensor, Parts]:
        """Return the gradients of query, key, value and of the parts."""
        wide = torch.promote_types(self.dtype, torch.float32)
        results = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value)]
        totals: list[Tensor | None] = [None] * 4
        full = pad(gradient, (0, 0, self.context, 0))
        for number, part in enumerate(self._slices(query, key, value)):
            mixer = mixer_of(number)
            output_gradient = part.to_lines(full[part.batch].to(self.dtype))
            sums = [torch.zeros(t.shape, dtype=wide, device=t.device) for t in (part.query, part.key, part.value)]
            for tile in part.tiles():
                scores = part.scores(tile)
                gradient_here = output_gradient[:, :, _lines(tile.weights)]
                weights_gradient = part.weights_gradient(gradient_here, tile)
                weights, scores_gradient = mixer.backward(scores, weights_gradient, tile)
                del scores, weights_gradient
                part.add_gradients(weights, scores_gradient, gradient_here, tile, sums)
                del weights, scores_gradient
            query_sum = part.from_lines(sums[0][:, :, part.top :].mul_(self.scale))
            results[0][part.batch] = part.without_padding(query_sum).to(query.dtype)
            results[1][part.batch] = sums[1][:, :, part.keys].to(key.dtype)
            results[2][part.batch] = sums[2][:, :, part.keys].to(value.dtype)
            for index, one in enumerate(mixer.gradients):
                if one is not None:
                    known = totals[index]
                    totals[index] = one if known is None else known + one
        return results[0], results[1], results[2], Parts(*totals)

    def _slices(self, query: Tensor, key: Tensor, value: Tensor) -> Iterator[_Slice]:
        if query.device.type == "cpu":
            keep_freed_memory()
        batch, heads, queries, _ = query.shape
        keys = key.shape[2]
        gap = max(self.pre.rows, self.post.rows)
        lines = lines_of(self.mask, queries, keys, is_causal=self.is_causal, gap=gap)
        window, sides = self.mask.window, 1 if self.is_causal else 2
        span = keys if window is None else min(keys, sides * window + MOST_ROWS)
        numbers = CUDA_TILE_NUMBERS if query.is_cuda else TILE_NUMBERS
        rows, together = block_sizes(batch, heads, queries - self.context, span, numbers)
        if self.mask.document_ids is not None:
            together = 1  # each row has its own borders, and skips its own blocks
        for start in range(0, batch, together):
            part = slice(start, min(start + together, batch))
            yield _Slice(self, part, lines.narrow(part), self.block or rows, query, key, value)


def block_sizes(batch: int, heads: int, queries: int, keys: int, numbers: int = TILE_NUMBERS) -> tuple[int, int]:
    """Return the rows of a block and how many batch entries share a tile.

    The rule: a tile of about `numbers` numbers, but never fewer than 64 rows, however long the text, nor more than 128.
    Few rows waste work on the halo; many leave the cache and waste work on the causal corner. Of several batch entries
    as many go together as fit with 64 rows.
    """
    together = max(1, min(batch, numbers // max(1, heads * keys * min(64, queries))))
    fitting = numbers // max(1, together * heads * keys)
    rows = max(FEWEST_ROWS, min(MOST_ROWS, 2 ** (max(fitting, 1).bit_length() - 1)))
    return min(rows, max(queries, 1)), together


class _Slice:
    """The tensors of one slice of the batch in the layout of the lines."""

    def __init__(
        self, walk: Walk, batch: slice, lines: Lines, block: int, query: Tensor, key: Tensor, value: Tensor
    ) -> None:
        self.walk, self.batch, self.lines, self.block = walk, batch, lines, block
        self.real = None
        if lines.real is not None:
            self.real = lines.real[:, None, lines.real.shape[1] - query.shape[2] :, None].to(query.device)
        self.line = None if lines.line is None else lines.line.to(query.device)[:, None, :, None]
        wide = torch.promote_types(walk.dtype, torch.float32)  # scaling 16 bits would round once more
        queries = self.to_lines((self.without_padding(query[batch]).to(wide) * walk.scale).to(walk.dtype))
        keys, values = (tensor[batch].to(walk.dtype) for tensor in (key, value))
        # With zeros around queries and keys, tiles that stick out of the map come out of the product as they shall be.
        # A few new rows are not worth a copy of all keys: there the tile itself is padded.
        self.top = self.left = right = 0
        if lines.count - walk.context >= FEWEST_ROWS:
            self.top, self.left = walk.pre.rows + walk.post.rows, walk.pre.left + walk.post.left
            right = rounded_width(key.shape[2]) - key.shape[2] + walk.pre.right + walk.post.right
        self.query = pad(queries, (0, 0, self.top, 0)) if self.top else queries
        self.key, self.value = (
            pad(tensor, (0, 0, self.left, right)) if self.left or right else tensor.contiguous()
            for tensor in (keys, values)
        )
        self.keys = slice(self.left, self.left + key.shape[2])

    def tiles(self) -> Iterator[Tile]:
        """Yield the tiles of this slice."""
        begin = self.walk.context if self.lines.line is None else int(self.lines.line[:, self.walk.context].min())
        return tiles(self.lines, begin, self.block, self.walk.pre, self.walk.post, self.query.device)

    def without_padding(self, tensor: Tensor) -> Tensor:
        """Set (b, H, N, x) to zero where the query is padding, which convolutions must read as zero."""
        return tensor if self.real is None else tensor.masked_fill(~self.real, 0.0)

    def to_lines(self, tensor: Tensor) -> Tensor:
        """Bring (b, H, N, x) into lines; empty lines are zero."""
        if self.line is None:
            return tensor
        batch, heads, _, width = tensor.shape
        empty = tensor.new_zeros(batch, heads, self.lines.count, width)
        return empty.scatter_(2, self.line.expand(batch, heads, -1, width), tensor)

    def from_lines(self, tensor: Tensor) -> Tensor:
        """Bring (b, H, lines, x) back to queries."""
        if self.line is None:
            return tensor
        return tensor.gather(2, self.line.expand(*tensor.shape[:2], -1, tensor.shape[-1]))

    def grouped(self, tensor: Tensor) -> Tensor:
        """(b, H, rows, x) -> (b, G, H/G * rows, x): the query heads of a key head stand below each other."""
        batch, heads, rows, width = tensor.shape
        groups = self.key.shape[1]
        return tensor.reshape(batch, groups, heads // groups * rows, width)

    def ungrouped(self, tensor: Tensor, rows: int) -> Tensor:
        """Undo `grouped`."""
        return tensor.view(tensor.shape[0], -1, rows, tensor.shape[-1])

    def scores(self, tile: Tile) -> Tensor:
        """Return scale Q K^T of the region `scores`, zero outside the map."""
        rows, columns = self._rows(tile.scores), self._columns(tile.scores)
        queries = self.query[:, :, rows]
        scores = self.grouped(queries) @ self.key[:, :, columns].transpose(-1, -2)
        return _padded(self.ungrouped(scores, queries.shape[2]), self._outside(tile.scores))

    def read_out(self, weights: Tensor, tile: Tile, *, into: Tensor) -> None:
        """Write B V."""
        rows = _lines(tile.weights)
        inside = self.grouped(_cropped(weights, self._outside(tile.weights)))
        result = inside @ self.value[:, :, self._columns(tile.weights)]
        into[:, :, rows] = self.ungrouped(result, rows.stop - rows.start)

    def weights_gradient(self, output_gradient: Tensor, tile: Tile) -> Tensor:
        """Return dO V^T of the region `weights`, zero outside the map."""
        product = self.grouped(output_gradient) @ self.value[:, :, self._columns(tile.weights)].transpose(-1, -2)
        return _padded(self.ungrouped(product, output_gradient.shape[2]), self._outside(tile.weights))

    def add_gradients(
        self, weights: Tensor, scores_gradient: Tensor, output_gradient: Tensor, tile: Tile, sums: list[Tensor]
    ) -> None:
        """Add what a tile gives to the gradients of the (scaled) queries, keys and values."""
        query_sum, key_sum, value_sum = sums
        inside = self.grouped(_cropped(weights, self._outside(tile.weights)))
        columns = self._columns(tile.weights)
        _add_product(value_sum[:, :, columns], inside.transpose(-1, -2), self.grouped(output_gradient))
        rows, columns = self._rows(tile.scores), self._columns(tile.scores)
        inside = self.grouped(_cropped(scores_gradient, self._outside(tile.scores)))
        query_sum[:, :, rows] += self.ungrouped(inside @ self.key[:, :, columns], rows.stop - rows.start)
        _add_product(key_sum[:, :, columns], inside.transpose(-1, -2), self.grouped(self.query[:, :, rows]))

    def _rows(self, region: Region) -> slice:
        """Where a region's lines stand in `query`."""
        return slice(max(region.top + self.top, 0), region.top + self.top + region.rows)

    def _columns(self, region: Region) -> slice:
        """Where a region's keys stand in `key` and `value`."""
        start = region.left + self.left
        return slice(max(start, 0), min(start + region.columns, self.key.shape[2]))

    def _outside(self, region: Region) -> tuple[int, int, int]:
        """How many columns on the left, columns on the right and rows above lie outside of `key` and `query`."""
        start, columns = region.left + self.left, self._columns(region)
        return columns.start - start, start + region.columns - columns.stop, max(-region.top - self.top, 0)


def _lines(region: Region) -> slice:
    return slice(region.top, region.top + region.rows)


def _padded(tensor: Tensor, outside: tuple[int, int, int]) -> Tensor:
    left, right, above = outside
    return pad(tensor, (left, right, above, 0)) if any(outside) else tensor


def _cropped(tensor: Tensor, outside: tuple[int, int, int]) -> Tensor:
    left, right, above = outside
    return tensor[:, :, above:, left : tensor.shape[-1] - right]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right, in the type of the total."""
    if total.dtype == left.dtype:
        total.flatten(0, 1).baddbmm_(left.flatten(0, 1), right.flatten(0, 1))
    elif left.is_cuda:
        product = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=total.dtype)
        total += product.view(total.shape)
    else:
        total += left @ right
