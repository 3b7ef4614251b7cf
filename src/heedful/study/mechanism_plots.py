"""Pictures of what a mechanism learned, from `heedful.models.probes.probe`: drawn only where the mechanism has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from heedful.study.svg import INK, NEGATIVE, POSITIVE, SERIES, figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS, MAX_HEADS = 8, 8
WIDTH = 400
Matrix = list[list[float]]


class Scalar(NamedTuple):
    """A number per layer: how it is called, what it means, and its fixed range where it has one."""

    title: str
    caption: str
    limits: tuple[float, float] | None


SCALARS = {
    "gate_mean": Scalar(
        "Gate of each boosting round",
        "Mean over tokens and dimensions; the bar is one standard deviation over dimensions. At 0 the round is "
        "ignored, at 1 all of it is added.",
        (0, 1),
    ),
    "nonlinear_ratio": Scalar(
        "Size of the nonlinear term",
        "Norm of the nonlinear term of the query over that of the term it is added to.",
        None,
    ),
    "lambda": Scalar("Factor of the second map", "Lambda: how much of the second attention map is subtracted.", None),
    "head_gate_mean": Scalar(
        "Gate of the heads", "Mean over tokens and heads; a closed gate (0) drops the head.", (0, 1)
    ),
}
MATRICES = {
    "kq_pre": "Key-query convolution before the softmax",
    "kq_post": "Key-query convolution after the softmax",
    "head_pre": "Head mixing before the softmax",
    "head_post": "Head mixing after the softmax",
}


def mechanism_pictures(arm: str, layers: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the pictures of one arm as `{"title", "caption", "svg"}`, none for a mechanism without any.

    Args:
        arm: its name.
        layers: what `probe` returned.
    """
    pictures = []
    for key, scalar in SCALARS.items():
        series = _series(layers, key)
        if series:
            svg = _per_layer(f"{scalar.title} of {arm}", series, scalar.limits)
            pictures.append({"title": scalar.title, "caption": scalar.caption, "svg": svg})
    for key, title in MATRICES.items():
        rows = [(name, values[key]) for name, values in _rounds(layers) if values.get(key)]
        if rows:
            left_out = f" The first {MAX_ROWS} of {len(rows)} layers." if len(rows) > MAX_ROWS else ""
            svg, largest = _maps(f"{title} of {arm}", key, rows[:MAX_ROWS])
            pictures.append({"title": title, "caption": _caption(key, largest) + left_out, "svg": svg})
    return pictures


