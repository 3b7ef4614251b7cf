"""The geometry of the blockwise walk: the rows and keys of one tile of the attention map, and what it may see.

The walk takes its lines (`lines.py`) in blocks. For a block, three nested regions of the map matter:

    weights   rows [start, stop), keys [low, high)              what multiplies the values
    map       the rows and keys that the post convolution reads  logits and softmax
    scores    the rows and keys that the pre convolution reads   Q K^T
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from heedful.ops.multi_token.lines import Lines
from heedful.ops.multi_token.parts import Reach

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


class Region(NamedTuple):
    """A rectangle of the map: `rows` lines from `top`, `columns` keys from `left`; it may stick out of the map."""

    top: int
    rows: int
    left: int
    columns: int


@dataclass(frozen=True, eq=False)
class Tile:
    """One block of the walk.

    Attributes:
        scores, map, weights: the three regions, see the module's text.
        first, last: (batch or 1, score rows) visible keys of the lines of `scores`, on the device of the walk.
        real: (batch or 1, M) as in `Lines`, on that device.
        clear: keys [start, stop) that every line of `scores` sees; empty where there is none.
        has_blind_lines: whether some line of `map` sees nothing.
        number: counts the tiles of one slice of the batch.
    """

    number: int
    scores: Region
    map: Region
    weights: Region
    first: Int[Tensor, "#b rows"]
    last: Int[Tensor, "#b rows"]
    real: Bool[Tensor, "#b keys"] | None
    clear: tuple[int, int]
    has_blind_lines: bool

    def edges(self, region: Region) -> list[tuple[int, int]]:
        """Return the column ranges of a region, counted from its left, in which something is invisible."""
        start, stop = (min(max(bound - region.left, 0), region.columns) for bound in self.clear)
        if start >= stop:
            return [(0, region.columns)]
        return [(a, b) for a, b in ((0, start), (stop, region.columns)) if a < b]

    def visible(
        self, lines: Region, columns: Region, start: int = 0, stop: int | None = None
    ) -> Bool[Tensor, "#b 1 rows columns"]:
        """Say what the rows of one region may see among columns [start, stop) of another (or the same)."""
        stop = columns.columns if stop is None else stop
        top = lines.top - self.scores.top
        rows = slice(top, top + lines.rows)
        key = torch.arange(columns.left + start, columns.left + stop, device=self.first.device)
        seen = (key >= self.first[:, rows, None]) & (key <= self.last[:, rows, None])
        if self.real is not None:
            keys = self.real.shape[1]
            seen = seen & self.real[:, None, key.clamp(0, keys - 1)]
        return seen[:, None]

    @functools.cached_property
    def _hidden(self) -> list[tuple[int, Tensor]]:
        """For each edge of `scores` its first key and what is invisible there; the other regions are parts of it."""
        region = self.scores
        return [(region.left + start, ~self.visible(region, region, start, stop)) for start, stop in self.edges(region)]

    def hide(self, tensor: Tensor, region: Region, value: float) -> Tensor:
        """Set what is invisible in a region's tensor to `value`, in place."""
        top = region.top - self.scores.top
        for key, hidden in self._hidden:
            start = max(key, region.left)
            stop = min(key + hidden.shape[-1], region.left + region.columns)
            if start < stop:
                part = hidden[:, :, top : top + region.rows, start - key : stop - key]
                tensor[..., start - region.left : stop - region.left].masked_fill_(part, value)
        return tensor


def tiles(lines: Lines, begin: int, rows: int, pre: Reach, post: Reach, device: torch.device) -> Iterator[Tile]:
    """Yield the tiles of lines [begin, count) in blocks of `rows`, leaving out keys which no line of a block sees."""
    for number, start in enumerate(range(begin, lines.count, rows)):
        stop = min(start + rows, lines.count)
        top = start - post.rows - pre.rows
        in_map, in_scores = lines.bounds(start - post.rows, stop), lines.bounds(top, stop)
        low, high = in_map.least_first, in_map.greatest_last + 1
        if low >= high:  # the block sees nothing
            continue
        first, last = lines.intervals(top, stop, device)
        columns = rounded_width(high - low) if device.type == "cpu" else high - low
        weights = Region(start, stop - start, low, columns)
        region = _enlarged(weights, post)
        yield Tile(
            number=number,
            scores=_enlarged(region, pre),
            map=region,
            weights=weights,
            first=first,
            last=last,
            real=lines.real_on(device),
            clear=(0, 0) if lines.real is not None else (in_scores.greatest_first, in_scores.least_last + 1),
            has_blind_lines=in_map.least_last < 0,
        )


def rounded_width(columns: int) -> int:
    """Round up so that few widths occur: multiples of 1/8 of the power of two below, and of 16.

    A CPU library compiles a convolution for every new shape and keeps a limited number of them. While decoding, every
    step has a new number of keys; a long text has more tiles than the library keeps. At most 1/8 is added.
    """
    step = max(16, 2 ** (columns.bit_length() - 1) // 8)
    return -(-columns // step) * step


def _enlarged(region: Region, reach: Reach) -> Region:
    return Region(
        region.top - reach.rows,
        region.rows + reach.rows,
        region.left - reach.left,
        region.columns + reach.left + reach.right,
    )
