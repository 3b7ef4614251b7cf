"""Summaries, paired differences and corrected p-values: how surely one arm differs from another.

Every arm sees the same batches in the same order under the same seed, so runs are paired by seed and the difference is
tested on the pairs. Fewer than three pairs give neither an interval nor a test, and the result says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
MINIMUM_PAIRS = 3
# Differences that agree to this share of their size differ by rounding only: there is no spread to test against.
ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of `count` values; the deviation of one value is None."""

    count: int
    mean: float | None
    std: float | None


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean of `value - reference` over the seeds both have, with Student's t interval and two-sided p-value.

    `percent` is the mean difference in percent of the reference's mean. `low`, `high` and `p_value` are None where
    there is no test, and `note` then says why.
    """

    count: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    percent: float | None
    p_value: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """An error rate from `errors` wrong answers in `count`, with its Wilson interval (fractions, not percent)."""

    errors: int
    count: int
    rate: float
    low: float
    high: float


def summarise(values: Sequence[float]) -> Summary:
    """Return count, mean and sample standard deviation of `values`."""
    count = len(values)
    if count == 0:
        return Summary(count=0, mean=None, std=None)
    mean = math.fsum(values) / count
    if count == 1:
        return Summary(count=1, mean=mean, std=None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Summary(count=count, mean=mean, std=math.sqrt(variance))


def paired_difference(values: Mapping[int, float], references: Mapping[int, float]) -> PairedDifference:
    """Compare two arms on the seeds that both finished.

    Args:
        values: the arm's metric by seed.
        references: the baseline's metric by seed.
    """
    seeds = sorted(values.keys() & references.keys())
    differences = [values[seed] - references[seed] for seed in seeds]
    summary = summarise(differences)
    if summary.mean is None:
        return _untested(summary, None, "no seed finished in both arms")
    reference = summarise([references[seed] for seed in seeds]).mean
    percent = 100 * summary.mean / reference if reference else None
    if summary.count < MINIMUM_PAIRS or summary.std is None:
        return _untested(summary, percent, "no test: fewer than three seeds")
    size = max(abs(number) for seed in seeds for number in (values[seed], references[seed]))
    if summary.std <= ROUNDING * size:
        return _untested(summary, percent, "no test: the difference is the same in every seed")
    from scipy import stats

    test = stats.ttest_rel([values[seed] for seed in seeds], [references[seed] for seed in seeds])
    interval = test.confidence_interval(CONFIDENCE)
    return PairedDifference(
        count=summary.count,
        mean=summary.mean,
        std=summary.std,
        low=float(interval.low),
        high=float(interval.high),
        percent=percent,
        p_value=float(test.pvalue),
    )


def _untested(summary: Summary, percent: float | None, note: str) -> PairedDifference:
    return PairedDifference(
        count=summary.count,
        mean=summary.mean,
        std=summary.std,
        low=None,
        high=None,
        percent=percent,
        p_value=None,
        note=note,
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number by Holm's step-down rule; None (no test) stays None and does not count."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, index) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p))
        corrected[index] = running
    return corrected


def proportion(errors: int, count: int) -> Proportion:
    """Return the error rate of `errors` in `count` trials with its 95 % Wilson interval.

    Raises:
        ValueError: `count` is not positive, or `errors` is not between 0 and `count`.
    """
    if count < 1 or not 0 <= errors <= count:
        raise ValueError(f"expected 0 <= errors <= count and count >= 1, got {errors} errors in {count}.")
    from scipy import stats

    interval = stats.binomtest(errors, count).proportion_ci(CONFIDENCE, method="wilson")
    return Proportion(
        errors=errors, count=count, rate=errors / count, low=float(interval.low), high=float(interval.high)
    )
