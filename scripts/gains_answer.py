"""The question on docs/results/index.md, answered from each study of language models that is there, the largest first:
do the gains of the three mechanisms add up, and does any of them survive equal compute and a tuned learning rate?

Every sentence is made from the numbers: an interval of 95 % that lies below zero is "better", one above zero "worse",
one that covers zero "not distinguishable".
"""

from __future__ import annotations

import math
from pathlib import Path

from heedful.papers.language_models import STUDIES, size
from heedful.study.additivity import additivity, losses, parts_of
from heedful.study.equal_cost import Cost, EqualCost, equal_cost
from heedful.study.facts import limits
from heedful.study.statistics import PairedDifference, holm, paired_difference
from heedful.study.wording import NONE, count, listed, number_of, rate, ratio, signed
from scripts.result_words import RESULTS, Result, interval, load, missing, nats, outcome, provenance, table
from scripts.studies_table import studies_table

MECHANISMS = ("boosted", "nonlinear-query", "multi-token")
COSTS: dict[Cost, str] = {"parameters": "parameters", "multiply_adds_per_token": "multiply-adds per token"}
# The nonlinear query has the size of what it replaces, so its own control is the same query without the activation.
FURTHER_CONTROL = {"nonlinear-query": "nonlinear-query-linear-control"}


def answer_part(folder: Path = RESULTS) -> str:
    """Return the generated part: a section for each study, the largest first, and several beside each other."""
    studies = {name: result for name in STUDIES if (result := load(name, folder)) is not None}
    if not studies:
        return missing(STUDIES[-1]) + "\n"
    parts = [study_part(name, result) for name, result in studies.items()]
    if len(studies) > 1:
        baseline = next(iter(studies.values()))["baseline"]
        gains = {f"{name}<br>{size(result)}": gains_of(result) for name, result in studies.items()}
        parts += ["### The studies beside each other\n", studies_table(baseline, gains)]
    return "\n".join(parts)


def gains_of(result: Result) -> dict[str, PairedDifference]:
    """Return the differences to the baseline of the mechanisms and their sums."""
    gains = {arm: Mechanism(result, arm).gain for arm in MECHANISMS}
    return gains | {item.gains.arm: item.gains.total for item in sums_of(result)}


def sums_of(result: Result) -> list[SumOfMechanisms]:
    """Return the sums that a result has."""
    return [SumOfMechanisms(result, arm["name"]) for arm in result["arms"] if parts_of(result, arm["name"])]


def study_part(name: str, result: Result) -> str:
    """Return the section of one study: the answer, its two tables, how it was measured and what it cannot say."""
    found, sums = [Mechanism(result, arm) for arm in MECHANISMS], sums_of(result)
    return "\n".join(
        [
            f"### {size(result)} ({', '.join(result['machines'])})",
            "",
            short_answer(found, sums),
            "",
            *(f"- {mechanism.sentence()}" for mechanism in found),
            *(f"- {item.sentence()}" for item in sums),
            "",
            mechanism_table(found),
            sum_table(result["baseline"], sums),
            "Differences of test loss in nats per token (in brackets per cent of perplexity) with 95 % intervals. "
            f"{correction(found, sums)} {learning_rates(result)}",
            "",
            *(f"- {line}" for line in limits(result)),
            "",
            provenance(name, result),
            "",
        ]
    )


