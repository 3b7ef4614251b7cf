"""The generated parts of docs/results/: each paper's experiments, their number beside ours, and its claims.

Their numbers stand in `scripts.published`, ours in results/; the claims are those of `heedful claims`. Where a result
is missing a sentence says which command makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from heedful.papers.claim import Claim
from heedful.papers.findings import FILE, SavedFinding, not_looked_at, saved_findings
from heedful.papers.judging import difference
from heedful.papers.registry import CLAIMS
from heedful.papers.table import summary
from heedful.study.additivity import losses
from heedful.study.facts import setting
from heedful.study.statistics import PairedDifference, summarise
from heedful.study.wording import NONE, ratio, signed
from scripts.find_the_block_tables import find_the_block_table
from scripts.gains_answer import answer_part
from scripts.published import EXPERIMENTS, Experiment, Pair, Paper
from scripts.result_words import (
    RESULTS,
    ROOT,
    Result,
    command_of,
    escaped,
    hardware,
    interval,
    largest,
    missing,
    outcome,
    provenance,
    table,
)
from scripts.tolerance_table import sweep_part, tolerance_part

PAGES = ROOT / "docs/results"
DIGITS = {"perplexity": 2, "loss": 4, "error": 1}
RESIZED = {"width": "wider", "depth": "deeper", "feed-forward": "with wider feed-forward layers"}
HEADERS = ["what was measured", "theirs", "ours", "difference to the control", "verdict", "hardware", "how to re-run"]


def paper_parts() -> dict[Path, dict[str, Callable[[], str]]]:
    """Return the generated parts of the pages of this folder, all but the comparisons on its first page."""
    parts: dict[Path, dict[str, Callable[[], str]]] = {PAGES / "index.md": {"gains": answer_part}}
    for paper in get_args(Paper):
        parts[PAGES / f"{paper}.md"] = {
            f"{paper}-experiments": partial(experiments_part, paper),
            f"{paper}-claims": partial(claims_part, paper),
        }
    parts[PAGES / "nonlinear-query.md"] |= {"learning-rate-tolerance": tolerance_part, "learning-rates": sweep_part}
    parts[PAGES / "multi-token.md"]["find-the-block"] = find_the_block_table
    return parts


def experiments_part(paper: Paper, folder: Path = RESULTS) -> str:
    """Return the published experiments of a paper, each with a table of their numbers and ours."""
    return "\n".join(experiment_text(item, folder) for item in EXPERIMENTS if item.paper == paper)


def experiment_text(experiment: Experiment, folder: Path = RESULTS) -> str:
    """Return heading, setting, table and provenance of one experiment."""
    found = {files: largest(files, folder) for files in dict.fromkeys(pair.files for pair in experiment.pairs)}
    rows = [pair_row(pair, found[pair.files]) for pair in experiment.pairs]
    results = dict(item for item in found.values() if item is not None)
    lines = [f"### {experiment.title}", "", f"{experiment.theirs} {experiment.ours}", "", table(HEADERS, rows)]
    settings = dict.fromkeys(own_setting(result) for result in results.values())
    sources = [provenance(name, result) for name, result in results.items()]
    if absent := [files[-1] for files, item in found.items() if files and item is None]:
        sources.append(missing(*absent))
    return "\n".join([*lines, *(f"{text}\n" for text in settings), *(f"{text}\n" for text in sources)])


def own_setting(result: Mapping[str, Any]) -> str:
    """Say on how much text which models were trained for how long."""
    facts = dict(setting(dict(result)))
    kept = [f"{name}: {facts[name]}" for name in ("splits", "samples", "model", "training", "seeds") if name in facts]
    return f"Ours: {'; '.join(kept)}."


def pair_row(pair: Pair, found: tuple[str, Result] | None) -> list[str]:
    """Return the cells of one published comparison, beside the result that is `found` for it, by name."""
    what = f"{pair.what}, {pair.unit}"
    theirs = f"{_published(pair)}<br>{pair.source}{'; ' + pair.note if pair.note else ''}"
    if found is None:
        rerun = command_of(pair.files[-1]) if pair.files else f"heedful compare {pair.rerun}"
        return [what, theirs, "not run", NONE, "not tested here", NONE, f"`{rerun}`"]
    name, result = found
    rerun = f"`{command_of(name)}`"
    names = [arm["name"] for arm in result["arms"]]
    absent = [name for name in (pair.arm, pair.reference) if name not in names]
    if absent:
        return [what, theirs, f"no arm {', '.join(absent)}", NONE, "not tested here", NONE, rerun]
    item = paired(result, pair)
    digits = DIGITS[pair.metric]
    ours = " against ".join(_summary(result, arm, pair.metric) for arm in (pair.arm, pair.reference))
    ours += _control(result, pair)
    if item.mean is None:
        return [what, theirs, ours, item.note, "not tested", hardware(result), rerun]
    percent = "" if pair.metric == "error" or item.percent is None else f" ({signed(item.percent, 1)} %)"
    gap = f"{signed(item.mean, digits)}{percent}<br>{interval(item, digits)}"
    return [what, theirs, ours, gap, verdict(pair, item), hardware(result), rerun]


def _control(result: Result, pair: Pair) -> str:
    """Say how a reference that was resized to match an arm was resized, and what it has of this arm's costs."""
    arms = {arm["name"]: arm for arm in result["arms"]}
    arm, reference = arms[pair.arm], arms[pair.reference]
    if not reference["match"]:
        return ""
    costs = ("parameters", "multiply_adds_per_token")
    parameters, multiply_adds = (ratio(reference[cost], arm[cost]) for cost in costs)
    return (
        f"<br>control {RESIZED[reference['match']['vary']]}: {parameters} the parameters, {multiply_adds} the "
        "multiply-adds"
    )


