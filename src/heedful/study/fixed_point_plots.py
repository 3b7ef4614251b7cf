"""Pictures of retrieval in the plane: iterated to its fixed points, and boosted from round to round.

Both take plain numbers and know nothing of how they were computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heedful.study.svg import FAINT, INK, POSITIVE, SERIES, SURFACE, figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = 290


def fixed_point_picture(label: str, patterns: list[list[float]], panels: list[dict[str, Any]]) -> str:
    """Draw, a panel each, how an iteration runs from some starts to its fixed points.

    Args:
        label: what the picture shows.
        patterns: points of the plane.
        panels: each "title", "paths" (a list of points each), "fixed" (the points where they end).
    """
    with figure(PANEL * len(panels), PANEL + 34, columns=len(panels)) as (drawing, all_axes):
        for axes, panel in zip(all_axes, panels, strict=True):
            for path in panel["paths"]:
                xs, ys = zip(*path, strict=True)
                axes.plot(xs, ys, "-", color=POSITIVE, linewidth=1.1, alpha=0.8)
                axes.plot(xs[0], ys[0], "o", color=POSITIVE, markersize=3.5, markeredgewidth=0)
            _points(axes, patterns, "^", "pattern")
            xs, ys = zip(*panel["fixed"], strict=True)
            axes.plot(xs, ys, "o", color="none", markeredgecolor=SERIES[1], markeredgewidth=2, markersize=11,
                      label="fixed point")  # fmt: skip
            axes.set_title(panel["title"], fontsize=11)
            _plane(axes, 1.55)
        _legend(drawing, all_axes[0])
        return to_svg(drawing, label)


def rounds_picture(
    label: str, patterns: list[list[float]], paths: list[list[list[float]]], distances: dict[str, Any]
) -> str:
    """Draw estimates from round to round, and how far they are from what was asked for on average.

    Args:
        label: what the picture shows.
        patterns: points of the plane.
        paths: for each query its point, then the estimates F_0, F_1, ...
        distances: "rounds", the mean squared distance of each F_m; "best", that of the best estimate there is.
    """
    with figure(2 * PANEL + 60, PANEL + 34, columns=2) as (drawing, [plane, means]):
        for path in paths:
            xs, ys = zip(*path, strict=True)
            plane.plot(xs[:2], ys[:2], ":", color=FAINT, linewidth=1.1)
            plane.plot(xs[1:], ys[1:], "-", color=INK, linewidth=0.9, alpha=0.6)
        for index in range(len(paths[0])):
            xs, ys = zip(*(path[index] for path in paths), strict=True)
            if index == 0:
                plane.plot(xs, ys, "o", color="none", markeredgecolor=FAINT, markersize=4.5, label="query")
            else:
                plane.plot(xs, ys, "o", color=SERIES[index - 1], markersize=6, markeredgecolor=SURFACE,
                           label=f"F {index - 1}")  # fmt: skip
        _points(plane, patterns, "^", "pattern")
        _plane(plane, 1.8)
        _legend(drawing, plane)
        rounds = range(len(distances["rounds"]))
        means.bar(rounds, distances["rounds"], width=0.55, color=[SERIES[i] for i in rounds])
        best = f"best possible ({distances['best']:.3f})"
        means.axhline(distances["best"], color=INK, linewidth=1, linestyle="--", label=best)
        for index, value in enumerate(distances["rounds"]):
            means.text(index, value, f"{value:.3f}", ha="center", va="bottom", fontsize=10)
        means.set_xticks(list(rounds), [f"F {i}" for i in rounds])
        means.set_title("mean squared distance to the pattern", fontsize=11)
        means.legend(frameon=False, fontsize=9.5, loc="upper right")
        means.grid(visible=False, axis="x")
        return to_svg(drawing, label)


def _points(axes: Axes, points: list[list[float]], marker: str, name: str) -> None:
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, marker, color=INK, markersize=8, markeredgecolor=SURFACE, label=name)


def _plane(axes: Axes, reach: float) -> None:
    axes.set_aspect("equal")
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_xticks([-1, 0, 1])
    axes.set_yticks([-1, 0, 1])


def _legend(drawing: Any, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    drawing.legend(handles, names, loc="outside lower left", ncols=len(names), frameon=False, fontsize=10)
