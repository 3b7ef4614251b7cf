from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heedful.data import LanguageModelBatches, TokenSplit
from heedful.data.batches import EpochOrder
from heedful.data.randomness import random_words

# Written down once: a later version that draws differently would make old runs impossible to repeat.
GOLDEN_ORDER = [4, 3, 7, 9, 8, 0, 2, 6, 1, 5]
GOLDEN_WORDS = [2533144363980168765, 4154714089138655030]


def split_of(num_tokens: int, starts: list[int] | None = None, sha256: str = "a") -> TokenSplit:
    """A split whose tokens are their own positions."""
    tokens = np.arange(num_tokens, dtype=np.uint32)
    return TokenSplit(
        name="train", tokens=tokens, document_starts=np.array(starts or [0]), num_bytes=num_tokens, sha256=sha256
    )


sizes = st.tuples(st.integers(2, 90), st.integers(1, 9), st.integers(1, 7)).filter(lambda s: s[0] > s[1])


@given(sizes, st.integers(0, 2**63 - 1), st.integers(0, 3))
def test_every_token_but_the_first_and_the_tail_is_predicted_once_an_epoch(
    size: tuple[int, int, int], seed: int, epoch: int
) -> None:
    num_tokens, context, batch_size = size
    data = LanguageModelBatches(split_of(num_tokens), context_length=context, batch_size=batch_size, seed=seed)
    blocks = (num_tokens - 1) // context
    first, end = epoch * blocks, (epoch + 1) * blocks
    rows = [row for step in range(end // batch_size + 1) for row in data.batch(step).targets.tolist()][first:end]
    assert sorted(token for row in rows for token in row) == list(range(1, blocks * context + 1))


@given(sizes, st.integers(0, 1000), st.lists(st.integers(0, 400), min_size=1, max_size=6))
def test_a_batch_is_a_pure_function_of_seed_and_step(size: tuple[int, int, int], seed: int, steps: list[int]) -> None:
    num_tokens, context, batch_size = size

    def new() -> LanguageModelBatches:
        return LanguageModelBatches(split_of(num_tokens), context_length=context, batch_size=batch_size, seed=seed)

    used = new()
    for step in steps:  # in any order, as a resumed run or an evaluation in between may ask
        batch = used.batch(step)
        assert torch.equal(batch.tokens, new().batch(step).tokens)
        assert torch.equal(batch.targets, batch.tokens + 1)
        assert batch.tokens.shape == (batch_size, context)
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        assert batch.document_ids is None


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return EpochOrder(50, 50, seed).items(epoch).tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert all(sorted(o) == list(range(50)) for o in orders)


def test_the_order_does_not_change_between_versions() -> None:
    assert EpochOrder(10, 10, 7).items(0).tolist() == GOLDEN_ORDER
    assert random_words(1, 2, 3, 2).tolist() == GOLDEN_WORDS
    assert random_words(1, 2, 3, 9).tolist()[:2] == GOLDEN_WORDS


def test_a_far_step_is_as_good_as_a_near_one() -> None:
    order = EpochOrder(1000, 64, 3)
    far = [order.items(step).tolist() for step in range(10**15, 10**15 + 32)]  # more than an epoch
    assert far[0] == EpochOrder(1000, 64, 3).items(10**15).tolist()
    places = 10**15 * 64 + np.arange(32 * 64)
    epoch = np.array(far).ravel()[places // 1000 == places[-1] // 1000 - 1]
    assert sorted(epoch.tolist()) == list(range(1000))


@given(
    sizes,
    st.integers(0, 1000),
    st.integers(0, 300),
    st.integers(1, 9),
    st.booleans(),
)
def test_the_rows_of_all_processes_are_the_batch_and_none_is_read_twice(
    size: tuple[int, int, int], seed: int, step: int, world_size: int, mask_documents: bool
) -> None:
    num_tokens, context, batch_size = size
    data = LanguageModelBatches(
        split_of(num_tokens, [0, 2]),
        context_length=context,
        batch_size=batch_size,
        seed=seed,
        mask_documents=mask_documents,
    )
    whole = data.batch(step)
    borders = [rank * batch_size // world_size for rank in range(world_size + 1)]
    shares = [range(start, stop) for start, stop in itertools.pairwise(borders)]
    parts = [data.batch(step, share) for share in shares]
    for field in ("tokens", "targets", "document_ids"):
        if getattr(whole, field) is not None:
            assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))
    for part, share in zip(parts, shares, strict=True):
        assert part.tokens.shape == part.targets.shape == (len(share), context)
    places = step * batch_size + np.arange(batch_size)
    read = list(zip((places // data.num_blocks).tolist(), whole.tokens[:, 0].tolist(), strict=True))
    assert len(set(read)) == batch_size, "a block is read by one process once an epoch, also in a batch of two epochs"


def test_only_the_tokens_of_the_rows_asked_for_are_read() -> None:
    class Watched(np.ndarray):
        read: ClassVar[list[int]] = []

        def __getitem__(self, key: Any) -> Any:
            found = np.asarray(self)[key]
            self.read.append(found.size)
            return found

    split = replace(split_of(1000), tokens=np.arange(1000, dtype=np.uint32).view(Watched))
    LanguageModelBatches(split, context_length=10, batch_size=32, seed=0).batch(5, range(4, 7))
    assert sum(Watched.read) == 3 * 11


def test_a_split_smaller_than_a_batch_repeats_its_blocks() -> None:
    data = LanguageModelBatches(split_of(10), context_length=4, batch_size=7, seed=0)
    first = data.batch(0).tokens[:, 0].tolist()
    assert sorted(first[0:2]) == sorted(first[2:4]) == sorted(first[4:6]) == [0, 4]


def test_document_ids_say_which_document_each_token_is_of() -> None:
    starts = [0, 3, 4, 11]
    data = LanguageModelBatches(split_of(25, starts), context_length=5, batch_size=4, seed=0, mask_documents=True)
    batch = data.batch(0)
    assert batch.document_ids is not None
    for tokens, ids in zip(batch.tokens.tolist(), batch.document_ids.tolist(), strict=True):
        assert ids == [max(i for i, start in enumerate(starts) if start <= token) for token in tokens]
    assert batch.document_ids.dtype == torch.int64


def test_the_fingerprint_tells_apart_whatever_changes_the_batches() -> None:
    usual: dict[str, Any] = {"context_length": 4, "batch_size": 2, "seed": 0}
    variants: list[dict[str, Any]] = [
        {},
        {"context_length": 5},
        {"batch_size": 3},
        {"seed": 1},
        {"mask_documents": True},
    ]
    prints = [LanguageModelBatches(split_of(50), **{**usual, **change}).fingerprint for change in variants]
    prints.append(LanguageModelBatches(split_of(50, sha256="b"), **usual).fingerprint)
    assert len(set(prints)) == len(prints)
    assert LanguageModelBatches(split_of(50), **usual).fingerprint == prints[0]
    assert LanguageModelBatches(split_of(50), **usual).tokens_per_batch == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_length": 50}, "has 50 tokens, fewer than the 51 that one block"),
        ({"context_length": 0}, "context_length must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_impossible_batches_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModelBatches(split_of(50), **{"context_length": 4, "batch_size": 2, "seed": 0, **change})


@pytest.mark.parametrize("rows", [range(1, 3), range(-1, 1), range(5, 6)])
def test_rows_that_the_batch_does_not_have_are_refused(rows: range) -> None:
    with pytest.raises(ValueError, match=r"rows must lie in range\(0, 2\)"):
        LanguageModelBatches(split_of(50), context_length=4, batch_size=2, seed=0).batch(0, rows)


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match="step must be 0 or more"):
        LanguageModelBatches(split_of(50), context_length=4, batch_size=2, seed=0).batch(-1)
