"""Comparisons on needles and on long bAbI: cells in the result, heat maps in the report, and what is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tiny_study import recipe_table, tiny_recipe

from heedful.cli import main
from heedful.study import load_result, make_plan, run_comparison
from heedful.study.heat_maps import heat_map_figures, mean_cells
from heedful.study.recipe_file import recipe_from_mapping, recipe_mapping
from heedful.tasks.intervals import wilson_interval

NEEDLES = {
    "kind": "needles", "needles": [1, 2], "lengths": [120], "depths": [0.0, 1.0], "digits": 2,
    "valid_samples_per_cell": 2, "test_samples_per_cell": 5,
}  # fmt: skip
STORY = "1 Ann ran to the {0}.\n2 Bob ran to the {1}.\n3 Where is Ann? \t{0}\t1\n"


def write_archive(path: Path) -> str:
    rooms = ("attic", "cellar", "porch")
    text = "".join(STORY.format(rooms[i % 3], rooms[i % 2]) for i in range(12)).encode()
    with tarfile.open(path, "w:xz") as archive:
        for part in ("train", "test"):
            info = tarfile.TarInfo(f"en/qa1_single-supporting-fact_{part}.txt")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return str(path)


def babi(archive: str) -> dict[str, Any]:
    return {
        "kind": "long-babi", "archive": archive, "tasks": [1], "distractions": [0, 30], "valid_samples_per_cell": 1,
        "test_samples_per_cell": 12,
    }  # fmt: skip


def table(folder: Path, task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the recipe of two arms, two seeds and two steps with this task."""
    found = recipe_table(folder, task=task, seeds=[1, 2], **changes)
    found["train"] |= {"steps": 2, "batch_size": 2, "context_length": 130}
    found["data"] |= {"max_eval_tokens": 400}
    found["arms"] = found["arms"][:2]
    found["model"] |= {"num_layers": 1}
    return found


