"""The pages of docs/results say what the numbers say: made-up results whose outcome is known, and missing ones."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from heedful.study.recipe_file import load_recipe
from heedful.study.statistics import paired_difference

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts import gains_answer, paper_pages, tolerance_table
from scripts.published import EXPERIMENTS, Pair, Paper
from scripts.result_words import ROOT, command_of, interval, largest, nats, outcome
from scripts.studies_table import studies_table

LARGE, SMALL = "language-models-one-epoch", "language-models-small"
PAIRS = [pair for experiment in EXPERIMENTS for pair in experiment.pairs]
# Attention, parameters, multiply-adds per token.
ARMS: dict[str, tuple[str, int, int]] = {
    "standard": ("standard", 100, 100),
    "standard-wide": ("standard", 125, 122),
    "standard-deep": ("standard", 130, 134),
    "boosted": ("boosted", 125, 135),
    "nonlinear-query": ("nonlinear-query", 101, 100),
    "nonlinear-query-linear-control": ("nonlinear-query-linear-control", 101, 100),
    "multi-token": ("multi-token", 101, 133),
    "boosted+nonlinear-query": ("boosted+nonlinear-query", 126, 135),
}


def made_up(losses: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """Return a result with these test losses by arm and seed (1, 2, ...); what else it holds is that of the demo's."""
    result = json.loads((ROOT / "results/demo.json").read_text(encoding="utf-8"))
    arm_like, run_like = result["arms"][0], result["runs"][0]
    arms, runs = [], []
    for name, (attention, parameters, multiply_adds) in ARMS.items():
        costs = {"parameters": parameters, "multiply_adds_per_token": multiply_adds}
        sweep = [{"learning_rate": rate, "status": "finished", "validation_loss": 3.0} for rate in (1e-3, 2e-3)]
        arms.append({**arm_like, **costs, "name": name, "attention": attention, "sweep": sweep, "match": None,
                     "learning_rate_note": "at its edge" if name == "multi-token" else ""})  # fmt: skip
        for seed, loss in enumerate(losses[name], start=1):
            test = None if loss is None else {"loss": loss, "perplexity": math.exp(loss)}
            runs.append({**run_like, "arm": name, "seed": seed, "chosen": True, "test": test})
    recipe = {**result["recipe"], "sweep_seeds": 1}
    metrics = ["perplexity"]
    return {**result, "arms": arms, "runs": runs, "comparisons": [], "recipe": recipe, "metrics": metrics}


# Noise that differs from seed to seed by 0.001 and has a mean of zero.
NOISE = (-0.001, 0.0, 0.001)
CLEAR: dict[str, list[float | None]] = {
    name: [loss + times * noise + start for noise, start in zip(NOISE, (0.0, 0.1, 0.2), strict=True)]
    for name, (loss, times) in {
        "standard": (3.0, 0.0),
        "standard-wide": (2.99, 1.0),
        "standard-deep": (2.90, 1.0),
        "boosted": (2.95, -1.0),
        "nonlinear-query": (2.90, -1.0),
        "nonlinear-query-linear-control": (2.90, -2.0),
        "multi-token": (3.05, -1.0),
        "boosted+nonlinear-query": (2.89, 0.5),
    }.items()
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / f"{SMALL}.json").write_text(json.dumps(made_up(CLEAR)), encoding="utf-8")
    return tmp_path


def line_of(text: str, beginning: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(beginning))


def test_the_answer_says_what_the_losses_say(folder: Path) -> None:
    """boosted gains 0.05 and loses 0.05 to the deeper model; the nonlinear query gains 0.1, and its control as much."""
    text = gains_answer.answer_part(folder)
    assert text.startswith("### 100 parameters, ")
    first = line_of(text, "**")
    assert "survives equal parameters, equal compute and a tuned learning rate for nonlinear-query." in first
    assert "does not survive equal cost for boosted." in first
    assert "nonlinear-query is not distinguishable from nonlinear-query-linear-control, the same without" in first
    assert "with tuned learning rates: multi-token (its rate at an end of the range)." in first
    assert "Sums with a higher loss than their parts would leave together: boosted+nonlinear-query." in first
    boosted = line_of(text, "- **boosted** is")
    assert "better than standard (−0.0500 nats, −4.9 % of perplexity" in boosted
    assert "better than standard-wide, a standard model with 1.00× its parameters (−0.0400" in boosted
    assert "worse than standard-deep, a standard model with 0.99× its multiply-adds per token (+0.0500" in boosted
    nonlinear = line_of(text, "- **nonlinear-query** is")
    assert "not distinguishable from nonlinear-query-linear-control (0.0000" in nonlinear
    total = line_of(text, "- **boosted+nonlinear-query** changes")
    assert "the loss by −0.1100 nats, boosted + nonlinear-query by −0.1500 together" in total
    assert "leaves a higher loss than its parts would together" in total
    assert "better than nonlinear-query, its best part (−0.0100" in total
    assert "so that a better rate may lie beyond: multi-token." in text


