"""The comparison of language models that most empirical claims are judged by, made at several sizes.

`STUDIES` alone says which sizes there are and which comes first. The largest result that is there decides a claim; what
the smaller ones find stands in its reason, so that a reader sees where they disagree. An arm that loses with a learning
rate at an end of its range has not lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from heedful.papers.claim import Evidence, Finding, Result
from heedful.study.wording import count

STUDIES = ("language-models", "language-models-one-epoch", "language-models-small")
"""Names of the comparisons, the largest first: fifteen epochs, one epoch of the same model, two CPU cores."""

RESULTS = tuple(f"{study}.json" for study in STUDIES)
CPU_RECIPE = "recipes/language-models-small.toml"
GPU_RECIPE = "recipes/language-models-one-epoch.toml"

SETTINGS: Mapping[str, Any] = {"recipe.task.kind": "language-modelling", "recipe.budget": "steps"}
"""What every result must have, whatever its size."""


def study_evidence(
    assess: Callable[[Result], Finding],
    *arms: str,
    claimed: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Evidence:
    """Return evidence from the largest study that is there, for a claim about `arms`.

    Args:
        assess: judges the claim from one result.
        arms: arms that every result must have.
        claimed: the one of `arms` that the claim puts above the others, if it compares them.
        settings: further values that every result must have, by dotted name.
    """

    def of_one(result: Result) -> Finding:
        return with_edges(assess(result), result, arms, claimed)

    def of_results(results: Mapping[str, Result]) -> Finding:
        first, *smaller = (results[name] for name in RESULTS if name in results)
        found = of_one(first)
        beside = [beside_it(found, of_one(result), result) for result in smaller]
        return replace(found, reason=" ".join([found.reason, *beside]))

    return Evidence(
        recipe=CPU_RECIPE,
        gpu_recipe=GPU_RECIPE,
        results=RESULTS,
        arms=arms,
        settings={**SETTINGS, **(settings or {})},
        assess=of_results,
        partial=True,
    )


def with_edges(found: Finding, result: Result, arms: Sequence[str], claimed: str | None) -> Finding:
    """Say which arms chose a learning rate at an end of the range, and do not decide against one that did.

    Whoever loses with such a rate might do better with one that was not tried, so that a claim that compares arms is
    neither refuted nor borne out by it.
    """
    notes = {arm["name"]: arm["learning_rate_note"] for arm in result["arms"]}
    others = [arm for arm in arms if arm != claimed]
    losers = {"holds": others, "does not hold": [claimed]}.get(found.verdict, []) if claimed else []
    verdict = "undecided" if any(notes[arm] for arm in losers) else found.verdict
    edges = [f"{notes[arm][:1].upper()}{notes[arm][1:]}" for arm in arms if notes[arm]]
    return replace(found, verdict=verdict, reason=" ".join([found.reason, *edges]))


def beside_it(found: Finding, smaller: Finding, result: Result) -> str:
    """Say what a smaller study finds beside the one that decides."""
    verdict = "the same verdict" if smaller.verdict == found.verdict else f"another verdict, {smaller.verdict}"
    return f"The smaller study ({size(result)}) gives {verdict}: {smaller.figure}."


def size(result: Result) -> str:
    """Return how large the baseline is and on how much it was trained: `7.42 M parameters, 9.96 M tokens`."""
    baseline = next(arm for arm in result["arms"] if arm["name"] == result["baseline"])
    return f"{count(baseline['parameters'])} parameters, {count(baseline['steps'] * result['tokens_per_step'])} tokens"
