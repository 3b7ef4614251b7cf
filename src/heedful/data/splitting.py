"""Which split a document belongs to, and which documents train the tokenizer.

The rule: the distinct documents of a corpus are put in the order of their SHA-256 (the first 64 bits of it). The first
`test_fraction` of them, rounded and at least one, are the test split, the next `valid_fraction` the validation split,
the rest the train split. So the split is a function of the texts alone, whatever their order; equal documents share a
split, so that no copy of a test document is trained on; and every fraction is met even by a corpus of a few documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heedful.data.surveying import Survey

SPLITS = ("train", "valid", "test")
_TRAIN, _VALID, _TEST = range(3)


def assign_splits(hashes: np.ndarray, *, valid_fraction: float, test_fraction: float) -> np.ndarray:
    """Return the split of every document as an index into `SPLITS`, uint8 (documents,), by the module's rule.

    A fraction of 0 leaves its split to another corpus.

    Raises:
        ValueError: too few distinct documents to give every split one.
    """
    distinct = np.unique(hashes)
    test = max(1, round(test_fraction * len(distinct))) if test_fraction else 0
    valid = max(1, round(valid_fraction * len(distinct))) if valid_fraction else 0
    if test + valid >= len(distinct):
        raise ValueError(
            f"the corpus has {len(distinct)} distinct document{'s' * (len(distinct) != 1)}, too few to split into "
            f"{valid} for validation, {test} for test and some to train on: set documents to 'paragraph' or 'line' to "
            "cut it finer, or name valid_corpus and test_corpus."
        )
    splits = np.full(len(hashes), _TRAIN, dtype=np.uint8)
    splits[hashes < distinct[test + valid]] = _VALID
    if test:
        splits[hashes < distinct[test]] = _TEST
    return splits


def hold_out_together(hashes: Sequence[np.ndarray], splits: Sequence[np.ndarray]) -> None:
    """Make equal documents of several sources share a split, in place: test before validation before train.

    Each source was split by itself, and the border between the splits lies at another hash in each.
    """
    for split in (_TEST, _VALID):
        held_out = np.unique(np.concatenate([own[of == split] for own, of in zip(hashes, splits, strict=True)]))
        for own, of in zip(hashes, splits, strict=True):
            of[np.isin(own, held_out)] = split


def sample_for_tokenizer(surveyed: Survey, splits: np.ndarray, budget: int) -> np.ndarray:
    """Return which documents train the tokenizer, bool (documents,): train documents by hash until `budget` bytes.

    Going by hash makes the sample an even one whatever the order of the corpus; the last document taken is the one that
    reaches the budget.
    """
    total = int(surveyed.num_bytes.sum())
    # Hashes are even, so a little more than the budget's share of them will do: sorting all would take memory.
    limit, everything = 2**64 * 2 * budget // max(total, 1), 2**64 - 1
    while True:
        below = (splits == _TRAIN) & (surveyed.hashes <= np.uint64(min(limit, everything)))
        if limit >= everything or int(surveyed.num_bytes[below].sum()) >= budget:
            break
        limit *= 4
    nearest = np.flatnonzero(below)
    by_hash = nearest[np.argsort(surveyed.hashes[nearest], kind="stable")]
    before = np.cumsum(surveyed.num_bytes[by_hash]) - surveyed.num_bytes[by_hash]
    chosen = np.zeros(len(splits), dtype=bool)
    chosen[by_hash[before < budget]] = True
    return chosen
