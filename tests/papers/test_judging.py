"""The rule from an interval to a verdict."""

import pytest
from made_results import made_result
from scipy import stats

from heedful.papers.judging import difference, figure_of, judge, verdict_of

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
