"""The table of find-the-block says what the numbers say, and the six comparisons are what they are called."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from heedful.cli.overrides import split_overrides
from heedful.files import write_json_atomically
from heedful.study.recipe_file import load_recipe, recipe_mapping
from heedful.study.statistics import paired_difference, summarise
from heedful.tasks.find_the_block import FindTheBlockConfig, FindTheBlockData

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts import find_the_block
from scripts.find_the_block import LAPTOP, PAPER, SETTINGS, Size
from scripts.find_the_block_tables import chance_error, find_the_block_table

ROOT = Path(__file__).parent.parent
# Errors by arm and seed. Differences to standard: -58, -60, -62 (clearly lower) and +2, -2, 0 (nothing).
ERRORS = {
    "standard": (60.0, 62.0, 64.0),
    "multi-token-toy": (2.0, 2.0, 2.0),
    "boosted": (62.0, 60.0, 64.0),
    "twicing": (None, None, None),
}
TASK = {"kind": "find-the-block", "block_length": 5, "characters": 37, "num_blocks": None, "answer": "all",
        "query_letters": 2, "train_samples": 100, "num_valid_samples": 4, "num_test_samples": 4}  # fmt: skip


def made_up(errors: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """Return what the tables read of a result, validation errors at steps 10, 20, 30 and 40 falling to the test's."""
    arms, runs, comparisons, by_seed = [], [], [], {}
    for arm, values in errors.items():
        by_seed[arm] = {seed: value for seed, value in enumerate(values, start=1) if value is not None}
        summary = asdict(summarise(list(by_seed[arm].values())))
        arms.append({"name": arm, "parameters": 84_288, "metrics": {"error": summary}})
        for seed, value in enumerate(values, start=1):
            done = value is not None
            curve = [{"step": 10 * k, "val/error": (value or 0.0) + 3 * (4 - k)} for k in range(1, 5)] if done else []
            runs.append({"arm": arm, "seed": seed, "chosen": done, "status": "finished" if done else "diverged",
                         "test": {"error": value} if done else None, "curve": curve, "threads": 1})  # fmt: skip
        if arm != "standard":
            pair = asdict(paired_difference(by_seed[arm], by_seed["standard"]))
            comparisons.append({"arm": arm, "reference": "standard", "kind": "baseline", "metric": "error", **pair,
                                "p_holm": pair["p_value"]})  # fmt: skip
    recipe = {"task": TASK, "train": {"context_length": 38, "steps": 40, "batch_size": 16}}
    return {"arms": arms, "runs": runs, "comparisons": comparisons, "recipe": recipe, "metrics": ["error"],
            "baseline": "standard", "command": "heedful compare recipes/find-the-block.toml", "machines": ["a machine"],
            "environment": {"threads": 1}, "commit": {"commit": "0123456789abcdef", "dirty": False}}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "find-the-block-5-all.json").write_text(json.dumps(made_up(ERRORS)), encoding="utf-8")
    return tmp_path


