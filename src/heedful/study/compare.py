"""`run_comparison`: train every arm with every learning rate and seed, test, and leave result.json and report.html.

Everything is kept in one folder, and the same command goes on wherever it stopped:

    recipe.json        the recipe, every default spelled out, and the hashes of the data
    runs/<arm>/lr-<learning rate>/seed-<seed>/    the runs, see `heedful.study.runs`
    result.json        everything that was measured, see `heedful.study.results`
    report.html        the page made from it
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from heedful.files import write_json_atomically, write_text_atomically
from heedful.study.plan import Plan, PlannedArm, make_plan
from heedful.study.recipe import Recipe
from heedful.study.recipe_file import recipe_mapping
from heedful.study.report import render_report
from heedful.study.results import ArmRecords, build_result
from heedful.study.runs import Report, Run, score_run, train_run
from heedful.train.run_folder import read_json

# Words about the comparison, not what is compared: they may change while it goes on.
WORDS = ("name", "title", "description", "hardware")


def run_comparison(recipe: Recipe, folder: str | Path, report: Report | None = None) -> Path:
    """Run, or go on with, the comparison of `recipe` in `folder`, and return the path of its report.html.

    Runs that are finished are read back and never computed again. A run that diverges is recorded as such and reported;
    the others go on.

    Args:
        recipe: what to compare.
        folder: a new folder, or that of the same comparison.
        report: takes progress lines; None writes lines to stderr and draws a bar for each run on a terminal.

    Raises:
        ValueError: the recipe cannot be carried out, or the folder holds another comparison; nothing was trained.
        KeyboardInterrupt: a signal came; everything so far is saved, and the same call goes on from there.
    """
    folder = Path(folder)
    say: Report = report if report is not None else _to_stderr
    require_same_comparison(folder, recipe)  # before the data are prepared, which may take long
    plan = make_plan(recipe, say)
    claim_folder(folder, plan)
    for line in plan.lines():
        say(line)
    records = []
    counter = _Counter(plan.num_runs, say)
    for arm in plan.arms:
        records.append(_run_arm(arm, plan, folder, report, counter))
    result = build_result(plan, records)
    write_json_atomically(folder / "result.json", result)
    page = folder / "report.html"
    write_text_atomically(page, render_report(result))
    return page


def load_result(folder: str | Path) -> dict[str, Any]:
    """Return the result.json of a finished comparison.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    return read_json(Path(folder) / "result.json")


def require_same_comparison(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that holds the comparison of another recipe.

    Raises:
        ValueError: every key that differs is named with both values.
    """
    if not (folder / "recipe.json").exists():
        if (folder / "runs").exists() or (folder / "result.json").exists():
            raise ValueError(f"{folder} holds something else than a comparison; use a new folder.")
        return
    found = read_json(folder / "recipe.json")["recipe"]
    differences = _differences(found, _plain(recipe_mapping(recipe)))
    if differences:
        raise ValueError(
            f"{folder} holds another comparison: {'; '.join(differences)}. Use another folder, or the recipe as it was."
        )


def claim_folder(folder: Path, plan: Plan) -> None:
    """Write the recipe into `folder`, or check that the data are those the comparison there was begun with.

    Raises:
        ValueError: the text or the tokenizer changed.
    """
    data = plan.workload.hashes()
    recipe_file = folder / "recipe.json"
    if recipe_file.exists():
        differences = _differences(read_json(recipe_file)["data"], data)
        if differences:
            raise ValueError(f"the data changed since the comparison in {folder} was begun: {'; '.join(differences)}.")
    plan.workload.save_tokenizer(folder)
    write_json_atomically(recipe_file, {"recipe": recipe_mapping(plan.recipe), "data": data})


def _run_arm(arm: PlannedArm, plan: Plan, folder: Path, report: Report | None, counter: _Counter) -> ArmRecords:
    seeds = plan.recipe.seeds

    def trained(learning_rate: float, seed: int) -> dict[str, Any]:
        run = Run(arm=arm, learning_rate=learning_rate, seed=seed)
        counter.begin(run)
        record = train_run(run, plan.workload, folder, report)
        counter.end(run, record)
        return record

    sweep = [trained(learning_rate, seeds[0]) for learning_rate in arm.learning_rates]
    chosen = choose(sweep)
    if chosen is None:
        return ArmRecords(arm=arm, sweep=sweep, learning_rate=None, runs=sweep, findings={})
    rest = [trained(chosen["learning_rate"], seed) for seed in seeds[1:]]
    findings = {}
    for record in [chosen, *rest]:
        if record["status"] == "finished":
            run = Run(arm=arm, learning_rate=record["learning_rate"], seed=record["seed"])
            findings[run.seed] = score_run(run, plan.workload, folder, with_pictures=run.seed == seeds[0])
    return ArmRecords(
        arm=arm, sweep=sweep, learning_rate=chosen["learning_rate"], runs=[*sweep, *rest], findings=findings
    )


def choose(sweep: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the finished record with the lowest validation loss (of equals the lower learning rate), if any."""
    finished = [record for record in sweep if record["status"] == "finished"]
    return min(finished, key=lambda record: (record["best"]["val/loss"], record["learning_rate"]), default=None)


class _Counter:
    """Numbers the runs for the progress lines."""

    def __init__(self, total: int, say: Report) -> None:
        self.total, self.say, self.number = total, say, 0

    def begin(self, run: Run) -> None:
        self.number += 1
        self.say(f"[{self.number}/{self.total}] {run.title}")

    def end(self, run: Run, record: dict[str, Any]) -> None:
        if record["status"] == "finished":
            loss = record["best"]["val/loss"]
            self.say(f"  best validation loss {loss:.4f} after step {record['best_step']}, {record['seconds']:.0f} s")
        else:
            self.say(f"  {record['message']}")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    """Bring tuples to the lists that they become in a JSON file."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _differences(there: Any, here: Any, place: str = "") -> list[str]:
    if place in WORDS:
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        keys = dict.fromkeys([*there, *here])
        return [
            line
            for key in keys
            for line in _differences(there.get(key), here.get(key), f"{place}.{key}" if place else key)
        ]
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = enumerate(zip(there, here, strict=True))
        return [line for index, (old, new) in pairs for line in _differences(old, new, f"{place}[{index}]")]
    same = there == here or (isinstance(there, float) and isinstance(here, float) and math.isclose(there, here))
    return [] if same else [f"{place} is {there!r} there and {here!r} here"]
