"""The learning-rate tolerance of the arms as a picture: final validation loss against peak rate, and working ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heedful.study.plots import WIDTH, arm_colours, arm_dashes
from heedful.study.svg import FAINT, figure, to_svg
from heedful.study.tolerance import MARGIN, Tolerance, tolerances
from heedful.study.wording import rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Losses further above the lowest than so many times the median distance would flatten all others.
FAR = 6.0
# With more arms than this the bars of the ranges would take more room than the curves.
MOST_BARS = 8


def tolerance_figure(result: dict[str, Any], margin: float = MARGIN, *, legend: bool = False) -> str | None:
    """Draw the final validation loss against the peak learning rate, for every arm that tried at least three rates.

    One line an arm through the means over seeds, broken where a run diverged; dots are single seeds, crosses at the top
    edge runs that diverged, triangles there runs whose loss lies above the axis. The chosen rate is ringed. A bar below
    the curves spans the rates within `margin` nats of the arm's best, with an arrow where the grid ended before.

    Args:
        result: the content of a `result.json`.
        margin: nats above an arm's best loss.
        legend: name the arms inside the figure; the report does that beside it.

    Returns:
        The inline SVG; None where no arm has a curve.
    """
    found = tolerances(result, margin)
    losses = [loss for item in found.values() for point in item.points for loss in point.losses.values()]
    finite = [loss for loss in losses if loss is not None]
    if not finite:
        return None
    bars = len(found) <= MOST_BARS
    lowest, top = min(finite), _top(finite)
    room = (top - lowest) or 0.1
    colours, dashes = arm_colours(result), arm_dashes(result)
    chosen = {arm["name"]: arm["learning_rate"] for arm in result["arms"]}
    with figure(WIDTH, 300 + 14 * len(found) * bars + 28 * legend) as (drawing, [axes]):
        axes.set_xscale("log")
        floor = lowest - 0.06 * room
        for index, (name, item) in enumerate(found.items()):
            _draw_curve(axes, item, colours[name], dashes[name], top)
            _draw_edge_marks(axes, item, colours[name], top, 0.05 * room, sideways=_sideways(index, len(found)))
            _ring(axes, item, chosen[name], colours[name])
            if bars:
                floor -= 0.07 * room
                _draw_range(axes, item, floor, colours[name])
        rates = sorted({point.learning_rate for item in found.values() for point in item.points})
        axes.set_xticks(rates, [rate(value) for value in rates])
        axes.minorticks_off()
        axes.set_xlim(rates[0] / 1.5, rates[-1] * 1.5)
        axes.set_ylim(floor - 0.06 * room, top + 0.05 * room)
        if bars:
            axes.axhline(lowest - 0.08 * room, color=FAINT, linewidth=0.8)
            axes.set_yticks([tick for tick in axes.get_yticks() if lowest - 0.05 * room <= tick <= top + 0.05 * room])
        axes.set_xlabel("peak learning rate")
        axes.set_ylabel("final validation loss")
        if legend:
            lines = [axes.plot([], [], dashes[name], color=colours[name])[0] for name in found]
            drawing.legend(lines, list(found), loc="outside lower center", ncols=min(4, len(found)), frameon=False)
        return to_svg(drawing, "Final validation loss against the peak learning rate")


def tolerance_caption(result: dict[str, Any], margin: float = MARGIN) -> str:
    """Return what the figure shows, in words."""
    found = tolerances(result, margin)
    losses = [loss for item in found.values() for point in item.points for loss in point.losses.values()]
    finite = [loss for loss in losses if loss is not None]
    words = [
        "The loss after the last step, means over the seeds that every rate was tried with; dots are single seeds, the "
        "chosen rate is ringed."
    ]
    if None in losses:
        words.append("Crosses at the top: runs that diverged.")
    if finite and max(finite) > _top(finite):
        words.append("Triangles at the top: losses above the axis.")
    if len(found) <= MOST_BARS:
        words.append(f"Bars: the rates within {margin:g} nats of the arm's best; an arrow where the grid ended before.")
    return " ".join(words)


def _top(finite: list[float]) -> float:
    """Return where the axis ends: at the highest loss, unless that is far above what most runs reach."""
    lowest = min(finite)
    middle = sorted(finite)[len(finite) // 2] - lowest
    return max(loss for loss in finite if loss <= lowest + max(FAR * middle, MARGIN))


def _sideways(index: int, count: int) -> float:
    """Return a factor that keeps the marks of several arms at one rate apart."""
    return 1.06 ** (index - (count - 1) / 2)


def _draw_curve(axes: Axes, item: Tolerance, colour: str, dash: str, top: float) -> None:
    rates = [point.learning_rate for point in item.points]
    means = [float("nan") if point.mean is None else point.mean for point in item.points]
    axes.plot(rates, means, dash, color=colour)
    for point in item.points:
        losses = [loss for loss in point.losses.values() if loss is not None and loss <= top]
        rates = [point.learning_rate] * len(losses)
        axes.plot(rates, losses, "o", color=colour, alpha=0.55, markersize=4.5, markeredgewidth=0)


def _draw_edge_marks(axes: Axes, item: Tolerance, colour: str, top: float, apart: float, *, sideways: float) -> None:
    """Mark the runs that have no place on the axis, one below the other."""
    for point in item.points:
        outside = [loss for loss in point.losses.values() if loss is None or loss > top]
        for index, loss in enumerate(outside):
            marker = "x" if loss is None else "^"
            place, height = point.learning_rate * sideways, top - index * apart
            axes.plot(place, height, marker, color=colour, markersize=6.5, markeredgewidth=1.8, clip_on=False)


def _ring(axes: Axes, item: Tolerance, chosen: float | None, colour: str) -> None:
    mean = next((point.mean for point in item.points if point.learning_rate == chosen), None)
    if chosen is not None and mean is not None:
        axes.plot(
            [chosen], [mean], "o", markersize=11, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.8
        )


def _draw_range(axes: Axes, item: Tolerance, height: float, colour: str) -> None:
    if item.range is None:
        return
    found = item.range
    axes.plot([found.low, found.high], [height, height], color=colour, linewidth=4, solid_capstyle="butt")
    axes.plot([found.best_rate], [height], "|", color=colour, markersize=11, markeredgewidth=2)
    for is_open, place, marker in ((found.open_low, found.low, "<"), (found.open_high, found.high, ">")):
        if is_open:
            axes.plot([place], [height], marker, color=colour, markersize=8)
