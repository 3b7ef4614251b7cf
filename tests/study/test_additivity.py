"""Do gains add up, and do they survive equal cost: on made-up losses whose answer is worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from heedful.study.additivity import additivity, losses, parts_of
from heedful.study.equal_cost import equal_cost, plain_arms

# t(0.975; 2), from tables.
T_TWO = 4.302652729911275


def result_of(arms: dict[str, list[float | None]], **facts: dict[str, Any]) -> dict[str, Any]:
    """Return what the functions read of a result: losses by arm and seed (1, 2, ...), None where a run diverged."""
    runs = [
        {"arm": arm, "seed": seed, "test": None if loss is None else {"loss": loss}}
        for arm, found in arms.items()
        for seed, loss in enumerate(found, start=1)
    ]
    attention = {"a": "boosted", "b": "multi-token", "both": "boosted+multi-token"}
    described = [
        {
            "name": arm,
            "attention": attention.get(arm, "standard"),
            "parameters": 100,
            "multiply_adds_per_token": 100,
            **facts.get(arm, {}),
        }
        for arm in arms
    ]
    return {"baseline": "standard", "arms": described, "runs": runs}


def test_the_excess_is_the_sum_s_difference_minus_those_of_its_parts() -> None:
    # d(a) = -0.1, -0.2, -0.3; d(b) = -0.2 each; d(both) = -0.3, -0.3, -0.3: excess 0, 0.1, 0.2.
    result = result_of(
        {
            "standard": [3.0, 3.1, 3.2],
            "a": [2.9, 2.9, 2.9],
            "b": [2.8, 2.9, 3.0],
            "both": [2.7, 2.8, 2.9],
        }
    )
    found = additivity(result, "both", ["a", "b"])
    assert found.total.mean == pytest.approx(-0.3, abs=1e-12)
    assert found.parts_alone["a"].mean == pytest.approx(-0.2, abs=1e-12)
    assert found.expected.mean == pytest.approx(-0.4, abs=1e-12)
    assert found.excess.mean == pytest.approx(0.1, abs=1e-12)
    # Standard error of 0, 0.1, 0.2 is 0.1 / sqrt(3).
    half = T_TWO * 0.1 / math.sqrt(3)
    assert found.excess.low == pytest.approx(0.1 - half, rel=1e-9)
    assert found.excess.high == pytest.approx(0.1 + half, rel=1e-9)
    assert found.best_part == "a"
    assert found.against_best_part.mean == pytest.approx(-0.1, abs=1e-12)


def test_gains_are_factors_of_perplexity() -> None:
    """Two parts that divide the perplexity by 1.1 and 1.2, and a sum that divides it by 1.32, add up exactly."""
    perplexities = {"standard": 30.0, "a": 30 / 1.1, "b": 30 / 1.2, "both": 30 / 1.32}
    result = result_of({arm: [math.log(value)] * 3 for arm, value in perplexities.items()})
    excess = additivity(result, "both", ["a", "b"]).excess
    assert excess.mean == pytest.approx(0.0, abs=1e-14)
    assert excess.low is None  # the same in every seed up to rounding: no spread to test against


def test_only_seeds_that_all_arms_finished_count() -> None:
    result = result_of(
        {"standard": [3.0, 3.0, 3.0, 9.0], "a": [2.9, 2.8, None, 1.0], "b": [2.9, 2.8, 2.7], "both": [2.8, 2.6, 2.5]}
    )
    found = additivity(result, "both", ["a", "b"])
    assert found.total.count == found.expected.count == found.excess.count == 2
    assert found.excess.mean == pytest.approx(0.0, abs=1e-12)
    assert found.excess.note == "no test: fewer than three seeds"


def test_an_arm_that_always_diverged_leaves_no_number() -> None:
    result = result_of({"standard": [3.0], "a": [None], "b": [2.9], "both": [2.8]})
    found = additivity(result, "both", ["a", "b"])
    assert found.excess.mean is None
    assert found.best_part is None


@pytest.mark.parametrize(
    ("arm", "parts", "message"),
    [("both", ["a"], "at least two parts"), ("both", ["a", "c"], "no arm c"), ("sum", ["a", "b"], "no arm sum")],
)
def test_wrong_arms_are_named(arm: str, parts: list[str], message: str) -> None:
    result = result_of({"standard": [3.0], "a": [2.9], "b": [2.9], "both": [2.8]})
    with pytest.raises(ValueError, match=message):
        additivity(result, arm, parts)


def test_parts_follow_from_the_presets() -> None:
    result = result_of({"standard": [3.0], "a": [2.9], "b": [2.9], "both": [2.8]})
    assert parts_of(result, "both") == ("a", "b")
    assert parts_of(result, "a") == ()
    assert parts_of(result_of({"standard": [3.0], "a": [2.9], "both": [2.8]}), "both") == ()


def test_runs_of_the_sweep_that_were_not_tested_do_not_count() -> None:
    result = result_of({"standard": [3.0, None]})
    result["runs"].append({"arm": "standard", "seed": 1, "test": None})
    assert losses(result, "standard") == {1: 3.0}


def test_the_control_of_equal_cost_is_the_nearest_plain_model() -> None:
    result = result_of(
        {
            "standard": [3.0, 3.1, 3.2],
            "wide": [2.9, 3.0, 3.1],
            "deep": [2.8, 2.9, 3.0],
            "a": [2.85, 2.97, 3.04],
        },
        wide={"parameters": 126, "multiply_adds_per_token": 120},
        deep={"parameters": 130, "multiply_adds_per_token": 148},
        a={"parameters": 125, "multiply_adds_per_token": 150},
    )
    assert plain_arms(result) == ("standard", "wide", "deep")
    by_parameters = equal_cost(result, "a", "parameters")
    by_compute = equal_cost(result, "a", "multiply_adds_per_token")
    assert (by_parameters.control, by_compute.control) == ("wide", "deep")
    assert by_parameters.ratio == pytest.approx(126 / 125)
    assert by_compute.ratio == pytest.approx(148 / 150)
    assert by_parameters.equal
    assert by_compute.equal
    # -0.05, -0.03, -0.06 and 0.05, 0.07, 0.04.
    assert by_parameters.difference.mean == pytest.approx(-0.14 / 3, abs=1e-12)
    assert by_compute.difference.mean == pytest.approx(0.16 / 3, abs=1e-12)
    assert by_compute.difference.low is not None
    assert by_compute.difference.low > 0


def test_a_control_that_is_not_near_is_not_called_equal() -> None:
    result = result_of({"standard": [3.0], "a": [2.9]}, a={"parameters": 104})
    found = equal_cost(result, "a", "parameters")
    assert found.control == "standard"
    assert not found.equal
    result = result_of({"standard": [3.0], "a": [2.9]}, a={"parameters": 102})
    assert equal_cost(result, "a", "parameters").equal


def test_an_unknown_arm_has_no_control() -> None:
    with pytest.raises(ValueError, match="no arm c"):
        equal_cost(result_of({"standard": [3.0]}), "c", "parameters")
