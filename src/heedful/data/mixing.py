"""Batches from several sources, mixed by weights: a pure function of (seed, step) like those from one.

The rows of all steps form one endless sequence, which is cut into windows of fixed length. In every window each source
has the number of rows that its weight says, exactly; which rows, is shuffled anew in each window. The rows of a source
are numbered through all windows and read its own endless order, so it visits each of its blocks once in an epoch of its
own, however long that takes, and two processes that take different rows never read the same one. Where a row stands in
its source follows from its place by arithmetic, so no cursor has to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from heedful.data.batches import Batch, BatchRows, TokenBlocks, fingerprint_of
from heedful.data.randomness import BATCH_ORDER, MIXTURE, check_seed
from heedful.data.shards import TokenSplit
from heedful.data.shuffling import ORDER_VERSION, EndlessOrder, order_keys, permuted

# Long enough that a batch meets few windows, short enough that the shares are met early.
SHORTEST_WINDOW, LONGEST_WINDOW = 64, 4096


class MixedBatches:
    """Blocks of several sources of a train split; `heedful.data.LanguageModelBatches` of each, mixed by tokens.

    Blocks do not reach from one source into another. With T = `context_length`, a row is T tokens of one source, so the
    shares of rows are those of tokens.
    """

    def __init__(
        self,
        split: TokenSplit,
        sources: Mapping[str, range],
        weights: Mapping[str, float],
        *,
        context_length: int,
        batch_size: int,
        seed: int,
        mask_documents: bool = False,
    ) -> None:
        """Set up batches of (batch_size, context_length).

        Args:
            split: tokens of all sources, one source after the other.
            sources: which tokens of the split are whose, `TokenDataset.sources`.
            weights: by name, in any unit: a source's share of the tokens is its weight over the sum of all.
            context_length: T.
            batch_size: rows of the global batch.
            seed: of the order.
            mask_documents: give the number of each token's document with the batch.

        Raises:
            ValueError: weights and sources have different names, a source is shorter than one block, or a size or the
                seed is out of range.
        """
        if not sources or set(weights) != set(sources):
            raise ValueError(f"weights are needed for {list(sources)}, the sources of the data, got {list(weights)}.")
        self._rows = BatchRows(batch_size)
        self._seed = check_seed(seed)
        self._blocks = [
            TokenBlocks(split, context_length, mask_documents=mask_documents, tokens=tokens, name=name)
            for name, tokens in sources.items()
        ]
        self._orders = [
            EndlessOrder(len(blocks), seed=seed, stream=BATCH_ORDER, part=part)
            for part, blocks in enumerate(self._blocks)
        ]
        rows = rows_per_window([weights[name] for name in sources])
        self._ends = np.cumsum(rows)
        self.rows_per_window = dict(zip(sources, rows, strict=True))
        self.tokens_per_batch = batch_size * context_length
        self.fingerprint = fingerprint_of(
            kind="mixture",
            order=ORDER_VERSION,
            tokens=split.sha256,
            sources={name: (tokens.start, tokens.stop) for name, tokens in sources.items()},
            rows_per_window=list(self.rows_per_window.items()),
            context_length=context_length,
            batch_size=batch_size,
            seed=seed,
            mask_documents=mask_documents,
        )

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Return some rows of the batch of a step; time and memory are those of these rows."""
        of_source, blocks = self.blocks(self._rows.positions(step, rows))
        starts = np.empty_like(blocks)
        for source in np.unique(of_source):
            own = of_source == source
            starts[own] = self._blocks[source].starts(blocks[own])
        return self._blocks[0].batch_at(starts)

    def blocks(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return source and block, int64 (n,) each, of some positions in the sequence of all rows, int64 (n,)."""
        length = int(self._ends[-1])
        windows, places = np.divmod(positions, length)
        slots = permuted(places, length, order_keys(self._seed, MIXTURE, windows))
        of_source = np.searchsorted(self._ends, slots, side="right")
        firsts = np.concatenate([[0], self._ends[:-1]])
        counts = np.diff(self._ends, prepend=0)
        # A source has `counts` slots in every window, so this numbers its rows without gap or repetition.
        numbers = windows * counts[of_source] + slots - firsts[of_source]
        blocks = np.empty_like(numbers)
        for source in np.unique(of_source):
            own = of_source == source
            blocks[own] = self._orders[source].items(numbers[own])
        return of_source, blocks


def rows_per_window(weights: Sequence[float]) -> list[int]:
    """Return how many rows of a window each source has.

    The window is the shortest of `SHORTEST_WINDOW` rows or more in which the shares come out exactly, taking weights as
    the decimal numbers that they are written as. Where that would take more than `LONGEST_WINDOW` rows it has so many,
    and each share is rounded to one of them, none to less than one.
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    unit = math.lcm(*(share.denominator for share in shares))
    if unit <= LONGEST_WINDOW:
        length = unit * math.ceil(SHORTEST_WINDOW / unit)
        return [int(share * length) for share in shares]
    ends = [round(sum(shares[: number + 1]) * LONGEST_WINDOW) for number in range(len(shares))]
    rows = [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    rows[rows.index(max(rows))] -= sum(rows) - LONGEST_WINDOW
    return rows
