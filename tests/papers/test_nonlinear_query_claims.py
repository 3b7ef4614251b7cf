"""The nonlinear-query papers' claims: findings against another way to compute them, and that the checks can fail."""

import math
from pathlib import Path

import pytest
import torch
from made_results import around, made_result, swept_result

from heedful.nn import NonlinearQuery
from heedful.papers import (
    nonlinear_query_assessments,
    query_cost_checks,
    query_elimination_checks,
    query_invariance_checks,
    query_start_checks,
)
from heedful.papers.nonlinear_query_claims import CLAIMS
from heedful.papers.random_models import random_decoder, random_layer
from heedful.study.recipe_file import load_recipe, recipe_mapping
from tolerance import assert_close

BY_NAME = {claim.name: claim for claim in CLAIMS}
JUDGED = [claim for claim in CLAIMS if claim.evidence is not None]
ROOT = Path(__file__).parents[2]
LANGUAGE_MODELS = "language-models-small.json"
TOLERANCE = nonlinear_query_assessments.TOLERANCE
VERDICTS = {
    "nonlinear-query-invariance": "holds",
    "nonlinear-query-removal": "holds",
    "nonlinear-query-removal-both-skips": "holds",
    "nonlinear-query-removal-norms": "holds",
    "nonlinear-query-cost": "holds",
    "nonlinear-query-half": "holds in part",
    "nonlinear-query-anchor": "holds in part",
}


def test_verdicts_and_that_checks_leave_the_random_state_alone():
    assert [claim.name for claim in CLAIMS if claim.check is not None] == list(VERDICTS)
    before = torch.get_rng_state()
    for name, verdict in VERDICTS.items():
        found = BY_NAME[name].check()
        assert found.verdict == verdict, name
        assert all(isinstance(number, float) and math.isfinite(number) for number in found.numbers.values()), name
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_the_change_of_basis_is_that_of_the_lemma():
    """Attention from its formula, of X with W and of X T with T^-1 W."""
    layer = random_layer(seed=3, hidden_size=48, num_heads=4)
    basis = torch.randn(48, 48, dtype=torch.float64)
    x = torch.randn(1, 9, 48, dtype=torch.float64)
    inverse = torch.linalg.inv(basis)
    weights = [layer.get_parameter(f"rounds.0.{name}.weight").T for name in query_invariance_checks.PROJECTIONS]

    def attend(x, weights):
        q, k, v = (torch.stack((x[0] @ weight).split(12, dim=-1)) for weight in weights)
        scores = (q @ k.mT / 12**0.5).masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf)
        return torch.cat([*(scores.softmax(-1) @ v)], dim=-1) @ layer.o_proj.weight.T

    expected = attend(x, weights)
    assert_close(layer(x)[0][0], expected)
    condition = float(torch.linalg.cond(basis))
    bound = 1024 * torch.finfo(torch.float64).eps * condition * float(expected.abs().max())
    assert float((attend(x @ basis, [inverse @ weight for weight in weights]) - expected).abs().max()) < bound
    changed = query_invariance_checks.in_basis(layer, basis)
    assert float((changed(x @ basis)[0][0] - expected).abs().max()) < bound


def test_another_change_of_basis_does_not_hold(monkeypatch):
    right = query_invariance_checks.in_basis
    monkeypatch.setattr(query_invariance_checks, "in_basis", lambda layer, basis: right(layer, basis.T))
    found = query_invariance_checks.query_invariance()
    assert found.verdict == "does not hold"
    assert "not below" in found.figure


def test_a_conversion_that_changes_the_logits_a_little_does_not_hold(monkeypatch):
    right = query_elimination_checks.convert_queries

    def careless(model, **options):
        converted, report = right(model, **options)
        with torch.no_grad():
            next(converted.parameters())[0, 0] += 1e-6
        return converted, report

    monkeypatch.setattr(query_elimination_checks, "convert_queries", careless)
    monkeypatch.setattr(query_elimination_checks, "TOKENS", torch.zeros(1, 12, dtype=torch.int64))
    for check in ("removal_where_exact", "removal_with_both_skips", "removal_with_norms"):
        assert getattr(query_elimination_checks, check)().verdict == "does not hold", check


@pytest.mark.parametrize("case", list(query_elimination_checks.REMOVABLE))
def test_every_case_of_the_theorems_is_the_architecture_that_it_names(case):
    fields, _, removed = query_elimination_checks.REMOVABLE[case]
    config = random_decoder(seed=0, **fields).config
    skips = config.attention_skip + config.feed_forward_skip
    assert config.norm == "none"
    assert skips == (2 if "both skips" in case else 1 if "skip around" in case else 0)
    assert config.share_layers == ("one block" in case)
    assert len(removed) == (1 if skips == 2 else 4)


