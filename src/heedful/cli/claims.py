"""`heedful claims`: what the papers claim, what was found, and the checks to find it again."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from heedful.papers.claim import Claim, Result


@dataclass(frozen=True)
class ShowClaim:
    """Show all about one claim: statement, source, what was done, what was found, by which numbers."""

    name: Annotated[str, tyro.conf.Positional]
    """As `heedful claims` lists it."""

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print."""
        from heedful.papers.findings import not_looked_at, saved_findings
        from heedful.papers.registry import claim_named
        from heedful.papers.table import claim_mapping, print_claim

        claim = claim_named(self.name)
        saved = saved_findings().get(claim.name) or not_looked_at(claim)
        if self.json:
            _print_json(claim_mapping(claim, saved))
        else:
            print_claim(claim, saved)


@dataclass(frozen=True)
class RunClaims:
    """Look at claims anew: compute those that can be computed, in seconds on a CPU, and judge the others by the result
    of a comparison of your own.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """As `heedful claims` lists them."""

    all: bool = False
    """All that can be computed; with --result also all that these results decide."""

    result: tuple[Path, ...] = ()
    """result.json files of comparisons, for claims about trained models."""

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Run and print, one by one."""
        from heedful.papers.findings import saved_findings
        from heedful.papers.table import finding_mapping, print_finding

        results = [(file, _read(file)) for file in self.result]
        jobs = self._jobs(results)  # everything is refused before anything is computed
        saved = saved_findings()
        mappings = []
        for claim, given in jobs:
            finding = claim.compute() if claim.evidence is None else claim.evidence.finding(given)
            if self.json:
                mappings.append(finding_mapping(claim, finding, saved.get(claim.name)))
            else:
                print_finding(claim, finding, saved.get(claim.name))
        if self.json:
            _print_json(mappings)

    def _jobs(self, results: list[tuple[Path, Result]]) -> list[tuple[Claim, dict[str, Result]]]:
        """Return the claims to look at, each with its results; with --all those that the results do not fit are left
        out, and named on standard error.
        """
        from heedful.papers.registry import CLAIMS, claim_named

        if bool(self.names) == self.all:
            raise ValueError("name the claims to run, or give --all; heedful claims lists them.")
        if self.names:
            return [(claim, _results_for(claim, results)) for claim in map(claim_named, self.names)]
        jobs = []
        for claim in CLAIMS.values():
            if claim.evidence is None or any(claim.evidence.file_of(result) for _, result in results):
                try:
                    jobs.append((claim, _results_for(claim, results)))
                except ValueError as error:
                    print(f"heedful: {claim.name} is left out: {error}", file=sys.stderr)
        return jobs


@dataclass(frozen=True)
class Claims:
    """List what the papers claim and what was found: verdict, our figure and theirs.

    `heedful claims show NAME` says everything about one, `heedful claims run NAME` finds it again.
    """

    action: (
        Annotated[ShowClaim, tyro.conf.subcommand("show")]
        | Annotated[RunClaims, tyro.conf.subcommand("run")]
        | Annotated[None, tyro.conf.subcommand("list", description="List them; what happens without a word here.")]
    ) = None

    paper: Literal["all", "boosted", "nonlinear-query", "multi-token"] = "all"
    """Only the claims of this paper; twicing's are with the boosted paper's."""

    json: bool = False
    """Print JSON."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Run the chosen action, or list."""
        from heedful.cli.overrides import refuse_overrides

        refuse_overrides(overrides, "claims")
        if self.action is None:
            self._list()
        elif self.paper != "all" or self.json:
            raise ValueError("--paper belongs to the list, and --json stands behind show or run.")
        else:
            self.action.run()

    def _list(self) -> None:
        from heedful.papers.findings import not_looked_at, saved_findings
        from heedful.papers.registry import CLAIMS
        from heedful.papers.table import claim_mapping, print_claims

        saved = saved_findings()
        listed = [
            (claim, saved.get(name) or not_looked_at(claim))
            for name, claim in CLAIMS.items()
            if self.paper in ("all", claim.paper)
        ]
        if self.json:
            _print_json([claim_mapping(claim, finding) for claim, finding in listed])
        else:
            print_claims(listed)


def _results_for(claim: Claim, results: list[tuple[Path, Result]]) -> dict[str, Result]:
    """Return the results that a claim needs by the names it knows them by, or say where they come from."""
    evidence = claim.evidence
    if evidence is None:
        return {}
    given: dict[str, Result] = {}
    for file, result in results:
        name = evidence.file_of(result)
        if name is not None:
            evidence.check(str(file), result)
            given[name] = result
    missing = [name for name in evidence.results if name not in given]
    if not given or (missing and not evidence.partial):
        have = f" Given: {', '.join(repr(result.get('name')) for _, result in results)}." if results else ""
        raise ValueError(
            f"{claim.name} is decided by trained models: {evidence.command}"
            f"{f', or on a GPU {evidence.gpu_command},' if evidence.gpu_recipe else ''} writes a result.json, and "
            f"heedful claims run {claim.name} --result FILE judges by it. Missing: {evidence.needed(missing)}.{have}"
        )
    return given


def _read(file: Path) -> Result:
    if not file.is_file():
        raise ValueError(f"there is no file {str(file)!r}; give the result.json of a comparison.")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    if not isinstance(result, dict):
        raise ValueError(f"{file} is no result: it holds {type(result).__name__}, expected an object.")
    return result


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
