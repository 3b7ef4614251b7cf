"""Claims, what they are judged by, and what is refused."""

import pytest
import torch
from made_results import made_result

from heedful.papers.claim import Claim, Evidence, Finding
from heedful.papers.registry import CLAIMS, claim_named


def found(verdict="holds"):
    return Finding(verdict=verdict, figure="1", reason="Because.")


def claim(kind="algebraic", **fields):
    texts = dict.fromkeys(("statement", "source", "published", "method"), "text")
    return Claim(name="some-claim", paper="boosted", kind=kind, **texts, **fields)


def evidence(**fields):
    defaults = {"recipe": "recipes/some.toml", "results": ("some.json",), "assess": lambda results: found()}
    return Evidence(**(defaults | fields))


def result(name="some", arms=("standard", "boosted"), **fields):
    return made_result(name, "perplexity", {arm: [1.0] for arm in arms}) | fields


def test_a_claim_has_a_check_or_evidence():
    claim(check=found)
    claim("empirical", evidence=evidence())
    for kind, fields in (
        ("algebraic", {}),
        ("algebraic", {"evidence": evidence()}),
        ("empirical", {"check": found}),
        ("empirical", {"check": found, "evidence": evidence()}),
        ("empirical", {}),
    ):
        with pytest.raises(ValueError, match="an empirical claim has `evidence`, any other a `check`"):
            claim(kind, **fields)


def test_computing_leaves_the_random_state_alone():
    def check():
        torch.manual_seed(3)
        return Finding(verdict="holds", figure=f"{torch.randn(1).item()}", reason="Drawn.")

    before = torch.get_rng_state()
    assert claim(check=check).compute() == claim(check=check).compute()
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="nothing to compute"):
        claim("empirical", evidence=evidence()).compute()


def test_missing_results_are_not_tested():
    two = evidence(results=("some.json", "other.json"), assess=lambda results: found())
    assert two.finding({}).verdict == "not tested here"
    assert "some.json, other.json" in two.finding({}).reason
    half = two.finding({"some.json": result()})
    assert half.verdict == "not tested here"
    assert "no result yet of other.json; made by recipes/some.toml" in half.reason
    assert two.finding({"some.json": result(), "other.json": result("other")}).verdict == "holds"
    partial = evidence(results=two.results, partial=True, assess=lambda results: found())
    assert partial.finding({"some.json": result()}).verdict == "holds"
    assert partial.finding({}).verdict == "not tested here"


def test_assess_sees_the_results_of_its_claim_only():
    seen = {}
    one = evidence(assess=lambda results: seen.update(results) or found())
    one.finding({"some.json": result(), "other.json": result("other")})
    assert list(seen) == ["some.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "demo"}, r"some\.json is the result of 'demo', expected 'some'.*recipes/some\.toml"),
        ({"arms": [{"name": "standard"}]}, r"has no arm boosted; its arms are standard\."),
        ({"recipe": {"budget": "compute"}}, r"has recipe\.budget = 'compute', expected 'steps'"),
        ({"recipe": {}}, r"has recipe\.budget = None, expected 'steps'"),
        ({"arms": [{"name": "standard"}, {"name": "boosted", "match": [{"by": "depth"}]}]},
         r"arms\.boosted\.match\.0\.by = 'depth', expected 'compute'"),
    ],
)  # fmt: skip
def test_results_of_another_comparison_are_refused(changes, message):
    settings = {"recipe.budget": "steps", "arms.boosted.match.0.by": "compute"}
    judged = evidence(arms=("standard", "boosted"), settings=settings)
    right = result(recipe={"budget": "steps"})
    right["arms"][1]["match"] = [{"by": "compute"}]
    assert judged.finding({"some.json": right}).verdict == "holds"
    with pytest.raises(ValueError, match=message):
        judged.finding({"some.json": right | changes})


def test_a_comparison_of_another_size_may_stand_for_the_result():
    either = evidence(names=("some", "some-large"))
    assert either.file_of(result()) == either.file_of(result("some-large")) == "some.json"
    assert either.file_of(result("demo")) is None
    assert either.finding({"some.json": result("some-large")}).verdict == "holds"


def test_every_claim_says_all_there_is_to_say():
    assert len(CLAIMS) >= 25
    assert {claim.paper for claim in CLAIMS.values()} == {"boosted", "nonlinear-query", "multi-token"}
    for name, claim in CLAIMS.items():
        assert claim.name == name
        for text in (claim.statement, claim.source, claim.published, claim.method):
            assert text.strip() == text != "", name


def test_unknown_names_get_the_nearest():
    assert claim_named("boosted-gauge") is CLAIMS["boosted-gauge"]
    with pytest.raises(ValueError, match=r"there is no claim 'boosted-guage'\. Did you mean 'boosted-gauge'"):
        claim_named("boosted-guage")
