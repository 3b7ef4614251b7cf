"""Sweeps of several seeds, arms with more seeds than others, and the order in which runs can start."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from tiny_study import recipe_table, write_corpus

from heedful.study import load_result, make_plan, run_comparison
from heedful.study.recipe_file import recipe_from_mapping
from heedful.study.schedule import Job, Schedule, choose


def test_equal_validation_losses_choose_the_lower_learning_rate() -> None:
    sweep = [
        {"status": "finished", "best": {"val/loss": 1.0}, "learning_rate": 2e-3},
        {"status": "finished", "best": {"val/loss": 1.0}, "learning_rate": 1e-3},
        {"status": "diverged", "best": None, "learning_rate": 1e-2},
    ]
    assert choose(sweep) == 1e-3
    assert choose(sweep[2:]) is None


def test_several_seeds_choose_by_their_mean_and_a_rate_at_which_one_diverges_is_out() -> None:
    losses = {1e-3: [2.0, 2.0], 2e-3: [1.0, 2.5], 4e-3: [0.5, None]}
    sweep: list[dict[str, Any]] = [
        {
            "status": "diverged" if loss is None else "finished",
            "best": loss and {"val/loss": loss},
            "learning_rate": rate,
        }
        for rate, pair in losses.items()
        for loss in pair
    ]
    assert choose(sweep) == 2e-3


def table(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a recipe of two arms, the second of them with two more seeds; two seeds try two learning rates."""
    arms = [{"name": "standard"}, {"name": "boosted", "attention": "boosted", "further_seeds": [8, 9]}]
    return recipe_table(folder, arms=arms, sweep_seeds=2, learning_rates=[1e-2, 3e-2], **changes)


def test_jobs_start_when_what_they_need_is_done(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    schedule = Schedule(make_plan(recipe_from_mapping(table(tmp_path))))
    sweep = [job for job in (schedule.next() for _ in range(8)) if job is not None]
    assert [(job.run.arm.name, job.run.learning_rate, job.run.seed) for job in sweep] == [
        (arm, rate, seed) for arm in ("standard", "boosted") for rate in (1e-2, 3e-2) for seed in (1, 2)
    ]
    assert schedule.next() is None

    def finish(job: Job, loss: float) -> None:
        record = {"status": "finished", "learning_rate": job.run.learning_rate, "seed": job.run.seed}
        schedule.done(job, {**record, "best": {"val/loss": loss}} if job.task == "train" else {"test": {}})

    for job in sweep[4:]:
        finish(job, 1.0 if job.run.learning_rate == 3e-2 else 2.0)
    started = []
    while job := schedule.next():
        started.append((job.task, job.run.arm.name, job.run.learning_rate, job.run.seed, job.with_pictures))
        finish(job, 1.0)
    assert started == [
        ("train", "boosted", 3e-2, 3, False),
        ("train", "boosted", 3e-2, 8, False),
        ("train", "boosted", 3e-2, 9, False),
        ("test", "boosted", 3e-2, 1, True),
        ("test", "boosted", 3e-2, 2, False),
        ("test", "boosted", 3e-2, 3, False),
        ("test", "boosted", 3e-2, 8, False),
        ("test", "boosted", 3e-2, 9, False),
    ]


def test_the_result_pairs_the_seeds_that_both_arms_have_and_sums_up_each_rate(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    recipe = recipe_from_mapping(table(tmp_path))
    plan = make_plan(recipe)
    assert plan.num_runs == sum(recipe.runs_of(arm) for arm in recipe.arms) == (3 + 2) + (5 + 2)
    run_comparison(recipe, tmp_path / "study", report=lambda line: None)
    result = load_result(tmp_path / "study")
    assert len(result["runs"]) == plan.num_runs
    for arm in result["arms"]:
        for tried in arm["sweep"]:
            losses = [
                run["best"]["val/loss"]
                for run in result["runs"]
                if (run["arm"], run["learning_rate"]) == (arm["name"], tried["learning_rate"]) and run["seed"] in (1, 2)
            ]
            assert len(losses) == 2
            assert tried["validation_loss"] == pytest.approx(fmean(losses))
        assert arm["learning_rate"] == min(arm["sweep"], key=lambda tried: tried["validation_loss"])["learning_rate"]
    counts = {arm["name"]: arm["metrics"]["perplexity"]["count"] for arm in result["arms"]}
    assert counts == {"standard": 3, "boosted": 5}
    assert {item["count"] for item in result["comparisons"]} == {3}
    page = (tmp_path / "study/report.html").read_text(encoding="utf-8")
    assert "three seeds (five seeds of boosted)" in page
    assert "by the mean over the first two seeds" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sweep_seeds": 0}, "sweep_seeds"),
        ({"sweep_seeds": 4}, "sweep_seeds"),
        ({"arms": [{"name": "standard", "further_seeds": [2]}]}, "seed 2 is given more than once"),
        ({"arms": [{"name": "standard", "further_seeds": [-2]}]}, "must not be negative"),
    ],
)
def test_impossible_seeds_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_from_mapping(recipe_table(tmp_path, **changes))
