"""What the results of the language-model comparison say about the boosted paper's empirical claims.

Each function is pure: the content of result files in, a finding out. All of them read the first metric of the result,
the test perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from heedful.papers.claim import Evidence, Finding, Result, Verdict
from heedful.papers.judging import by_seed, difference, figure_of, judge, numbers_of, reason_of, settled, verdict_of
from heedful.papers.language_models import study_evidence
from heedful.study.statistics import paired_difference
from heedful.study.wording import signed

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "standard": {"config.attention.boosting": None},
    "standard-wide": {"match.arm": "boosted", "match.by": "parameters"},
    "standard-deep": {"match.arm": "boosted", "match.by": "compute", "match.vary": "depth"},
    "twicing": {"config.attention.rule.kind": "twicing"},
    "boosted": {
        "config.attention.boosting.rounds": 2,
        "config.attention.boosting.kv_source": "residual",
        "config.attention.boosting.residual_coefficient": 1.0,
        "config.attention.boosting.gate": "vector",
        "config.norm_position": "pre",
    },
    "boosted-input-kv": {"config.attention.boosting.kv_source": "input"},
    "boosted-no-residual": {"config.attention.boosting.residual_coefficient": 0.0},
    "boosted-three-rounds": {"config.attention.boosting.rounds": 3},
}
"""What makes each arm the one that a claim is about; a result in which it differs is refused."""


def language_models(assess: Callable[[Result], Finding], *arms: str) -> Evidence:
    """Return evidence from the language-model comparison for a claim about `arms`."""
    settings = {f"arms.{arm}.{key}": value for arm in arms for key, value in SETTINGS[arm].items()}
    return study_evidence(assess, *arms, settings=settings)


def pair(arm: str, reference: str) -> Evidence:
    """Return evidence for the claim that `arm` has the lower test perplexity of the two."""
    return language_models(lambda result: judge(result, arm, reference), arm, reference)


def residual_matters(result: Result) -> Finding:
    """Judge by a = 1 against a = 0, and say whether the second look alone was better than one."""
    found = judge(result, "boosted", "boosted-no-residual")
    second_look = difference(result, "boosted-no-residual", "standard")
    return replace(
        found,
        reason=f"{found.reason} A second look without the residual, against one look: {figure_of(second_look)}.",
        numbers={**found.numbers, **numbers_of(second_look, "a = 0 against standard: ")},
    )


def third_round(result: Result) -> Finding:
    """Judge whether the second round brings a gain, and more than the third: gain against gain, seed by seed."""
    metric = result["metrics"][0]
    arms = ["standard", "boosted", "boosted-three-rounds"]
    one, two, three = (by_seed(result, arm, metric) for arm in arms)
    seeds = sorted(one.keys() & two.keys() & three.keys())
    second = {seed: one[seed] - two[seed] for seed in seeds}
    third = {seed: two[seed] - three[seed] for seed in seeds}
    gains = paired_difference(third, second)
    item = {"arm": "the gain by the third round", "reference": "that by the second", "metric": metric, "kind": "gain",
            "count": gains.count, "mean": gains.mean, "low": gains.low, "high": gains.high, "note": gains.note,
            "p_value": gains.p_value, "percent": None}  # fmt: skip
    if not seeds:
        return Finding(verdict="undecided", figure=figure_of(item), reason=reason_of(item))
    means = fmean(second.values()), fmean(third.values())
    verdict = verdict_of(item)
    two_rounds = paired_difference(two, one)
    if verdict == "holds" and not (two_rounds.high is not None and two_rounds.high < 0):
        verdict = "undecided"  # of two losses the smaller one is no gain
    verdict, reason = settled(verdict, reason_of(item), result, arms, losers=arms)
    return Finding(
        verdict=verdict,
        figure=f"gain {signed(means[0], 2)} by the second round, {signed(means[1], 2)} by the third",
        reason=reason,
        numbers={"gain by the second round": means[0], "gain by the third round": means[1], **numbers_of(item)},
    )


def convergence(result: Result) -> Finding:
    """Find where the boosted model's mean validation loss passes the wider model's last one."""
    arms = ["boosted", "standard-wide"]
    boosted, wide = (_mean_curve(result, arm) for arm in arms)
    if not boosted or not wide:
        return Finding(verdict="undecided", figure="no figure", reason="No run of one of the arms finished.")
    last, level = max(wide), wide[max(wide)]
    passed = [step for step, loss in sorted(boosted.items()) if loss <= level]
    numbers = {"wider model's last validation loss": level, "boosted model's": boosted[max(boosted)]}
    if not passed:
        reason = "The boosted model does not reach the wider model's last validation loss."
        verdict, reason = settled("does not hold", reason, result, arms, losers=arms[:1])
        return Finding(verdict=verdict, figure="never", reason=reason, numbers=numbers)
    share = passed[0] / last
    cost = {arm["name"]: arm["multiply_adds_per_token"] for arm in result["arms"]}
    compute = share * cost["boosted"] / cost["standard-wide"]
    reason = "Means over seeds of validation losses, read at the steps where they were measured; no interval."
    verdict: Verdict = "undecided" if share == 1 else "holds" if compute < 1 else "holds in part"
    verdict, reason = settled(verdict, reason, result, arms, losers=arms[1:])
    return Finding(
        verdict=verdict,
        figure=f"after {100 * share:.0f} % of the steps, {100 * compute:.0f} % of the multiply-adds",
        reason=reason,
        numbers={**numbers, "share of the steps": share, "share of the multiply-adds": compute},
    )


def _mean_curve(result: Result, arm: str) -> dict[int, float]:
    curves = [
        {point["step"]: point["val/loss"] for point in run["curve"] if "val/loss" in point}
        for run in result["runs"]
        if run["arm"] == arm and run["chosen"] and run["status"] == "finished"
    ]
    steps = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {step: fmean(curve[step] for curve in curves) for step in steps}


def gates(result: Result) -> Finding:
    """Read the mean gate of each layer of the first seed's model."""
    layers = [layer["gate_mean"][0] for layer in _arm(result, "boosted")["diagnostics"] if "gate_mean" in layer]
    if not layers:
        return _unmeasured("this result holds no gates of the boosted arm")
    below = [gate < 0.5 for gate in layers]
    return Finding(
        verdict="holds" if all(below) else "holds in part" if any(below) else "does not hold",
        figure=" / ".join(f"{gate:.2f}" for gate in layers),
        reason=(
            "Gates start near 1/2. Means over tokens and dimensions, of one seed, on text of the test split; the scale "
            "of the correction is free (boosted-gauge), so a mean gate says little about how much is corrected."
        ),
        numbers={f"layer {index}": gate for index, gate in enumerate(layers)},
    )


