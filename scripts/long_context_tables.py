"""The tables of docs/long-context.md, printed from results/, and its heat maps."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from heedful.study.heat_maps import GRIDS, heat_map, mean_cells, panels_of
from heedful.tasks.intervals import wilson_interval
from scripts.benchmark_tables import table
from scripts.figures import FIGURES, STUDY, drawn_from, is_stale, stand_alone

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
NEEDLES, LONG_BABI = "needles-small", "long-babi-small"
Result = dict[str, Any]


def result_of(name: str, folder: Path = RESULTS) -> Result | None:
    """Return a result by name, None where it was not measured yet."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def needles_table(folder: Path = RESULTS) -> str:
    """Return accuracy by arm, count of needles and length, over depths and seeds, beside chance."""
    result = result_of(NEEDLES, folder)
    if result is None:
        return _missing(NEEDLES)
    setups = _setups(result, ("needles", "length"))
    headers = ["arm", *(f"{needles} needles, {length} tokens" for needles, length in setups)]
    chance = ["chance: any one of the needles", *(f"{100 / needles:.1f}" for needles, _ in setups)]
    depths = sorted({cell["depth"] for cell in _first_test(result)["cells"]})
    last = [f"{100 * fmean(depth ** (needles - 1) for depth in depths):.1f}" for needles, _ in setups]
    lines = [chance, ["chance: always the last needle", *last], *_rows(result, setups, ("needles", "length"))]
    return "\n".join([table(headers, lines, 1), *_pictures(result), *_about(result)])


def long_babi_table(folder: Path = RESULTS) -> str:
    """Return accuracy by arm, task and amount of text, over seeds, beside both kinds of chance."""
    result = result_of(LONG_BABI, folder)
    if result is None:
        return _missing(LONG_BABI)
    keys = ("task", "distraction")
    setups = _setups(result, keys)
    headers = ["arm", *(f"task {task}, {distraction} between" for task, distraction in setups)]
    cells = {tuple(cell[key] for key in keys): cell for cell in _first_test(result)["cells"]}
    lines = [
        ["chance: one of the answers", *(f"{cells[setup]['chance']:.1f}" for setup in setups)],
        ["chance: the most frequent answer", *(f"{cells[setup]['most_frequent']:.1f}" for setup in setups)],
        *_rows(result, setups, keys),
    ]
    return "\n".join([table(headers, lines, 1), *_pictures(result), *_about(result)])


def stale_heat_maps(folder: Path = RESULTS, figures: Path = FIGURES) -> dict[Path, str]:
    """Return the heat maps that were not drawn from the results and the code as they are, drawn anew."""
    stale = {}
    for name in (NEEDLES, LONG_BABI):
        result = result_of(name, folder)
        grid = None if result is None else GRIDS[result["data"]["task"]]
        for arm in _drawn_arms(result):
            assert result is not None
            assert grid is not None
            panels = panels_of(result, arm, grid)
            path, mark = figures / f"{name}-{arm}.svg", drawn_from(repr(panels), STUDY / "heat_maps.py")
            if is_stale(path, mark):
                stale[path] = stand_alone(heat_map(panels, grid, f"Accuracy of {arm} in each cell")) + mark
    return stale


def _drawn_arms(result: Result | None) -> list[str]:
    """Return the arms of a result that have cells to draw."""
    if result is None:
        return []
    grid = GRIDS[result["data"]["task"]]
    return [arm["name"] for arm in result["arms"] if panels_of(result, arm["name"], grid)]


def _pictures(result: Result) -> list[str]:
    return [f"![Accuracy of {arm} in each cell](figures/{result['name']}-{arm}.svg)\n" for arm in _drawn_arms(result)]


def _first_test(result: Result) -> dict[str, Any]:
    return next(run["test"] for run in result["runs"] if run["test"] is not None)


def _setups(result: Result, keys: tuple[str, str]) -> list[tuple[int, int]]:
    return list(dict.fromkeys(tuple(cell[key] for key in keys) for cell in _first_test(result)["cells"]))


def _rows(result: Result, setups: list[tuple[int, int]], keys: tuple[str, str]) -> list[list[str]]:
    """Return a line for each arm: accuracy over all samples of a setup, with an interval for the samples of one seed.

    Seeds may share questions, so their samples are not counted together.
    """
    rows = []
    for arm in result["arms"]:
        cells = mean_cells(result, arm["name"])
        line = [arm["name"]]
        for setup in setups:
            own = [cell for cell in cells if tuple(cell[key] for key in keys) == setup]
            samples, right = sum(cell["samples"] for cell in own), sum(cell["right"] for cell in own)
            if not samples:
                line.append("diverged")
                continue
            seeds = sum(run["arm"] == arm["name"] and run["test"] is not None for run in result["runs"])
            low, high = wilson_interval(round(right / seeds), samples // seeds)
            line.append(f"{100 * right / samples:.1f}<br>{100 * low:.1f} to {100 * high:.1f}")
        rows.append(line)
    return rows


def _about(result: Result) -> list[str]:
    """Say where a table comes from, and what its intervals are."""
    facts = dict(result["data"]["facts"])
    commit = result["commit"] or {"commit": "unknown", "dirty": False}
    dirty = ", with changes that were not committed" if commit["dirty"] else ""
    seeds = ", ".join(map(str, result["recipe"]["seeds"]))
    return [
        f"Per cent right over all seeds ({seeds}); below it Wilson's 95 % interval for as many samples as one seed "
        "has, which covers the choice of samples and not the spread between seeds. Trained with "
        f"{result['recipe']['train']['steps']:,} steps on the task itself, in the text of {facts['text between']}.",
        "",
        f"`{result['command']}`, {', '.join(result['machines'])}, {result['environment']['threads']} threads, commit "
        f"{commit['commit'][:10]}{dirty}; each cell with its interval is in `results/{result['name']}.json`.",
        "",
    ]


def _missing(name: str) -> str:
    return f"Not measured yet: there is no `results/{name}.json`. `heedful compare recipes/{name}.toml` measures it.\n"
