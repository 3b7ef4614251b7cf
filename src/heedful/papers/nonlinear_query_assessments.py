"""What trained models say about the claims of the nonlinear-query papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

from heedful.papers.claim import Finding, Result, Verdict
from heedful.papers.judging import by_seed, difference, figure_of, judge, numbers_of, reason_of, settled
from heedful.study.tolerance import MARGIN, Tolerance, tolerances
from heedful.study.wording import listed, rate

TOLERANCE = "learning-rate-tolerance-small.json"
AS_GOOD = 1.0
"""Percent of the reference's perplexity: a model that is worse by less counts as good as the other.

One percent is 0.01 nats, about a seventh of the gain that the later paper reports for the nonlinear query.
"""

PUBLISHED_EXTRA = 12.5  # percent more parameters without embeddings, of the paper's wider control
WIDER_IN = {"feed-forward": "wider in its feed-forward layers", "width": "wider in all its parts"}


def identity_is_as_good(result: Result) -> Finding:
    """Ask whether the identity query's perplexity exceeds that of the linear query by less than `AS_GOOD`."""
    item = difference(result, "identity-query", "standard")
    arms = {arm["name"]: arm for arm in result["arms"]}
    saved = 1 - arms["identity-query"]["parameters"] / arms["standard"]["parameters"]
    reason = f"{reason_of(item)} It has {100 * saved:.1f} % fewer parameters."
    pair = ["identity-query", "standard"]
    verdict: Verdict = "undecided"
    if item["low"] is not None:
        margin = AS_GOOD / 100 * fmean(by_seed(result, "standard", item["metric"]).values())
        verdict = "holds" if item["high"] <= margin else "does not hold" if item["low"] > margin else "undecided"
        reason = f"{reason} It counts as good as the linear query if it is worse by less than {AS_GOOD:g} %."
    losers = pair[:1] if verdict == "does not hold" else pair[1:]
    verdict, reason = settled(verdict, reason, result, pair, losers=losers)
    return Finding(
        verdict=verdict,
        figure=figure_of(item),
        reason=reason,
        numbers={**numbers_of(item), "share of parameters saved": saved},
    )


def nonlinear_is_better(result: Result) -> Finding:
    """Compare the nonlinear with the linear query, each with the best of the same learning rates."""
    return judge(result, "nonlinear-query", "standard")


def nonlinearity_is_what_pays(result: Result) -> Finding:
    """Compare the nonlinear query with the same one without its activation."""
    found = judge(result, "nonlinear-query", "nonlinear-query-linear-control")
    control = difference(result, "nonlinear-query-linear-control", "standard")
    return replace(
        found,
        reason=f"{found.reason} The control against the linear query: {figure_of(control)}.",
        numbers={**found.numbers, **numbers_of(control, "control against standard: ")},
    )


def nonlinear_is_better_than_a_larger_model(result: Result) -> Finding:
    """Compare the nonlinear query with the widened standard model, whose size the boosted arm sets."""
    found = judge(result, "nonlinear-query", "standard-wide")
    arms = {arm["name"]: arm for arm in result["arms"]}
    sizes = {name: arm["parameters_without_embeddings"] for name, arm in arms.items()}
    match = arms["standard-wide"].get("match") or {}
    where = WIDER_IN.get(str(match.get("vary")), "larger")
    extra = 100 * (sizes["standard-wide"] / sizes["standard"] - 1)
    larger = extra >= PUBLISHED_EXTRA
    # Beating a larger control says more than was claimed, and losing to it nothing; with a smaller one it is reversed.
    decided = found.verdict == ("holds" if larger else "does not hold")
    return replace(
        found,
        verdict=found.verdict if decided else "undecided",
        reason=f"{found.reason} The control here is {where} and has {extra:.1f} % more parameters "
        f"without embeddings, where the paper's has {PUBLISHED_EXTRA:g} % more in its feed-forward layers.",
        numbers={**found.numbers, "parameters of the control beyond the linear model, percent": extra},
    )


def nonlinear_tolerates_larger_rates(results: Mapping[str, Result]) -> Finding:
    """Compare the largest learning rates at which the arms still work, seed by seed, and with both controls."""
    found = tolerances(dict(results[TOLERANCE]))
    linear, nonlinear = found["linear"], found["nonlinear-query"]
    verdict = _larger(nonlinear, linear)
    others = [name for name in ("linear-qk-norm", "nonlinear-query-linear-control") if name in found]
    as_far = [name for name in others if _larger(nonlinear, found[name]) != "holds"]
    if verdict == "holds" and as_far:
        verdict = "holds in part"
    highest = {name: arm.range.high for name, arm in found.items() if arm.range is not None}
    means = " ".join(
        f"{name} works up to {_up_to(arm)}." if arm.range is not None else f"{name} diverged at every rate."
        for name, arm in found.items()
    )
    reason = f"A rate works while the final validation loss is within {MARGIN:g} nats of the arm's best: {means}"
    if verdict == "holds in part":
        reason += f" It does not exceed {listed(as_far)}, so this is not owed to the activation alone."
    if verdict == "undecided":
        reason += " The ranges of single seeds overlap, or the grid ends before they do."
    ratio = highest["nonlinear-query"] / highest["linear"] if {"nonlinear-query", "linear"} <= highest.keys() else None
    return Finding(
        verdict=verdict,
        figure="no rate works" if ratio is None else f"largest working rate {ratio:.1f} times that of the linear query",
        reason=reason,
        numbers={
            **{f"largest working rate, {name}": high for name, high in highest.items()},
            **{f"working rates, highest over lowest, {name}": arm.range.factor
               for name, arm in found.items() if arm.range is not None},
            **{f"diverged runs, {name}": float(arm.diverged) for name, arm in found.items()},
        },
    )  # fmt: skip


def _larger(arm: Tolerance, reference: Tolerance) -> Verdict:
    """Return whether the largest working rate of every seed of an arm exceeds that of every seed of the reference."""
    mine, theirs = ([found.high for found in one.seed_ranges.values()] for one in (arm, reference))
    if not mine or not theirs:
        return "undecided"
    # Where the grid ends first both have its last rate, and neither exceeds the other.
    if min(mine) > max(theirs):
        return "holds"
    return "does not hold" if max(mine) < min(theirs) else "undecided"


def _up_to(arm: Tolerance) -> str:
    assert arm.range is not None
    high = float(f"{arm.range.high:.2g}")  # between two rates of the grid it is interpolated
    return f"{rate(high)}{' or more' if arm.range.open_high else ''}"
