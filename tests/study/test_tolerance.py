"""The learning-rate tolerance, on curves whose ranges can be worked out by hand."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tiny_study import tiny_recipe

from heedful.study import load_result, run_comparison
from heedful.study.estimate import estimate_recipe
from heedful.study.recipe_file import load_recipe
from heedful.study.tolerance import rate_points, rate_range, tolerances
from heedful.study.tolerance_plot import tolerance_caption, tolerance_figure

RECIPES = Path(__file__).parents[2] / "recipes"
# A parabola in the exponent of ten: 2 + 0.2 (exponent + 2)^2.
CURVE: list[tuple[float, float | None]] = [(1e-4, 2.8), (1e-3, 2.2), (1e-2, 2.0), (1e-1, 2.2), (1.0, 2.8)]


def result_of(
    curves: Mapping[str, Mapping[float, Sequence[float | None]]], chosen: float | None = 1e-2
) -> dict[str, Any]:
    """Return what the tolerance reads of a result; losses by arm, rate and seed (0, 1, ...), None where diverged."""
    runs = [
        {
            "arm": arm,
            "learning_rate": rate,
            "seed": seed,
            "status": "diverged" if loss is None else "finished",
            "final": None if loss is None else {"val/loss": loss},
        }
        for arm, curve in curves.items()
        for rate, losses in curve.items()
        for seed, loss in enumerate(losses)
    ]
    arms = [{"name": arm, "match": None, "learning_rate": chosen} for arm in curves]
    return {"baseline": next(iter(curves)), "arms": arms, "runs": runs}


def test_the_range_ends_where_the_loss_crosses_the_margin() -> None:
    # Between 1e-3 and 1e-2 the loss falls by 0.2 per decade: 0.05 above the best is a quarter of a decade away.
    found = rate_range(CURVE, margin=0.05)
    assert found is not None
    assert (found.best_rate, found.best_loss) == (1e-2, 2.0)
    assert math.log10(found.low) == pytest.approx(-2.25, abs=1e-12)
    assert math.log10(found.high) == pytest.approx(-1.75, abs=1e-12)
    assert found.factor == pytest.approx(10**0.5, rel=1e-12)
    assert not found.open_low
    assert not found.open_high


def test_a_wider_margin_passes_grid_points() -> None:
    # At 0.5 above: over 0.2 after one decade, and half of the next decade's 0.6.
    found = rate_range(CURVE, margin=0.5)
    assert found is not None
    assert math.log10(found.low) == pytest.approx(-3.5, abs=1e-12)
    assert found.factor == pytest.approx(1e3, rel=1e-11)


def test_an_end_that_the_grid_did_not_reach_is_open() -> None:
    found = rate_range(CURVE[:3], margin=0.05)
    assert found is not None
    assert (found.high, found.open_high, found.open_low) == (1e-2, True, False)


def test_what_lies_behind_a_worse_rate_does_not_count() -> None:
    found = rate_range([(1.0, 2.0), (10.0, 3.0), (100.0, 2.01)], margin=0.05)
    assert found is not None
    assert math.log10(found.high) == pytest.approx(0.05, abs=1e-12)


def test_a_rate_that_diverged_ends_the_range_at_the_one_before() -> None:
    found = rate_range([(1.0, 2.0), (10.0, None), (100.0, 2.0)], margin=0.05)
    assert found is not None
    assert (found.low, found.high, found.open_low, found.open_high) == (1.0, 1.0, True, False)
    assert found.factor == 1.0


def test_nothing_but_divergence_has_no_range() -> None:
    assert rate_range([(1.0, None), (2.0, None)]) is None
    tolerance = tolerances(result_of({"a": {rate: [None, None] for rate in (1.0, 2.0, 3.0)}}))["a"]
    assert tolerance.range is None
    assert tolerance.seed_ranges == {}
    assert tolerance.diverged == 6
    assert tolerance_figure(result_of({"a": {rate: [None] for rate in (1.0, 2.0, 3.0)}})) is None


def test_means_and_single_seeds() -> None:
    result = result_of({"a": {1e-3: [2.2, 2.4], 1e-2: [2.0, 2.0], 1e-1: [2.4, 2.2]}})
    tolerance = tolerances(result)["a"]
    assert tolerance.range is not None
    # Means fall by 0.3 per decade on both sides; single seeds by 0.2 and 0.4.
    assert math.log10(tolerance.range.factor) == pytest.approx(2 * 0.05 / 0.3, abs=1e-12)
    for single in tolerance.seed_ranges.values():
        assert math.log10(single.factor) == pytest.approx(0.05 / 0.2 + 0.05 / 0.4, abs=1e-12)


def test_a_rate_at_which_one_seed_diverged_is_not_the_best() -> None:
    tolerance = tolerances(result_of({"a": {1e-3: [2.2, 2.2], 1e-2: [1.0, None], 1e-1: [2.3, 2.3]}}))["a"]
    assert tolerance.range is not None
    assert tolerance.range.best_rate == 1e-3
    assert tolerance.diverged == 1
    assert [point.mean for point in tolerance.points] == [2.2, None, 2.3]


def test_seeds_that_only_the_chosen_rate_has_are_left_out() -> None:
    result = result_of({"a": {1e-3: [2.2], 1e-2: [2.0, 1.0, 1.0], 1e-1: [2.3]}})
    assert [point.mean for point in rate_points(result, "a")] == [2.2, 2.0, 2.3]


def test_arms_with_fewer_than_three_rates_have_no_curve() -> None:
    assert tolerances(result_of({"a": {1e-3: [2.2], 1e-2: [2.0]}})) == {}
    assert tolerance_figure(result_of({"a": {1e-3: [2.2], 1e-2: [2.0]}})) is None


def test_the_figure_marks_runs_that_have_no_place_on_the_axis() -> None:
    """Marks are told apart by their paths: each kind is one `<defs>` path, used once per run."""
    plain = {1e-3: [2.2, 2.3], 1e-2: [2.0, 2.1], 1e-1: [2.3, 2.2]}
    diverged = {1e-3: [2.2, 2.3], 1e-2: [2.0, 2.1], 1e-1: [None, 2.2]}
    far = {1e-3: [2.2, 2.3], 1e-2: [2.0, 2.1], 1e-1: [900.0, 2.2]}
    captions = [tolerance_caption(result_of({"a": curve})) for curve in (plain, diverged, far)]
    assert ["Crosses" in caption for caption in captions] == [False, True, False]
    assert ["Triangles" in caption for caption in captions] == [False, False, True]
    figures = [tolerance_figure(result_of({"a": curve})) for curve in (plain, diverged, far)]
    for figure in figures:
        assert figure is not None
        ElementTree.fromstring(figure)
    uses = [len(re.findall("<use ", figure or "")) for figure in figures]
    assert uses[1] == uses[0]  # a dot less, a cross more
    heights = [[float(text) for text in re.findall(r">(\d+\.\d+)</text>", figure or "")] for figure in figures]
    assert max(heights[2]) < 10, "the loss of 900 would flatten the curve"


def test_crosses_of_several_diverged_runs_do_not_cover_each_other() -> None:
    curve = {1e-3: [2.2, 2.3], 1e-2: [2.0, 2.1], 1e-1: [None, None]}
    figure = tolerance_figure(result_of({"a": curve})) or ""
    places = re.findall(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)"', figure)
    assert len(places) == len(set(places))


def test_the_recipe_gives_every_arm_the_same_rates_and_runs() -> None:
    recipe = load_recipe(RECIPES / "learning-rate-tolerance-small.toml")
    assert [arm.name for arm in recipe.arms] == [
        "linear", "linear-qk-norm", "nonlinear-query", "nonlinear-query-linear-control"
    ]  # fmt: skip
    assert len({recipe.rates(arm) for arm in recipe.arms}) == 1
    assert recipe.sweep_seeds == len(recipe.seeds) == 2
    rates = recipe.rates(recipe.arms[0])
    steps = [high / low for low, high in itertools.pairwise(rates)]
    assert max(steps) / min(steps) < 1.02  # a geometric grid, rounded to two digits


def test_the_large_recipe_has_the_paper_s_models_and_the_grid_that_others_ran() -> None:
    recipe = load_recipe(RECIPES / "papers" / "learning-rate-tolerance.toml")
    sweep = load_recipe(RECIPES / "papers" / "nonlinear-query-sweep.toml")
    assert recipe.model == sweep.model
    assert recipe.train.optimizer == sweep.train.optimizer
    rates = recipe.rates(recipe.arms[0])
    assert {recipe.rates(arm) for arm in recipe.arms} == {rates}
    assert rates[1:-1] == pytest.approx((6e-4, 1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3))
    assert recipe.train.schedule.warmup_steps / recipe.train.steps == pytest.approx(2_000 / 60_002, rel=1e-3)
    counts = {arm.name: arm.parameters_without_embeddings for arm in estimate_recipe(recipe, search=False).arms}
    assert counts == {
        "linear": 84_953_856,
        "linear-qk-norm": 84_953_856 + 12 * 2 * 64,
        "nonlinear-query": 84_972_288,
        "nonlinear-query-linear-control": 84_972_288,
    }


def test_the_report_shows_the_curve_of_a_comparison_with_three_rates(tmp_path: Path) -> None:
    """The highest rate overflows: its runs diverge, and the page shows them as crosses."""
    recipe = tiny_recipe(
        tmp_path, arms=[{"name": "standard"}], seeds=[1, 2], sweep_seeds=2, learning_rates=[1e-3, 1e-2, 1e30]
    )
    page = run_comparison(recipe, tmp_path / "study", lambda line: None).read_text(encoding="utf-8")
    tolerance = tolerances(load_result(tmp_path / "study"))["standard"]
    assert [point.diverged for point in tolerance.points] == [0, 0, 2]
    assert "Validation loss against learning rate</h2>" in page
    assert "Learning rates</h2>" not in page
    assert "Crosses at the top: runs that diverged." in page
