"""How much the choice of learning rate matters to an arm: final validation loss against peak rate, and its flat range.

Everything here is computed from the result of a comparison (`heedful.study.results`), from the seeds that every rate of
an arm was trained with. The loss is the last one of a run, not its best: a run that was good and then fell apart is no
success. A rate at which a seed diverged has no mean, is never the best, and bounds the range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

MARGIN = 0.05
"""Nats of validation loss above an arm's best that still count as working."""


@dataclass(frozen=True, kw_only=True)
class RatePoint:
    """The runs of an arm with one learning rate: the final validation loss by seed, None where the run diverged."""

    learning_rate: float
    losses: dict[int, float | None]

    @property
    def mean(self) -> float | None:
        """The mean over seeds; None where one diverged."""
        values = list(self.losses.values())
        found = [value for value in values if value is not None]
        return fmean(found) if found and len(found) == len(values) else None

    @property
    def diverged(self) -> int:
        """How many of the runs diverged."""
        return sum(loss is None for loss in self.losses.values())


@dataclass(frozen=True, kw_only=True)
class RateRange:
    """The learning rates around the best one at which the loss is within a margin of the best.

    Between two rates of the grid the loss is taken as linear in the logarithm of the rate. Next to a rate that diverged
    the range ends at the last rate that did not. An open end is one that the grid did not reach: `low` is then the
    lowest or `high` the highest rate tried, and the true range is wider.
    """

    best_rate: float
    best_loss: float
    low: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def factor(self) -> float:
        """Highest over lowest rate of the range; at least 1."""
        return self.high / self.low


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The curve of one arm, the range of its means, and the ranges of its single seeds.

    `range` is None where a run diverged at every rate; `seed_ranges` leaves out a seed whose runs all did.
    """

    arm: str
    points: tuple[RatePoint, ...]
    range: RateRange | None
    seed_ranges: dict[int, RateRange]

    @property
    def diverged(self) -> int:
        """How many of the runs diverged, over all rates."""
        return sum(point.diverged for point in self.points)


def tolerances(result: dict[str, Any], margin: float = MARGIN, minimum_rates: int = 3) -> dict[str, Tolerance]:
    """Return the tolerance of every arm that tried at least `minimum_rates` learning rates.

    Args:
        result: the content of a `result.json`.
        margin: nats above the best loss.
        minimum_rates: arms with fewer rates have no curve.
    """
    found = {}
    for arm in result["arms"]:
        points = rate_points(result, arm["name"])
        if len(points) < minimum_rates:
            continue
        means = [(point.learning_rate, point.mean) for point in points]
        singles = {
            seed: rate_range([(point.learning_rate, point.losses[seed]) for point in points], margin)
            for seed in points[0].losses
        }
        found[arm["name"]] = Tolerance(
            arm=arm["name"],
            points=points,
            range=rate_range(means, margin),
            seed_ranges={seed: single for seed, single in singles.items() if single is not None},
        )
    return found


def rate_points(result: dict[str, Any], arm: str) -> tuple[RatePoint, ...]:
    """Return the learning rates of `arm` in ascending order, with the seeds that all of them were trained with."""
    losses: dict[float, dict[int, float | None]] = {}
    for run in result["runs"]:
        if run["arm"] == arm:
            loss = run["final"]["val/loss"] if run["status"] == "finished" else None
            losses.setdefault(run["learning_rate"], {})[run["seed"]] = loss
    seeds = set.intersection(*(set(by_seed) for by_seed in losses.values())) if losses else set()
    return tuple(
        RatePoint(learning_rate=rate, losses={seed: losses[rate][seed] for seed in sorted(seeds)})
        for rate in sorted(losses)
        if seeds
    )


def rate_range(curve: list[tuple[float, float | None]], margin: float = MARGIN) -> RateRange | None:
    """Return where a curve of (learning rate, loss), rates ascending, is within `margin` of its lowest loss.

    Returns:
        The range around the lowest loss (of equals, the lower rate), without what lies behind a worse rate; None where
        every loss is None.
    """
    finite = [(loss, index) for index, (_, loss) in enumerate(curve) if loss is not None]
    if not finite:
        return None
    best_loss, best = min(finite)
    low, open_low = _walk(curve, best, -1, best_loss + margin)
    high, open_high = _walk(curve, best, 1, best_loss + margin)
    return RateRange(
        best_rate=curve[best][0], best_loss=best_loss, low=low, high=high, open_low=open_low, open_high=open_high
    )


def _walk(curve: list[tuple[float, float | None]], start: int, step: int, limit: float) -> tuple[float, bool]:
    """Go from the best rate in one direction to where the loss crosses `limit`; true where the grid ends before."""
    here = start
    while 0 <= here + step < len(curve):
        rate, loss = curve[here]
        next_rate, next_loss = curve[here + step]
        if next_loss is None:
            return rate, False
        if next_loss > limit:
            assert loss is not None
            share = (limit - loss) / (next_loss - loss)
            return math.exp(math.log(rate) + share * (math.log(next_rate) - math.log(rate))), False
        here += step
    return curve[here][0], True
