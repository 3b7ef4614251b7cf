"""Whole comparisons: three tiny arms, three seeds; stopped, continued, refused, diverging; text and find-the-block."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_study import recipe_table, tiny_recipe, without_times

import heedful.study.runs as runs_module
from heedful.study import load_recipe, load_result, make_plan, plain_text, run_comparison
from heedful.study.recipe_file import recipe_from_mapping
from heedful.study.statistics import paired_difference, summarise
from heedful.study.workloads import LanguageModellingWorkload
from heedful.train import load_best


def quiet(line: str) -> None:
    """Swallow progress lines."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished comparison; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    page = run_comparison(tiny_recipe(folder), folder / "study", quiet)
    assert page == folder / "study" / "report.html"
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished comparison to spoil."""
    shutil.copytree(finished / "study", tmp_path / "study")
    return tmp_path / "study"


def test_result_holds_every_run_and_the_statistics_of_them(finished: Path) -> None:
    result = load_result(finished / "study")
    assert [arm["name"] for arm in result["arms"]] == ["standard", "boosted", "sum"]
    assert len(result["runs"]) == 9
    perplexities = {
        (run["arm"], run["seed"]): run["test"]["perplexity"] for run in result["runs"] if run["status"] == "finished"
    }
    assert len(set(perplexities.values())) == 9
    for arm in result["arms"]:
        own = {seed: perplexities[arm["name"], seed] for seed in (1, 2, 3)}
        assert arm["metrics"]["perplexity"]["mean"] == pytest.approx(summarise(list(own.values())).mean)
        assert arm["parameters"] > arm["parameters_without_embeddings"] > 0
        assert arm["tokens_per_second"] > 0
        assert arm["peak_memory_bytes"] > 4 * arm["parameters"]
    by_pair = {(item["arm"], item["metric"]): item for item in result["comparisons"]}
    assert set(by_pair) == {(arm, metric) for arm in ("boosted", "sum") for metric in ("perplexity", "bits_per_byte")}
    expected = paired_difference(
        {seed: perplexities["sum", seed] for seed in (1, 2, 3)},
        {seed: perplexities["standard", seed] for seed in (1, 2, 3)},
    )
    assert by_pair["sum", "perplexity"]["p_value"] == pytest.approx(expected.p_value)
    assert by_pair["sum", "perplexity"]["low"] == pytest.approx(expected.low)


def test_result_says_with_what_it_was_computed(finished: Path) -> None:
    result = load_result(finished / "study")
    assert result["environment"]["packages"]["torch"]
    assert len(result["data"]["corpus_sha256"]) == 64
    assert result["recipe"]["train"]["steps"] == 6
    assert set(result["data"]["tokens_sha256"]) == {"train", "valid", "test"}
    json.dumps(result, allow_nan=False)


def test_probes_and_samples_come_with_the_arms_that_have_them(finished: Path) -> None:
    arms = {arm["name"]: arm for arm in load_result(finished / "study")["arms"]}
    assert "gate_mean" in arms["boosted"]["diagnostics"][0]
    assert "gate_mean" not in arms["standard"]["diagnostics"][0]
    assert "nonlinear_ratio" in arms["sum"]["diagnostics"][0]
    assert "kq_pre" in arms["sum"]["diagnostics"][2]
    prompts = {arm["sample"]["prompt"] for arm in arms.values()}
    assert len(prompts) == 1
    assert all(arm["sample"]["text"] for arm in arms.values())


def test_every_arm_sees_the_same_batches_under_the_same_seed(finished: Path) -> None:
    configs = {
        (arm, seed): json.loads((finished / f"study/runs/{arm}/lr-0.01/seed-{seed}/config.json").read_text())["data"]
        for arm in ("standard", "boosted", "sum")
        for seed in (1, 2, 3)
    }
    for seed in (1, 2, 3):
        assert configs["standard", seed] == configs["boosted", seed] == configs["sum", seed]
    assert configs["standard", 1] != configs["standard", 2]


def test_the_test_metric_is_that_of_the_best_checkpoint_on_the_whole_test_split(finished: Path) -> None:
    recipe = tiny_recipe(finished)
    workload = make_plan(recipe).workload
    run = load_result(finished / "study")["runs"][0]
    model = load_best(finished / "study/runs/standard/lr-0.01/seed-1")
    assert isinstance(workload, LanguageModellingWorkload)
    assert run["test"]["tokens"] == workload.dataset.test.num_tokens
    assert workload.test(model, 1)["perplexity"] == pytest.approx(run["test"]["perplexity"], rel=1e-5)
    assert run["best"]["val/loss"] == min(point["val/loss"] for point in run["curve"])


def test_what_only_training_needs_is_removed_once_a_run_is_tested(finished: Path) -> None:
    checkpoints = finished / "study/runs/standard/lr-0.01/seed-1/checkpoints"
    assert len(list(checkpoints.glob("step-*"))) == 1


def test_the_same_command_again_computes_nothing(copied: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a finished run was computed again")

    monkeypatch.setattr(runs_module, "train", refuse)
    monkeypatch.setattr(runs_module, "probe", refuse)
    before = load_result(copied)
    run_comparison(tiny_recipe(finished), copied, quiet)
    assert without_times(load_result(copied)) == without_times(before)


def test_stopped_after_some_runs_and_continued_the_result_is_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = 4
    recipe, study = tiny_recipe(finished), tmp_path / "study"
    real, calls = runs_module.train, 0

    def stop_after(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > done:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runs_module, "train", stop_after)
        with pytest.raises(KeyboardInterrupt):
            run_comparison(recipe, study, quiet)
    assert len(list(study.rglob("record.json"))) == done
    assert not (study / "result.json").exists()
    run_comparison(recipe, study, quiet)
    assert without_times(load_result(study)) == without_times(load_result(finished / "study"))


def test_interrupted_inside_a_run_by_a_signal_the_result_is_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, study = tiny_recipe(finished), tmp_path / "study"
    real, calls = LanguageModellingWorkload.validate, 0

    def validate_and_interrupt(self: LanguageModellingWorkload, model: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 5:  # the second evaluation of the second run
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, model)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModellingWorkload, "validate", validate_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_comparison(recipe, study, quiet)
    assert len(list(study.rglob("record.json"))) == 1
    assert (study / "runs/standard/lr-0.01/seed-2/checkpoints/last.json").exists()
    run_comparison(recipe, study, quiet)
    assert without_times(load_result(study)) == without_times(load_result(finished / "study"))


def test_stopped_between_training_and_test_only_the_test_is_done(
    copied: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_result(copied)
    (copied / "runs/boosted/lr-0.01/seed-1/test.json").unlink()
    monkeypatch.setattr(runs_module, "train", None)
    run_comparison(tiny_recipe(finished), copied, quiet)
    assert without_times(load_result(copied)) == without_times(before)


def test_another_recipe_in_the_folder_is_refused_with_what_differs(copied: Path, finished: Path) -> None:
    before = (copied / "result.json").read_bytes()
    table = recipe_table(finished, seeds=[1, 2, 4])
    table["train"]["steps"] = 7
    with pytest.raises(ValueError, match="holds another comparison") as caught:
        run_comparison(recipe_from_mapping(table), copied, quiet)
    assert "train.steps is 6 there and 7 here" in str(caught.value)
    assert "seeds[2] is 3 there and 4 here" in str(caught.value)
    assert (copied / "result.json").read_bytes() == before


def test_words_about_the_comparison_may_change(copied: Path, finished: Path) -> None:
    run_comparison(recipe_from_mapping(recipe_table(finished, title="A better title")), copied, quiet)
    assert "A better title" in (copied / "report.html").read_text(encoding="utf-8")


def test_changed_text_is_refused(copied: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "text.txt", tmp_path / "text.txt")
    with open(tmp_path / "text.txt", "a", encoding="utf-8") as file:
        file.write("\n\nthe cat hears nothing.")
    table = recipe_table(finished)
    recorded = json.loads((copied / "recipe.json").read_text(encoding="utf-8"))
    recorded["recipe"]["data"]["corpus"] = table["data"]["corpus"] = str(tmp_path / "text.txt")
    (copied / "recipe.json").write_text(json.dumps(recorded), encoding="utf-8")
    with pytest.raises(ValueError, match=r"the data changed since the comparison .* was begun: corpus_sha256"):
        run_comparison(recipe_from_mapping(table), copied, quiet)


def test_a_folder_of_something_else_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="holds something else"):
        run_comparison(tiny_recipe(finished), tmp_path, quiet)


def test_a_damaged_record_is_named(copied: Path, finished: Path) -> None:
    record = copied / "runs/sum/lr-0.01/seed-2/record.json"
    record.write_text(record.read_text(encoding="utf-8")[:40], encoding="utf-8")
    with pytest.raises(ValueError, match=r"seed-2/record\.json is damaged"):
        run_comparison(tiny_recipe(finished), copied, quiet)


def test_a_sweep_chooses_by_validation_loss_and_says_when_it_is_at_the_edge(finished: Path, tmp_path: Path) -> None:
    arms = [{"name": "standard", "learning_rates": [1e-5, 1e-2]}, {"name": "boosted", "attention": "boosted"}]
    recipe = recipe_from_mapping(recipe_table(finished, arms=arms, seeds=[1, 2]))
    run_comparison(recipe, tmp_path / "study", quiet)
    result = load_result(tmp_path / "study")
    standard = result["arms"][0]
    losses = [item["validation_loss"] for item in standard["sweep"]]
    assert losses[1] < losses[0]
    assert standard["learning_rate"] == 1e-2
    assert "highest rate tried, 1e-2" in standard["learning_rate_note"]
    runs = [(run["learning_rate"], run["seed"]) for run in result["runs"] if run["arm"] == "standard"]
    assert runs == [(1e-5, 1), (1e-2, 1), (1e-2, 2)]
    assert result["runs"][0]["test"] is None
    assert all(item["p_value"] is None and "fewer than three" in item["note"] for item in result["comparisons"])
    page = (tmp_path / "study/report.html").read_text(encoding="utf-8")
    assert "Learning rates</h2>" in page
    assert "fewer than three seeds" in page


def test_a_diverging_arm_is_reported_and_the_others_go_on(finished: Path, tmp_path: Path) -> None:
    arms = [
        {"name": "standard"},
        {"name": "wild", "learning_rates": [1e30]},
        {"name": "boosted", "attention": "boosted"},
    ]
    run_comparison(recipe_from_mapping(recipe_table(finished, arms=arms)), tmp_path / "study", quiet)
    result = load_result(tmp_path / "study")
    wild = next(arm for arm in result["arms"] if arm["name"] == "wild")
    assert wild["metrics"]["perplexity"]["mean"] is None
    assert wild["learning_rate"] is None
    run = next(run for run in result["runs"] if run["arm"] == "wild")
    assert run["status"] == "diverged"
    assert run["message"] in (tmp_path / "study/report.html").read_text(encoding="utf-8").replace("&#39;", "'")
    boosted = next(item for item in result["comparisons"] if item["arm"] == "boosted")
    assert boosted["p_value"] is not None
    assert "wild diverged with seed 1 at learning rate 1e+30" in plain_text(result)


def test_find_the_block_is_compared_by_errors_with_wilson_intervals(finished: Path, tmp_path: Path) -> None:
    table = recipe_table(
        finished,
        task={
            "kind": "find-the-block",
            "block_length": 2,
            "num_blocks": 2,
            "num_test_samples": 20,
            "num_valid_samples": 8,
            "train_samples": 50,
        },
        arms=[{"name": "standard"}, {"name": "multi-token", "attention": "multi-token"}],
    )
    table.pop("data")
    table["train"].pop("context_length")
    page = run_comparison(recipe_from_mapping(table), tmp_path / "study", quiet)
    result = load_result(tmp_path / "study")
    assert result["metrics"] == ["error"]
    for arm in result["arms"]:
        runs = [run["test"] for run in result["runs"] if run["arm"] == arm["name"]]
        assert arm["error_interval"]["samples"] == 60
        assert arm["error_interval"]["errors"] == sum(test["errors"] for test in runs)
        assert arm["error_interval"]["low"] <= arm["metrics"]["error"]["mean"] <= arm["error_interval"]["high"]
    text = page.read_text(encoding="utf-8")
    assert "Wilson" in text
    assert "perplexity" not in text.lower()


def test_the_recipe_left_in_the_folder_repeats_the_comparison(finished: Path) -> None:
    assert load_recipe(finished / "study/recipe.json") == tiny_recipe(finished)
