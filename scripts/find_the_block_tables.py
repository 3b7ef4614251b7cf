"""Find-the-block in one table: what each mechanism gets wrong in the six settings, beside the published errors.

Ours come from results/find-the-block-*.json, theirs from `scripts.published`. A second table says how errors fell
during training, because a mechanism that was still getting better when it was stopped has not shown that it cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from heedful.papers.judging import difference
from heedful.study.headline import verdict
from heedful.study.wording import NONE, listed, signed
from heedful.tasks.find_the_block import Answer, FindTheBlockConfig
from scripts.published import EXPERIMENTS
from scripts.result_words import RESULTS, Result, load, provenance, table

LENGTHS = (5, 8)
SETTINGS = {
    f"find-the-block-{length}-{answer}": f"{length} letters, {answer}"
    for length in LENGTHS
    for answer in get_args(Answer)
}
RUN = "`python -m scripts.find_the_block`"
BASELINE, CONVOLUTION = "standard", "multi-token-toy"


def find_the_block_table(folder: Path = RESULTS) -> str:
    """Return the generated part: errors, how they fell, and where they come from, or which settings were not run."""
    found = {name: load(name, folder) for name in SETTINGS}
    results = {name: result for name, result in found.items() if result is not None}
    absent = [SETTINGS[name] for name, result in found.items() if result is None]
    not_run = f"Not run yet: {'; '.join(absent)}. {RUN} runs all six." if absent else ""
    if not results:
        return f"{not_run}\n"
    headers = ["test error, %", *SETTINGS.values()]
    arms = dict.fromkeys(arm["name"] for result in results.values() for arm in result["arms"])
    rows = [[arm, *(_error_cell(found[name], arm) for name in SETTINGS)] for arm in arms]
    rows.append(["chance, the right part of a random block", *(_chance_cell(found[name]) for name in SETTINGS)])
    rows += _published_rows()
    parts = [
        table(headers, rows, numbers=len(SETTINGS)),
        f"Mean ± standard deviation over seeds; below it the difference to {BASELINE}, its 95 % interval over paired "
        "seeds (not corrected), and the verdict after Holm's correction within the setting. " + _sizes(results),
        "",
        _falling(results, arms),
        *(["", not_run] if not_run else []),
        "",
        *(f"{provenance(name, result)}\n" for name, result in results.items()),
    ]
    return "\n".join(parts)


def chance_error(task: Mapping[str, Any]) -> float:
    """Return the error, in per cent, of answering the asked part of a random block: 100 (1 - 1 / blocks).

    It counts other blocks whose part happens to be the same as wrong, so that for one letter the true value is lower,
    by less than a twenty-sixth of the whole.
    """
    names = {field.name for field in fields(FindTheBlockConfig)}
    config = FindTheBlockConfig(**{name: value for name, value in task.items() if name in names})
    return 100 * (1 - 1 / config.resolved_num_blocks)


def _sizes(results: Mapping[str, Result]) -> str:
    """Say where the laptop's task and training differ from the published ones."""
    kinds = {}
    for result in results.values():
        task, train = result["recipe"]["task"], result["recipe"]["train"]
        parameters = next(arm["parameters"] for arm in result["arms"] if arm["name"] == BASELINE)
        kinds[f"{task['block_length']} letters: {parameters:,} parameters, {train['context_length']} tokens a sample, "
              f"{train['steps']:,} steps of {train['batch_size']}"] = None  # fmt: skip
    return (
        f"Ours at laptop size ({'; '.join(kinds)}; {BASELINE} attention). Theirs have 3.4 M parameters, 320 tokens and "
        "100,000 steps of 64, and the published baseline was scored with attention dropout on: compare within ours."
    )


def _error_cell(result: Result | None, arm: str) -> str:
    """Write an arm's error in one setting with its difference to the baseline."""
    metrics = next((item["metrics"] for item in result["arms"] if item["name"] == arm), None) if result else None
    if result is None or metrics is None:
        return "not run"
    error = metrics["error"]
    if error["mean"] is None:
        return "diverged"
    spread = "" if error["std"] is None else f" ± {error['std']:.1f}"
    text = f"{error['mean']:.1f}{spread}"
    if arm == result["baseline"]:
        return text
    item = difference(result, arm, result["baseline"], "error")
    if item["low"] is None:
        return f"{text}<br>{item['note']}"
    interval = f"{signed(item['mean'], 1)} ({signed(item['low'], 1)} to {signed(item['high'], 1)})"
    return f"{text}<br>{interval}<br>{verdict(item)}"


def _chance_cell(result: Result | None) -> str:
    return "not run" if result is None else f"{chance_error(result['recipe']['task']):.1f}"


def _published_rows() -> list[list[str]]:
    """Return their errors of the convolution and of the baseline."""
    pairs = {file: pair for experiment in EXPERIMENTS for pair in experiment.pairs for file in pair.files}
    values = [pairs[name].published if name in pairs else None for name in SETTINGS]
    return [
        [f"published: {BASELINE}", *(value[1] if value else NONE for value in values)],
        [f"published: {CONVOLUTION}", *(value[0] if value else NONE for value in values)],
    ]


def _falling(results: Mapping[str, Result], arms: Mapping[str, None]) -> str:
    """Return the table of validation errors at half of the training and at its end, and what it says."""
    rows, falling = [], {}
    for arm in arms:
        cells = []
        for name in SETTINGS:
            pair = _half_and_end(results[name], arm) if name in results else None
            cells.append("not run" if pair is None else f"{pair[0]:.1f} → {pair[1]:.1f}")
            if pair is not None and pair[1] < pair[0]:
                falling.setdefault(arm, []).append(name)
        rows.append([arm, *cells])
    everywhere = [arm for arm in arms if len(falling.get(arm, ())) == len(results)]
    still = (
        f"In every setting that was run the error of {listed(everywhere)} was lower at the end than at half of the "
        "steps, so longer training may go further."
        if everywhere
        else "No arm's error was lower at the end than at half of the steps in every setting that was run."
    )
    headers = ["validation error, %, half → end", *SETTINGS.values()]
    return f"{table(headers, rows, numbers=len(SETTINGS))}\n{still}"


def _half_and_end(result: Result, arm: str) -> tuple[float, float] | None:
    """Return the mean validation error over the chosen runs at the last evaluation up to half of the steps, and at the
    last.
    """
    halves, ends = [], []
    for run in result["runs"]:
        curve = [point for point in run["curve"] if point.get("val/error") is not None]
        if run["arm"] != arm or not run["chosen"] or run["status"] != "finished" or not curve:
            continue
        before = [point["val/error"] for point in curve if point["step"] <= curve[-1]["step"] / 2]
        halves.append(before[-1] if before else curve[0]["val/error"])
        ends.append(curve[-1]["val/error"])
    return (fmean(halves), fmean(ends)) if ends else None
