"""Which key each query may see: one small object for every mechanism.

Causality is the `is_causal` argument of the operations, as in `torch.nn.functional.scaled_dot_product_attention`.
Everything that depends on the data or on the layer is an `AttentionMask`: a sliding window, padding, and documents
packed into one row. All of it is described for the M key positions; the N queries are the last N of these positions,
so decoding with a cache needs no second description.

Legend: N queries, M keys, i query position, j key position (both counted over the M positions).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionMask:
    """What a query may see beyond causality.

    A pair (i, j) is visible when all of these hold:

    * causal operations: j <= i;
    * `window` w: i - j < w, and without causality |i - j| < w; so w = 1 is the token itself;
    * `key_padding`: both positions are real tokens (True);
    * `document_ids`: i and j lie in the same run of equal ids, so 0 0 1 1 0 are three documents.

    Convolutions over the attention map follow the same description: they neither read padding nor cross a document
    border. A query which sees nothing (padding) has output zero and receives no gradient.

    Attributes:
        window: number of visible positions, at least 1, or None.
        key_padding: bool (batch or 1, M), True for a real token; left, right or any other padding.
        document_ids: integers (batch or 1, M).
        position_ids: integers (batch or 1, M), the positions that rotary and learned embeddings take, which hide
            nothing; None to count the real tokens of each document from 0.

    Raises:
        ValueError: a window below 1, or tensors which are not (batch, M) of the stated type.
    """

    window: int | None = None
    key_padding: Bool[Tensor, "#batch keys"] | None = None
    document_ids: Int[Tensor, "#batch keys"] | None = None
    position_ids: Int[Tensor, "#batch keys"] | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1 (the token itself), got {self.window}.")
        for name, tensor, integer in (
            ("key_padding", self.key_padding, False),
            ("document_ids", self.document_ids, True),
            ("position_ids", self.position_ids, True),
        ):
            if tensor is None:
                continue
            if tensor.dim() != 2:
                raise ValueError(f"{name} must have shape (batch, keys), got {tuple(tensor.shape)}.")
            if integer == (tensor.dtype == torch.bool) or tensor.is_floating_point():
                wanted = "integers" if integer else "bool, True for a real token"
                raise ValueError(f"{name} must be {wanted}, got {tensor.dtype}.")
        padding, documents = self.key_padding, self.document_ids
        if padding is not None and documents is not None and padding.shape[1] != documents.shape[1]:
            raise ValueError(
                f"key_padding covers {padding.shape[1]} positions and document_ids {documents.shape[1]}; both must "
                f"cover the keys."
            )
        rows = {tensor.shape[0] for tensor in (padding, documents) if tensor is not None} - {1}
        if len(rows) > 1:
            raise ValueError(f"key_padding and document_ids must share their batch size or have 1, got {sorted(rows)}.")

    @classmethod
    def from_cumulative_lengths(
        cls, cumulative_lengths: Int[Tensor, " documents_plus_one"], *, window: int | None = None
    ) -> AttentionMask:
        """Describe one packed row by its document borders, such as [0, 5, 12] for documents of 5 and 7 tokens."""
        ends = cumulative_lengths
        if ends.dim() != 1 or ends.numel() < 2 or int(ends[0]) != 0 or bool((ends.diff() < 0).any()):
            raise ValueError(f"cumulative_lengths must rise from 0, such as [0, 5, 12], got {ends.tolist()}.")
        positions = torch.arange(int(ends[-1]), device=ends.device)
        return cls(document_ids=torch.searchsorted(ends[1:].contiguous(), positions, right=True)[None], window=window)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> AttentionMask:
        """Return the mask with its tensors on `device`."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return replace(
            self,
            key_padding=moved(self.key_padding),
            document_ids=moved(self.document_ids),
            position_ids=moved(self.position_ids),
        )

    def with_window(self, window: int | None) -> AttentionMask:
        """Return the mask which also has this window; the narrower of two windows counts."""
        if window is None:
            return self
        return replace(self, window=window if self.window is None else min(window, self.window))

    @property
    def keys(self) -> int | None:
        """The number of positions described, or None when the mask holds for any length."""
        for tensor in (self.key_padding, self.document_ids):
            if tensor is not None:
                return tensor.shape[1]
        return None

    def segments(self) -> Int[Tensor, "batch keys"] | None:
        """Number the documents of each row 0, 1, ...; None when nothing is packed."""
        if self.document_ids is None:
            return None
        border = self.document_ids[:, 1:] != self.document_ids[:, :-1]
        return torch.nn.functional.pad(border.long().cumsum(1), (1, 0))

    def positions(self) -> Int[Tensor, "batch keys"] | None:
        """Return each token's position: as given, or in its own document, padding not counted; None when that is
        0, 1, 2, ...
        """
        if self.position_ids is not None:
            return self.position_ids
        if self.keys is None:
            return None
        described = self.key_padding if self.key_padding is not None else self.document_ids
        assert described is not None
        real = torch.ones_like(described, dtype=torch.long) if self.key_padding is None else self.key_padding.long()
        before = real.cumsum(1) - real  # real tokens before this one in the row
        segments = self.segments()
        if segments is None:
            return before
        before, segments = torch.broadcast_tensors(before, segments)
        starts = torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
        at_start = torch.where(starts, before, torch.zeros_like(before))
        return before - at_start.cummax(1).values

    def visible(
        self, queries: int, keys: int, *, is_causal: bool, device: torch.device | None = None
    ) -> Bool[Tensor, "batch 1 queries keys"]:
        """Return which (query, key) pairs are visible, shape (batch or 1, 1, N, M).

        Raises:
            ValueError: the mask describes another number of keys, or there are more queries than keys under a causal
                mask (the queries are the last N of the M positions).
        """
        self.check(queries, keys, is_causal=is_causal)
        i = torch.arange(keys - queries, keys, device=device)[:, None]
        j = torch.arange(keys, device=device)[None, :]
        pairs = torch.ones(queries, keys, dtype=torch.bool, device=device)
        if is_causal:
            pairs = pairs & (j <= i)
        if self.window is not None:
            pairs = pairs & ((i - j).abs() < self.window)
        pairs = pairs[None, None]
        if self.key_padding is not None:
            real = self.key_padding
            pairs = pairs & (real[:, None, keys - queries :, None] & real[:, None, None, :])
        segments = self.segments()
        if segments is not None:
            pairs = pairs & (segments[:, None, keys - queries :, None] == segments[:, None, None, :])
        return pairs

    def joined_rows(self, queries: int, keys: int, shift: int) -> Bool[Tensor, "batch 1 queries 1"] | None:
        """Return whether row i - shift is a real token of the document of row i; None when that only needs the row to
        exist.

        This is what a convolution over queries asks before it reads an earlier row.
        """
        segments, joined = self.segments(), None
        if segments is not None:
            rows = segments[:, keys - queries :]
            joined = rows == torch.nn.functional.pad(rows, (shift, 0), value=-1)[:, :queries]
        if self.key_padding is not None:
            rows = self.key_padding[:, keys - queries :]
            real = torch.nn.functional.pad(rows, (shift, 0), value=False)[:, :queries]
            joined = real if joined is None else real & joined
        return None if joined is None else joined[:, None, :, None]

    def check_batch(self, batch: int) -> None:
        """Refuse a batch of another size; one described row holds for any batch."""
        for tensor in (self.key_padding, self.document_ids, self.position_ids):
            if tensor is not None and tensor.shape[0] not in (1, batch):
                raise ValueError(
                    f"the mask describes {tensor.shape[0]} rows but the batch has {batch}; it must have 1 or {batch}."
                )

    def check(self, queries: int, keys: int, *, is_causal: bool) -> None:
        """Refuse lengths that do not fit this mask."""
        if queries > keys and (is_causal or self.keys is not None or self.window is not None):
            raise ValueError(
                f"queries are the last of the key positions, but there are {queries} queries and {keys} keys."
            )
        if self.keys is not None and self.keys != keys:
            raise ValueError(
                f"the mask describes {self.keys} positions but there are {keys} keys; it must cover all keys, "
                f"cached ones included."
            )
        if self.position_ids is not None and self.position_ids.shape[1] != keys:
            raise ValueError(
                f"position_ids gives {self.position_ids.shape[1]} positions but there are {keys} keys; give one for "
                f"each, cached ones included."
            )


NO_MASK = AttentionMask()
