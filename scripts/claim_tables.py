"""The tables of docs/claims.md: every claim with its published figure, ours, the verdict and why."""

from __future__ import annotations

from heedful.papers.claim import Claim
from heedful.papers.findings import SavedFinding, not_looked_at, saved_findings
from heedful.papers.registry import CLAIMS
from heedful.papers.table import summary
from scripts.result_words import escaped

PAPERS = {
    "boosted": "Boosted and twicing attention",
    "nonlinear-query": "Nonlinear and identity queries",
    "multi-token": "Multi-token attention",
}


def claim_table() -> str:
    """Return one table a paper, and where the findings come from."""
    saved = saved_findings()
    listed = [(claim, saved.get(name) or not_looked_at(claim)) for name, claim in CLAIMS.items()]
    lines = [summary(listed), ""]
    for paper, title in PAPERS.items():
        lines += [f"### {title}", "", "| claim | published | here | verdict |", "|---|---|---|---|"]
        lines += [_row(claim, finding) for claim, finding in listed if claim.paper == paper]
        lines.append("")
    return "\n".join([*lines, _sources([finding for _, finding in listed])]) + "\n"


def _row(claim: Claim, saved: SavedFinding) -> str:
    finding = saved.finding
    cells = (
        f"{escaped(claim.statement)}<br>`{claim.name}`, {claim.kind}; {escaped(claim.source)}",
        escaped(claim.published),
        f"{escaped(finding.figure)}<br>{escaped(finding.reason)}",
        f"**{finding.verdict}**" if finding.verdict != "not tested here" else finding.verdict,
    )
    return f"| {' | '.join(cells)} |"


def _sources(findings: list[SavedFinding]) -> str:
    checked, judged = set(), set()
    for saved in findings:
        if saved.source is None:
            continue
        commit = f"commit {(saved.source.commit or 'unknown')[:10]}{' with changes' if saved.source.dirty else ''}"
        if saved.source.results:
            judged |= {f"`results/{name}`" for name in saved.source.results}
        else:
            checked.add(f"{saved.source.machine}, {saved.source.threads} thread, torch {saved.source.torch}, {commit}")
    text = f"Computed on {'; '.join(sorted(checked))}."
    return f"{text} Judged by {', '.join(sorted(judged))}, where machine, commit and seeds stand." if judged else text