def test_the_table_of_the_answer_has_the_controls_of_equal_cost(folder: Path) -> None:
    text = gains_answer.answer_part(folder)
    boosted = line_of(text, "| boosted |")
    assert "standard-wide, 1.00×" in boosted
    assert "standard-deep, 0.99×" in boosted
    assert boosted.rstrip(" |").endswith("no")
    sums = line_of(text, "| boosted+nonlinear-query |")
    assert "+0.0400" in sums  # the excess, -0.11 + 0.15


def test_equal_losses_are_not_called_a_gain(folder: Path) -> None:
    flat = {arm: [3.0 + noise * (index + 1) ** 2 for noise in NOISE] for index, arm in enumerate(ARMS)}
    (folder / f"{SMALL}.json").write_text(json.dumps(made_up(flat)), encoding="utf-8")
    first = line_of(gains_answer.answer_part(folder), "**")
    assert (
        "No gain is seen with tuned learning rates for boosted, nonlinear-query and multi-token "
        "(its rate at an end of the range)." in first
    )
    assert "cannot be told from their parts together: boosted+nonlinear-query." in first


def test_two_seeds_are_not_tested(folder: Path) -> None:
    few = {arm: losses[:2] for arm, losses in CLEAR.items()}
    (folder / f"{SMALL}.json").write_text(json.dumps(made_up(few)), encoding="utf-8")
    text = gains_answer.answer_part(folder)
    assert (
        "Not tested, for want of seeds: boosted, nonlinear-query and multi-token (its rate at an end of the range)."
        in line_of(text, "**")
    )
    assert "of no tests 0 exclude zero" in text


def test_an_arm_that_diverged_leaves_words_and_no_number(folder: Path) -> None:
    losses = {**CLEAR, "boosted": [None, None, None]}
    (folder / f"{SMALL}.json").write_text(json.dumps(made_up(losses)), encoding="utf-8")
    text = gains_answer.answer_part(folder)
    assert "**boosted** is not tested against standard (no seed finished in both arms)" in text
    row = line_of(paper_pages.experiments_part("boosted", folder), "| boosted against standard,")
    assert "diverged against 22.2" in row  # exp(3.1), standard's mean perplexity being a little above
    assert "not tested" in row


def test_holm_s_correction_is_counted(folder: Path) -> None:
    text = gains_answer.answer_part(folder)
    found = re.search(r"of (\d+) tests (\d+) exclude zero, and (\d+) still do after Holm's correction", text)
    assert found is not None
    tests, clear, left = map(int, found.groups())
    # boosted against three models, the nonlinear query against two, multi-token against two; four of the sum.
    assert tests == 11
    assert left <= clear < tests


def test_a_row_sets_their_number_beside_ours(folder: Path) -> None:
    text = paper_pages.experiments_part("boosted", folder)
    row = line_of(text, "| boosted against standard,")
    assert "67.879 ± 0.071 against 72.158 ± 0.309 (−5.9 %)" in row
    ours = [sum(math.exp(loss or 0.0) for loss in CLEAR[arm]) / 3 for arm in ("boosted", "standard")]
    assert f"{ours[0]:.2f} ± " in row
    assert f"against {ours[1]:.2f} ± " in row
    assert f"−{ours[1] - ours[0]:.2f} (−{100 * (1 - ours[0] / ours[1]):.1f} %)" in row
    assert "| as published |" in row
    deep = line_of(text, "| boosted against standard of equal compute,")
    assert "no number" in deep
    assert "| higher; they have no number |" in deep
    assert "no arm boosted-input-kv" in line_of(text, "| keys and values")


