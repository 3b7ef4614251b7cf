"""The rule from an interval to a verdict."""

import pytest
from made_results import made_result
from scipy import stats

from heedful.papers.judging import difference, figure_of, judge, verdict_of
from heedful.papers.multi_token_assessments import lower_perplexity

ONE, OTHER = [10.0, 11.0, 12.5, 10.5], [12.0, 12.5, 14.0, 12.75]


def result(**arms):
    return made_result("some", "perplexity", arms)


def test_the_difference_is_that_of_a_paired_test():
    item = difference(result(boosted=ONE, standard=OTHER), "boosted", "standard")
    test = stats.ttest_rel(ONE, OTHER)
    low, high = test.confidence_interval(0.95)
    assert (item["low"], item["high"], item["p_value"]) == pytest.approx((low, high, test.pvalue))
    assert item["mean"] == pytest.approx(sum(ONE) / 4 - sum(OTHER) / 4)


def test_the_difference_of_the_comparison_is_taken_where_there_is_one():
    made = result(boosted=ONE, standard=OTHER)
    entry = {"arm": "boosted", "reference": "standard", "metric": "perplexity", "mean": -9.0, "low": -10.0,
             "high": -8.0, "percent": -50.0, "p_value": 0.001, "p_holm": 0.002, "count": 3, "note": ""}  # fmt: skip
    made["comparisons"] = [entry]
    finding = judge(made, "boosted", "standard")
    assert finding.numbers["difference"] == -9.0
    assert finding.numbers["p after Holm"] == 0.002
    assert judge(made, "standard", "boosted").numbers["difference"] == pytest.approx(1.8125)


@pytest.mark.parametrize(
    ("low", "high", "claimed", "verdict"),
    [
        (-2.0, -1.0, "lower", "holds"),
        (-2.0, -1.0, "higher", "does not hold"),
        (1.0, 2.0, "lower", "does not hold"),
        (1.0, 2.0, "higher", "holds"),
        (-1.0, 0.5, "lower", "undecided"),
        (-0.5, 1.0, "lower", "undecided"),
        (-1.0, 0.0, "lower", "undecided"),
        (None, None, "lower", "undecided"),
    ],
)
def test_verdicts(low, high, claimed, verdict):
    assert verdict_of({"low": low, "high": high}, claimed) == verdict


def test_findings_say_how_many_seeds():
    better = judge(result(boosted=ONE, standard=OTHER), "boosted", "standard")
    assert better.verdict == "holds"
    assert "lies on one side of zero (four seeds)" in better.reason
    assert "(−14.1 %)" in better.figure
    few = judge(result(boosted=ONE[:2], standard=OTHER), "boosted", "standard")
    assert few.verdict == "undecided"
    assert "fewer than three seeds" in few.reason
    assert "low" not in few.numbers
    none = judge(result(boosted=[], standard=OTHER), "boosted", "standard")
    assert none.verdict == "undecided"
    assert none.numbers == {"seeds": 0.0}


def test_error_rates_are_in_points():
    item = difference(made_result("some", "error", {"boosted": ONE, "standard": OTHER}), "boosted", "standard")
    assert figure_of(item) == "−1.8 points of test error"


@pytest.mark.parametrize(
    ("better", "edge", "verdict"),
    [
        ("boosted", "standard", "undecided"),
        ("boosted", "boosted", "holds"),
        ("standard", "boosted", "undecided"),
        ("standard", "standard", "does not hold"),
    ],
)
def test_who_loses_with_a_rate_at_an_end_of_its_range_has_not_lost(better, edge, verdict):
    values = {arm: ONE if arm == better else OTHER for arm in ("boosted", "standard")}
    made = result(**values)
    note = f"{edge} does best with the lowest."
    next(arm for arm in made["arms"] if arm["name"] == edge)["learning_rate_note"] = note
    found = judge(made, "boosted", "standard")
    assert found.verdict == verdict
    assert f"{edge.capitalize()} does best with the lowest." in found.reason
    assert found.reason.endswith("So this does not decide.") == (verdict == "undecided")


def test_a_claim_of_several_pairs_does_not_hold_in_part_by_a_pair_that_is_not_decided():
    made = made_result("made", "perplexity", {"multi-token": OTHER, "standard": ONE, "talking-heads": ONE,
                                              "differential": [value + 9 for value in ONE]})  # fmt: skip
    for arm in made["arms"]:
        if arm["name"] == "differential":
            arm["learning_rate_note"] = "differential does best with the lowest."
    assert lower_perplexity(made).verdict == "does not hold"
