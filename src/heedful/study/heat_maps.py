"""Heat maps of the tasks whose test has cells: accuracy by depth and length, or by task and amount of text."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import Any, NamedTuple

from heedful.study.svg import INK, SERIES, SURFACE, figure, to_svg

CELL_WIDTH, CELL_HEIGHT = 62, 30
MARGIN_WIDTH, MARGIN_HEIGHT = 110, 74


class Panel(NamedTuple):
    """One grid: `values` in per cent by (row, column), means over seeds."""

    title: str
    rows: list[str]
    columns: list[str]
    values: dict[tuple[str, str], float]


class Grid(NamedTuple):
    """How the cells of a task are laid out: one panel for each value of `panel`, or one panel where it is None."""

    rows: str
    columns: str
    panel: str | None
    row_label: str
    column_label: str


GRIDS = {
    "needles": Grid("depth", "length", "needles", "depth of the needle", "tokens of the sample"),
    "long-babi": Grid("task", "distraction", None, "bAbI task", "tokens of text between"),
}


def heat_map_figures(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one figure for each arm of a result whose tests have cells, as the report's other figures; else none."""
    grid = GRIDS.get(result["data"]["task"])
    figures = []
    for arm in result["arms"] if grid else []:
        assert grid is not None
        panels = panels_of(result, arm["name"], grid)
        if panels:
            figures.append(
                {
                    "title": f"Accuracy of {arm['name']}",
                    "svg": heat_map(panels, grid, f"Accuracy of {arm['name']} in each cell"),
                    "caption": f"Per cent of the test samples with every token of the answer right, means over seeds. "
                    f"{_chances(result, grid)} The intervals of each cell are in result.json.",
                    "legend": [],
                }
            )
    return figures


def mean_cells(result: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    """Return the cells of an arm's tests, samples and right answers summed over its seeds, `accuracy` anew."""
    tests = [run["test"] for run in result["runs"] if run["arm"] == arm and run["test"] is not None]
    cells = []
    for same in zip(*(test["cells"] for test in tests), strict=True):
        samples, right = sum(cell["samples"] for cell in same), sum(cell["right"] for cell in same)
        cells.append({**same[0], "samples": samples, "right": right, "accuracy": 100 * right / samples})
    return cells


def panels_of(result: dict[str, Any], arm: str, grid: Grid) -> list[Panel]:
    """Return the grids of an arm."""
    by_panel: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in mean_cells(result, arm):
        by_panel["" if grid.panel is None else f"{cell[grid.panel]} {grid.panel}"].append(cell)
    panels = []
    for title, cells in by_panel.items():
        values = {(_row(cell, grid), str(cell[grid.columns])): cell["accuracy"] for cell in cells}
        if grid.panel is not None:
            title = f"{title}: {fmean(values.values()):.1f} %"
        rows, columns = (list(dict.fromkeys(key[place] for key in values)) for place in (0, 1))
        panels.append(Panel(title, rows, columns, values))
    return panels


def heat_map(panels: list[Panel], grid: Grid, label: str) -> str:
    """Draw grids beside each other, the accuracy written in each cell."""
    from matplotlib.patches import Rectangle

    width = sum(MARGIN_WIDTH + CELL_WIDTH * len(panel.columns) for panel in panels)
    height = MARGIN_HEIGHT + CELL_HEIGHT * max(len(panel.rows) for panel in panels)
    with figure(width, height, len(panels)) as (drawing, all_axes):
        for axes, panel in zip(all_axes, panels, strict=True):
            for (row, column), value in panel.values.items():
                x, y = panel.columns.index(column), panel.rows.index(row)
                # Pale enough at 100 % for the text to be read on it in the light and in the dark theme.
                shade = 0.6 * value / 100
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=SERIES[0], alpha=shade, linewidth=0))
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=SURFACE, linewidth=1.5))
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=INK)
            axes.set_xlim(-0.5, len(panel.columns) - 0.5)
            axes.set_ylim(len(panel.rows) - 0.5, -0.5)
            axes.set_xticks(range(len(panel.columns)), panel.columns)
            axes.set_yticks(range(len(panel.rows)), panel.rows)
            axes.tick_params(length=0)
            axes.grid(visible=False)
            axes.set_xlabel(grid.column_label)
            axes.set_title(panel.title)
            for side in ("left", "bottom"):
                axes.spines[side].set_visible(False)
        all_axes[0].set_ylabel(grid.row_label)
        return to_svg(drawing, label)


def _row(cell: dict[str, Any], grid: Grid) -> str:
    value = cell[grid.rows]
    return f"{100 * value:g} %" if grid.rows == "depth" else str(value)


def _chances(result: dict[str, Any], grid: Grid) -> str:
    """Say what chance is, from the data's own facts."""
    facts = dict(result["data"]["facts"])
    return f"Chance: {facts['chance']}." if "chance" in facts else ""