def write(folder: Path, name: str, losses: Mapping[str, Sequence[float | None]], **changes: Any) -> None:
    result: dict[str, Any] = {**made_up(losses), "command": f"heedful compare recipes/{name}.toml", **changes}
    for arm in result["arms"]:
        if arm["name"] == "standard-wide":
            arm["match"] = {"arm": "boosted", "by": "parameters", "vary": "width" if name == LARGE else "feed-forward"}
    (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")


# As CLEAR, but boosted is worse than standard and the nonlinear query is not to be told from it.
OTHERWISE = CLEAR | {
    "boosted": [(loss or 0.0) + 0.2 for loss in CLEAR["boosted"]],
    "nonlinear-query": [3.0 + start + 3 * noise for noise, start in zip(NOISE, (0.0, 0.1, 0.2), strict=True)],
}


@pytest.fixture
def both(folder: Path) -> Path:
    """The small study as in `folder`, and a large one on a GPU that says otherwise."""
    write(folder, SMALL, CLEAR)
    environment = {**made_up(CLEAR)["environment"], "gpu": "A GPU"}
    write(folder, LARGE, OTHERWISE, machines=["A GPU"], environment=environment, tokens_per_step=1_000_000)
    return folder


def test_the_largest_study_answers_first_and_the_small_one_below(both: Path) -> None:
    text = gains_answer.answer_part(both)
    large, small, beside = (line for line in text.splitlines() if line.startswith("### "))
    assert large.endswith(" M tokens (A GPU)")
    assert small.startswith("### 100 parameters, ")
    assert "A GPU" not in small
    assert beside == "### The studies beside each other"
    sections = text.split("### ")[1:]
    assert "with tuned learning rates: boosted and multi-token (its rate" in line_of(sections[0], "**")
    assert "does not survive equal cost for boosted." in line_of(sections[1], "**")
    assert [f"`results/{name}.json`" in section for section in sections[:2] for name in (LARGE, SMALL)] == [
        True, False, False, True,
    ]  # fmt: skip
    assert gains_answer.study_part(SMALL, json.loads((both / f"{SMALL}.json").read_text(encoding="utf-8"))) in text


def test_the_studies_stand_beside_each_other_with_where_they_agree(both: Path) -> None:
    text = gains_answer.answer_part(both).split("### ")[-1]
    header = line_of(text, "| arm |")
    assert header.index(LARGE) < header.index(SMALL)
    boosted = line_of(text, "| boosted |")
    assert boosted.index("+0.1500") < boosted.index("−0.0500")
    assert boosted.endswith("| opposite | differs: worse, then better |")
    assert line_of(text, "| nonlinear-query |").endswith("| differs: not distinguishable, then better |")
    assert line_of(text, "| multi-token |").endswith("| same | same: worse |")
    assert line_of(text, "| boosted+nonlinear-query |").endswith("| same | same: better |")
    assert "and the same verdict in 2." in text


def test_arms_of_one_study_alone_have_no_agreement() -> None:
    gain = paired_difference({1: -0.1, 2: -0.11, 3: -0.12}, {1: 0.0, 2: 0.0, 3: 0.0})
    none = paired_difference({}, {1: 0.0})
    text = studies_table("standard", {"large": {"a": gain, "b": gain, "c": gain}, "small": {"a": gain, "c": none}})
    assert line_of(text, "| a |").endswith("| same | same: better |")
    assert line_of(text, "| b |").endswith("| – | – | differs: better, then – |")
    assert line_of(text, "| c |").endswith("| – | – | differs: better, then not tested |")
    assert "Of one row the studies have the same sign in 1 and the same verdict in 1." in text


def test_experiments_are_those_of_the_largest_study_that_is_there(both: Path) -> None:
    text = paper_pages.experiments_part("boosted", both)
    row = line_of(text, "| boosted against standard,")
    assert "| the other way | A GPU | `heedful compare recipes/language-models-one-epoch.toml` |" in row
    assert "control wider: 1.00× the parameters, 0.90× the multiply-adds" in line_of(
        text, "| boosted against standard of"
    )
    assert f"`results/{LARGE}.json`" in text
    assert SMALL not in text
    (both / f"{LARGE}.json").unlink()
    text = paper_pages.experiments_part("boosted", both)
    assert "| as published | " in line_of(text, "| boosted against standard,")
    assert "control with wider feed-forward layers: 1.00×" in line_of(text, "| boosted against standard of")
    assert f"`results/{SMALL}.json`" in text
    assert LARGE not in text


def test_the_largest_is_the_first_that_is_there(both: Path) -> None:
    found = largest(("language-models", LARGE, SMALL), both)
    assert found is not None
    assert (found[0], found[1]["machines"]) == (LARGE, ["A GPU"])
    assert largest(("language-models",), both) is None


PAIR = Pair(what="a", unit="loss", published=("2.0", "3.0"), source="s", arm="a", metric="loss")


@pytest.mark.parametrize(
    ("published", "differences", "word"),
    [
        (("2.0", "3.0"), [-1.0, -1.1, -1.2], "as published"),
        (("2.0", "3.0"), [1.0, 1.1, 1.2], "the other way"),
        (("3.0 ± 0.1", "2.0"), [1.0, 1.1, 1.2], "as published"),
        (("2.0", "3.0"), [-1.0, 1.1, 0.2], "cannot be told"),
        (("2.0", "3.0"), [-1.0, -1.1], "not tested"),
        (None, [-1.0, -1.1, -1.2], "lower; they have no number"),
        (None, [1.0, 1.1, 1.2], "higher; they have no number"),
    ],
)
def test_the_verdict_is_about_sides_of_zero(
    published: tuple[str, str] | None, differences: list[float], word: str
) -> None:
    pair = Pair(what="a", unit="loss", published=published, source="s", arm="a", metric="loss")
    found = paired_difference(dict(enumerate(differences)), dict.fromkeys(range(3), 0.0))
    assert paper_pages.verdict(pair, found) == word


def test_missing_results_leave_a_sentence_with_the_command(tmp_path: Path) -> None:
    for paper in get_args(Paper):
        text = paper_pages.experiments_part(paper, tmp_path)
        rows = [line for line in text.splitlines() if line.startswith("| ") and "arXiv" in line]
        assert rows
        assert all("| not run | – | not tested here | – |" in row for row in rows)
    assert gains_answer.answer_part(tmp_path).startswith("Not run yet: `heedful compare recipes/language-models-small")
    assert tolerance_table.tolerance_part(tmp_path).startswith("Not run yet: `heedful compare recipes/learning-rate-")
    assert tolerance_table.stale_tolerance_figure(tmp_path, tmp_path / "figure.svg") == {}


@pytest.mark.parametrize("paper", get_args(Paper))
def test_every_claim_of_a_paper_is_on_its_page(paper: Paper, tmp_path: Path) -> None:
    text = paper_pages.claims_part(paper, tmp_path / "no-findings.json")
    names = [claim.name for claim in paper_pages.CLAIMS.values() if claim.paper == paper]
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(names)
    for name, row in zip(names, rows, strict=True):
        assert f"`{name}`" in row
        assert "not tested here" in row
        assert row.replace("\\|", "").count("|") == 8  # seven cells: no text ends one early
    assert f"{len(names)} not tested here." in text


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join([*pair.files[:1], *pair.what.split()]))
def test_published_numbers_are_numbers_and_their_arms_exist(pair: Pair) -> None:
    assert pair.source
    gap = paper_pages.published_gap(pair)
    assert (gap is None) == (pair.published is None)
    assert bool(pair.files) != bool(pair.rerun)
    made_by = {"python -m scripts.find_the_block": "recipes/find-the-block.toml"}
    commands = [command_of(file) for file in pair.files] or [f"heedful compare {pair.rerun}"]
    for command in commands:
        recipe_file = ROOT / made_by.get(command, command.removeprefix("heedful compare "))
        assert recipe_file.is_file(), recipe_file
        if pair.files:
            assert {pair.arm, pair.reference} <= {arm.name for arm in load_recipe(recipe_file).arms}


