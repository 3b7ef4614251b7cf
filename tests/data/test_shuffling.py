from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from heedful.data.randomness import BATCH_ORDER, random_words
from heedful.data.shuffling import ROUNDS, EndlessOrder, permuted

# A correct order fails a statistical test here less than once in a million changes of the key material.
LEVEL = 1e-6


def epoch_of(num_items: int, seed: int, epoch: int = 0, part: int = 0) -> list[int]:
    order = EndlessOrder(num_items, seed=seed, stream=BATCH_ORDER, part=part)
    return order.items(epoch * num_items + np.arange(num_items)).tolist()


@pytest.mark.parametrize("num_items", [1, 2, 3, 7, 63, 64, 65, 111, 4096, 65_537])
@pytest.mark.parametrize("epoch", [0, 1, 10**6])
def test_an_epoch_holds_every_item_once(num_items: int, epoch: int) -> None:
    assert sorted(epoch_of(num_items, 5, epoch)) == list(range(num_items))


def test_an_epoch_of_a_million_items_holds_each_once() -> None:
    order = EndlessOrder(10**6, seed=1, stream=BATCH_ORDER)
    seen = np.zeros(10**6, dtype=np.int64)
    for start in range(0, 10**6, 10**5):
        np.add.at(seen, order.items(np.arange(start, start + 10**5)), 1)
    assert (seen == 1).all()


