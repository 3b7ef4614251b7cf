"""The curves of one run as inline SVG: losses, rates, what probes saw; a resume is a dotted line in each of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from heedful.study.svg import FAINT, INK, NUM_SERIES, SERIES, figure, to_svg
from heedful.study.wording import tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 860
LARGEST_CURVE = 500
"""More points than pixels slow a page down; longer curves are drawn from means (or maxima) of groups of lines."""

WHOLE = "whole model"

Points = list[tuple[float, float]]


def loss_curves(
    lines: Sequence[dict[str, Any]], tokens_per_step: int, best_step: int | None, resumes: Sequence[int]
) -> str:
    """Draw training and validation loss against steps, with a second axis in tokens."""
    training, validation = curve(lines, "train/loss"), curve(lines, "val/loss")
    with figure(WIDTH, 360) as (drawing, [axes]):
        axes.plot(*_columns(thinned(training)), _line(training), color=SERIES[0], linewidth=1.3, markersize=4)
        small = len(validation) < 60
        axes.plot(*_columns(thinned(validation)), "o-" if small else "-", color=SERIES[1], markersize=4)
        best = [point for point in validation if point[0] == best_step]
        if best:
            axes.plot(*_columns(best), "o", color="none", markeredgecolor=INK, markersize=11, markeredgewidth=1.3)
        _mark(axes, resumes)
        _leave_out_the_beginning(axes, [training, validation])
        axes.set_xlabel("steps")
        axes.xaxis.set_major_formatter(lambda value, _: tick(value))
        if tokens_per_step:
            there, back = _times(tokens_per_step), _times(1 / tokens_per_step)
            above = axes.secondary_xaxis("top", functions=(there, back))
            above.set_xlabel("tokens")
            above.xaxis.set_major_formatter(lambda value, _: tick(value))
            above.spines["top"].set_visible(False)
        axes.set_ylabel("loss (nats per token)")
        return to_svg(drawing, "Training and validation loss against steps and tokens")


def _line(points: Sequence[Any]) -> str:
    """Return how matplotlib shall draw a curve: one point alone has no line to be seen by."""
    return "-" if len(points) > 1 else "o"


def rates(lines: Sequence[dict[str, Any]], resumes: Sequence[int]) -> str:
    """Draw learning rate, gradient norm and speed against steps."""
    panels: tuple[tuple[str, str, Callable[[Iterable[float]], float]], ...] = (
        ("lr", "learning rate", statistics.fmean),
        ("grad_norm", "gradient norm", max),
        ("tokens_per_second", "tokens per second", statistics.fmean),
    )
    with figure(WIDTH, 230, len(panels)) as (drawing, all_axes):
        for axes, (name, title, combine) in zip(all_axes, panels, strict=True):
            values = curve(lines, name)
            axes.plot(*_columns(thinned(values, combine)), _line(values), color=INK, linewidth=1.3, markersize=4)
            _mark(axes, resumes)
            axes.set_title(title)
            axes.set_xlabel("steps")
            axes.locator_params(axis="x", nbins=4)
            axes.xaxis.set_major_formatter(lambda value, _: tick(value))
            if name == "tokens_per_second":
                axes.yaxis.set_major_formatter(lambda value, _: tick(value))
            if name != "grad_norm":
                axes.set_ylim(bottom=0)
            else:
                _leave_out_the_beginning(axes, [values])
        return to_svg(drawing, "Learning rate, gradient norm and speed against steps")


def probe_curves(lines: Sequence[dict[str, Any]], resumes: Sequence[int]) -> list[dict[str, Any]]:
    """Draw what probes saw, a picture for each quantity and a line for each layer, head or round.

    Returns:
        For each quantity its "title", "svg", "width", and the "lines": name, colour, and whether it is dashed.
    """
    names = dict.fromkeys(name for line in lines for name in line if name.startswith("probe/"))
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        quantity, place = _quantity_and_place(name)
        groups.setdefault(quantity, {})[place] = name
    pictures = []
    for quantity, places in groups.items():
        with figure(400, 230) as (drawing, [axes]):
            styles = _styles(list(places))
            for place, (colour, dashed) in styles.items():
                values = thinned(curve(lines, places[place]))
                style = f"{'o' if len(values) < 40 else ''}{'--' if dashed else '-'}"
                axes.plot(*_columns(values), style, color=colour, linewidth=1.3, markersize=3)
            _mark(axes, resumes)
            axes.set_xlabel("steps")
            axes.xaxis.set_major_formatter(lambda value, _: tick(value))
            svg = to_svg(drawing, f"{quantity} against steps")
        legend = [(place, *style) for place, style in styles.items()]
        pictures.append({"title": quantity, "svg": svg, "width": 400, "lines": legend})
    return pictures


def curve(lines: Sequence[dict[str, Any]], name: str) -> Points:
    """Return the finite values of a metric by step."""
    values = ((line["step"], line.get(name)) for line in lines)
    return [(step, value) for step, value in values if isinstance(value, int | float) and math.isfinite(value)]


def thinned(points: Points, combine: Callable[[Iterable[float]], float] = statistics.fmean) -> Points:
    """Return at most `LARGEST_CURVE` points: each the last step of a group of neighbours and their `combine`."""
    size = math.ceil(len(points) / LARGEST_CURVE)
    if size <= 1:
        return points
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(group[-1][0], combine([value for _, value in group])) for group in groups]


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda values: values * factor


def _quantity_and_place(name: str) -> tuple[str, str]:
    """Split `probe/3/round_1/score_max` into `score max` and `layer 3 round 1`: what has a number is the place."""
    parts = [part.replace("_", " ") for part in name.removeprefix("probe/").split("/")]
    places = [part for part in parts if any(character.isdecimal() for character in part)]
    quantity = " ".join(part for part in parts if part not in places) or " ".join(parts)
    named = [f"layer {place}" if place.isdecimal() else place for place in places]
    return quantity, " ".join(named) or WHOLE


def _styles(places: list[str]) -> dict[str, tuple[str, bool]]:
    """Return a colour and whether the line is dashed, as every second round of the colours is."""
    parts = [place for place in places if place != WHOLE]
    styles = {place: (SERIES[index % NUM_SERIES], index // NUM_SERIES % 2 == 1) for index, place in enumerate(parts)}
    return styles | ({WHOLE: (INK, False)} if WHOLE in places else {})


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _mark(axes: Axes, resumes: Sequence[int]) -> None:
    for step in resumes:
        axes.axvline(step, color=FAINT, linewidth=1, linestyle=":")


def _leave_out_the_beginning(axes: Axes, curves: list[Points]) -> None:
    """Let the axis hold what came after the first tenth of the run, where there is enough of it."""
    end = max((points[-1][0] for points in curves if points), default=0)
    late = [value for points in curves for step, value in points if step > end / 10]
    if len(late) >= 10:
        margin = 0.06 * (max(late) - min(late)) or 0.1
        axes.set_ylim(min(late) - margin, max(late) + margin)
