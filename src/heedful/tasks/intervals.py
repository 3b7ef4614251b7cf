"""95 % confidence intervals of what the tasks measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

CONFIDENCE = 0.95
Interval = tuple[float, float]


def wilson_interval(correct: int, count: int) -> Interval:
    """Return Wilson's interval of a share of `correct` in `count` independent trials.

    Raises:
        ValueError: `count` is not positive, or `correct` is not between 0 and `count`.
    """
    if count < 1 or not 0 <= correct <= count:
        raise ValueError(f"expected 0 <= correct <= count and count >= 1, got {correct} in {count}.")
    from scipy.stats import binomtest

    interval = binomtest(correct, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's t interval of the mean of independent `values`; None of fewer than two."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def mean_of_shares_interval(counts: Sequence[tuple[int, int]]) -> Interval:
    """Return the normal interval of the mean of several shares, each of `correct` in `count` trials of its own.

    The shares themselves are fixed, only trials are drawn: variance = sum of p (1 - p) / n over the number of shares
    squared. Each p is taken as (correct + 2) / (count + 4), as Agresti and Coull do, else shares of 0 and 1 would count
    as certain.

    Raises:
        ValueError: there is no share, or one without trials.
    """
    if not counts or any(count < 1 or not 0 <= correct <= count for correct, count in counts):
        raise ValueError(f"expected shares with 0 <= correct <= count and count >= 1, got {list(counts)}.")
    from scipy.stats import norm

    mean = fmean(correct / count for correct, count in counts)
    shares = [((correct + 2) / (count + 4), count + 4) for correct, count in counts]
    deviation = math.sqrt(math.fsum(p * (1 - p) / n for p, n in shares)) / len(counts)
    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * deviation
    return max(0.0, mean - half), min(1.0, mean + half)