class Mechanism:
    """A mechanism beside the baseline and its controls of equal cost."""

    def __init__(self, result: Result, arm: str) -> None:
        self.arm, self.baseline = arm, result["baseline"]
        self.edge = edge(result, arm)
        self.gain = paired_difference(losses(result, arm), losses(result, self.baseline))
        self.controls: dict[Cost, EqualCost] = {cost: equal_cost(result, arm, cost) for cost in COSTS}
        further = FURTHER_CONTROL.get(arm)
        there = further in {item["name"] for item in result["arms"]}
        self.further = further if there else None
        self.against_further = (
            paired_difference(losses(result, arm), losses(result, further)) if there and further else None
        )

    def differences(self) -> list[PairedDifference]:
        """Return everything that is tested, once: the baseline may itself be the control of equal cost."""
        found = {self.baseline: self.gain}
        found |= {item.control: item.difference for item in self.controls.values()}
        if self.further is not None and self.against_further is not None:
            found[self.further] = self.against_further
        return list(found.values())

    def survives(self) -> str:
        """Return `yes`, `no`, `cannot be told`, or that there is no gain to begin with."""
        first = outcome(self.gain)
        if first != "better":
            return {"worse": "no gain", "not distinguishable": "no gain seen"}.get(first, first)
        found = {outcome(item.difference) for item in self.controls.values()}
        if found == {"better"} and all(item.equal for item in self.controls.values()):
            return "yes"
        return "no" if "worse" in found else "cannot be told"

    def sentence(self) -> str:
        """Write what became of the gain."""
        said = f"**{self.arm}** is {_is(outcome(self.gain))} {self.baseline} ({_short(self.gain)})"
        for cost, item in self.controls.items():
            if item.control == self.baseline:
                said += f"; {self.baseline} has {_near(item)} {COSTS[cost]}"
            else:
                said += (
                    f"; it is {_is(outcome(item.difference))} {item.control}, a standard model with {_near(item)} "
                    f"{COSTS[cost]} ({_short(item.difference)})"
                )
        if self.further is not None and self.against_further is not None:
            verdict = _is(outcome(self.against_further))
            said += f"; it is {verdict} {self.further} ({_short(self.against_further)})"
        return f"{said}."


class SumOfMechanisms:
    """A sum beside its parts, and beside a standard model of its multiply-adds."""

    def __init__(self, result: Result, arm: str) -> None:
        self.gains = additivity(result, arm, parts_of(result, arm))
        at_end = any(edge(result, name) for name in (arm, *parts_of(result, arm)))
        self.edge = " (a rate of it or of a part at an end of the range)" if at_end else ""
        self.control = equal_cost(result, arm, "multiply_adds_per_token")

    def differences(self) -> list[PairedDifference]:
        """Return everything that is tested."""
        return [self.gains.total, self.gains.excess, self.gains.against_best_part, self.control.difference]

    def sentence(self) -> str:
        """Write whether the sum changes the loss as its parts do together, and whether it beats the best of them."""
        item = self.gains
        if item.total.mean is None or item.expected.mean is None:
            return f"**{item.arm}**: no seed was finished by it, its parts and the baseline."
        said = {
            "worse": "leaves a higher loss than its parts would together",
            "better": "leaves a lower loss than its parts would together",
            "not distinguishable": "is not distinguishable from the sum of its parts",
        }.get(outcome(item.excess), "was not tested against the sum of its parts")
        said = (
            f"**{item.arm}** changes the loss by {_number(item.total)} nats, {' + '.join(item.parts)} by "
            f"{_number(item.expected)} together: it {said}"
        )
        if item.best_part is not None:
            verdict = _is(outcome(item.against_best_part))
            said += f", and is {verdict} {item.best_part}, its best part ({_short(item.against_best_part)})"
        return f"{said}."


def edge(result: Result, arm: str) -> str:
    """Return what to say behind the name of an arm whose learning rate is at an end of its range."""
    note = next(item["learning_rate_note"] for item in result["arms"] if item["name"] == arm)
    return " (its rate at an end of the range)" if note else ""


def short_answer(found: list[Mechanism], sums: list[SumOfMechanisms]) -> str:
    """Write the two answers in a few sentences."""
    groups: dict[str, list[str]] = {}
    for mechanism in found:
        groups.setdefault(mechanism.survives(), []).append(f"{mechanism.arm}{mechanism.edge}")
    openings = {
        "yes": "The gain survives equal parameters, equal compute and a tuned learning rate for",
        "no": "The gain does not survive equal cost for",
        "cannot be told": "Whether the gain survives equal cost cannot be told here for",
        "no gain seen": "No gain is seen with tuned learning rates for",
        "no gain": "Worse than the baseline with tuned learning rates:",
        "not tested": "Not tested, for want of seeds:",
    }
    words = [f"{opening} {listed(groups[key])}." for key, opening in openings.items() if key in groups]
    for mechanism in found:
        if mechanism.against_further is not None and outcome(mechanism.gain) == "better":
            verdict = _is(outcome(mechanism.against_further))
            words.append(f"{mechanism.arm} is {verdict} {mechanism.further}, the same without its activation.")
    by_excess: dict[str, list[str]] = {}
    for item in sums:
        by_excess.setdefault(outcome(item.gains.excess), []).append(f"{item.gains.arm}{item.edge}")
    sum_openings = {
        "worse": "Sums with a higher loss than their parts would leave together:",
        "better": "Sums with a lower loss than their parts would leave together:",
        "not distinguishable": "Sums that cannot be told from their parts together:",
        "not tested": "Sums that were not tested, for want of seeds:",
    }
    words += [f"{opening} {listed(by_excess[key])}." for key, opening in sum_openings.items() if key in by_excess]
    return "**" + " ".join(words) + "**"


