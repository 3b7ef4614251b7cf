"""Claims and findings as a reader wants them: drawn by rich on a terminal, plain aligned lines anywhere else."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from heedful.papers.claim import Claim, Finding, Verdict
from heedful.papers.findings import SavedFinding
from heedful.schema import to_mapping

if TYPE_CHECKING:
    from rich.console import Console

STYLES: dict[Verdict, str] = {
    "holds": "green",
    "holds in part": "yellow",
    "does not hold": "red",
    "undecided": "cyan",
    "not tested here": "dim",
}
WIDTH = 100
"""Where running text is folded off a terminal."""

Listed = Sequence[tuple[Claim, SavedFinding]]


def print_claims(listed: Listed, console: Console | None = None) -> None:
    """Print the table of claims, and how many have which verdict."""
    console = _console(console)
    if not console.is_terminal:
        console.file.write(plain_claims(listed) + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", show_lines=True, expand=True)
    table.add_column("claim", ratio=4, overflow="fold")
    table.add_column("verdict", width=max(map(len, STYLES)), no_wrap=True)
    for header, ratio in (("here", 3), ("published", 2)):
        table.add_column(header, ratio=ratio, overflow="fold")
    for claim, saved in listed:
        name = Text(claim.name, style="bold")
        name.append(f"  {claim.kind}\n", style="dim not bold")
        name.append(claim.statement, style="not bold")
        verdict = Text(saved.finding.verdict, style=STYLES[saved.finding.verdict])
        table.add_row(name, verdict, Text(saved.finding.figure), Text(claim.published))
    console.print(table)
    console.print(summary(listed), markup=False, highlight=False)
    console.print("heedful claims show NAME says why, heedful claims run NAME finds it again.", style="dim")


def plain_claims(listed: Listed) -> str:
    """Return the table and the sentence below it as plain text with aligned columns."""
    lines = [["claim", "kind", "verdict", "here", "published"]]
    for claim, saved in listed:
        lines.append([claim.name, claim.kind, saved.finding.verdict, saved.finding.figure, claim.published])
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    table = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, "", summary(listed)])


def summary(listed: Listed) -> str:
    """Return how many claims have which verdict: `41 claims: 15 holds, 12 holds in part, ...`."""
    verdicts = [saved.finding.verdict for _, saved in listed]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in STYLES if verdict in verdicts]
    return f"{len(verdicts)} claims: {', '.join(counts)}."


def print_claim(claim: Claim, saved: SavedFinding, console: Console | None = None) -> None:
    """Print everything about one claim."""
    console = _console(console)
    finding, source = saved.finding, saved.source
    _print(console, f"{claim.name} ({claim.kind})", style="bold")
    _print(console, claim.statement)
    rows = {
        "source": claim.source,
        "published": claim.published,
        "method": claim.method,
        "verdict": finding.verdict,
        "here": finding.figure,
        "why": finding.reason,
        "found": _where(saved) if source is not None else "not yet",
        "again": again(claim),
    }
    _print(console, "")
    for name, text in rows.items():
        _print_row(console, name, text, STYLES[finding.verdict] if name == "verdict" else "")
    if finding.numbers:
        _print(console, "")
        width = max(map(len, finding.numbers))
        for name, value in finding.numbers.items():
            _print(console, f"  {name.ljust(width)}  {number(value)}")


def print_finding(claim: Claim, finding: Finding, saved: SavedFinding | None, console: Console | None = None) -> None:
    """Print a finding that was made just now, and how it compares with the saved one."""
    console = _console(console)
    _print(console, f"{claim.name}: {finding.verdict}", style=STYLES[finding.verdict])
    for name, text in (("claim", claim.statement), ("published", claim.published), ("here", finding.figure)):
        _print_row(console, name, text)
    _print_row(console, "why", finding.reason)
    _print_row(console, "saved", _compared(finding, saved))
    _print(console, "")


def number(value: float) -> str:
    """Write a number of a finding: whole ones in full, others with four digits."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def again(claim: Claim) -> str:
    """Return the command that finds it again."""
    if claim.evidence is None:
        return f"heedful claims run {claim.name}"
    gpu = f" (on a GPU {claim.evidence.gpu_command})" if claim.evidence.gpu_recipe else ""
    return f"{claim.evidence.command}{gpu}, then heedful claims run {claim.name} --result FILE"


def claim_mapping(claim: Claim, saved: SavedFinding) -> dict[str, Any]:
    """Return a claim and its saved finding as plain values."""
    evidence = claim.evidence
    return {
        "name": claim.name,
        "paper": claim.paper,
        "kind": claim.kind,
        "statement": claim.statement,
        "source": claim.source,
        "published": claim.published,
        "method": claim.method,
        "again": again(claim),
        "recipe": None if evidence is None else evidence.recipe,
        "gpu_recipe": None if evidence is None else evidence.gpu_recipe or None,
        "results": [] if evidence is None else list(evidence.results),
        **to_mapping(saved),
    }


def finding_mapping(claim: Claim, finding: Finding, saved: SavedFinding | None) -> dict[str, Any]:
    """Return a new finding as plain values, with the verdict that was saved."""
    earlier = None if saved is None else saved.finding.verdict
    return {"name": claim.name, "finding": to_mapping(finding), "saved_verdict": earlier}


def _compared(finding: Finding, saved: SavedFinding | None) -> str:
    if saved is None:
        return "there is no saved finding"
    if saved.finding.verdict == finding.verdict:
        return f"the same verdict ({saved.finding.figure})"
    return f"another verdict: {saved.finding.verdict} ({saved.finding.figure})"


def _where(saved: SavedFinding) -> str:
    source = saved.source
    assert source is not None
    commit = f"commit {(source.commit or 'unknown')[:10]}{' with changes' if source.dirty else ''}"
    by = f"by {', '.join(source.results)}; " if source.results else ""
    return f"{by}{source.machine}, torch {source.torch}, {commit}, {source.time[:10]}"


def _console(console: Console | None) -> Console:
    from rich.console import Console

    return console or Console(highlight=False)


def _print(console: Console, text: str, style: str = "") -> None:
    if console.is_terminal:
        console.print(text, style=style, markup=False)
    else:
        console.file.write("\n".join(textwrap.wrap(text, WIDTH) or [""]) + "\n")


def _print_row(console: Console, name: str, text: str, style: str = "") -> None:
    """Print `  name  text`, with the text folded beside the name."""
    width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    lines = textwrap.wrap(text, max(width - 13, 20), break_long_words=False, break_on_hyphens=False) or [""]
    for index, line in enumerate(lines):
        label = f"  {name if index == 0 else '':<11}"
        if console.is_terminal:
            from rich.text import Text

            console.print(Text(label, style="dim") + Text(line, style=style), soft_wrap=True)
        else:
            console.file.write(f"{label}{line}\n")
