"""What the pages of results have in common: reading a result, and writing where it comes from and what it says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heedful.study.statistics import PairedDifference
from heedful.study.wording import NONE, listed, number_of, signed
from scripts.published import OTHER_COMMANDS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
Result = dict[str, Any]


def load(name: str, folder: Path = RESULTS) -> Result | None:
    """Return the content of results/NAME.json, None where it is missing."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def largest(names: Sequence[str], folder: Path = RESULTS) -> tuple[str, Result] | None:
    """Return the first of the results that is there, with its name; None where there is none."""
    for name in names:
        if (result := load(name, folder)) is not None:
            return name, result
    return None


def missing(*names: str) -> str:
    """Say that results are not there, and what makes them."""
    by_command: dict[str, list[str]] = {}
    for name in names:
        by_command.setdefault(command_of(name), []).append(f"`results/{name}.json`")
    made = [f"`{command}` makes {listed(files)}" for command, files in by_command.items()]
    return f"Not run yet: {'; '.join(made)}."


def command_of(name: str) -> str:
    """Return the command that makes a result: mostly a comparison with the recipe of its name."""
    return OTHER_COMMANDS.get(name, f"heedful compare recipes/{name}.toml")


def hardware(result: Mapping[str, Any]) -> str:
    """Return the machine and, where it is no GPU, how many threads a run had."""
    if result["environment"].get("gpu"):
        return ", ".join(result["machines"])
    threads = result["runs"][0].get("threads", result["environment"]["threads"])
    return f"{', '.join(result['machines'])}, {number_of(threads, 'thread')}"


def provenance(name: str, result: Mapping[str, Any]) -> str:
    """Say with which command, commit, machine and seeds a result was made."""
    source = result["commit"] or {}
    commit = source.get("commit", "unknown")[:10] + (" with changes" if source.get("dirty") else "")
    seeds = sorted({run["seed"] for run in result["runs"]})
    return (
        f"`{result['command']}`, {hardware(result)}, commit {commit}, seeds {', '.join(map(str, seeds))}; all figures "
        f"in `results/{name}.json`."
    )


def outcome(difference: PairedDifference) -> str:
    """Return what a difference of losses or errors says: lower is better, and the 95 % interval decides."""
    if difference.mean is None or difference.low is None or difference.high is None:
        return "not tested"
    return "better" if difference.high < 0 else "worse" if difference.low > 0 else "not distinguishable"


def nats(difference: PairedDifference) -> str:
    """Write a difference of losses with its interval below: `−0.0123 (−1.2 %)`, the per cent of perplexity."""
    if difference.mean is None:
        return NONE
    percent = signed(100 * math.expm1(difference.mean), 1)
    return f"{signed(difference.mean, 4)} ({percent} %)<br>{interval(difference, 4)}"


def interval(difference: PairedDifference, digits: int) -> str:
    """Write the interval, or why there is none, with the number of seeds."""
    seeds = number_of(difference.count, "seed")
    if difference.low is None or difference.high is None:
        return f"{difference.note}, {seeds}"
    return f"{signed(difference.low, digits)} to {signed(difference.high, digits)}, {seeds}"


def escaped(text: str) -> str:
    """Return text as it shall be read: no table cell ends early, and no formula turns into italics."""
    return re.sub(r"([|*_<>])", r"\\\1", text)


def table(headers: list[str], rows: list[list[str]], numbers: int = 0) -> str:
    """Return a Markdown table whose last `numbers` columns are aligned to the right."""
    rule = "---|" * (len(headers) - numbers) + "--:|" * numbers
    return "\n".join([f"| {' | '.join(headers)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
