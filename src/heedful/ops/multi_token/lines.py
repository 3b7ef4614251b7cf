"""The lines of the blockwise walk: its rows, and the interval of keys that each of them may see.

Lines are the queries, except that packed documents are set apart by empty lines, as many as a convolution looks back.
So a convolution over lines never reads another document, and no mixer needs to know about documents. What line i may
see is an interval of keys, first[i] <= j <= last[i], and of these the keys which are not padding; an empty line has an
empty interval. Causality, window, documents and padded queries all are intervals.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from heedful.ops.masks import AttentionMask

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

NEVER = 2**30  # the first key of a line that sees nothing; its last is -1


class Bounds(NamedTuple):
    """Least and greatest first and last visible key over some lines; lines that see nothing count as (NEVER, -1)."""

    least_first: int
    greatest_first: int
    least_last: int
    greatest_last: int


@dataclass(frozen=True)
class PlainLines:
    """The lines of a mask without padding and documents: line i is query i, intervals follow from its position alone.

    Decoding makes new lines for every token, so they are numbers until a tile needs them.
    """

    count: int
    keys: int
    is_causal: bool
    window: int | None
    line: None = None
    real: None = None

    def bounds(self, start: int, stop: int) -> Bounds:
        """Return the bounds over lines [start, stop); there are none before line 0."""
        least, greatest = self._interval(max(start, 0)), self._interval(stop - 1)  # both ends rise with the line
        if start < 0:
            return Bounds(least[0], NEVER, -1, greatest[1])
        return Bounds(least[0], greatest[0], least[1], greatest[1])

    def intervals(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return first and last visible key of lines [start, stop), both (1, stop - start), on a device."""
        offset, window = self.keys - self.count, self.window
        position = torch.arange(start + offset, stop + offset, dtype=torch.int32, device=device)[None]
        first = torch.zeros_like(position) if window is None else (position - window + 1).clamp(min=0)
        if self.is_causal:
            last = position
        elif window is None:
            last = torch.full_like(position, self.keys - 1)
        else:
            last = (position + window - 1).clamp(max=self.keys - 1)
        if start < 0:
            last[:, :-start] = -1
        return first, last

    def real_on(self, device: torch.device) -> None:
        """Return that nothing is padding."""

    def narrow(self, batch: slice) -> PlainLines:
        """Return the lines of a slice of the batch: the same for all."""
        return self

    def _interval(self, line: int) -> tuple[int, int]:
        position = line + self.keys - self.count
        first = 0 if self.window is None else max(position - self.window + 1, 0)
        if self.is_causal:
            return first, position
        return first, self.keys - 1 if self.window is None else min(position + self.window - 1, self.keys - 1)


@dataclass(frozen=True, eq=False)
class DescribedLines:
    """The lines of a mask with padding or documents, for one slice of the batch. All tensors are on the CPU.

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

    def bounds(self, start: int, stop: int) -> Bounds:
        """Return the bounds over lines [start, stop) of all entries; there are none before line 0."""
        first, last = (tensor[:, max(start, 0) : stop].aminmax() for tensor in (self.first, self.last))
        if start < 0:
            return Bounds(int(first.min), NEVER, -1, int(last.max))
        return Bounds(int(first.min), int(first.max), int(last.min), int(last.max))

    def intervals(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return first and last visible key of lines [start, stop), both (batch or 1, stop - start), on a device."""
        rows, above = slice(max(start, 0), stop), max(-start, 0)
        first, last = self._on(device)
        return pad(first[:, rows], (above, 0), value=NEVER), pad(last[:, rows], (above, 0), value=-1)

    def real_on(self, device: torch.device) -> Tensor | None:
        """Return `real` on a device."""
        if self.real is not None and ("real", device) not in self._copies:
            self._copies["real", device] = self.real.to(device)
        return self._copies.get(("real", device))

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the intervals on a device, copied there once for all tiles."""
        if ("first", device) not in self._copies:
            self._copies["first", device] = self.first.int().to(device)
            self._copies["last", device] = self.last.int().to(device)
        return self._copies["first", device], self._copies["last", device]

    @functools.cached_property
    def _copies(self) -> dict[tuple[str, torch.device], Tensor]:
        return {}

    def narrow(self, batch: slice) -> DescribedLines:
        """Return the lines of a slice of the batch."""

        def part(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None or tensor.shape[0] == 1 else tensor[batch]

        first, last = part(self.first), part(self.last)
        assert first is not None
        assert last is not None
        return DescribedLines(self.count, part(self.line), first, last, part(self.real))


Lines = PlainLines | DescribedLines
"""The rows of the walk and what each may see."""


def lines_of(mask: AttentionMask, queries: int, keys: int, *, is_causal: bool, gap: int) -> Lines:
    """Lay out the last `queries` of `keys` positions with `gap` empty lines between documents."""
    segments, real = mask.segments(), mask.key_padding
    if real is not None and bool(real.all()):
        real = None
    if segments is None and real is None:
        return PlainLines(queries, keys, is_causal, mask.window)
    position = torch.arange(keys, device="cpu")[None]
    first, last = torch.zeros_like(position), position if is_causal else torch.full_like(position, keys - 1)
    if mask.window is not None:
        first = torch.maximum(first, position - mask.window + 1)
        last = torch.minimum(last, position + mask.window - 1)
    if segments is not None:
        segments = segments.cpu()
        border = segments[:, 1:] != segments[:, :-1]
        starts, ends = pad(border, (1, 0), value=True), pad(border, (0, 1), value=True)
        document_start = torch.where(starts, position, 0).cummax(1).values
        document_end = torch.where(ends, position, keys - 1).flip(1).cummin(1).values.flip(1)
        first, last = torch.maximum(first, document_start), torch.minimum(last, document_end)
    if real is not None:
        real = real.cpu()
        first, last = first.where(real, NEVER), last.where(real, -1)
    first, last = first[:, keys - queries :], last[:, keys - queries :]
    if segments is None or gap == 0:
        return DescribedLines(queries, None, first, last, real)
    segments, first, last = torch.broadcast_tensors(segments[:, keys - queries :], first, last)
    line = torch.arange(queries, device="cpu") + gap * (segments - segments[:, :1])
    shape = (len(line), int(line[:, -1].max()) + 1)
    first = torch.full(shape, NEVER, device="cpu").scatter(1, line, first)
    last = torch.full(shape, -1, device="cpu").scatter(1, line, last)
    return DescribedLines(shape[1], line, first, last, real)
