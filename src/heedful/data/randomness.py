"""Random words that are a pure function of (seed, stream, index), the same with every version of numpy.

numpy promises the stream of its bit generators but not the numbers that `Generator` makes of it, hence raw words.
"""

from __future__ import annotations

import numpy as np

# Who draws from which stream: equal seeds must not make, say, a batch order and a task's samples depend on each other.
BATCH_ORDER = 0
FIND_THE_BLOCK_TRAIN = 1
FIND_THE_BLOCK_TEST = 2
MIXTURE = 3
PROCESS_RANDOMNESS = 3
NEEDLES_TRAIN = 16
NEEDLES_TEST = 17
LONG_BABI_TRAIN = 18
LONG_BABI_TEST = 19


def random_words(seed: int, stream: int, index: int, count: int) -> np.ndarray:
    """Return `count` independent words, uint64 (count,); a longer call begins with the words of a shorter one.

    Philox with key (seed, stream) and the counter's second word set to `index`, so no two indices share a word.
    """
    key = np.array((seed, stream), dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array((0, index, 0, 0), dtype=np.uint64)).random_raw(count)


def check_seed(seed: int) -> int:
    """Return the seed if it is one (0 to 2**63 - 1), else raise ValueError."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, got {seed}.")
    return seed
