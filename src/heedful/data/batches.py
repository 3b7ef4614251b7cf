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

from heedful.data.randomness import BATCH_ORDER, check_seed, random_words
from heedful.data.shards import TokenSplit

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

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0: a pure function of the step."""
        ...


class EpochOrder:
    """Which items a step takes: epoch after epoch, each in an order that is a pure function of (seed, epoch)."""

    def __init__(self, num_items: int, batch_size: int, seed: int) -> None:
        """Set up an order of `num_items` items; the orders of two epochs at most are held, 8 bytes an item each."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self._num_items = num_items
        self._batch_size = batch_size
        self._seed = check_seed(seed)
        self._orders: dict[int, np.ndarray] = {}

    def items(self, step: int) -> np.ndarray:
        """Return the items of a step, int64 (batch_size,), in time that does not depend on the step."""
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}.")
        epochs, places = np.divmod(step * self._batch_size + np.arange(self._batch_size), self._num_items)
        items = np.empty(self._batch_size, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            inside = epochs == epoch
            items[inside] = self._order(epoch)[places[inside]]
        return items

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            while len(self._orders) >= 2:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = np.argsort(
                random_words(self._seed, BATCH_ORDER, epoch, self._num_items), kind="stable"
            )
        return self._orders[epoch]


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
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1, got {context_length}.")
        self.num_blocks = (split.num_tokens - 1) // context_length
        if self.num_blocks < 1:
            raise ValueError(
                f"the {split.name} split has {split.num_tokens} tokens, fewer than the {context_length + 1} that one "
                f"block of context_length={context_length} takes: use more text or a shorter context."
            )
        self.tokens_per_batch = batch_size * context_length
        self.fingerprint = fingerprint_of(
            kind="language model",
            tokens=split.sha256,
            context_length=context_length,
            batch_size=batch_size,
            seed=seed,
            mask_documents=mask_documents,
        )
        self._split = split
        self._mask_documents = mask_documents
        self._context = np.arange(context_length + 1)
        self._order = EpochOrder(self.num_blocks, batch_size, seed)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        starts = self._order.items(step) * (len(self._context) - 1)
        positions = starts[:, None] + self._context
        window = torch.from_numpy(self._split.tokens[positions].astype(np.int64))
        document_ids = self._split.document_ids(positions[:, :-1]) if self._mask_documents else None
        return Batch(
            window[:, :-1].contiguous(),
            window[:, 1:].contiguous(),
            None if document_ids is None else torch.from_numpy(document_ids),
        )


def fingerprint_of(**facts: Any) -> str:
    """Return the SHA-256 in hexadecimal of some plain facts by name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