def cells(text: str, arm: str, occurrence: int = 0) -> list[str]:
    """Return the cells of a row of one of the tables."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0] == arm][occurrence][1:]


def test_errors_differences_and_verdicts_are_those_of_the_runs(folder: Path) -> None:
    text = find_the_block_table(folder)
    assert cells(text, "standard")[0] == "62.0 ± 2.0"
    # t = 60 / (2 / sqrt 3); the 97.5 % point of Student's t with two degrees of freedom is 4.3027.
    half = 4.3027 * 2 / 3**0.5
    assert cells(text, "multi-token-toy")[0] == f"2.0 ± 0.0<br>−60.0 (−{60 + half:.1f} to −{60 - half:.1f})<br>better"
    assert cells(text, "boosted")[0].endswith("not distinguishable")
    assert cells(text, "twicing")[0] == "diverged"


def test_published_errors_and_chance_stand_below(folder: Path) -> None:
    text = find_the_block_table(folder)
    assert cells(text, "published: standard") == [
        "51.6 ± 43.1", "78.2 ± 1.5", "1.3 ± 0.4", "31.2 ± 50.3", "28.9 ± 24.9", "58.4 ± 46.8"
    ]  # fmt: skip
    assert cells(text, "published: multi-token-toy")[0] == "0.1 ± 0.1"
    assert cells(text, "chance, the right part of a random block") == ["80.0", *["not run"] * 5]


def test_errors_at_half_of_the_training_are_compared_with_the_end(folder: Path) -> None:
    text = find_the_block_table(folder)
    assert cells(text, "standard", 1)[0] == "68.0 → 62.0"
    assert "error of standard, multi-token-toy and boosted was lower at the end" in text


def test_an_error_that_rose_is_not_called_falling(tmp_path: Path) -> None:
    result = made_up({"standard": (60.0, 62.0, 64.0)})
    for run in result["runs"]:
        run["curve"].reverse()
        for number, point in enumerate(run["curve"], start=1):
            point["step"] = 10 * number
    (tmp_path / "find-the-block-8-last.json").write_text(json.dumps(result), encoding="utf-8")
    assert "No arm's error was lower at the end" in find_the_block_table(tmp_path)


def test_settings_without_a_result_are_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = find_the_block_table(folder)
    assert "Not run yet: 5 letters, first; 5 letters, last; 8 letters, all;" in text
    assert "5 letters, all;" not in text
    nothing = find_the_block_table(tmp_path_factory.mktemp("nothing"))
    assert nothing.startswith("Not run yet: 5 letters, all;")
    assert "python -m scripts.find_the_block" in nothing
    assert "|" not in nothing


def test_a_guess_among_the_blocks_errs_as_often_as_said() -> None:
    """Count on real samples how often the first block is the target: a random block is as good as any fixed one."""
    count = 2000
    config = FindTheBlockConfig(characters=37)
    rows = FindTheBlockData(config, seed=3, batch_size=count).batch(0).tokens
    blocks, query = rows[:, 1:31].view(count, 5, 6)[..., :5], rows[:, 31:33]
    holds = (blocks[:, 0, :, None] == query[:, None, :]).any(dim=1).all(dim=1)
    error = 100 * (1 - holds.double().mean().item())
    # The share of a binomial count is within five standard deviations of its expectation but once in two million.
    assert abs(error - chance_error(TASK)) < 5 * 100 * (0.2 * 0.8 / count) ** 0.5


@pytest.mark.parametrize("size", [LAPTOP, PAPER], ids=["laptop", "paper"])
def test_each_command_is_the_comparison_it_is_called(size: Size) -> None:
    names = set()
    for setting in SETTINGS:
        rates = {"standard": 4e-3, "multi-token-toy": 1e-5}
        arguments = find_the_block.command(setting, size, rates, find_the_block.Options())
        plain, overrides = split_overrides(arguments)
        recipe = load_recipe(ROOT / plain[1], overrides)
        task, toy = recipe.task, recipe.arm("multi-token-toy")
        assert task.kind == "find-the-block"
        assert recipe.name == f"{size.prefix}-{task.block_length}-{task.answer}" == Path(plain[3]).name
        assert isinstance(toy.attention, dict)
        assert toy.attention["rule"]["key_kernel_size"] == 2 * task.block_length - 1
        assert recipe.rates(toy) == (1e-5,)
        assert recipe.rates(recipe.arm("standard")) == (4e-3,)
        assert "#" not in shlex.join(arguments)
        names.add(recipe.name)
    assert len(names) == 6


def test_laptop_rows_are_full_for_both_lengths() -> None:
    for length, blocks in ((5, 5), (8, 3)):
        task = load_recipe(ROOT / LAPTOP.recipe, {"task.block_length": length}).task
        assert isinstance(task, FindTheBlockConfig)
        assert task.resolved_num_blocks == blocks
        assert blocks * (length + 1) + 2 + length == task.resolved_characters == 37


def test_rates_are_taken_from_the_arms_that_chose_one() -> None:
    result = {"arms": [{"name": "standard", "learning_rate": 4e-3}, {"name": "twicing", "learning_rate": None}]}
    assert find_the_block.chosen_rates(result) == {"standard": 4e-3}


class Runs:
    """Stands in for the processes: each call leaves what a finished comparison leaves, up to one that fails."""

    def __init__(self, root: Path, failing: str = "") -> None:
        self.root, self.failing, self.names = root, failing, list[str]()
        self.rates = list[tuple[float, ...]]()

    def call(self, arguments: list[str], cwd: Path) -> int:
        assert Path(arguments[0]).name == "heedful"
        plain, overrides = split_overrides(arguments[1:])
        recipe = load_recipe(cwd / plain[1], overrides)
        if recipe.name == self.failing:
            return 130
        self.names.append(recipe.name)
        self.rates.append(recipe.rates(recipe.arm("boosted")))
        folder = cwd / plain[3]
        folder.mkdir(parents=True)
        write_json_atomically(folder / "recipe.json", {"recipe": recipe_mapping(recipe), "data": {}})
        arms = [{"name": arm.name, "learning_rate": 8e-3} for arm in recipe.arms]
        write_json_atomically(folder / "result.json", {"name": recipe.name, "arms": arms})
        return 0


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "results").mkdir()
    found = Runs(tmp_path)
    monkeypatch.setattr(find_the_block, "ROOT", tmp_path)
    monkeypatch.setattr(find_the_block.subprocess, "call", found.call)
    return found


def test_the_first_comparison_chooses_the_rates_of_the_others(runs: Runs) -> None:
    assert find_the_block.main(find_the_block.Options()) == 0
    assert runs.names[0] == "find-the-block-5-first"
    assert runs.rates == [(2e-3, 4e-3, 8e-3), *[(8e-3,)] * 5]
    assert sorted(path.stem for path in (runs.root / "results").iterdir()) == sorted(runs.names)
    assert len(set(runs.names)) == 6


def test_it_stops_where_a_comparison_stops_and_goes_on_without_repeating(runs: Runs) -> None:
    runs.failing = "find-the-block-8-all"
    assert find_the_block.main(find_the_block.Options()) == 130
    assert len(runs.names) == 3
    runs.failing = ""
    assert find_the_block.main(find_the_block.Options()) == 0
    assert len(runs.names) == len(set(runs.names)) == 6
    assert runs.rates[3:] == [(8e-3,)] * 3


def test_a_finished_comparison_of_another_recipe_is_refused(runs: Runs) -> None:
    assert find_the_block.main(find_the_block.Options()) == 0
    recipe = runs.root / LAPTOP.recipe
    given = recipe.read_text(encoding="utf-8")
    recipe.write_text(given.replace("steps = 1_500", "steps = 1_501"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"train\.steps is 1500 there and 1501 here"):
        find_the_block.main(find_the_block.Options())
    assert len(runs.names) == 6
