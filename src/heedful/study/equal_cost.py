"""Whether a gain survives equal cost: an arm against a standard model of its parameters and one of its multiply-adds.

A control is an arm with the baseline's attention in another size. Which of them, or the baseline itself, is the control
for an arm follows from the costs: the one whose parameters (or multiply-adds per token) are nearest to the arm's. How
near is part of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from heedful.study.additivity import METRIC, losses
from heedful.study.statistics import PairedDifference, paired_difference

Cost = Literal["parameters", "multiply_adds_per_token"]
NEAR = 0.03
"""Costs that differ by less than this share count as equal."""


@dataclass(frozen=True, kw_only=True)
class EqualCost:
    """An arm against its control of equal cost: the difference of losses, and the control's cost over the arm's."""

    arm: str
    control: str
    cost: Cost
    ratio: float
    difference: PairedDifference

    @property
    def equal(self) -> bool:
        """Whether the costs differ by less than `NEAR`."""
        return abs(math.log(self.ratio)) < math.log1p(NEAR)


def equal_cost(result: Mapping[str, Any], arm: str, cost: Cost) -> EqualCost:
    """Compare `arm` with the plain model whose `cost` is nearest to its own.

    Args:
        result: the content of a `result.json`.
        arm: any arm but a plain model itself.
        cost: what is to be equal.

    Raises:
        ValueError: the result has no such arm.
    """
    arms = {item["name"]: item for item in result["arms"]}
    if arm not in arms:
        raise ValueError(f"the result has no arm {arm}; its arms are {', '.join(arms)}.")
    ratios = {name: arms[name][cost] / arms[arm][cost] for name in plain_arms(result) if name != arm}
    control = min(ratios, key=lambda name: abs(math.log(ratios[name])))
    return EqualCost(
        arm=arm,
        control=control,
        cost=cost,
        ratio=ratios[control],
        difference=paired_difference(losses(result, arm, METRIC), losses(result, control, METRIC)),
    )


def plain_arms(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the baseline and the arms that differ from it in size only."""
    attention = {item["name"]: item["attention"] for item in result["arms"]}
    return tuple(name for name, found in attention.items() if found == attention[result["baseline"]])
