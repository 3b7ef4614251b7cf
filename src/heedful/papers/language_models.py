"""The comparison of language models that most empirical claims are judged by, made at several sizes.

`STUDIES` alone says which sizes there are and which comes first. The largest result that is there decides a claim; what
the smaller ones find stands in its reason, so that a reader sees where they disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from heedful.papers.claim import Evidence, Finding, Result
from heedful.papers.judging import edge_notes
from heedful.study.wording import count

STUDIES = ("language-models", "language-models-one-epoch", "language-models-small")
"""Names of the comparisons, the largest first: fifteen epochs, one epoch of the same model, two CPU cores."""

RESULTS = tuple(f"{study}.json" for study in STUDIES)
CPU_RECIPE = "recipes/language-models-small.toml"
GPU_RECIPE = "recipes/language-models-one-epoch.toml"

SETTINGS: Mapping[str, Any] = {"recipe.task.kind": "language-modelling", "recipe.budget": "steps"}
"""What every result must have, whatever its size."""


def study_evidence(
    assess: Callable[[Result], Finding], *arms: str, settings: Mapping[str, Any] | None = None
) -> Evidence:
    """Return evidence from the largest study that is there, for a claim about `arms`.

    Args:
        assess: judges the claim from one result.
        arms: arms that every result must have.
        settings: further values that every result must have, by dotted name.
    """

    def of_results(results: Mapping[str, Result]) -> Finding:
        first, *smaller = (results[name] for name in RESULTS if name in results)
        found = assess(first)
        beside = [beside_it(found, assess(result), result, arms) for result in smaller]
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


def beside_it(found: Finding, smaller: Finding, result: Result, arms: Sequence[str]) -> str:
    """Say what a smaller study finds about `arms` beside the one that decides."""
    verdict = "the same verdict" if smaller.verdict == found.verdict else f"another verdict, {smaller.verdict}"
    edge = " (with a learning rate at an end of its range)" if edge_notes(result, arms) else ""
    return f"The smaller study ({size(result)}) gives {verdict}{edge}: {smaller.figure}."


def size(result: Result) -> str:
    """Return how large the baseline is and on how much it was trained: `7.42 M parameters, 9.96 M tokens`."""
    baseline = next(arm for arm in result["arms"] if arm["name"] == result["baseline"])
    return f"{count(baseline['parameters'])} parameters, {count(baseline['steps'] * result['tokens_per_step'])} tokens"
