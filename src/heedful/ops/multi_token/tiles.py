"""The geometry of the blockwise walk: which rows and keys belong to one tile of the attention map, and what it may see.

The walk takes the queries in blocks. For a block, three nested regions of the map matter:

    weights   rows [start, stop), keys [low, high)              what multiplies the values
    map       the rows and keys that the post convolution reads  logits and softmax
    scores    the rows and keys that the pre convolution reads   Q K^T

Rows are *lines*: query positions, except that packed documents are set apart by empty lines, as many as a convolution
looks back. So a convolution over lines never reads another document, and no mixer needs to know about documents.
What line i may see is an interval of keys, first[i] <= j <= last[i], and of these the keys which are not padding; an
empty line has an empty interval. Causality, window, documents and padding of queries all are intervals.

Legend: N queries, M keys, i line, j key.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from heedful.ops.masks import AttentionMask
from heedful.ops.multi_token.parts import Reach

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

NEVER = 2**30  # the first key of a line that sees nothing; its last is -1


class Region(NamedTuple):
    """A rectangle of the map: `rows` lines from `top`, `columns` keys from `left`; it may stick out of the map."""

    top: int
    rows: int
    left: int
    columns: int


@dataclass(frozen=True, eq=False)
class Lines:
    """The rows of the walk for one slice of the batch, and what each may see. All tensors are on the CPU.

    Attributes:
        count: number of lines.
        line: (batch, N) the line of each query; None when query i is line i.
        first, last: (batch or 1, lines) interval of visible keys.
        real: (batch or 1, M) False for padding among the keys; None when nothing is padding.
    """

    count: int
    line: Int[Tensor, "b n"] | None
    first: Int[Tensor, "#b lines"]
    last: Int[Tensor, "#b lines"]
    real: Bool[Tensor, "#b keys"] | None

    @classmethod
    def of(cls, mask: AttentionMask, queries: int, keys: int, *, is_causal: bool, gap: int) -> Lines:
        """Lay out the last `queries` of `keys` positions with `gap` empty lines between documents."""
        position = torch.arange(keys)[None]
        first, last = torch.zeros_like(position), torch.full_like(position, keys - 1)
        if is_causal:
            last = position
        if mask.window is not None:
            first = torch.maximum(first, position - mask.window + 1)
            last = torch.minimum(last, position + mask.window - 1)
        segments = mask.segments()
        if segments is not None:
            segments = segments.cpu()
            starts = pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
            ends = pad(segments[:, 1:] != segments[:, :-1], (0, 1), value=True)
            document_start = torch.where(starts, position, 0).cummax(1).values
            document_end = torch.where(ends, position, keys - 1).flip(1).cummin(1).values.flip(1)
            first, last = torch.maximum(first, document_start), torch.minimum(last, document_end)
        real = None if mask.key_padding is None else mask.key_padding.cpu()
        if real is not None:
            if bool(real.all()):
                real = None
            else:
                first, last = first.where(real, NEVER), last.where(real, -1)
        first, last = first[:, keys - queries :], last[:, keys - queries :]
        if segments is None or gap == 0:
            return cls(queries, None, first, last, real)
        return cls._with_gaps(segments[:, keys - queries :], first, last, real, gap)

    @classmethod
    def _with_gaps(cls, segments: Tensor, first: Tensor, last: Tensor, real: Tensor | None, gap: int) -> Lines:
        segments, first, last = torch.broadcast_tensors(segments, first, last)
        batch, queries = segments.shape
        line = torch.arange(queries) + gap * (segments - segments[:, :1])
        count = int(line[:, -1].max()) + 1 if queries else 0
        first = torch.full((batch, count), NEVER).scatter(1, line, first)
        last = torch.full((batch, count), -1).scatter(1, line, last)
        return cls(count, line, first, last, real)

    def narrow(self, batch: slice) -> Lines:
        """Return the lines of a slice of the batch."""

        def part(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None or tensor.shape[0] == 1 else tensor[batch]

        first, last = part(self.first), part(self.last)
        assert first is not None
        assert last is not None
        return Lines(self.count, part(self.line), first, last, part(self.real))


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
    halo = pre.rows + post.rows
    first, last = pad(lines.first, (halo, 0), value=NEVER), pad(lines.last, (halo, 0), value=-1)
    on_device = [None if t is None else t.to(device) for t in (first.int(), last.int(), lines.real)]
    holes = lines.real is not None
    for number, start in enumerate(range(begin, lines.count, rows)):
        stop = min(start + rows, lines.count)
        of_scores = slice(start, stop + halo)  # lines start - halo ... stop - 1, in padded counting
        of_map = slice(start + pre.rows, stop + halo)
        low = int(first[:, of_map].min())
        high = int(last[:, of_map].max()) + 1
        if low >= high:  # the block sees nothing
            continue
        clear = (0, 0) if holes else (int(first[:, of_scores].max()), int(last[:, of_scores].min()) + 1)
        columns = rounded_width(high - low) if device.type == "cpu" else high - low
        weights = Region(start, stop - start, low, columns)
        region = _enlarged(weights, post)
        device_first, device_last, real = on_device
        assert device_first is not None
        assert device_last is not None
        yield Tile(
            number=number,
            scores=_enlarged(region, pre),
            map=region,
            weights=weights,
            first=device_first[:, of_scores],
            last=device_last[:, of_scores],
            real=real,
            clear=clear,
            has_blind_lines=bool((last[:, of_map] < 0).any()),
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
