"""What a claim of a paper is, what was found about it, and where the evidence comes from.

A claim is checked in one of two ways. Algebraic and numerical claims have a `check`, which computes its finding in
seconds on a CPU, seeded. Empirical claims have `Evidence`: a pure function of the `result.json` of a comparison, which
anyone can run again. Exactly one of the two is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

import torch

Verdict = Literal["holds", "holds in part", "does not hold", "undecided", "not tested here"]
"""What was found:

- `holds`: as stated; an empirical difference whose 95 % interval lies on the claimed side of zero.
- `holds in part`: under a condition that the statement leaves out, or one half of it.
- `does not hold`: a counter-example, or an empirical difference whose interval lies on the other side of zero.
- `undecided`: measured, and the interval covers zero: at this size it cannot be told.
- `not tested here`: nothing was run; the reason says why.
"""

Paper = Literal["boosted", "nonlinear-query", "multi-token"]
Kind = Literal["algebraic", "numerical", "empirical"]
Result = Mapping[str, Any]
"""The content of a result file."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found about a claim.

    Args:
        verdict: one of `Verdict`.
        figure: our figure, short enough for a table.
        reason: one or two sentences: why this verdict.
        numbers: what was measured, by name.
    """

    verdict: Verdict
    figure: str
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The comparison that an empirical claim is judged by.

    Args:
        recipe: the recipe that makes the result, `recipes/language-models-small.toml`; of several sizes that for a CPU.
        results: names of the result files, `language-models-small.json`, as they are kept in `results/`.
        assess: judges the claim from the results by file name. It reads nothing else.
        arms: arms that every result must have.
        settings: further values that every result must have, by dotted name in its content,
            `{"recipe.budget": "steps"}`.
        names: names that the comparison may have; empty for those of the result files. With several names there is
            one result file, and each of the comparisons stands for it.
        partial: whether `assess` is called with as many of the results as there are; otherwise all are needed.
        gpu_recipe: the recipe of a larger size, for those who have a GPU; its result is one of `results` too.
    """

    recipe: str
    results: tuple[str, ...]
    assess: Callable[[Mapping[str, Result]], Finding]
    arms: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    partial: bool = False
    gpu_recipe: str = ""

    @property
    def command(self) -> str:
        """The command that makes the results; the data are given with further options."""
        return f"heedful compare {self.recipe}" if self.recipe.endswith(".toml") else self.recipe

    @property
    def gpu_command(self) -> str:
        """The command that makes a larger result on a GPU; empty where there is none."""
        return f"heedful compare {self.gpu_recipe}" if self.gpu_recipe else ""

    def needed(self, missing: Iterable[str]) -> str:
        """Name the results that would be needed: all of `missing`, or any of them where some are enough."""
        return f"{'any of ' if self.partial and len(self.results) > 1 else ''}{', '.join(missing)}"

    def file_of(self, result: Result) -> str | None:
        """Return which of `results` a result is, by the name of its comparison; None for another comparison."""
        own = f"{result.get('name')}.json"
        if own in self.results:
            return own
        return self.results[0] if len(self.results) == 1 and result.get("name") in self.names else None

    def finding(self, results: Mapping[str, Result]) -> Finding:
        """Judge by `results`, content by file name; those of other claims among them are left aside.

        Missing results give "not tested here".

        Raises:
            ValueError: a result that another recipe made, with what differs.
        """
        there = {name: results[name] for name in self.results if name in results}
        missing = [name for name in self.results if name not in there]
        if not there or (missing and not self.partial):
            return Finding(
                verdict="not tested here",
                figure="no figure",
                reason=f"There is no result yet of {self.needed(missing)}; made by {self.recipe}"
                f"{f', on a GPU by {self.gpu_recipe}' if self.gpu_recipe else ''}.",
            )
        for name, result in there.items():
            self.check(name, result)
        return self.assess(there)

    def check(self, name: str, result: Result) -> None:
        """Refuse a result that another recipe made.

        Raises:
            ValueError: with the name, the arms or the setting that differ.
        """
        files = (name,) if name in self.results else self.results
        names = self.names or tuple(PurePosixPath(file).stem for file in files)
        if result.get("name") not in names:
            raise ValueError(
                f"{name} is the result of {result.get('name')!r}, expected {' or '.join(map(repr, names))}: give the "
                f"result.json that {self.recipe} makes."
            )
        arms = [arm["name"] for arm in result.get("arms", ())]
        if absent := [arm for arm in self.arms if arm not in arms]:
            raise ValueError(f"{name} has no arm {', '.join(absent)}; its arms are {', '.join(arms) or 'none'}.")
        for key, expected in self.settings.items():
            value = _at(result, key)
            if value != expected:
                raise ValueError(f"{name} has {key} = {value!r}, expected {expected!r} as in {self.recipe}.")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of a paper.

    Args:
        name: as on the command line, the paper's short name first: `boosted-erasure`.
        paper: which of the three papers it belongs to.
        kind: `algebraic` (a proof or a counter-example, checked in float64), `numerical` (a small computation) or
            `empirical` (trained models).
        statement: what is claimed, in one or two sentences of our own.
        source: where: `arXiv 2604.03190, proposition 1`.
        published: their figure, or `no figure given`.
        method: what is done to check it.
        check: computes the finding; for algebraic and numerical claims.
        evidence: the comparison that decides; for empirical claims.
    """

    name: str
    paper: Paper
    kind: Kind
    statement: str
    source: str
    published: str
    method: str
    check: Callable[[], Finding] | None = None
    evidence: Evidence | None = None

    def compute(self) -> Finding:
        """Run the check; the caller's random state stays as it is.

        Raises:
            ValueError: the claim has evidence instead of a check.
        """
        if self.check is None:
            raise ValueError(f"claim {self.name!r} is judged by a comparison and has nothing to compute.")
        with torch.random.fork_rng(devices=()):
            return self.check()

    def __post_init__(self) -> None:
        if (self.evidence is not None) != (self.kind == "empirical") or (self.check is None) == (self.evidence is None):
            raise ValueError(f"claim {self.name!r}: an empirical claim has `evidence`, any other a `check`.")


def _at(result: Result, key: str) -> Any:
    """Return the value under a dotted key; items of a list by their index or their `name`; None where there is none."""
    value: Any = result
    for part in key.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, list):
            value = next((item for item in value if isinstance(item, Mapping) and item.get("name") == part), None)
        else:
            return None
    return value
