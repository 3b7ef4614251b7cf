"""Look at the papers' claims anew and rewrite src/heedful/papers/findings.json.

python -m scripts.claims                     all: checks are computed, results/ is read
python -m scripts.claims boosted-gauge ...   these only; the other findings stay as they are
python -m scripts.claims --results           those that are judged by results/ only
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from heedful.files import write_json_atomically
from heedful.papers.claim import Claim
from heedful.papers.findings import FILE, SavedFinding, check_source, result_source, saved_findings
from heedful.papers.registry import CLAIMS, claim_named
from heedful.schema import to_mapping

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"


def results_of(claim: Claim, folder: Path = RESULTS) -> dict[str, Any]:
    """Return those of the claim's result files that are there, by name."""
    names = claim.evidence.results if claim.evidence is not None else ()
    files = {name: folder / name for name in names}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}


def look_at(claim: Claim, folder: Path = RESULTS) -> SavedFinding:
    """Return the finding about a claim as of now."""
    if claim.evidence is None:
        return SavedFinding(finding=claim.compute(), source=check_source())
    results = results_of(claim, folder)
    return SavedFinding(finding=claim.evidence.finding(results), source=result_source(results, claim.evidence.results))


def main(arguments: list[str]) -> int:
    """Look at the claims named, and write the file."""
    torch.set_num_threads(1)
    if arguments == ["--results"]:
        claims = [claim for claim in CLAIMS.values() if claim.evidence is not None]
    else:
        claims = [claim_named(name) for name in arguments] or list(CLAIMS.values())
    saved = saved_findings() if FILE.exists() else {}
    for claim in claims:
        start = time.perf_counter()
        saved[claim.name] = look_at(claim)
        finding = saved[claim.name].finding
        print(f"{claim.name}: {finding.verdict}; {finding.figure} ({time.perf_counter() - start:.1f} s)", flush=True)
    write_json_atomically(FILE, {name: to_mapping(saved[name]) for name in CLAIMS if name in saved})
    print(f"wrote {FILE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
