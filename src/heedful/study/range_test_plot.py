"""The picture of a learning-rate range test, as PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from heedful.study.svg import FAINT, GRID, INK, STYLE

if TYPE_CHECKING:
    from heedful.train.range_test import RangeTestResult

# The light theme of the reports, in which a file on its own is drawn.
COLOURS = {INK: "#1c2127", FAINT: "#6c737c", GRID: "#e4e1da"}
LOSSES, SMOOTHED, SUGGESTED = "#9db8de", "#2f6fc4", "#d2641c"


def range_test_png(result: RangeTestResult, title: str) -> bytes:
    """Draw losses and smoothed loss against the rate on a logarithmic axis, with the suggestion, and return the file.

    The vertical axis ends a little above the first loss, so that an explosion does not flatten everything before it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {key: COLOURS.get(value, value) for key, value in STYLE.items()}
    with matplotlib.rc_context({**style, "figure.facecolor": "white"}):
        drawing = Figure(figsize=(8, 4.2), layout="constrained", dpi=150)
        axes = drawing.subplots()
        axes.plot(result.rates, result.losses, ".", color=LOSSES, markersize=5, label="each step")
        axes.plot(result.rates, result.smoothed, color=SMOOTHED, label="smoothed")
        if result.suggestion is not None:
            axes.axvline(
                result.suggestion, color=SUGGESTED, linestyle="--", label=f"suggested: {result.suggestion:.2g}"
            )
        axes.set_xscale("log")
        first = result.losses[0]
        low = min(result.losses)
        margin = 0.15 * (first - low) or 0.05 * abs(first) or 1.0
        axes.set_ylim(low - margin, first + 2 * margin)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        axes.set_title(title)
        axes.legend(frameon=False, loc="lower left")
        buffer = io.BytesIO()
        drawing.savefig(buffer, format="png")
    return buffer.getvalue()
