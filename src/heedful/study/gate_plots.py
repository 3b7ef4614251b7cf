"""Pictures of the gates of boosting rounds, dimension by dimension, from `heedful.models.probes.probe`."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from heedful.study.svg import SERIES, figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS, BINS = 8, 25
WIDTH, ROW = 640, 112
TITLE = "Gate of each dimension"


def gate_pictures(arm: str, layers: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the picture of one arm's gates as `{"title", "caption", "svg"}`; none without gates that differ.

    Args:
        arm: its name.
        layers: what `probe` returned; results written before dimensions were recorded have none.
    """
    rows = [(layer["layer"], layer["gate_by_dimension"]) for layer in layers if layer.get("gate_by_dimension")]
    if all(max(gates) == min(gates) for _, rounds in rows for gates in rounds):
        return []
    shown = rows[:MAX_ROWS]
    caption = (
        "Left: a dot for each dimension of the concatenated heads, at its mean gate over tokens. Right: how many "
        "dimensions lie where. What a single token's gate does is not seen here."
    )
    if len(rows) > MAX_ROWS:
        caption += f" The first {MAX_ROWS} of {len(rows)} layers."
    return [{"title": TITLE, "caption": caption, "svg": _dimensions(f"{TITLE} of {arm}", shown)}]


def _dimensions(label: str, rows: list[tuple[int, list[list[float]]]]) -> str:
    values = [gate for _, rounds in rows for gates in rounds for gate in gates]
    low, high = min(0.0, *values), max(1.0, *values)
    edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    with figure(WIDTH, 34 + ROW * len(rows)) as (drawing, [whole]):
        whole.remove()
        grid = drawing.subplots(len(rows), 2, sharey=True, sharex="col", squeeze=False, width_ratios=[3, 1])
        for (layer, rounds), (strip, bars) in zip(rows, grid, strict=True):
            for index, gates in enumerate(rounds):
                name, colour = f"round {index + 1}", SERIES[index % len(SERIES)]
                _dots(strip, gates, colour, name)
                counts = [sum(a <= g < b or (b == high and g == b) for g in gates) for a, b in pairwise(edges)]
                bars.stairs(counts, edges, orientation="horizontal", fill=True, color=colour, alpha=0.55, linewidth=0)
            strip.set_ylim(low - 0.02, high + 0.02)
            strip.set_xlim(-1, len(rounds[0]))
            strip.set_ylabel(f"layer {layer}")
            bars.grid(visible=False, axis="y")
        grid[-1][0].set_xlabel("dimension")
        grid[-1][1].set_xlabel("dimensions")
        if len(rows[0][1]) > 1:
            handles, names = grid[0][0].get_legend_handles_labels()
            drawing.legend(handles, names, loc="outside upper left", ncols=len(names), frameon=False, fontsize=9)
        return to_svg(drawing, label)


def _dots(axes: Axes, gates: list[float], colour: str, name: str) -> None:
    """Draw all dots as one path of strokes without length: a marker each would make the page many times larger."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    points = [point for place, gate in enumerate(gates) for point in ((place, gate), (place, gate))]
    path = Path(points, [Path.MOVETO, Path.LINETO] * len(gates))
    path.should_simplify = False
    axes.add_patch(PathPatch(path, fill=False, edgecolor=colour, linewidth=4, capstyle="round", alpha=0.8, label=name))
