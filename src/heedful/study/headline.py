"""The result in words: which arm is better, by how much, how surely and at what cost, and no more than was measured.

An arm counts as better or worse than its reference only when the paired test, corrected for the number of tests, is
below 5 %. Everything else is "not distinguishable", or "not tested" with the reason.
"""

from __future__ import annotations

from typing import Any, Literal

from heedful.study.statistics import MINIMUM_PAIRS
from heedful.study.wording import (
    listed,
    metric_difference,
    metric_facts,
    metric_value,
    number_of,
    p_value,
    ratio,
)

SIGNIFICANCE = 0.05
Verdict = Literal["better", "worse", "not distinguishable", "not tested", "failed"]


def verdict(comparison: dict[str, Any]) -> Verdict:
    """Say what `comparison` shows; lower is better for every metric here."""
    if comparison["mean"] is None:
        return "failed"
    if comparison["p_holm"] is None:
        return "not tested"
    if comparison["p_holm"] >= SIGNIFICANCE:
        return "not distinguishable"
    return "better" if comparison["mean"] < 0 else "worse"


def headline(result: dict[str, Any]) -> list[str]:
    """Return the sentences that open the report, the most important first."""
    arms = {arm["name"]: arm for arm in result["arms"]}
    baseline = arms[result["baseline"]]
    metric = result["metrics"][0]
    scored = [arm for arm in arms.values() if arm["metrics"][metric]["mean"] is not None]
    if not scored:
        return ["No arm finished: every run diverged. Lower learning rates or a longer warm-up are the usual remedy."]
    best = min(scored, key=lambda arm: arm["metrics"][metric]["mean"])
    comparisons = [item for item in result["comparisons"] if item["metric"] == metric]
    against_baseline = {item["arm"]: item for item in comparisons if item["kind"] == "baseline"}
    sentences = []
    if best is baseline:
        mean = metric_value(metric, best["metrics"][metric]["mean"])
        sentences.append(f"No arm beats {best['name']}: it has the lowest {metric_facts(metric)['name']}, {mean}.")
    else:
        sentences += _best(best, baseline, against_baseline[best["name"]], metric, result["tests"])
        sentences.append(_cost(best, baseline))
    sentences += [
        _control(item, arms) for item in comparisons if item["kind"] == "control" and item["mean"] is not None
    ]
    sentences += _verdicts(list(against_baseline.values()), baseline["name"])
    sentences += _failures(result)
    return sentences


def _best(best: dict, baseline: dict, comparison: dict, metric: str, tests: int) -> list[str]:
    name, value = metric_facts(metric)["name"], metric_value(metric, best["metrics"][metric]["mean"])
    if comparison["mean"] is None or comparison["mean"] >= 0:
        return [
            f"{best['name']} has the lowest mean {name}, {value}, but not on the seeds that it and {baseline['name']} "
            "both finished: the means are over different seeds."
        ]
    reference = metric_value(metric, baseline["metrics"][metric]["mean"])
    numbers = f"{name} {value} against {reference}, {size(comparison)}"
    outcome = verdict(comparison)
    if outcome == "better":
        return [
            f"{best['name']} is better than {baseline['name']}: {numbers}.",
            f"How surely: {evidence(comparison, tests)}.",
        ]
    if outcome == "not distinguishable":
        return [
            f"{best['name']} has the lowest {name}, but it is not distinguishable from {baseline['name']}: {numbers}.",
            f"How surely: {evidence(comparison, tests)}.",
        ]
    return [
        f"{best['name']} has the lowest {name}: {value} against {reference} for {baseline['name']}, "
        f"{size(comparison)}.",
        f"How surely cannot be said: {comparison['note'].removeprefix('no test: ')}.",
    ]


def size(comparison: dict[str, Any]) -> str:
    """Write how large a difference is: in percent of the reference, or in points for an error rate."""
    metric = comparison["metric"]
    direction = "lower" if comparison["mean"] < 0 else "higher"
    if metric_facts(metric)["unit"]:
        return f"{abs(comparison['mean']):.{metric_facts(metric)['digits']}f} points {direction}"
    return f"{abs(comparison['percent']):.1f} % {direction}"


