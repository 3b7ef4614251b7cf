"""What was found about each claim when it was last looked at: `findings.json`, which comes with the package.

`python -m scripts.claims` writes it, from the checks and from the results of comparisons in `results/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heedful.papers.claim import Claim, Finding, Result
from heedful.schema import from_mapping

FILE = Path(__file__).with_name("findings.json")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a finding comes from.

    Args:
        commit: of the source that made it; None where it was no checkout.
        dirty: whether files differed from that commit.
        machine: the processor, or the GPU.
        threads: that computed it; None for comparisons, whose results say it.
        time: when.
        torch: its version.
        results: the result files it was judged by; empty for a check.
    """

    commit: str | None
    dirty: bool | None
    machine: str
    time: str
    torch: str
    threads: int | None = None
    results: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SavedFinding:
    """A finding and where it comes from; claims that were not tested have no source."""

    finding: Finding
    source: Source | None = None


def saved_findings(file: Path = FILE) -> dict[str, SavedFinding]:
    """Return the findings that come with the package, by name of the claim.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: from_mapping(SavedFinding, item, f"{file.name}: {name}") for name, item in content.items()}
    except (OSError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read ({error}); python -m scripts.claims writes it anew.") from error


def not_looked_at(claim: Claim) -> SavedFinding:
    """Return what stands for a claim that has no saved finding."""
    reason = f"There is no saved finding; heedful claims run {claim.name} makes one."
    return SavedFinding(finding=Finding(verdict="not tested here", figure="no figure", reason=reason))


def result_source(results: Mapping[str, Result], names: Iterable[str]) -> Source | None:
    """Return where a finding from results comes from, by the `environment` of the first of them that is there."""
    there = [name for name in names if name in results]
    if not there:
        return None
    return _source(results[there[0]]["environment"], results=tuple(there))


def check_source() -> Source:
    """Return where a finding that is computed now comes from."""
    from heedful.train.environment import describe_environment

    environment = describe_environment("cpu")
    return _source(environment, threads=environment["threads"])


def _source(environment: Mapping[str, Any], **further: Any) -> Source:
    source = environment["source"] or {}
    return Source(
        commit=source.get("commit"),
        dirty=source.get("dirty"),
        machine=environment["gpu"] or environment["cpu"],
        time=environment["time"],
        torch=environment["packages"]["torch"],
        **further,
    )
