"""The saved findings are what the checks compute and what the committed results say."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts import claims as script

from heedful.papers.claim import Claim, Finding
from heedful.papers.findings import SavedFinding, not_looked_at, saved_findings
from heedful.papers.registry import CLAIMS

SAVED = saved_findings()
COMPUTED = [claim for claim in CLAIMS.values() if claim.evidence is None]
JUDGED = [claim for claim in CLAIMS.values() if claim.evidence is not None]

# Other machines add in another order. Numbers that are roundings themselves are only small; the others move by at most
# 0.16 % when every stored pattern is changed by one rounding (unrolled fixed points, the largest change of all checks).
ROUNDING = 1e-9
RELATIVE = 0.005
# Near a fixed point that is about to split, one rounding of float64 leads unrolled training elsewhere, by points.
UNSTABLE = {
    "identity start, beta 8: unrolled",
    "identity start, beta 8: unrolled, squared error",
}


def named(claims):
    return [pytest.param(claim, id=claim.name) for claim in claims]


def test_every_claim_has_a_saved_finding_and_nothing_else_has():
    assert list(SAVED) == list(CLAIMS)


@pytest.mark.parametrize("claim", named(COMPUTED))
def test_checks_find_what_is_saved(claim):
    saved, finding = SAVED[claim.name].finding, claim.compute()
    assert finding.verdict == saved.verdict
    assert finding.numbers.keys() == saved.numbers.keys()
    for name, number in finding.numbers.items():
        if name not in UNSTABLE:
            assert number == pytest.approx(saved.numbers[name], rel=RELATIVE, abs=ROUNDING), name


@pytest.mark.parametrize("claim", named(JUDGED))
def test_results_say_what_is_saved(claim):
    """After other results: `python -m scripts.claims --results`."""
    assert script.look_at(claim) == SAVED[claim.name]


@pytest.mark.parametrize("claim", named(CLAIMS.values()))
def test_findings_say_where_they_come_from(claim):
    saved = SAVED[claim.name]
    if saved.finding.verdict == "not tested here" and saved.source is None:
        assert claim.evidence is not None
    else:
        assert saved.source is not None
        assert saved.source.machine
        assert set(saved.source.results) <= set(claim.evidence.results if claim.evidence else ())
    assert saved.finding.reason.endswith(".")
    assert saved.finding.figure.strip() == saved.finding.figure != ""


def test_the_script_rewrites_what_it_is_told_to(tmp_path, monkeypatch, capsys):
    def check(figure):
        return lambda: Finding(verdict="holds", figure=figure, reason="Computed.", numbers={"a": 1.0})

    def claim(name, figure):
        texts = dict.fromkeys(("statement", "source", "published", "method"), "text")
        return Claim(name=name, paper="boosted", kind="algebraic", check=check(figure), **texts)

    file = tmp_path / "findings.json"
    threads = torch.get_num_threads()
    monkeypatch.setattr(script, "FILE", file)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "CLAIMS", {name: claim(name, "old") for name in ("one", "two")})
    monkeypatch.setattr(script, "saved_findings", lambda: saved_findings(file))
    monkeypatch.setattr(script, "claim_named", lambda name: claim(name, "new"))
    assert script.main([]) == 0
    assert {name: saved.finding.figure for name, saved in saved_findings(file).items()} == {"one": "old", "two": "old"}
    assert script.main(["two"]) == 0
    found = saved_findings(file)
    assert {name: saved.finding.figure for name, saved in found.items()} == {"one": "old", "two": "new"}
    assert found["one"].source.threads == threads == 1
    assert "two: holds; new" in capsys.readouterr().out


def test_the_script_takes_every_size_of_a_study_that_is_there(tmp_path):
    """The committed small result stands in for a larger one, with another name and machine."""
    claim = CLAIMS["multi-token-perplexity"]
    small = json.loads((script.RESULTS / "language-models-small.json").read_text(encoding="utf-8"))
    (tmp_path / "language-models-small.json").write_text(json.dumps(small), encoding="utf-8")
    alone = script.look_at(claim, tmp_path)
    assert alone.source.results == ("language-models-small.json",)
    large = small | {"name": "language-models-one-epoch", "environment": small["environment"] | {"gpu": "A GPU"}}
    (tmp_path / "language-models-one-epoch.json").write_text(json.dumps(large), encoding="utf-8")
    both = script.look_at(claim, tmp_path)
    assert both.source.results == ("language-models-one-epoch.json", "language-models-small.json")
    assert both.source.machine == "A GPU"
    assert both.finding.verdict == alone.finding.verdict
    assert both.finding.reason.startswith(alone.finding.reason)
    beside = both.finding.reason.removeprefix(alone.finding.reason)
    assert "gives the same verdict" in beside
    assert beside.endswith(f": {alone.finding.figure}.")


def test_a_damaged_file_says_what_to_do(tmp_path):
    file = tmp_path / "findings.json"
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps({"a": {"finding": {"verdict": "perhaps"}}}), r"findings\.json: a\.finding\.verdict"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            saved_findings(file)
    with pytest.raises(ValueError, match=r"python -m scripts\.claims"):
        saved_findings(tmp_path / "nothing.json")


def test_a_claim_nobody_looked_at_says_so():
    assert not_looked_at(COMPUTED[0]) == SavedFinding(
        finding=Finding(
            verdict="not tested here",
            figure="no figure",
            reason=f"There is no saved finding; heedful claims run {COMPUTED[0].name} makes one.",
        )
    )
