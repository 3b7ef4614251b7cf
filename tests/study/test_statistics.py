"""Statistics against numbers worked out by hand or taken from tables, never from the functions under test."""

from __future__ import annotations

import math

import pytest

from heedful.study.statistics import holm, paired_difference, proportion, summarise


def test_standard_deviation_divides_by_n_minus_one() -> None:
    summary = summarise([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert summary.count == 8
    assert summary.mean == 5.0
    assert summary.std == pytest.approx(math.sqrt(32 / 7), abs=1e-12)


def test_one_value_has_a_mean_and_no_standard_deviation() -> None:
    summary = summarise([3.5])
    assert (summary.count, summary.mean, summary.std) == (1, 3.5, None)


def test_no_value_has_no_mean() -> None:
    assert summarise([]).mean is None


def test_paired_difference_of_three_seeds_by_hand() -> None:
    # Differences -1, -2, -3: mean -2, s = 1, standard error 1/sqrt(3), t(0.975; 2) = 4.302652729911 from tables;
    # with two degrees of freedom p = 1 - |t| / sqrt(2 + t^2) and t = -2 sqrt(3).
    difference = paired_difference({1: 9.0, 2: 18.0, 3: 27.0}, {1: 10.0, 2: 20.0, 3: 30.0})
    half_width = 4.302652729911275 / math.sqrt(3)
    assert difference.mean == pytest.approx(-2.0)
    assert difference.std == pytest.approx(1.0)
    assert difference.low == pytest.approx(-2.0 - half_width, rel=1e-9)
    assert difference.high == pytest.approx(-2.0 + half_width, rel=1e-9)
    assert difference.p_value == pytest.approx(1 - math.sqrt(12) / math.sqrt(14), rel=1e-9)
    assert difference.percent == pytest.approx(-10.0)
    assert difference.note == ""


def test_pairs_are_made_by_seed_and_not_by_position() -> None:
    forward = paired_difference({1: 1.0, 2: 5.0, 3: 9.5}, {1: 0.5, 2: 4.0, 3: 8.0})
    shuffled = paired_difference({3: 9.5, 1: 1.0, 2: 5.0}, {2: 4.0, 3: 8.0, 1: 0.5})
    assert forward == shuffled
    assert forward.mean == pytest.approx(1.0)


def test_a_seed_that_one_arm_did_not_finish_is_left_out_of_both() -> None:
    difference = paired_difference({1: 1.0, 2: 5.0, 3: 9.5, 4: 100.0}, {1: 0.5, 2: 4.0, 3: 8.0})
    assert difference.count == 3


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_pairs_give_no_test_and_no_interval(count: int) -> None:
    values = {seed: float(seed) for seed in range(count)}
    references = {seed: float(2 * seed + 1) for seed in range(count)}
    difference = paired_difference(values, references)
    assert (difference.p_value, difference.low, difference.high) == (None, None, None)
    assert "fewer than three seeds" in difference.note
    assert difference.mean is not None


def test_no_common_seed_gives_no_difference() -> None:
    difference = paired_difference({1: 1.0}, {2: 1.0})
    assert difference.mean is None
    assert "no seed" in difference.note


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_a_difference_that_never_varies_has_no_test_instead_of_p_zero(shift: float) -> None:
    references = {1: 0.1, 2: 0.7, 3: 1.3}  # 0.1 + 0.7 etc. do not cancel exactly in binary
    values = {seed: value + shift for seed, value in references.items()}
    difference = paired_difference(values, references)
    assert difference.p_value is None
    assert difference.low is None
    assert "same in every seed" in difference.note
    assert difference.mean == pytest.approx(shift)


def test_a_baseline_at_zero_has_no_percentage() -> None:
    assert paired_difference({1: 0.5, 2: 0.4}, {1: 0.0, 2: 0.0}).percent is None


def test_holm_matches_a_worked_example() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; the last is raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_skips_missing_tests() -> None:
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([None]) == [None]


def test_wilson_interval_by_the_closed_formula() -> None:
    errors, count, z = 3, 50, 1.959963984540054
    rate = errors / count
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    result = proportion(errors, count)
    assert result.rate == pytest.approx(0.06)
    assert result.low == pytest.approx(centre - half, rel=1e-9)
    assert result.high == pytest.approx(centre + half, rel=1e-9)


def test_no_error_at_all_still_has_an_upper_bound() -> None:
    result = proportion(0, 100)
    assert result.low == 0.0
    assert 0.03 < result.high < 0.04


@pytest.mark.parametrize(("errors", "count"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(errors: int, count: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= errors"):
        proportion(errors, count)