def entropies(result: Result) -> Finding:
    """Read the entropy of the two rounds' maps, in the layers that the result holds, of the first seed's model."""
    found = [value for value in _arm(result, "boosted").values() if isinstance(value, Mapping) and value.get("where")]
    if not found:
        return _unmeasured("this result holds no entropies of the boosted arm's maps")
    where, numbers, texts, falls = found[0]["where"], {}, [], []
    wrong = where["wrong"] / where["positions"]
    for layer in where["layers"]:
        first, second = (
            wrong * (look["entropy"]["wrong"] or 0.0) + (1 - wrong) * (look["entropy"]["right"] or 0.0)
            for look in layer["rounds"][:2]
        )
        name = f"layer {layer['layer']}"
        numbers |= {f"{name}, first round": first, f"{name}, second round": second}
        texts.append(f"{name}: {first:.2f} then {second:.2f} nat")
        falls.append(second < first)
    return Finding(
        verdict="holds" if all(falls) else "holds in part" if any(falls) else "does not hold",
        figure=", ".join(texts),
        reason="Means over heads and positions, of one seed, in the layers that the result holds.",
        numbers=numbers,
    )


def _arm(result: Result, name: str) -> Mapping[str, Any]:
    return next(arm for arm in result["arms"] if arm["name"] == name)


def _unmeasured(why: str) -> Finding:
    return Finding(verdict="not tested here", figure="no figure", reason=f"Not measured: {why}.")


def post_norm(results: Mapping[str, Result]) -> Finding:
    """Judge by the arms with a norm after the sum."""
    (result,) = results.values()
    return judge(result, "boosted-post-norm", "standard-post-norm", claimed="higher")
