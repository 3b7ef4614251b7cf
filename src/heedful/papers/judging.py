"""From the paired differences of a comparison to a verdict, the same rule for every claim that one arm is better.

The claimed side of zero decides with the 95 % interval of the difference, seed by seed: all of it on that side, the
claim holds; all of it on the other side, it does not; zero inside, or too few seeds for an interval, undecided. Claims
are asked one by one, so the interval is not corrected for their number; the corrected p-value of the comparison, where
it has one, stands among the numbers.

Lower metrics are better. Whoever loses with a learning rate at an end of the range tried might do better with one that
was not tried, so such a difference decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from heedful.papers.claim import Finding, Result, Verdict
from heedful.study.statistics import paired_difference
from heedful.study.wording import metric_facts, number_of, signed


def by_seed(result: Result, arm: str, metric: str) -> dict[int, float]:
    """Return a test metric of `arm` by seed, of the finished runs with the chosen learning rate."""
    return {
        run["seed"]: run["test"][metric]
        for run in result["runs"]
        if run["arm"] == arm and run["chosen"] and run["test"] is not None
    }


def difference(result: Result, arm: str, reference: str, metric: str = "") -> dict[str, Any]:
    """Return the paired difference `arm - reference`, as the comparisons of a result hold it.

    Pairs that the comparison did not ask for are computed from its runs by the same rule.

    Args:
        result: the content of a `result.json`.
        arm: an arm.
        reference: the arm subtracted.
        metric: empty for the first of the result.
    """
    metric = metric or result["metrics"][0]
    for item in result["comparisons"]:
        if (item["arm"], item["reference"], item["metric"]) == (arm, reference, metric):
            return dict(item)
    pair = asdict(paired_difference(by_seed(result, arm, metric), by_seed(result, reference, metric)))
    return {"arm": arm, "reference": reference, "kind": "computed", "metric": metric, **pair, "p_holm": None}


def judge(
    result: Result,
    arm: str,
    reference: str,
    *,
    claimed: Literal["lower", "higher"] = "lower",
    metric: str = "",
) -> Finding:
    """Judge the claim that `arm` has a lower (or higher) metric than `reference`."""
    item = difference(result, arm, reference, metric)
    loser = arm if (item["mean"] or 0.0) > 0 else reference
    verdict, reason = settled(verdict_of(item, claimed), reason_of(item), result, [arm, reference], losers=[loser])
    return Finding(verdict=verdict, figure=figure_of(item), reason=reason, numbers=numbers_of(item))


def settled(
    verdict: Verdict, reason: str, result: Result, arms: Sequence[str], *, losers: Sequence[str]
) -> tuple[Verdict, str]:
    """Return verdict and reason with what must be said of learning rates: undecided where a loser's is at an end.

    Args:
        verdict: by the interval alone.
        reason: what it rests on.
        result: the content of a `result.json`.
        arms: those that are compared.
        losers: those of them that a lower loss would help.
    """
    notes = edge_notes(result, arms)
    words = [reason, *notes.values()]
    if verdict in ("undecided", "not tested here") or not any(arm in notes for arm in losers):
        return verdict, " ".join(words)
    return "undecided", " ".join([*words, "So this does not decide."])


def edge_notes(result: Result, arms: Sequence[str]) -> dict[str, str]:
    """Return a sentence for each of `arms` whose learning rate is at an end of the range tried."""
    notes = {arm["name"]: arm.get("learning_rate_note") or "" for arm in result["arms"]}
    return {arm: f"{notes[arm][:1].upper()}{notes[arm][1:]}" for arm in arms if notes.get(arm)}


def verdict_of(item: dict[str, Any], claimed: Literal["lower", "higher"] = "lower") -> Verdict:
    """Return the verdict by the rule above, for a difference of which `claimed` says the sign."""
    if item["low"] is None:
        return "undecided"
    if item["low"] <= 0 <= item["high"]:
        return "undecided"
    return "holds" if (item["high"] < 0) == (claimed == "lower") else "does not hold"


def figure_of(item: dict[str, Any]) -> str:
    """Write the difference: `−1.20 test perplexity (−1.8 %)`."""
    if item["mean"] is None:
        return "no seed finished in both arms"
    metric = metric_facts(item["metric"])
    size = signed(item["mean"], metric["digits"])
    if metric["unit"]:
        return f"{size} points of {metric['name']}"
    percent = "" if item["percent"] is None else f" ({signed(item['percent'], 1)} %)"
    return f"{size} {metric['name']}{percent}"


def reason_of(item: dict[str, Any]) -> str:
    """Write what the verdict rests on: interval and seeds, or why there is none."""
    pair = f"{item['arm']} against {item['reference']}"
    if item["low"] is None:
        return f"{pair}: {item['note']}."
    digits = metric_facts(item["metric"])["digits"]
    side = "covers zero" if item["low"] <= 0 <= item["high"] else "lies on one side of zero"
    return (
        f"{pair}: the 95 % interval, {signed(item['low'], digits)} to {signed(item['high'], digits)}, {side} "
        f"({number_of(item['count'], 'seed')})."
    )


def numbers_of(item: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a difference that are there, each name with `prefix` before it."""
    names = {"mean": "difference", "low": "low", "high": "high", "percent": "percent", "count": "seeds",
             "p_value": "p", "p_holm": "p after Holm"}  # fmt: skip
    return {f"{prefix}{name}": float(item[key]) for key, name in names.items() if item.get(key) is not None}
