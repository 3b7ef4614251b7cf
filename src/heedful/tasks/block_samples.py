"""Samples of find-the-block, many at a time, each a pure function of (seed, stream, index).

Blocks of distinct letters, joined by "."; then "#" and the query, some letters of one block in random order. That
target block stands at a uniformly random place, no other block holds all query letters, and no two blocks are equal.
The others are uniform among the blocks that this leaves: candidates are drawn one after the other and those that break
a rule are passed over.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from heedful.data.randomness import random_words

ALPHABET = 26
MAX_BLOCK_LENGTH = 13  # 26**13 still fits the 63 bits in which blocks are compared


class BlockSamples(NamedTuple):
    """Letters as numbers 0 to 25.

    Attributes:
        blocks: int64 (samples, blocks, letters).
        query: int64 (samples, query letters).
        target: int64 (samples,), which block holds the query.
    """

    blocks: np.ndarray
    query: np.ndarray
    target: np.ndarray


def draw_samples(
    *, block_length: int, num_blocks: int, query_letters: int, seed: int, stream: int, indices: np.ndarray
) -> BlockSamples:
    """Return the samples with these indices.

    A sample is read off its own endless stream of random words (the target's place, the query's choice, then candidate
    after candidate), so it does not matter with which others it is drawn, nor how many candidates are looked at
    together.
    """
    num_candidates = num_blocks + 8 + num_blocks // 4
    blocks = np.empty((len(indices), num_blocks, block_length), dtype=np.int64)
    query = np.empty((len(indices), query_letters), dtype=np.int64)
    target = np.empty(len(indices), dtype=np.int64)
    pending = np.arange(len(indices))
    while len(pending):
        num_words = 1 + query_letters + num_candidates * block_length
        words = np.stack([random_words(seed, stream, int(indices[i]), num_words) for i in pending])
        place = (words[:, 0] % num_blocks).astype(np.int64)
        candidates = _distinct(
            words[:, 1 + query_letters :].reshape(len(pending), num_candidates, block_length), ALPHABET
        )
        chosen = _distinct(words[:, None, 1 : 1 + query_letters], block_length)[:, 0]
        asked = np.take_along_axis(candidates[:, 0], chosen, axis=1)
        kept = _keep(candidates, asked)
        enough = kept.sum(axis=1) >= num_blocks
        done = pending[enough]
        blocks[done] = _first_kept(candidates[enough], kept[enough], place[enough], num_blocks)
        query[done], target[done] = asked[enough], place[enough]
        pending = pending[~enough]
        num_candidates *= 2
    return BlockSamples(blocks, query, target)


def most_blocks(block_length: int, query_letters: int) -> int:
    """Return how many blocks a sample can have such that no more than half of the possible other blocks are used.

    Beyond that, drawing and passing over would become slow.
    """
    with_query = math.perm(block_length, query_letters) * math.perm(
        ALPHABET - query_letters, block_length - query_letters
    )
    return 1 + (math.perm(ALPHABET, block_length) - with_query) // 2


def _distinct(words: np.ndarray, choices: int) -> np.ndarray:
    """Return as many distinct numbers below `choices` as the last axis has words: the head of a shuffled deck."""
    deck = np.broadcast_to(np.arange(choices), (*words.shape[:-1], choices)).copy()
    for drawn in range(words.shape[-1]):
        pick = drawn + (words[..., drawn, None] % (choices - drawn)).astype(np.int64)
        picked = np.take_along_axis(deck, pick, axis=-1)
        np.put_along_axis(deck, pick, deck[..., drawn, None], axis=-1)
        deck[..., drawn, None] = picked
    return deck[..., : words.shape[-1]]


def _keep(candidates: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return which candidates obey the rules, the target (candidate 0) among them: bool (samples, candidates)."""
    holds_query = (candidates[:, :, None, :] == query[:, None, :, None]).any(axis=-1).all(axis=-1)
    holds_query[:, 0] = False
    number = candidates @ (ALPHABET ** np.arange(candidates.shape[-1]))
    by_number = np.argsort(number, axis=1, kind="stable")  # stable: of equal blocks the first is not a repetition
    ordered = np.take_along_axis(number, by_number, axis=1)
    repeats = np.zeros(number.shape, dtype=bool)
    np.put_along_axis(repeats, by_number[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return ~holds_query & ~repeats


def _first_kept(candidates: np.ndarray, kept: np.ndarray, place: np.ndarray, num_blocks: int) -> np.ndarray:
    """Return the first `num_blocks` kept candidates of each sample, the target moved from the front to its place."""
    front = np.argsort(~kept, axis=1, kind="stable")[:, :num_blocks]
    slot = np.arange(num_blocks)
    source = np.where(slot < place[:, None], slot + 1, np.where(slot == place[:, None], 0, slot))
    order = np.take_along_axis(front, source, axis=1)
    return np.take_along_axis(candidates, order[:, :, None], axis=1)
