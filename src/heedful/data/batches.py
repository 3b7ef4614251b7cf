"""Batches that are a pure function of (seed, step): resuming needs no state but the number of the step.

An epoch visits every item once, in an order of its own. Steps run through the epochs without regard to their ends: the
last items of an epoch and the first of the next may share a batch, nothing is left out, and a corpus with fewer blocks
than a batch simply repeats them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from heedful.data.randomness import BATCH_ORDER
from heedful.data.shards import TokenSplit
from heedful.data.shuffling import ORDER_VERSION, EndlessOrder

IGNORED = -100


class Batch(NamedTuple):
    """One step's input and what to predict.

    Attributes:
        tokens: int64 (batch, context).
        targets: int64 (batch, context), what comes after each token; `IGNORED` (-100) where there is no loss.
        document_ids: int64 (batch, context), equal within a document; None when documents are not masked.
    """

    tokens: Int[Tensor, "batch context"]
    targets: Int[Tensor, "batch context"]
    document_ids: Int[Tensor, "batch context"] | None = None


class TrainingData(Protocol):
    """Whatever a training loop can draw batches from."""

    @property
    def tokens_per_batch(self) -> int:
        """Positions in a batch, scored or not."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash in hexadecimal; equal fingerprints give equal batches at every step."""
        ...

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Return some rows of the global batch of a step, counted from 0; None: all of them.

        A pure function: processes that each take their own rows read together what one process reads, and nothing
        twice.
        """
        ...


class EpochOrder:
    """Which items a step takes: epoch after epoch, each in an order that is a pure function of (seed, epoch)."""

    def __init__(self, num_items: int, batch_size: int, seed: int) -> None:
        """Set up an order of `num_items` items; memory is constant, see `heedful.data.shuffling`."""
        self._rows = BatchRows(batch_size)
        self._order = EndlessOrder(num_items, seed=seed, stream=BATCH_ORDER)

    def items(self, step: int, rows: range | None = None) -> np.ndarray:
        """Return the items of some rows of a step's batch (None: of all), int64 (rows,)."""
        return self._order.items(self._rows.positions(step, rows))


class BatchRows:
    """Where the rows of a step's batch stand in the endless sequence of samples that a run reads."""

    def __init__(self, batch_size: int) -> None:
        """Set up batches of `batch_size` rows."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.batch_size = batch_size

    def positions(self, step: int, rows: range | None = None) -> np.ndarray:
        """Return the positions of some rows of a step (None: of all), int64 (rows,): different for any two rows of any
        steps, so processes that take different rows never read the same sample of an epoch.

        Raises:
            ValueError: a negative step, or rows that the batch does not have.
        """
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}.")
        rows = range(self.batch_size) if rows is None else rows
        if len(rows) and (min(rows) < 0 or max(rows) >= self.batch_size):
            raise ValueError(f"rows must lie in range(0, {self.batch_size}), the rows of a batch, got {rows}.")
        return step * self.batch_size + np.arange(rows.start, rows.stop, rows.step, dtype=np.int64)


class LanguageModelBatches:
    """Blocks of a token split that do not overlap, in random order: block i predicts tokens i*T+1 to (i+1)*T from i*T
    on.

    With T = `context_length`, every token of the split but the first and the tail (fewer than T tokens) is predicted
    once an epoch. A document's first token is predicted like any other, with `mask_documents` from the end of the one
    before.
    """

    def __init__(
        self, split: TokenSplit, *, context_length: int, batch_size: int, seed: int, mask_documents: bool = False
    ) -> None:
        """Set up batches of (batch_size, context_length).

        Raises:
            ValueError: the split is shorter than one block, or a size or the seed is out of range.
        """
        self._blocks = TokenBlocks(split, context_length, mask_documents=mask_documents)
        self.num_blocks = len(self._blocks)
        self.tokens_per_batch = batch_size * context_length
        self.fingerprint = fingerprint_of(
            kind="language model",
            order=ORDER_VERSION,
            tokens=split.sha256,
            context_length=context_length,
            batch_size=batch_size,
            seed=seed,
            mask_documents=mask_documents,
        )
        self._order = EpochOrder(self.num_blocks, batch_size, seed)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Return some rows of the batch of a step; time and memory are those of these rows."""
        return self._blocks.batch_at(self._blocks.starts(self._order.items(step, rows)))


class TokenBlocks:
    """The blocks of a run of tokens of a split, by number."""

    def __init__(
        self,
        split: TokenSplit,
        context_length: int,
        *,
        mask_documents: bool,
        tokens: range | None = None,
        name: str | None = None,
    ) -> None:
        """Cut `tokens` of `split` (None: all) into blocks of `context_length` tokens and the one after.

        Raises:
            ValueError: they are shorter than one block, or there is no context.
        """
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1, got {context_length}.")
        tokens = range(split.num_tokens) if tokens is None else tokens
        self._count = (len(tokens) - 1) // context_length
        if self._count < 1:
            whose = f"the {split.name} split" if name is None else f"source {name!r}"
            raise ValueError(
                f"{whose} has {len(tokens)} tokens, fewer than the {context_length + 1} that one block of "
                f"context_length={context_length} takes: use more text or a shorter context."
            )
        self._split = split
        self._first = tokens.start
        self._context_length = context_length
        self._mask_documents = mask_documents

    def __len__(self) -> int:
        """Return the number of blocks."""
        return self._count

    def starts(self, blocks: np.ndarray) -> np.ndarray:
        """Return where in the split the blocks with these numbers begin."""
        return self._first + blocks * self._context_length

    def batch_at(self, starts: np.ndarray) -> Batch:
        """Return the blocks that begin at these tokens of the split as the rows of a batch."""
        windows = np.empty((len(starts), self._context_length + 1), dtype=np.int64)
        for window, start in zip(windows, starts.tolist(), strict=True):  # a row is a run of the file: one copy each
            window[:] = self._split.tokens[start : start + self._context_length + 1]
        document_ids = None
        if self._mask_documents:
            document_ids = torch.from_numpy(self._split.document_ids(starts[:, None] + np.arange(self._context_length)))
        tokens = torch.from_numpy(windows)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), document_ids)


def fingerprint_of(**facts: Any) -> str:
    """Return the SHA-256 in hexadecimal of some plain facts by name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