def paired(result: Mapping[str, Any], pair: Pair) -> PairedDifference:
    """Return our paired difference in the pair's metric, as the claims compute it."""
    item = difference(result, pair.arm, pair.reference, pair.metric)
    fields = ("count", "mean", "std", "low", "high", "percent", "p_value", "note")
    return PairedDifference(**{name: item[name] for name in fields})


def verdict(pair: Pair, found: PairedDifference) -> str:
    """Say whether our interval lies on the side of zero where theirs lies."""
    ours = outcome(found)
    if ours not in ("better", "worse"):
        return {"not distinguishable": "cannot be told"}.get(ours, ours)
    gap = published_gap(pair)
    if gap is None:
        return f"{'lower' if ours == 'better' else 'higher'}; they have no number"
    return "as published" if (gap < 0) == (ours == "better") else "the other way"


def published_gap(pair: Pair) -> float | None:
    """Return their difference of arm and reference, None where they have no number."""
    if pair.published is None:
        return None
    arm, reference = (float(text.split(" ")[0]) for text in pair.published)
    return arm - reference


def _published(pair: Pair) -> str:
    gap = published_gap(pair)
    if pair.published is None or gap is None:
        return "no number"
    percent = "" if pair.metric == "error" else f" ({signed(100 * gap / float(pair.published[1].split(' ')[0]), 1)} %)"
    return f"{pair.published[0]} against {pair.published[1]}{percent}"


def _summary(result: Mapping[str, Any], arm: str, metric: str) -> str:
    found = summarise(list(losses(result, arm, metric).values()))
    if found.mean is None:
        return "diverged"
    spread = "" if found.std is None else f" ± {found.std:.{DIGITS[metric]}f}"
    return f"{found.mean:.{DIGITS[metric]}f}{spread}"


def claims_part(paper: Paper, file: Path = FILE) -> str:
    """Return the table of a paper's claims, as `heedful claims` has them, and where the findings were made."""
    saved = saved_findings(file) if file.exists() else {}
    claims = [claim for claim in CLAIMS.values() if claim.paper == paper]
    found = {claim.name: saved.get(claim.name) or not_looked_at(claim) for claim in claims}
    headers = ["claim", "kind", "theirs", "ours", "verdict", "hardware", "how to re-run"]
    return "\n".join(
        [
            summary([(claim, found[claim.name]) for claim in claims]),
            "",
            table(headers, [claim_row(c, found[c.name]) for c in claims]),
        ]
    )


def claim_row(claim: Claim, saved: SavedFinding) -> list[str]:
    """Return the cells of one claim."""
    finding, source = saved.finding, saved.source
    return [
        f"{escaped(claim.statement)}<br>`{claim.name}`, {escaped(claim.source)}",
        claim.kind,
        escaped(claim.published),
        escaped(finding.figure),
        f"**{finding.verdict}**" if source is not None else finding.verdict,
        NONE if source is None else source.machine,
        _again(claim),
    ]


def _again(claim: Claim) -> str:
    if claim.evidence is None:
        return f"`heedful claims run {claim.name}`"
    gpu = f"<br>on a GPU `{claim.evidence.gpu_command}`" if claim.evidence.gpu_recipe else ""
    return f"`{claim.evidence.command}`{gpu}"
