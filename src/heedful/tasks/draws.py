"""Random choices one after the other, each sequence a pure function of (seed, stream, index)."""

from __future__ import annotations

import numpy as np

from heedful.data.randomness import check_seed


class Draws:
    """The endless sequence of random words of one (seed, stream, index), as choices.

    The same words as `heedful.data.randomness.random_words`, taken one at a time where it is not known beforehand how
    many it takes.
    """

    def __init__(self, seed: int, stream: int, index: int) -> None:
        """Begin at the first word."""
        key = np.array((check_seed(seed), stream), dtype=np.uint64)
        counter = np.array((0, index, 0, 0), dtype=np.uint64)
        self._philox = np.random.Philox(key=key, counter=counter)

    def below(self, count: int) -> int:
        """Return a number from 0 to `count` - 1; the shares are equal to `count` / 2^64."""
        return int(self._philox.random_raw()) % count

    def fraction(self) -> float:
        """Return a number from 0 (included) to 1 (excluded), a multiple of 2^-53."""
        return (int(self._philox.random_raw()) >> 11) / (1 << 53)

    def distinct(self, count: int, choices: int) -> list[int]:
        """Return `count` different numbers below `choices` in random order."""
        deck = list(range(choices))
        for place in range(count):
            pick = place + self.below(choices - place)
            deck[place], deck[pick] = deck[pick], deck[place]
        return deck[:count]