def compared(folder: Path, task: dict[str, Any]) -> tuple[dict[str, Any], str]:
    tiny_recipe(folder)  # writes the text
    page = run_comparison(recipe_from_mapping(table(folder, task)), folder / "study", lambda line: None)
    return load_result(folder / "study"), page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def needles(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return compared(tmp_path_factory.mktemp("needles"), NEEDLES)


@pytest.fixture(scope="module")
def long_babi(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("babi")
    return compared(folder, babi(write_archive(folder / "babi.tar.xz")))


def check_tests(result: dict[str, Any], keys: list[tuple[Any, ...]], names: tuple[str, ...], samples: int) -> None:
    assert result["metrics"] == ["error"]
    assert len(result["runs"]) == 4
    for run in result["runs"]:
        test = run["test"]
        assert [tuple(cell[name] for name in names) for cell in test["cells"]] == keys
        for cell in test["cells"]:
            low, high = wilson_interval(cell["right"], cell["samples"])
            assert cell["samples"] == samples
            assert (cell["low"], cell["high"]) == pytest.approx((100 * low, 100 * high))
        right = sum(cell["right"] for cell in test["cells"])
        assert test["error"] == pytest.approx(100 - 100 * right / (samples * len(keys)))


def test_needles_are_scored_in_every_cell(needles: tuple[dict[str, Any], str]) -> None:
    keys = [(1, 120, 0.0), (1, 120, 1.0), (2, 120, 0.0), (2, 120, 1.0)]
    check_tests(needles[0], keys, ("needles", "length", "depth"), samples=5)
    facts = dict(needles[0]["data"]["facts"])
    assert "So the code of" in facts["a sample"]
    assert "100 % and 50 %" in facts["chance"]
    for run in needles[0]["runs"]:
        assert run["test"]["samples"] == 20
        assert run["test"]["errors"] == 20 - sum(cell["right"] for cell in run["test"]["cells"])


def test_long_babi_is_scored_in_every_cell(long_babi: tuple[dict[str, Any], str]) -> None:
    check_tests(long_babi[0], [(1, 0), (1, 30)], ("task", "distraction"), samples=12)
    facts = dict(long_babi[0]["data"]["facts"])
    assert "12 of 12 of task 1" in facts["test questions"]
    assert "33.33 %" in facts["chance"]
    # Seeds and amounts of text share questions: nothing counts their samples together.
    assert all("samples" not in run["test"] for run in long_babi[0]["runs"])
    assert all(arm["error_interval"] is None for arm in long_babi[0]["arms"])
    assert len(long_babi[0]["data"]["babi_sha256"]) == 64


@pytest.mark.parametrize("study", ["needles", "long_babi"])
def test_the_report_has_a_heat_map_for_each_arm(study: str, request: pytest.FixtureRequest) -> None:
    result, page = request.getfixturevalue(study)
    assert page.count('aria-label="Accuracy of ') == 2
    figures = heat_map_figures(result)
    assert [figure["title"] for figure in figures] == ["Accuracy of standard", "Accuracy of boosted"]
    for figure in figures:
        assert figure["svg"] in page


def test_the_heat_map_writes_the_mean_over_seeds_into_each_cell(needles: tuple[dict[str, Any], str]) -> None:
    result = json.loads(json.dumps(needles[0]))
    # Found nowhere else in a figure, the ticks being 0 % and 100 % and the length 120.
    rights = {1: [4, 3, 2, 1], 2: [5, 4, 2, 2]}
    for run in result["runs"]:
        for cell, right in zip(run["test"]["cells"], rights[run["seed"]], strict=True):
            cell["right"] = right
    cells = mean_cells(result, "boosted")
    assert [cell["accuracy"] for cell in cells] == [90, 70, 40, 30]
    assert all(cell["samples"] == 10 for cell in cells)
    svg = heat_map_figures(result)[1]["svg"]
    for value in (90, 70, 40, 30):
        assert f">{value}</text>" in svg
    assert "1 needles: 80.0 %" in svg
    assert "2 needles: 35.0 %" in svg


def test_other_results_have_no_heat_map(needles: tuple[dict[str, Any], str]) -> None:
    result = json.loads(json.dumps(needles[0]))
    result["data"]["task"] = "language modelling"
    assert heat_map_figures(result) == []


@pytest.mark.parametrize("study", ["needles", "long_babi"])
def test_recipes_go_through_their_plain_form(study: str, request: pytest.FixtureRequest) -> None:
    result, _ = request.getfixturevalue(study)
    recipe = recipe_from_mapping(result["recipe"])
    assert recipe.task.kind == {"needles": "needles", "long_babi": "long-babi"}[study]
    assert json.loads(json.dumps(recipe_mapping(recipe))) == result["recipe"]


def test_what_cannot_be_made_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    tiny_recipe(tmp_path)
    archive = write_archive(tmp_path / "babi.tar.xz")
    refused = [
        ({**NEEDLES, "lengths": [131]}, "a row of 130 tokens has no room for a sample of 131"),
        ({**NEEDLES, "needles": [4]}, "4 needles with their questions take up to"),
        ({**NEEDLES, "depths": [2.0]}, "depths must be one or more values from 0 to 1"),
        ({**NEEDLES, "test_samples_per_cell": 0}, "test_samples_per_cell must be at least 1"),
        ({**NEEDLES, "neeedles": [2]}, "unknown key 'neeedles'"),
        (babi(str(tmp_path / "none.tar")), "there is no bAbI archive"),
        ({**babi(archive), "tasks": [2]}, "bAbI task 2"),
        ({**babi(archive), "distractions": [100]}, "no story of bAbI task 1 fits"),
    ]
    for task, message in refused:
        with pytest.raises(ValueError, match=message):
            make_plan(recipe_from_mapping(table(tmp_path, task)))


def test_a_missing_archive_is_one_sentence_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "long-babi-small.toml"
    tiny_recipe(tmp_path)
    text = str(tmp_path / "text.txt")
    arguments = [f"--data.{key}={text}" for key in ("corpus", "valid_corpus", "test_corpus")]
    arguments += [f"--data.cache_folder={tmp_path}", "--data.tokenizer=bytes", "--task.archive=none.tar"]
    assert main(["compare", str(recipe), "--folder", str(tmp_path / "study"), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()
    assert "there is no bAbI archive 'none.tar'" in error[-1]
    assert not (tmp_path / "study").exists()
