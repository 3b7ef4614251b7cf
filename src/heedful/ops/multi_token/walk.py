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
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from heedful.ops.masks import AttentionMask
from heedful.ops.multi_token.parts import Parts, Reach
from heedful.ops.multi_token.tiles import Lines, Region, Tile, tiles

if TYPE_CHECKING:
    from jaxtyping import Float

TILE_NUMBERS = 2**20  # float32 numbers of a tile that still lie in a CPU's shared cache, with their intermediates
MOST_ROWS, FEWEST_ROWS = 128, 32


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
            result = torch.zeros(*part.query.shape[:3], value.shape[-1], dtype=self.dtype, device=query.device)
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
                gradient_here = output_gradient[:, :, _rows(tile.weights)]
                weights_gradient = part.grouped(gradient_here) @ part.values(tile).transpose(-1, -2)
                weights, scores_gradient = mixer.backward(
                    scores, part.ungrouped(weights_gradient, gradient_here.shape[2]), tile
                )
                del scores, weights_gradient
                part.add_gradients(weights, scores_gradient, gradient_here, tile, *sums)
                del weights, scores_gradient
            results[0][part.batch] = part.without_padding(part.from_lines(sums[0].mul_(self.scale))).to(query.dtype)
            results[1][part.batch] = sums[1].to(key.dtype)
            results[2][part.batch] = sums[2].to(value.dtype)
            for index, one in enumerate(mixer.gradients):
                if one is not None:
                    known = totals[index]
                    totals[index] = one if known is None else known + one
        return results[0], results[1], results[2], Parts(*totals)

    def _slices(self, query: Tensor, key: Tensor, value: Tensor) -> Iterator[_Slice]:
        batch, heads, queries, _ = query.shape
        keys = key.shape[2]
        gap = max(self.pre.rows, self.post.rows)
        lines = Lines.of(self.mask, queries, keys, is_causal=self.is_causal, gap=gap)
        span = keys if self.mask.window is None else min(keys, self.mask.window + MOST_ROWS)
        rows, together = block_sizes(batch, heads, queries - self.context, span)
        if self.mask.document_ids is not None:
            together = 1  # each row has its own borders, and skips its own blocks
        for start in range(0, batch, together):
            part = slice(start, min(start + together, batch))
            yield _Slice(self, part, lines.narrow(part), self.block or rows, query, key, value)


def block_sizes(batch: int, heads: int, queries: int, keys: int) -> tuple[int, int]:
    """Return the rows of a block and how many batch entries share a tile.

    The rule: as many numbers as `TILE_NUMBERS`, between 32 and 128 rows. Few rows waste work on the halo, many leave
    the cache, and waste more on the causal corner. Of several batch entries as many go together as fit with 64 rows.
    """
    together = max(1, min(batch, TILE_NUMBERS // max(1, heads * keys * min(64, queries))))
    fitting = TILE_NUMBERS // max(1, together * heads * keys)
    rows = max(FEWEST_ROWS, min(MOST_ROWS, 2 ** max(fitting, 1).bit_length() // 2))
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
        queries = self.without_padding(query[batch])
        self.place = None if lines.query is None else lines.query.to(query.device)[:, None, :, None]
        self.query = self.to_lines((queries * walk.scale).to(walk.dtype))
        self.key, self.value = (tensor[batch].to(walk.dtype).contiguous() for tensor in (key, value))
        self.queries = query.shape[2]

    def tiles(self) -> Iterator[Tile]:
        begin = self.walk.context
        if self.lines.query is not None and begin:
            begin = int((self.lines.query < begin).sum(1).min())
        return tiles(self.lines, begin, self.block, self.walk.pre, self.walk.post, self.query.device)

    def without_padding(self, tensor: Tensor) -> Tensor:
        """Set (b, H, N, x) to zero where the query is padding, which convolutions must read as zero."""
        return tensor if self.real is None else tensor.masked_fill(~self.real, 0.0)

    def to_lines(self, tensor: Tensor) -> Tensor:
        """Bring (b, H, N, x) into lines; empty lines are zero."""
        if self.place is None:
            return tensor
        index = self.place.clamp(min=0).expand(*tensor.shape[:2], -1, tensor.shape[-1])
        return tensor.gather(2, index).masked_fill_(self.place < 0, 0.0)

    def from_lines(self, tensor: Tensor) -> Tensor:
        """Bring (b, H, lines, x) back to queries."""
        if self.place is None:
            return tensor
        real = self.place >= 0
        index = real.cumsum(2)
        index = torch.zeros((tensor.shape[0], 1, self.queries + 1, 1), dtype=torch.long, device=tensor.device).scatter_(
            2, index * real, torch.arange(tensor.shape[2], device=tensor.device)[None, None, :, None].expand_as(index)
        )
        return tensor.gather(2, index[:, :, 1:].expand(*tensor.shape[:2], -1, tensor.shape[-1]))

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
        rows, columns = _rows(tile.scores), self._columns(tile.scores)
        queries = self.query[:, :, rows]
        scores = self.grouped(queries) @ self.key[:, :, columns].transpose(-1, -2)
        region = tile.scores
        outside = (columns.start - region.left, region.left + region.columns - columns.stop, rows.start - region.top, 0)
        scores = self.ungrouped(scores, queries.shape[2])
        return pad(scores, outside) if any(outside) else scores

    def values(self, tile: Tile) -> Tensor:
        """Return the values that a tile reads."""
        return self.value[:, :, self._columns(tile.weights)]

    def read_out(self, weights: Tensor, tile: Tile, *, into: Tensor) -> None:
        """Write B V."""
        rows = _rows(tile.weights)
        into[:, :, rows] = self.ungrouped(self.grouped(weights) @ self.values(tile), rows.stop - rows.start)

    def add_gradients(
        self,
        weights: Tensor,
        scores_gradient: Tensor,
        output_gradient: Tensor,
        tile: Tile,
        query_sum: Tensor,
        key_sum: Tensor,
        value_sum: Tensor,
    ) -> None:
        """Add what a tile gives to the gradients of the (scaled) queries, keys and values."""
        _add_product(
            value_sum[:, :, self._columns(tile.weights)],
            self.grouped(weights).transpose(-1, -2),
            self.grouped(output_gradient),
        )
        region, rows, columns = tile.scores, _rows(tile.scores), self._columns(tile.scores)
        inside = scores_gradient[
            :,
            :,
            rows.start - region.top :,
            columns.start - region.left : columns.stop - region.left,
        ]
        grouped = self.grouped(inside)
        query_sum[:, :, rows] += self.ungrouped(grouped @ self.key[:, :, columns], rows.stop - rows.start)
        _add_product(key_sum[:, :, columns], grouped.transpose(-1, -2), self.grouped(self.query[:, :, rows]))

    def _columns(self, region: Region) -> slice:
        keys = self.key.shape[2]
        return slice(max(region.left, 0), min(region.left + region.columns, keys))


def _rows(region: Region) -> slice:
    return slice(max(region.top, 0), region.top + region.rows)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right, in the type of the total."""
    if total.dtype == left.dtype:
        total.flatten(0, 1).baddbmm_(left.flatten(0, 1), right.flatten(0, 1))
    elif left.is_cuda:
        product = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=total.dtype)
        total += product.view(total.shape)
    else:
        total += left @ right
