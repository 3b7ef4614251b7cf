"""Shuffled orders that are computed item by item: no list of the items is ever made.

The permutation is a Feistel network over pairs: an index is written as (left, right) in the smallest nearly square
rectangle that holds all of them, and in turn one half is shifted by a hash of the other half and the round's key, which
can be undone, so the network is a bijection of the rectangle. Places beyond the last item are walked on from until an
item is reached, which makes it a bijection of the items. Everything is integer arithmetic modulo 2**64, the same with
every version of numpy and on every machine.
"""

from __future__ import annotations

import math

import numpy as np

from heedful.data.randomness import check_seed, random_words

ORDER_VERSION = 2
"""Changes when the same seed means another order; part of the fingerprint of all that is trained on."""

# Two or three items need the most rounds: with 24, no order of up to 6 items is off its share by more than a thousandth
# in total variation (the tests compute it), and large numbers are mixed long before.
ROUNDS = 24
# The finaliser of SplitMix64: every bit of its input changes each bit of its output with probability near one half.
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def permuted(places: np.ndarray, num_items: int, keys: np.ndarray) -> np.ndarray:
    """Return the items that stand at some places of shuffled orders.

    Args:
        places: int64 (n,), each from 0 to `num_items` - 1.
        num_items: how many items an order has.
        keys: uint64 (ROUNDS, n), each place's order.

    Returns:
        int64 (n,). All places of one order give every item once.
    """
    width = math.isqrt(num_items - 1) + 1 if num_items > 1 else 1
    height = -(-num_items // width)
    items = _through_network(places.astype(np.uint64), width, height, keys)
    while (beyond := items >= num_items).any():
        items[beyond] = _through_network(items[beyond], width, height, keys[:, beyond])
    return items.astype(np.int64)


def order_keys(seed: int, stream: int, orders: np.ndarray) -> np.ndarray:
    """Return the keys of some orders by their numbers, uint64 (ROUNDS, n) for numbers int64 (n,)."""
    numbers, which = np.unique(orders, return_inverse=True)
    keys = np.empty((ROUNDS, len(numbers)), dtype=np.uint64)
    for column, number in enumerate(numbers.tolist()):
        keys[:, column] = random_words(seed, stream, number, ROUNDS)
    return keys[:, which]


def _through_network(index: np.ndarray, width: int, height: int, keys: np.ndarray) -> np.ndarray:
    sizes = np.uint64(width), np.uint64(height)
    halves = [index % sizes[0], index // sizes[0]]
    for number, key in enumerate(keys):
        changed = number % 2
        shift = _hashed(halves[1 - changed] + key) % sizes[changed]
        halves[changed] = (halves[changed] + shift) % sizes[changed]
    return halves[0] + sizes[0] * halves[1]


def _hashed(words: np.ndarray) -> np.ndarray:
    words ^= words >> _SHIFTS[0]
    words *= _MULTIPLIERS[0]
    words ^= words >> _SHIFTS[1]
    words *= _MULTIPLIERS[1]
    words ^= words >> _SHIFTS[2]
    return words


class EndlessOrder:
    """Epoch after epoch of `num_items` items, each epoch in an order that is a pure function of (seed, stream, epoch).

    Nothing is kept from call to call.
    """

    def __init__(self, num_items: int, *, seed: int, stream: int, part: int = 0) -> None:
        """Set up an order.

        Args:
            num_items: items of an epoch, at least 1.
            seed: 0 to 2**63 - 1.
            stream: who draws, see `heedful.data.randomness`.
            part: which of several orders of this stream, below 2**15; their epochs have nothing to do with each other.

        Raises:
            ValueError: one of them is out of range.
        """
        if num_items < 1:
            raise ValueError(f"an order needs at least 1 item, got {num_items}.")
        if not 0 <= part < 2**15:
            raise ValueError(f"part must be from 0 to 2**15 - 1, got {part}.")
        self.num_items = num_items
        self._seed = check_seed(seed)
        self._stream = stream
        self._part = part

    def items(self, positions: np.ndarray) -> np.ndarray:
        """Return the items at some positions of the endless sequence, int64 (n,) for positions int64 (n,).

        Position p is place p mod `num_items` of epoch p div `num_items`. The time does not depend on the positions.
        """
        epochs, places = np.divmod(positions, self.num_items)
        # To get to epoch 2**47 takes more than 10**14 items, so the parts' numbers do not meet.
        keys = order_keys(self._seed, self._stream, (self._part << 47) + epochs)
        return permuted(places, self.num_items, keys)