def test_blocks_of_other_heads_count_as_outside():
    """Two random matrices: of the 48 x 48 entries of their quotient a quarter lies inside of four heads."""
    model = random_decoder(seed=0, **query_elimination_checks.WITHOUT_NORM)
    same = query_elimination_checks._queries_equal_up_to_heads(model)
    assert query_elimination_checks.off_block_share(same, 2) < 1e-10
    first, other = (query_elimination_checks._query_weight(model, layer) for layer in (0, 2))
    quotient = torch.linalg.inv(first) @ other
    inside = sum(float(quotient[i : i + 12, i : i + 12].square().sum()) for i in range(0, 48, 12))
    share = (1 - inside / float(quotient.square().sum())) ** 0.5
    assert query_elimination_checks.off_block_share(model, 2) == pytest.approx(share)


def test_counts_that_differ_from_the_published_ones_do_not_hold(monkeypatch):
    row = query_cost_checks.ROWS["nonlinear"]
    rows = {**query_cost_checks.ROWS, "nonlinear": row._replace(parameters=row.parameters + 1)}
    monkeypatch.setattr(query_cost_checks, "ROWS", rows)
    found = query_cost_checks.nonlinear_query_cost()
    assert found.verdict == "does not hold"
    assert found.numbers["rows that agree"] == 10


def test_sizes_at_the_start_are_the_expected_ones():
    """Before its norm f has the deviation 0.02 sqrt(384 E[gelu(z)^2]), z ~ N(0, 0.554^2)."""
    numbers = query_start_checks.anchor_at_the_start().numbers
    z = torch.linspace(-8, 8, 20001, dtype=torch.float64) * 0.02 * 768**0.5
    density = torch.exp(-0.5 * (z / (0.02 * 768**0.5)) ** 2)
    second_moment = float((torch.nn.functional.gelu(z).square() * density).sum() / density.sum())
    # Of 384 x 768 random weights each deviation is known to about 1 / sqrt(2 * 384): under 4 %.
    assert numbers["deviation of f before its norm"] == pytest.approx(0.02 * (384 * second_moment) ** 0.5, rel=0.04)
    assert numbers["deviation of f"] == pytest.approx(1.0, rel=1e-3)  # the norm's epsilon of 1e-5 against 0.128^2
    # x and f are independent directions of 768 dimensions, 512 pairs of them, so the mean cosine has this deviation.
    assert abs(numbers["cosine of x and f"]) < 5 / (512 * 768) ** 0.5 + 5 / 768
    assert numbers["deviation of the query"] == pytest.approx(0.5**0.5, rel=0.01)
    assert numbers["deviation of a linear query"] == pytest.approx(0.554, abs=5e-4)


def test_a_query_that_starts_at_the_identity_is_told_apart(monkeypatch):
    def started():
        query, x = right()
        query.output_norm.weight.zero_()
        query.output_norm.weight.add_(0.01)
        return query, x

    right = query_start_checks.published_start
    monkeypatch.setattr(query_start_checks, "published_start", torch.no_grad()(started))
    assert query_start_checks.anchor_at_the_start().verdict == "holds"


def test_a_third_in_the_scale_for_a_half_in_the_query_is_told_apart(monkeypatch):
    wrong = NonlinearQuery(gain=2 / 3)
    monkeypatch.setattr(query_start_checks, "NonlinearQuery", lambda **_: wrong)
    assert query_start_checks.half_placement().verdict == "does not hold"


def language_models(sizes=(100, 118), **arms):
    given = {
        "standard": around(20.0, 0.01),
        "standard-wide": around(19.5, 0.02),
        "nonlinear-query": around(19.0, 0.03),
        "nonlinear-query-linear-control": around(19.8, 0.04),
        "identity-query": around(20.01, 0.05),
        **arms,
    }
    parameters = {"standard": sizes[0], "standard-wide": sizes[1], "identity-query": 92}
    return {LANGUAGE_MODELS: made_result("language-models-small", "perplexity", given, parameters)}


def found(claim, results):
    return BY_NAME[f"nonlinear-query-{claim}"].evidence.finding(results)