def test_relative_differences_of_the_papers_texts_follow_from_their_tables() -> None:
    """The papers give 5.9 % (6.0) and 1.7 % for boosted attention, 1.4 % for the nonlinear query's loss."""
    found = {pair.what: pair for pair in PAIRS}

    def percent(what: str) -> float:
        pair = found[what]
        assert pair.published is not None
        return 100 * (paper_pages.published_gap(pair) or 0.0) / float(pair.published[1].split()[0])

    assert percent("boosted against standard") == pytest.approx(-5.93, abs=0.005)
    assert percent("boosted against standard of equal parameters") == pytest.approx(-1.66, abs=0.005)
    assert percent("boosted against standard, OpenWebText") == pytest.approx(-5.57, abs=0.005)
    assert percent("boosted against standard, norm after the sum") == pytest.approx(9.58, abs=0.005)
    # 1.40 % is of unrounded losses; with three decimals each it is known to 0.03.
    assert percent("nonlinear against linear query") == pytest.approx(-1.40, abs=0.035)


def tolerance_result() -> dict[str, Any]:
    losses = {"linear": (5.2, 5.1, None), "nonlinear-query": (5.2, 5.0, 5.02)}
    runs = [
        {
            "arm": arm,
            "learning_rate": rate,
            "seed": seed,
            "status": "diverged" if loss is None else "finished",
            "final": None if loss is None else {"val/loss": loss + seed / 500},
        }
        for arm, curve in losses.items()
        for rate, loss in zip((1e-3, 1e-2, 1e-1), curve, strict=True)
        for seed in (0, 1)
    ]
    arms = [{"name": arm, "match": None, "learning_rate": 1e-2, "parameters": 1234} for arm in losses]
    source = {"commit": {"commit": "0123456789abc", "dirty": False}, "command": "heedful compare recipes/x.toml"}
    environment = {"threads": 1}
    return {"baseline": "linear", "arms": arms, "runs": runs, "machines": ["M"], "environment": environment, **source}


