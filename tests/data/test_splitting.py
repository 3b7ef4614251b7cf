from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heedful.data.splitting import SPLITS, assign_splits, hold_out_together, sample_for_tokenizer
from heedful.data.surveying import Survey, document_hash

TRAIN, VALID, TEST = (SPLITS.index(name) for name in ("train", "valid", "test"))
documents = st.lists(st.text("abc", min_size=1, max_size=4), min_size=3, max_size=60)
fractions = st.floats(0.01, 0.3)


def hashes_of(texts: list[str]) -> np.ndarray:
    return np.array([document_hash(text) for text in texts], dtype=np.uint64)


@given(documents, fractions, fractions, st.randoms())
def test_every_document_has_one_split_that_depends_on_texts_alone(
    texts: list[str], valid: float, test: float, random: object
) -> None:
    distinct = sorted(set(texts))
    count = len(distinct)
    wanted = {TEST: max(1, round(test * count)), VALID: max(1, round(valid * count))}
    if sum(wanted.values()) >= count:
        with pytest.raises(ValueError, match="too few to split"):
            assign_splits(hashes_of(texts), valid_fraction=valid, test_fraction=test)
        return
    splits = assign_splits(hashes_of(texts), valid_fraction=valid, test_fraction=test)
    of_text = dict(zip(texts, splits.tolist(), strict=True))
    assert [of_text[text] for text in texts] == splits.tolist(), "equal documents share a split"
    assert {split: list(of_text.values()).count(split) for split in wanted} == wanted
    shuffled = texts.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = assign_splits(hashes_of(shuffled), valid_fraction=valid, test_fraction=test)
    assert dict(zip(shuffled, again.tolist(), strict=True)) == of_text


def test_a_split_with_a_corpus_of_its_own_takes_nothing() -> None:
    splits = assign_splits(hashes_of([f"{i}" for i in range(40)]), valid_fraction=0.0, test_fraction=0.25)
    assert (splits == VALID).sum() == 0
    assert (splits == TEST).sum() == 10


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_documents_are_an_error_that_says_what_to_do(count: int) -> None:
    with pytest.raises(ValueError, match=rf"has {count} distinct documents?, too few .* set documents to 'paragraph'"):
        assign_splits(hashes_of([f"{i}" for i in range(count)]), valid_fraction=0.05, test_fraction=0.05)


def test_the_tokenizer_sample_is_train_documents_up_to_the_budget() -> None:
    texts = [f"document {i}" for i in range(200)]
    hashes, sizes = hashes_of(texts), np.full(200, 10)
    splits = assign_splits(hashes, valid_fraction=0.1, test_fraction=0.1)
    surveyed = Survey(hashes=hashes, num_bytes=sizes, sha256="")
    chosen = sample_for_tokenizer(surveyed, splits, budget=495)
    assert set(splits[chosen]) == {TRAIN}
    assert chosen.sum() == 50
    assert sample_for_tokenizer(surveyed, splits, budget=10**9).sum() == (splits == TRAIN).sum()
    # Spread over the corpus, not its beginning: the mean place of 50 of 160 evenly drawn is within 4 deviations of 100.
    assert abs(np.flatnonzero(chosen).mean() - 99.5) < 4 * 58 / 50**0.5


@given(st.lists(st.lists(st.text("abc", min_size=1, max_size=3), min_size=3, max_size=40), min_size=2, max_size=4))
def test_equal_documents_of_several_sources_share_a_split_test_before_validation_before_train(
    sources: list[list[str]],
) -> None:
    hashes = [hashes_of(texts) for texts in sources]
    if any(len(set(texts)) < 3 for texts in sources):
        return
    before = [assign_splits(own, valid_fraction=0.2, test_fraction=0.2) for own in hashes]
    after = [own.copy() for own in before]
    hold_out_together(hashes, after)
    said: dict[str, set[int]] = {}
    for texts, own in zip(sources, before, strict=True):
        for text, split in zip(texts, own.tolist(), strict=True):
            said.setdefault(text, set()).add(split)
    for texts, own in zip(sources, after, strict=True):
        for text, split in zip(texts, own.tolist(), strict=True):
            assert split == (TEST if TEST in said[text] else VALID if VALID in said[text] else TRAIN)


@pytest.mark.parametrize("budget", [1, 100, 3000, 19_000])
def test_the_tokenizer_sample_does_not_depend_on_how_it_is_found(budget: int) -> None:
    texts = [f"document {i}" * (1 + i % 7) for i in range(300)]
    hashes, sizes = hashes_of(texts), np.array([len(text) for text in texts])
    splits = assign_splits(hashes, valid_fraction=0.1, test_fraction=0.1)
    chosen = sample_for_tokenizer(Survey(hashes=hashes, num_bytes=sizes, sha256=""), splits, budget)
    expected, total = set(), 0
    for number in sorted(np.flatnonzero(splits == TRAIN).tolist(), key=lambda i: int(hashes[i])):
        if total < budget:
            expected.add(number)
            total += int(sizes[number])
    assert set(np.flatnonzero(chosen).tolist()) == expected