@pytest.mark.parametrize(
    ("claim", "arms", "verdict"),
    [
        ("gain", {}, "holds"),
        ("gain", {"nonlinear-query": around(21.0)}, "does not hold"),
        ("gain", {"nonlinear-query": [19.0, 21.0, 20.0]}, "undecided"),
        ("gain", {"nonlinear-query": [19.0, 19.0]}, "undecided"),
        ("nonlinearity", {}, "holds"),
        ("nonlinearity", {"nonlinear-query-linear-control": around(18.5)}, "does not hold"),
        ("identity", {}, "holds"),
        ("identity", {"identity-query": around(19.0)}, "holds"),
        ("identity", {"identity-query": around(20.4)}, "does not hold"),
        ("identity", {"identity-query": [20.4, 20.0, 20.3]}, "undecided"),
        ("identity", {"identity-query": [20.0]}, "undecided"),
        ("larger-model", {}, "holds"),
        ("larger-model", {"nonlinear-query": around(19.9)}, "undecided"),
    ],
)
def test_verdicts_on_trained_models(claim, arms, verdict):
    assert found(claim, language_models(**arms)).verdict == verdict


def test_a_smaller_control_decides_the_other_way():
    finding = found("larger-model", language_models((100, 105), **{"nonlinear-query": around(19.9)}))
    assert finding.verdict == "does not hold"
    extra = finding.numbers["parameters of the control beyond the linear model, percent"]
    assert extra == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("vary", "words"), [("feed-forward", "wider in its feed-forward layers"), ("width", "wider in all its parts")]
)
def test_the_control_is_described_as_it_was_made(vary, words):
    results = language_models()
    next(arm for arm in results[LANGUAGE_MODELS]["arms"] if arm["name"] == "standard-wide")["match"] = {"vary": vary}
    assert f"The control here is {words} and has 18.0 % more" in found("larger-model", results).reason


RATES = [1e-3, 4e-3, 1.6e-2, 6.4e-2]


def curve(*losses):
    return dict(zip(RATES, losses, strict=True))


LOW, HIGH, WHOLE = curve(3.0, 3.1, 4.0, None), curve(3.1, 3.0, 3.01, 4.0), curve(3.1, 3.0, 3.01, 3.02)


@pytest.mark.parametrize(
    ("linear", "normed", "nonlinear", "control", "verdict"),
    [
        (LOW, LOW, HIGH, LOW, "holds"),
        (LOW, HIGH, HIGH, LOW, "holds in part"),
        (LOW, LOW, HIGH, WHOLE, "holds in part"),
        (HIGH, LOW, LOW, LOW, "does not hold"),
        (HIGH, HIGH, HIGH, HIGH, "undecided"),
        (WHOLE, LOW, WHOLE, LOW, "undecided"),
        (WHOLE, LOW, HIGH, LOW, "does not hold"),
        (curve(None, None, None, None), LOW, HIGH, LOW, "undecided"),
    ],
)
def test_tolerance_of_learning_rates(linear, normed, nonlinear, control, verdict):
    names = ("linear", "linear-qk-norm", "nonlinear-query", "nonlinear-query-linear-control")
    curves = {
        name: {1: losses, 2: losses} for name, losses in zip(names, (linear, normed, nonlinear, control), strict=True)
    }
    results = {TOLERANCE: swept_result("learning-rate-tolerance-small", curves)}
    assert found("stability", results).verdict == verdict


def test_overlapping_seeds_decide_nothing():
    curves = {name: {1: LOW, 2: LOW} for name in ("linear-qk-norm", "nonlinear-query-linear-control")}
    curves |= {"linear": {1: LOW, 2: HIGH}, "nonlinear-query": {1: HIGH, 2: HIGH}}
    results = {TOLERANCE: swept_result("learning-rate-tolerance-small", curves)}
    finding = found("stability", results)
    assert finding.verdict == "undecided"
    assert finding.numbers["diverged runs, linear"] == 1.0


@pytest.mark.parametrize("claim", JUDGED, ids=lambda claim: claim.name)
def test_what_the_recipe_makes_is_taken(claim):
    evidence = claim.evidence
    recipe = load_recipe(ROOT / evidence.recipe)
    made = {
        "name": recipe.name,
        "arms": [{"name": arm.name} for arm in recipe.arms],
        "recipe": recipe_mapping(recipe),
    }
    evidence.check("made", made)


@pytest.mark.parametrize("claim", JUDGED, ids=lambda claim: claim.name)
def test_missing_results_and_those_of_another_recipe(claim):
    assert claim.evidence.finding({}).verdict == "not tested here"
    other = {name: made_result("demo", "perplexity", {"standard": [1.0]}) for name in claim.evidence.results}
    with pytest.raises(ValueError, match="expected"):
        claim.evidence.finding(other)
