"""Which split a document belongs to, and which documents train the tokenizer.

The rule: the distinct documents of a corpus are put in the order of their SHA-256 (the first 64 bits of it). The first
`test_fraction` of them, rounded and at least one, are the test split, the next `valid_fraction` the validation split,
the rest the train split. So the split is a function of the texts alone, whatever their order; equal documents share a
split, so that no copy of a test document is trained on; and every fraction is met even by a corpus of a few documents.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np

from heedful.data.corpora import Corpus

SPLITS = ("train", "valid", "test")
_TRAIN, _VALID, _TEST = range(3)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one reading of a corpus says about its documents, in their order.

    Attributes:
        hashes: uint64 (documents,), the first 64 bits of each document's SHA-256.
        num_bytes: int64 (documents,), UTF-8 bytes of each document.
        sha256: hash of the whole corpus in hexadecimal: over the SHA-256 of its documents in order, so that neither
            file names nor compression matter.
    """

    hashes: np.ndarray
    num_bytes: np.ndarray
    sha256: str


def survey(corpus: Corpus) -> Survey:
    """Read a corpus once; 16 bytes a document are kept.

    Raises:
        ValueError: the corpus has no document.
    """
    digest = hashlib.sha256()
    hashes, sizes = array("Q"), array("q")
    for document in corpus.documents():
        encoded = document.encode("utf-8")
        document_digest = hashlib.sha256(encoded).digest()
        digest.update(document_digest)
        hashes.append(int.from_bytes(document_digest[:8], "big"))
        sizes.append(len(encoded))
    if not hashes:
        raise ValueError(f"corpus {corpus.name!r} is empty: it has no document with text in it.")
    return Survey(
        hashes=np.frombuffer(hashes, dtype=np.uint64),
        num_bytes=np.frombuffer(sizes, dtype=np.int64),
        sha256=digest.hexdigest(),
    )


def document_hash(document: str) -> int:
    """Return the first 64 bits of a document's SHA-256, as in `Survey.hashes`."""
    return int.from_bytes(hashlib.sha256(document.encode("utf-8")).digest()[:8], "big")


def assign_splits(hashes: np.ndarray, *, valid_fraction: float, test_fraction: float) -> np.ndarray:
    """Return the split of every document as an index into `SPLITS`, uint8 (documents,), by the module's rule.

    A fraction of 0 leaves its split to another corpus.

    Raises:
        ValueError: too few distinct documents to give every split one.
    """
    distinct, which = np.unique(hashes, return_inverse=True)
    test = max(1, round(test_fraction * len(distinct))) if test_fraction else 0
    valid = max(1, round(valid_fraction * len(distinct))) if valid_fraction else 0
    if test + valid >= len(distinct):
        raise ValueError(
            f"the corpus has {len(distinct)} distinct document{'s' * (len(distinct) != 1)}, too few to split into "
            f"{valid} for validation, {test} for test and some to train on: set documents to 'paragraph' or 'line' to "
            "cut it finer, or name valid_corpus and test_corpus."
        )
    splits = np.full(len(distinct), _TRAIN, dtype=np.uint8)
    splits[:test] = _TEST
    splits[test : test + valid] = _VALID
    return splits[which]


def sample_for_tokenizer(surveyed: Survey, splits: np.ndarray, budget: int) -> np.ndarray:
    """Return which documents train the tokenizer, bool (documents,): train documents by hash until `budget` bytes.

    Going by hash makes the sample an even one whatever the order of the corpus; the last document taken is the one that
    reaches the budget.
    """
    train = np.flatnonzero(splits == _TRAIN)
    by_hash = train[np.argsort(surveyed.hashes[train], kind="stable")]
    before = np.cumsum(surveyed.num_bytes[by_hash]) - surveyed.num_bytes[by_hash]
    chosen = np.zeros(len(splits), dtype=bool)
    chosen[by_hash[before < budget]] = True
    return chosen
