"""Whether gains add up: the difference that a sum of mechanisms makes, against the sum of what its parts make alone.

Gains are taken in the test loss, nats per token, the logarithm of the perplexity: factors of perplexity multiply, so
their logarithms add. With d(arm) = loss(arm) - loss(baseline) in one seed, the excess of a sum is

    excess = d(sum) - (d(part 1) + d(part 2) + ...)

seed by seed: above zero the sum brings less than its parts would together, below zero more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from heedful.study.statistics import PairedDifference, paired_difference

METRIC = "loss"


@dataclass(frozen=True, kw_only=True)
class Additivity:
    """What a sum brings and what its parts bring, over the seeds that all of them finished.

    Attributes:
        arm: the sum.
        parts: the arms whose mechanisms it has.
        total: d(sum), the sum against the baseline.
        parts_alone: d(part) by part.
        expected: the sum of the parts' differences.
        excess: `total` minus `expected`.
        best_part: the part with the lowest mean loss; None where no seed is common.
        against_best_part: the sum against that part.
    """

    arm: str
    parts: tuple[str, ...]
    total: PairedDifference
    parts_alone: dict[str, PairedDifference]
    expected: PairedDifference
    excess: PairedDifference
    best_part: str | None
    against_best_part: PairedDifference


def losses(result: Mapping[str, Any], arm: str, metric: str = METRIC) -> dict[int, float]:
    """Return a test value of `arm` by seed, of the finished runs with its chosen learning rate."""
    return {
        run["seed"]: run["test"][metric]
        for run in result["runs"]
        if run["arm"] == arm and run["test"] is not None and run["test"].get(metric) is not None
    }


def additivity(result: Mapping[str, Any], arm: str, parts: Sequence[str]) -> Additivity:
    """Compare the gain of `arm` with the sum of the gains of `parts`.

    Args:
        result: the content of a `result.json`.
        arm: the sum.
        parts: two arms or more.

    Raises:
        ValueError: fewer than two parts, or an arm that the result does not have.
    """
    if len(parts) < 2:
        raise ValueError(f"a sum has at least two parts, got {list(parts)}.")
    names = [item["name"] for item in result["arms"]]
    if absent := [name for name in (arm, *parts) if name not in names]:
        raise ValueError(f"the result has no arm {', '.join(absent)}; its arms are {', '.join(names)}.")
    by_arm = {name: losses(result, name) for name in (result["baseline"], arm, *parts)}
    seeds = sorted(set.intersection(*(set(values) for values in by_arm.values())))
    by_arm = {name: {seed: values[seed] for seed in seeds} for name, values in by_arm.items()}
    baseline = by_arm[result["baseline"]]

    def gain(name: str, seed: int) -> float:
        return by_arm[name][seed] - baseline[seed]

    total = {seed: gain(arm, seed) for seed in seeds}
    expected = {seed: sum(gain(part, seed) for part in parts) for seed in seeds}
    best = min(parts, key=lambda part: fmean(by_arm[part].values())) if seeds else None
    return Additivity(
        arm=arm,
        parts=tuple(parts),
        total=paired_difference(by_arm[arm], baseline),
        parts_alone={part: paired_difference(by_arm[part], baseline) for part in parts},
        expected=paired_difference(expected, dict.fromkeys(seeds, 0.0)),
        excess=paired_difference(total, expected),
        best_part=best,
        against_best_part=paired_difference(by_arm[arm], by_arm[best] if best is not None else {}),
    )


def parts_of(result: Mapping[str, Any], arm: str) -> tuple[str, ...]:
    """Return the arms whose presets `arm` adds up, in its order; none where it is no sum or a part is missing."""
    attention = {item["name"]: item["attention"] for item in result["arms"]}
    presets = attention[arm].split("+") if isinstance(attention[arm], str) else []
    by_preset = {preset: name for name, preset in attention.items() if isinstance(preset, str)}
    if len(presets) < 2 or any(preset not in by_preset for preset in presets):
        return ()
    return tuple(by_preset[preset] for preset in presets)