def mechanism_table(found: list[Mechanism]) -> str:
    """Return the table of the mechanisms against the baseline and their controls."""
    headers = ["mechanism", f"against {found[0].baseline}", *(f"at equal {name}" for name in COSTS.values()),
               "against its linear control", "survives"]  # fmt: skip
    rows = []
    for mechanism in found:
        further = mechanism.against_further
        rows.append(
            [
                mechanism.arm,
                nats(mechanism.gain),
                *(_against(item) for item in mechanism.controls.values()),
                NONE if further is None else f"{nats(further)}<br>{mechanism.further}",
                mechanism.survives(),
            ]
        )
    return table(headers, rows)


def sum_table(baseline: str, sums: list[SumOfMechanisms]) -> str:
    """Return the table of the sums; empty where the result has none."""
    if not sums:
        return ""
    headers = ["sum", f"against {baseline}", "its parts, added", "excess", "against its best part",
               "at equal multiply-adds per token"]  # fmt: skip
    rows = []
    for item in sums:
        gains = item.gains
        best = f"{nats(gains.against_best_part)}<br>{gains.best_part or ''}"
        cells = [nats(gains.total), nats(gains.expected), nats(gains.excess), best, _against(item.control)]
        rows.append([gains.arm, *cells])
    return table(headers, rows)


def correction(found: list[Mechanism], sums: list[SumOfMechanisms]) -> str:
    """Say what is left of the clear differences after Holm's correction for all tests of this part."""
    tested = [item for entry in (*found, *sums) for item in entry.differences() if item.p_value is not None]
    corrected = holm([item.p_value for item in tested])
    clear = [p for item, p in zip(tested, corrected, strict=True) if outcome(item) in ("better", "worse")]
    left = sum(p is not None and p < 0.05 for p in clear)
    return (
        f"Intervals are not corrected for their number: of {number_of(len(tested), 'test')} {len(clear)} exclude zero, "
        f"and {left} still do after Holm's correction."
    )


def learning_rates(result: Result) -> str:
    """Say how far the learning rates were tuned."""
    swept = [arm for arm in result["arms"] if len(arm["sweep"]) > 1]
    if len(swept) < len(result["arms"]):
        return "Not every arm had several learning rates to choose from."
    tried = {tuple(item["learning_rate"] for item in arm["sweep"]) for arm in swept}
    edges = [arm["name"] for arm in swept if arm["learning_rate_note"]]
    seeds = number_of(result["recipe"].get("sweep_seeds", 1), "seed")
    said = f"Each arm had the best of {listed([rate(value) for value in next(iter(tried))])} on validation, {seeds}"
    said = f"{said} each." if len(tried) == 1 else f"Each arm had its own learning rates to choose from, {seeds} each."
    if edges:
        said += f" At an end of its range, so that a better rate may lie beyond: {listed(edges)}."
    size = next(arm for arm in result["arms"] if arm["name"] == result["baseline"])
    return f"{said} The baseline has {count(size['parameters'])} parameters."


def _against(item: EqualCost) -> str:
    return f"{nats(item.difference)}<br>{item.control}, {ratio(item.ratio, 1.0)}"


def _is(verdict: str) -> str:
    return {
        "better": "better than",
        "worse": "worse than",
        "not distinguishable": "not distinguishable from",
        "not tested": "not tested against",
    }[verdict]


def _near(item: EqualCost) -> str:
    return f"{ratio(item.ratio, 1.0)} its"


def _number(difference: PairedDifference) -> str:
    return NONE if difference.mean is None else signed(difference.mean, 4)


def _short(difference: PairedDifference) -> str:
    """Write a difference and its interval on one line."""
    if difference.mean is None:
        return difference.note
    percent = signed(100 * math.expm1(difference.mean), 1)
    return f"{_number(difference)} nats, {percent} % of perplexity; {interval(difference, 4)}"
