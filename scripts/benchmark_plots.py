"""The figures of docs/benchmarks.md: time and memory against sequence length, drawn from results/benchmarks.

A figure names, in a comment at its end, the data and the code it was drawn from; that, not its bytes, says whether it
is up to date, since another release of matplotlib draws the same curve with other digits.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

PANELS = {"forward": "forward, ms", "training": "forward + backward, ms", "memory": "peak memory, MiB"}
CASES = {"pre convolution": "--", "all four": "-"}
COLOURS = {"sdpa": "#444444", "blockwise": "#1a6fb5", "triton": "#1b8a5a", "materialised": "#c2452d"}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "heedful benchmarks",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "figure.facecolor": "white",
}


def figure_name(result_file: Path) -> str:
    """Return the name of the figure of a result file."""
    return f"{result_file.stem}.svg"


def mark_of(result: dict[str, Any]) -> str:
    """Return the comment that says what a figure was drawn from."""
    code = Path(__file__).read_bytes()
    data = json.dumps(result["rows"], sort_keys=True).encode()
    return f"<!-- drawn from {hashlib.sha256(code + data).hexdigest()[:16]} -->"


def curves(result: dict[str, Any], kind: str) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Return the points of each case and implementation; SDPA, the same in all cases, once."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in result["rows"]:
        name, case = row["implementation"], row["case"]
        if row["kind"] != kind or "not_run" in row or name not in COLOURS or case not in CASES:
            continue
        if name == "sdpa" and case != next(iter(CASES)):
            continue
        value = row["bytes"] / 2**20 if kind == "memory" else 1000 * row["seconds"]
        found.setdefault((case, name), []).append((row["length"], value))
    return found


def multi_token_figure(result: dict[str, Any]) -> str:
    """Return the figure as a stand-alone SVG on white."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(11, 3.9), layout="constrained")
        lines = {}
        for axes, (kind, label) in zip(drawing.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            lengths = set()
            for (case, name), points in curves(result, kind).items():
                style = "-" if name == "sdpa" else CASES[case]
                xs, ys = zip(*sorted(points), strict=True)
                title = name if name == "sdpa" else f"{name}, {case}"
                lines[title] = axes.plot(xs, ys, style, marker="o", markersize=4, color=COLOURS[name])[0]
                lengths.update(xs)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sorted(lengths), [str(length) for length in sorted(lengths)])
            axes.set_xlabel("N")
            axes.set_title(label, loc="left", fontsize=10)
        if lines:
            drawing.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=4, frameon=False)
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return "\n".join(line.rstrip() for line in text.splitlines()) + f"\n{mark_of(result)}\n"