def test_the_rates_of_the_larger_study_stand_beside_the_tolerance(tmp_path: Path) -> None:
    assert tolerance_table.sweep_part(tmp_path).startswith("Not run yet: ")
    write(tmp_path, LARGE, OTHERWISE)
    file = tmp_path / f"{LARGE}.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    losses = {1e-3: 3.25, 2e-3: 3.0, 4e-3: None}
    sweep = [{"learning_rate": rate, "status": "", "validation_loss": loss} for rate, loss in losses.items()]
    result["arms"] = [{**arm, "sweep": sweep} for arm in result["arms"]]
    file.write_text(json.dumps(result), encoding="utf-8")
    text = tolerance_table.sweep_part(tmp_path)
    assert "at rate 1e-3 | at rate 2e-3 | at rate 4e-3" in line_of(text, "| arm |")
    assert line_of(text, "| nonlinear-query |").endswith("| 3.250 (+0.250) | 3.000 | diverged |")
    assert "| boosted |" not in text
    assert f"`results/{LARGE}.json`" in text


def test_the_tolerance_is_told_and_drawn_from_one_result(tmp_path: Path) -> None:
    result = tolerance_result()
    file, figure = tmp_path / f"{tolerance_table.NAME}.json", tmp_path / "figure.svg"
    file.write_text(json.dumps(result), encoding="utf-8")
    text = tolerance_table.tolerance_part(tmp_path)
    # From 5.2 to 5.1 in a decade, the margin of 0.05 is half of it; above, the runs diverged.
    assert "| linear | 1,234 | 5.101 | 1e-2 | 3.2e-3 to 1e-2 | 3.2 | 3.2, 3.2 | 2 |" in text
    # From 5.2 to 5.0 a quarter of a decade, and the grid ends.
    assert "| nonlinear-query | 1,234 | 5.001 | 1e-2 | 5.6e-3 to ≥ 1e-1 | ≥ 17.8 | ≥ 17.8, ≥ 17.8 | 0 |" in text
    assert "nonlinear-query differs from it by −0.100 nats" in text
    assert "With 2 seeds at a rate none of these differences is tested." in text
    drawn = tolerance_table.stale_tolerance_figure(tmp_path, figure)
    assert list(drawn) == [figure]
    figure.write_text(drawn[figure], encoding="utf-8")
    assert tolerance_table.stale_tolerance_figure(tmp_path, figure) == {}
    result["runs"][0]["final"]["val/loss"] += 0.5
    file.write_text(json.dumps(result), encoding="utf-8")
    assert list(tolerance_table.stale_tolerance_figure(tmp_path, figure)) == [figure]


def test_differences_in_words() -> None:
    clear = paired_difference({1: -0.1, 2: -0.11, 3: -0.12}, {1: 0.0, 2: 0.0, 3: 0.0})
    few = paired_difference({1: -0.1}, {1: 0.0})
    assert (outcome(clear), outcome(few)) == ("better", "not tested")
    assert nats(clear).startswith("−0.1100 (−10.4 %)<br>")  # exp(-0.11) = 0.8958
    assert interval(few, 4) == "no test: fewer than three seeds, one seed"