def evidence(comparison: dict[str, Any], tests: int) -> str:
    """Write interval, number of seeds and p-value of a tested comparison, or why there is no test."""
    if comparison["p_value"] is None:
        return comparison["note"]
    metric = comparison["metric"]
    mean, low, high = (metric_difference(metric, comparison[key]) for key in ("mean", "low", "high"))
    corrected = f" after Holm's correction for {number_of(tests, 'test')}" if tests > 1 else ""
    return (
        f"difference {mean}, 95 % interval {low} to {high}, {number_of(comparison['count'], 'seed')}, "
        f"p {_equals(p_value(comparison['p_holm']))}{corrected}"
    )


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _cost(best: dict, baseline: dict) -> str:
    def times(key: str) -> str:
        return ratio(best[key], baseline[key])

    sentence = (
        f"Its cost relative to {baseline['name']}: {times('parameters')} the parameters, "
        f"{times('multiply_adds_per_token')} the multiply-adds per token, "
        f"{times('cache_bytes_per_token')} the KV cache"
    )
    if best["steps"] != baseline["steps"]:
        sentence += f", {times('steps')} the steps"
    if best["tokens_per_second"] and baseline["tokens_per_second"]:
        sentence += f"; here it trained at {times('tokens_per_second')} the tokens per second"
    return f"{sentence}."


def _control(comparison: dict, arms: dict[str, dict]) -> str:
    control, arm = comparison["reference"], comparison["arm"]
    by_parameters = arms[control]["match"]["by"] == "parameters"
    key, noun = (
        ("parameters", "parameters") if by_parameters else ("multiply_adds_per_token", "multiply-adds per token")
    )
    kind = f"{ratio(arms[control][key], arms[arm][key])} its {noun}"
    outcome = verdict(comparison)
    difference = size(comparison)
    if outcome == "not distinguishable":
        difference = f"not distinguishable ({difference}; p {_equals(p_value(comparison['p_holm']))})"
    elif outcome == "not tested":
        difference = f"{difference} ({comparison['note']})"
    else:
        difference = f"{difference} (p {_equals(p_value(comparison['p_holm']))})"
    return f"Against {control}, its control with {kind}, {arm} is {difference}."


def _verdicts(comparisons: list[dict], baseline: str) -> list[str]:
    groups: dict[str, list[str]] = {}
    for comparison in comparisons:
        groups.setdefault(verdict(comparison), []).append(comparison["arm"])
    openings = {
        "better": f"Better than {baseline}",
        "worse": f"Worse than {baseline}",
        "not distinguishable": f"Not distinguishable from {baseline}",
    }
    sentences = [f"{opening}: {listed(groups[key])}." for key, opening in openings.items() if key in groups]
    untested = [comparison for comparison in comparisons if verdict(comparison) == "not tested"]
    few = [item["arm"] for item in untested if item["count"] < MINIMUM_PAIRS]
    same = [item["arm"] for item in untested if item["count"] >= MINIMUM_PAIRS]
    if few:
        everyone = len(few) == len(comparisons)
        subject = "Differences are" if everyone else f"The differences of {listed(few)} are"
        sentences.append(f"{subject} not tested: fewer than three seeds.")
    if same:
        sentences.append(f"Not tested: {listed(same)}, whose difference is the same in every seed.")
    return sentences


def _failures(result: dict[str, Any]) -> list[str]:
    failed: dict[str, list[dict]] = {}
    for run in result["runs"]:
        if run["status"] != "finished":
            failed.setdefault(run["arm"], []).append(run)
    sentences = []
    for arm, runs in failed.items():
        which = listed([f"seed {run['seed']} at learning rate {run['learning_rate']:g}" for run in runs])
        sentences.append(f"{arm} diverged with {which}; its means are over the runs that finished.")
    return sentences
