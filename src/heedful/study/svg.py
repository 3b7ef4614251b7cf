"""Figures as inline SVG that follow the page: its fonts, its colours, its light and its dark theme.

matplotlib knows fixed colours only. Figures are therefore drawn in placeholder colours, which `to_svg` replaces by CSS
variables of the page; text stays text and takes the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, SURFACE = "#010203", "#010204", "#010205", "#010206"
POSITIVE, NEGATIVE = "#010207", "#010208"
NUM_SERIES = 10
SERIES = tuple(f"#0102{0x10 + index:02x}" for index in range(NUM_SERIES))
VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    GRID: "--grid",
    SURFACE: "--surface",
    POSITIVE: "--positive",
    NEGATIVE: "--negative",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@contextmanager
def figure(width: float, height: float, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure of `width` x `height` CSS pixels and its `columns` axes, drawn in the page's style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(width / 72, height / 72), layout="constrained")
        axes = drawing.subplots(1, columns, squeeze=False)
        yield drawing, list(axes[0])


def to_svg(drawing: Figure, label: str) -> str:
    """Return `drawing` as an `<svg>` element; `label` describes it to screen readers, and keeps its ids apart."""
    import matplotlib

    buffer = io.StringIO()
    # Without a date and with a salt of its own, the same figure is the same text, and two figures share no id.
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label}):
        drawing.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: (?:\w+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", text)  # one property in older releases
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r' d="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match.group(0)), text)
    text = re.sub(r"\s*\n\s*", " ", text)
    used = set(re.findall(r"#([\w-]+)[\"')]", text))
    text = re.sub(r' id="([^"]*)"', lambda match: match.group(0) if match.group(1) in used else "", text)
    text = re.sub(r"#0102[0-9a-f]{2}", lambda match: f"var({VARIABLES[match.group(0)]})", text)
    opening = text[: text.index(">") + 1]
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    name = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    body = text[len(opening) :].replace("xlink:href=", "href=")
    return f'<svg {box.group(0)} role="img" aria-label="{name}">{body}'.strip()