def by_hand(place: int, num_items: int, keys: list[int]) -> int:
    """The network in Python's integers, from the module's description."""
    width = math.ceil(math.sqrt(num_items))
    height = math.ceil(num_items / width)
    word = 2**64

    def hashed(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % word
        x = (x ^ x >> 27) * 0x94D049BB133111EB % word
        return x ^ x >> 31

    while True:
        left, right = place % width, place // width
        for pair in range(ROUNDS // 2):
            left = (left + hashed((right + keys[2 * pair]) % word) % width) % width
            right = (right + hashed((left + keys[2 * pair + 1]) % word) % height) % height
        place = left + width * right
        if place < num_items:
            return place


@given(st.integers(1, 10**12), st.integers(0, 2**63 - 1), st.data())
def test_the_network_is_integer_arithmetic_that_python_repeats(num_items: int, seed: int, data: st.DataObject) -> None:
    keys = random_words(seed, BATCH_ORDER, 0, ROUNDS)
    places = data.draw(st.lists(st.integers(0, num_items - 1), min_size=1, max_size=4))
    expected = [by_hand(place, num_items, keys.tolist()) for place in places]
    assert permuted(np.array(places), num_items, np.tile(keys[:, None], len(places))).tolist() == expected


@given(st.integers(1, 300), st.integers(0, 100), st.lists(st.integers(0, 10**6), min_size=1, max_size=9))
def test_an_item_does_not_depend_on_what_is_asked_with_it(num_items: int, seed: int, positions: list[int]) -> None:
    order = EndlessOrder(num_items, seed=seed, stream=BATCH_ORDER)
    together = order.items(np.array(positions)).tolist()
    assert together == [order.items(np.array([position])).item() for position in positions]


def test_epochs_seeds_streams_and_parts_have_orders_of_their_own() -> None:
    orders = [tuple(epoch_of(60, seed, epoch, part)) for seed, epoch, part in itertools.product(range(3), repeat=3)]
    orders.append(tuple(EndlessOrder(60, seed=0, stream=BATCH_ORDER + 1).items(np.arange(60)).tolist()))
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("num_items", [2, 3, 4, 5])
def test_every_order_of_a_few_items_comes_as_often_as_any_other(num_items: int) -> None:
    draws = 30 * math.factorial(num_items)
    order = EndlessOrder(num_items, seed=11, stream=BATCH_ORDER)
    epochs = order.items(np.arange(draws * num_items)).reshape(draws, num_items)
    counts = Counter(map(tuple, epochs.tolist()))
    assert len(counts) == math.factorial(num_items)
    statistic = sum((count - 30) ** 2 / 30 for count in counts.values())
    assert statistic < chi2.isf(LEVEL, math.factorial(num_items) - 1)


@pytest.mark.parametrize("num_items", [16, 63])
def test_every_item_comes_to_every_place_as_often(num_items: int) -> None:
    draws = 20 * num_items
    order = EndlessOrder(num_items, seed=2, stream=BATCH_ORDER)
    epochs = order.items(np.arange(draws * num_items)).reshape(draws, num_items)
    places = np.broadcast_to(np.arange(num_items), epochs.shape)
    counts = np.bincount((places * num_items + epochs).ravel(), minlength=num_items**2)
    # Rows and columns of the table sum to `draws` exactly, which leaves (n - 1)**2 degrees of freedom. The variance of
    # a cell is draws * (n - 1) / n**2, so the sum's mean is n * (n - 1), and the factor makes it chi-square.
    statistic = ((counts - 20) ** 2 / 20).sum() * (num_items - 1) / num_items
    freedom = (num_items - 1) ** 2
    assert chi2.ppf(LEVEL / 2, freedom) < statistic < chi2.isf(LEVEL / 2, freedom)


@pytest.mark.parametrize("num_items", [4096, 10**6, 10**6 + 1, 10**9 + 7])
def test_neighbours_of_an_epoch_are_as_far_apart_as_chance_puts_them(num_items: int) -> None:
    items = EndlessOrder(num_items, seed=4, stream=BATCH_ORDER).items(np.arange(4096))
    for lag in (1, 2, math.isqrt(num_items - 1) + 1):  # the last: neighbours in the network's rectangle
        if lag < 2048:
            differences = (items[lag:] - items[:-lag]) % num_items / num_items
            assert kstest(differences, "uniform").pvalue > LEVEL
    assert kstest(items / num_items, "uniform").pvalue > LEVEL


def test_the_beginning_of_one_epoch_says_nothing_about_the_next() -> None:
    num_items = 10**6
    order = EndlessOrder(num_items, seed=4, stream=BATCH_ORDER)
    first, second = order.items(np.arange(4096)), order.items(num_items + np.arange(4096))
    assert kstest((second - first) % num_items / num_items, "uniform").pvalue > LEVEL


@pytest.mark.parametrize("num_items", [3, 4, 5, 6])
def test_enough_rounds_for_the_smallest_orders(num_items: int) -> None:
    """Exact distribution of the walked network's permutation, were the hash a random function: see `ROUNDS`."""
    assert total_variation(num_items, ROUNDS) < 1e-3


def total_variation(num_items: int, rounds: int) -> float:
    width = math.ceil(math.sqrt(num_items))
    height = math.ceil(num_items / width)
    size = width * height
    functions = [
        list(itertools.product(range(width), repeat=height)),
        list(itertools.product(range(height), repeat=width)),
    ]
    distribution = {tuple(range(size)): 1.0}
    for number in range(rounds):
        following: defaultdict[tuple[int, ...], float] = defaultdict(float)
        choices = functions[number % 2]
        for images, share in distribution.items():
            for shifts in choices:
                if number % 2 == 0:
                    moved = tuple((v % width + shifts[v // width]) % width + v // width * width for v in images)
                else:
                    moved = tuple(v % width + (v // width + shifts[v % width]) % height * width for v in images)
                following[moved] += share / len(choices)
        distribution = dict(following)
    walked: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for images, share in distribution.items():
        ends = []
        for item in range(num_items):
            item = images[item]
            while item >= num_items:
                item = images[item]
            ends.append(item)
        walked[tuple(ends)] += share
    even = 1 / math.factorial(num_items)
    missing = math.factorial(num_items) - len(walked)
    return (sum(abs(share - even) for share in walked.values()) + missing * even) / 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_items": 0}, "at least 1 item, got 0"),
        ({"seed": -1}, "seed must be from 0"),
        ({"part": -1}, "part must be from 0"),
        ({"part": 2**15}, "part must be from 0"),
    ],
)
def test_impossible_orders_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EndlessOrder(**{"num_items": 5, "seed": 0, "stream": BATCH_ORDER, "part": 0, **fields})
