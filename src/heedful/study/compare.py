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
from heedful.study.plan import Plan, make_plan
from heedful.study.recipe import Recipe
from heedful.study.recipe_file import recipe_mapping
from heedful.study.report import render_report
from heedful.study.results import build_result
from heedful.study.runs import Report
from heedful.study.schedule import Job, Schedule
from heedful.study.workers import open_crew
from heedful.train.run_folder import read_json

# Words about the comparison, not what is compared: they may change while it goes on.
WORDS = ("name", "title", "description", "hardware")


def run_comparison(recipe: Recipe, folder: str | Path, report: Report | None = None, *, workers: int = 1) -> Path:
    """Run, or go on with, the comparison of `recipe` in `folder`, and return the path of its report.html.

    Runs that are finished are read back and never computed again. A run that diverges is recorded as such and reported;
    the others go on.

    Args:
        recipe: what to compare.
        folder: a new folder, or that of the same comparison.
        report: takes progress lines; None writes lines to stderr and draws a bar for each run on a terminal.
        workers: runs at a time, each in a process of its own with its share of the threads and all on one device. The
            threads of a run change its rounding, nothing else changes with it but the speed.

    Raises:
        ValueError: the recipe cannot be carried out, or the folder holds another comparison (nothing was trained); or a
            worker process was killed.
        KeyboardInterrupt: a signal came; everything so far is saved, and the same call goes on from there.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    folder = Path(folder)
    say: Report = report if report is not None else _to_stderr
    require_same_comparison(folder, recipe)  # before the data are prepared, which may take long
    plan = make_plan(recipe, say)
    claim_folder(folder, plan)
    for line in plan.lines():
        say(line)
    schedule, counter = Schedule(plan), _Counter(plan.num_runs, say, several=workers > 1)
    with open_crew(plan, folder, workers, report) as crew:
        in_work = 0
        while True:
            job = schedule.next() if crew.has_room() else None
            if job is not None:
                counter.begin(job)
                crew.start(job)
                in_work += 1
            elif in_work:
                job, outcome = crew.wait()
                counter.end(job, outcome)
                schedule.done(job, outcome)
                in_work -= 1
            else:
                break
    result = build_result(plan, schedule.records())
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


class _Counter:
    """Numbers the runs for the progress lines; of several at a time each line names its run."""

    def __init__(self, total: int, say: Report, *, several: bool) -> None:
        self.total, self.say, self.several, self.number = total, say, several, 0

    def begin(self, job: Job) -> None:
        if job.task == "train":
            self.number += 1
            self.say(f"[{self.number}/{self.total}] {job.run.title}")

    def end(self, job: Job, record: dict[str, Any]) -> None:
        if job.task != "train":
            return
        which = f"{job.run.title}: " if self.several else ""
        if record["status"] == "finished":
            loss = record["best"]["val/loss"]
            self.say(
                f"  {which}best validation loss {loss:.4f} after step {record['best_step']}, {record['seconds']:.0f} s"
            )
        else:
            self.say(f"  {which}{record['message']}")


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
