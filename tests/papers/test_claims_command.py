"""`heedful claims` as a user meets it."""

import io
import json

import pytest
from made_results import around, made_result
from rich.console import Console

from heedful.cli import main
from heedful.papers.claim import Finding
from heedful.papers.findings import saved_findings
from heedful.papers.registry import CLAIMS
from heedful.papers.table import number, print_claim, print_claims, print_finding

FAST = "boosted-overhead"


def printed(capsys, *words):
    assert main(["claims", *words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    assert main(["claims", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("heedful: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


def test_all_claims_are_listed_on_lines_of_their_own(capsys):
    lines = printed(capsys).splitlines()
    assert [line.split()[0] for line in lines[1 : len(CLAIMS) + 1]] == list(CLAIMS)
    verdicts = lines[0].index("verdict")
    for line, (name, saved) in zip(lines[1:], saved_findings().items(), strict=False):
        assert line[verdicts:].startswith(saved.finding.verdict), name
    assert lines[-1].startswith(f"{len(CLAIMS)} claims: ")
    assert printed(capsys, "list").splitlines() == lines


def test_one_paper_alone(capsys):
    lines = printed(capsys, "--paper", "multi-token").splitlines()[1:-2]
    assert [line.split()[0] for line in lines] == [n for n, claim in CLAIMS.items() if claim.paper == "multi-token"]


def test_everything_about_one_claim(capsys):
    text = " ".join(printed(capsys, "show", FAST).split())
    claim, saved = CLAIMS[FAST], saved_findings()[FAST]
    for part in (claim.statement, claim.source, claim.published, claim.method, saved.finding.figure,
                 saved.finding.reason, f"commit {saved.source.commit[:10]}", f"heedful claims run {FAST}"):  # fmt: skip
        assert part in text, part


def test_json_holds_the_same(capsys):
    listed = json.loads(printed(capsys, "--json"))
    assert [item["name"] for item in listed] == list(CLAIMS)
    shown = json.loads(printed(capsys, "show", FAST, "--json"))
    assert shown == next(item for item in listed if item["name"] == FAST)
    assert shown["finding"]["numbers"]["attention"] == pytest.approx(13 / 6)
    (ran,) = json.loads(printed(capsys, "run", FAST, "--json"))
    assert ran["finding"]["numbers"] == shown["finding"]["numbers"]
    assert ran["saved_verdict"] == shown["finding"]["verdict"]


def test_running_says_whether_it_is_as_saved(capsys):
    text = printed(capsys, "run", FAST, "twicing-overhead")
    assert f"{FAST}: does not hold" in text
    assert text.count("the same verdict") == 2


def test_all_that_can_be_computed(capsys, monkeypatch):
    seen = []

    def compute(claim):
        seen.append(claim.name)
        return Finding(verdict="undecided", figure="1", reason="Because.")

    monkeypatch.setattr("heedful.papers.claim.Claim.compute", compute)
    text = printed(capsys, "run", "--all")
    assert seen == [name for name, claim in CLAIMS.items() if claim.evidence is None]
    assert text.count("another verdict") == len(seen)


@pytest.fixture
def result(tmp_path):
    """A comparison in which the identity query is clearly worse."""
    arms = {"standard": around(70.0), "identity-query": around(75.0, 0.1)}
    file = tmp_path / "result.json"
    file.write_text(json.dumps(made_result("language-models-small", "perplexity", arms)), encoding="utf-8")
    return file


def test_a_result_of_ones_own_is_judged(capsys, result):
    text = printed(capsys, "run", "nonlinear-query-identity", "--result", str(result))
    assert "nonlinear-query-identity: does not hold" in text


def test_all_leaves_out_what_the_result_does_not_fit(capsys, result, monkeypatch):
    found = Finding(verdict="holds", figure="1", reason="Because.")
    monkeypatch.setattr("heedful.papers.claim.Claim.compute", lambda claim: found)
    assert main(["claims", "run", "--all", "--result", str(result)]) == 0
    captured = capsys.readouterr()
    assert "nonlinear-query-identity: does not hold" in captured.out
    assert "heedful: boosted-beats-standard is left out: " in captured.err
    assert "boosted-beats-standard" not in captured.out
    assert "multi-token-needles" not in captured.err, "other results may decide that, this one is not asked"


def test_results_are_asked_for_and_refused(capsys, result, tmp_path):
    missing = refused(capsys, "run", "nonlinear-query-identity")
    assert "heedful compare recipes/language-models-small.toml" in missing
    assert "heedful claims run nonlinear-query-identity --result FILE" in missing
    assert "has no arm boosted" in refused(capsys, "run", "boosted-beats-standard", "--result", str(result))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(made_result("demo", "perplexity", {"standard": [1.0]})), encoding="utf-8")
    assert "Given: 'demo'" in refused(capsys, "run", "nonlinear-query-identity", "--result", str(other))
    other.write_text("{", encoding="utf-8")
    assert "is damaged" in refused(capsys, "run", "nonlinear-query-identity", "--result", str(other))
    other.write_text("[]", encoding="utf-8")
    assert "is no result" in refused(capsys, "run", "nonlinear-query-identity", "--result", str(other))
    assert "there is no file" in refused(capsys, "run", FAST, "--result", str(tmp_path / "nothing.json"))


def test_wrong_words(capsys):
    assert "Did you mean 'boosted-overhead'?" in refused(capsys, "show", "boosted-overhed")
    assert "Did you mean 'boosted-overhead'?" in refused(capsys, "run", "boosted-overhed")
    assert "name the claims to run, or give --all" in refused(capsys, "run")
    assert "name the claims to run, or give --all" in refused(capsys, "run", FAST, "--all")
    assert "--train.steps has nothing to change" in refused(capsys, "--train.steps", "5")
    assert "--json stands behind show or run" in refused(capsys, "--json", "show", FAST)


def test_a_terminal_gets_colours_and_the_statements():
    listed = [(claim, saved_findings()[name]) for name, claim in CLAIMS.items()]
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system="standard")
    print_claims(listed, console)
    print_claim(*listed[0], console)
    print_finding(listed[0][0], listed[0][1].finding, listed[0][1], console)
    text = console.file.getvalue()
    assert "\x1b[" in text
    assert " ".join(listed[0][0].statement.split()[:5]) in text
    for claim, _ in listed:
        assert claim.name in text


@pytest.mark.parametrize(
    ("value", "text"), [(9_699_328.0, "9,699,328"), (0.0, "0"), (58.375, "58.38"), (3e-15, "3e-15"), (-1.0, "-1")]
)
def test_numbers(value, text):
    assert number(value) == text