def _rounds(layers: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every attention round of every layer with its name."""
    for layer in layers:
        yield f"layer {layer['layer']}", layer
        for index, further in enumerate(layer.get("further_rounds", []), start=1):
            yield f"layer {layer['layer']}, round {index}", further


def _series(layers: list[dict[str, Any]], key: str) -> dict[str, list[tuple[int, float, float]]]:
    """Return (layer, value, spread) for each round that has `key`."""
    series: dict[str, list[tuple[int, float, float]]] = {}
    for layer in layers:
        place = layer["layer"]
        if key == "gate_mean":
            for index, mean in enumerate(layer.get(key, [])):
                series.setdefault(f"round {index + 1}", []).append((place, mean, layer["gate_std"][index]))
            continue
        for index, values in enumerate([layer, *layer.get("further_rounds", [])]):
            if key in values:
                series.setdefault(f"round {index}", []).append((place, values[key], 0.0))
    return series


def _per_layer(
    label: str, series: dict[str, list[tuple[int, float, float]]], limits: tuple[float, float] | None
) -> str:
    with figure(WIDTH, 220) as (drawing, [axes]):
        for index, (name, points) in enumerate(series.items()):
            colour = SERIES[index % len(SERIES)]
            shift = 0.1 * (index - (len(series) - 1) / 2)
            layers, values = [layer + shift for layer, _, _ in points], [value for _, value, _ in points]
            spreads = [spread for _, _, spread in points]
            yerr = spreads if any(spreads) else None
            axes.errorbar(layers, values, yerr=yerr, fmt="o-", capsize=3, color=colour, label=name)
        places = sorted({layer for points in series.values() for layer, _, _ in points})
        axes.set_xticks(places, [str(place) for place in places])
        axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
        axes.set_xlabel("layer")
        values = [value for points in series.values() for _, value, _ in points]
        low, high = limits or (min(0.0, 1.1 * min(values)), 1.1 * max(0.0, *values))
        axes.set_ylim(low, high)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9)
        return to_svg(drawing, label)


def _caption(key: str, largest: float) -> str:
    change = (
        "What training changed: the identity it started from is subtracted. Blue is positive, orange negative; full "
        f"colour is {largest:.2g}."
    )
    if key.startswith("kq"):
        return (
            "One map per head. Rows: how many queries back, the current one at the bottom. Columns: the key's offset. "
            f"The framed cell is the score itself. {change}"
        )
    return f"One map per group of heads. Rows: heads after mixing. Columns: heads before. {change}"


def _maps(label: str, key: str, rows: list[tuple[str, list[Matrix]]]) -> tuple[str, float]:
    """Draw small maps, a row per layer and a column per head (one row for all layers where each has one map).

    Returns the figure and the change that is drawn in full colour.
    """
    is_kernel = key.startswith("kq")
    unit = "head" if is_kernel else "group"
    changes = [(name, [_minus_identity(map_, is_kernel=is_kernel) for map_ in maps]) for name, maps in rows]
    largest = max(abs(value) for _, maps in changes for map_ in maps for line in map_ for value in line) or 1.0
    grid = [(name, [(f"{unit} {i}", map_) for i, map_ in enumerate(maps[:MAX_HEADS])]) for name, maps in changes]
    if all(len(maps) == 1 for _, maps in changes):
        grid = [("", [(name, maps[0]) for name, maps in changes])]
    longest = max(len(name) for name, _ in grid)
    margin = 0.0 if longest == 0 else 62.0 if longest < 10 else 104.0
    height, width = len(rows[0][1][0]), len(rows[0][1][0][0])
    columns = max(len(maps) for _, maps in grid)
    cell = max(6.0, min(15.0, 700 / (columns * (width + 1.5))))
    step_x, step_y = max((width + 1.2) * cell, 6.5 * max(len(name) for name, _ in grid[0][1])), height * cell + 26
    total_width, total_height = margin + columns * step_x, 4 + len(grid) * step_y
    with figure(total_width, total_height) as (drawing, [axes]):
        drawing.set_layout_engine("none")
        axes.set_position((0, 0, 1, 1))
        axes.set_xlim(0, total_width)
        axes.set_ylim(total_height, 0)
        axes.axis("off")
        for row, (row_name, maps) in enumerate(grid):
            top = 18 + row * step_y
            axes.text(0, top + height * cell / 2, row_name, va="center", fontsize=10)
            for column, (name, map_) in enumerate(maps):
                left = margin + column * step_x
                axes.text(left, top - 4, name, fontsize=8.5)
                _map(axes, map_, left, top, cell, largest, framed=is_kernel)
        return to_svg(drawing, label), largest


def _minus_identity(values: Matrix, *, is_kernel: bool) -> Matrix:
    last, centre = len(values) - 1, (len(values[0]) - 1) // 2

    def identity(row: int, column: int) -> float:
        return float((row, column) == (last, centre) if is_kernel else row == column)

    return [[value - identity(i, j) for j, value in enumerate(line)] for i, line in enumerate(values)]


def _map(axes: Axes, values: Matrix, left: float, top: float, cell: float, largest: float, *, framed: bool) -> None:
    from matplotlib.patches import Rectangle

    height, width = len(values), len(values[0])
    outline = Rectangle((left, top), width * cell, height * cell, fill=False, edgecolor=INK, linewidth=0.6, alpha=0.5)
    axes.add_patch(outline)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            strength = round(abs(value) / largest, 2)
            if strength > 0:
                colour = POSITIVE if value > 0 else NEGATIVE
                corner = (left + column * cell, top + row * cell)
                axes.add_patch(Rectangle(corner, cell, cell, facecolor=colour, linewidth=0, alpha=strength))
    if framed:
        corner = (left + (width - 1) // 2 * cell, top + (height - 1) * cell)
        axes.add_patch(Rectangle(corner, cell, cell, fill=False, edgecolor=INK, linewidth=1.2))
