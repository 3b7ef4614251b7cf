"""The learning-rate tolerance on docs/results/nonlinear-query.md: table, sentences and figure, from one result file."""

from __future__ import annotations

import json
from pathlib import Path

from heedful.study.tolerance import MARGIN, RateRange, Tolerance, tolerances
from heedful.study.tolerance_plot import tolerance_caption, tolerance_figure
from heedful.study.wording import NONE, rate, signed
from scripts.figures import STUDY, drawn_from, is_stale, stand_alone
from scripts.result_words import RESULTS, ROOT, load, missing, provenance, table

NAME = "learning-rate-tolerance-small"
FIGURE = ROOT / "docs/figures/learning-rate-tolerance.svg"
NEW = "nonlinear-query"


def tolerance_part(folder: Path = RESULTS) -> str:
    """Return the generated part: figure, table, what it says and where it comes from."""
    result = load(NAME, folder)
    if result is None:
        return missing(NAME) + "\n"
    found = tolerances(result)
    parameters = {arm["name"]: arm["parameters"] for arm in result["arms"]}
    rows = [_row(item, parameters[name]) for name, item in found.items()]
    headers = ["arm", "parameters", "best loss", "at rate", f"rates within {MARGIN:g} nats", "factor", "single seeds",
               "diverged"]  # fmt: skip
    return "\n".join(
        [
            f"![Final validation loss against the peak learning rate](../figures/{FIGURE.name})",
            "",
            tolerance_caption(result),
            "",
            table(headers, rows, numbers=7),
            " ".join(sentences(found)),
            "",
            provenance(NAME, result),
            "",
        ]
    )


def sentences(found: dict[str, Tolerance]) -> list[str]:
    """Say how wide the range of the nonlinear query is beside the others', and how its best compares with theirs."""
    mine = found[NEW].range
    if mine is None:
        return [f"{NEW} diverged at every rate."]
    said = [f"{NEW} works over {_factor(mine)} of learning rates."]
    for name, item in found.items():
        if name == NEW:
            continue
        if item.range is None:
            said.append(f"{name} diverged at every rate.")
            continue
        gap = mine.best_loss - item.range.best_loss
        said.append(
            f"{name} works over {_factor(item.range)}; at the best rate of each, {NEW} differs from it by "
            f"{signed(gap, 3)} nats."
        )
    seeds = min(len(point.losses) for item in found.values() for point in item.points)
    if seeds < 3:
        said.append(f"With {seeds} seeds at a rate none of these differences is tested.")
    return said


def _row(item: Tolerance, parameters: int) -> list[str]:
    if item.range is None:
        return [item.arm, f"{parameters:,}", "diverged", NONE, NONE, NONE, NONE, str(item.diverged)]
    found = item.range
    low = f"{'≤ ' if found.open_low else ''}{_short(found.low)}"
    high = f"{'≥ ' if found.open_high else ''}{_short(found.high)}"
    singles = ", ".join(_number(single) for single in item.seed_ranges.values())
    cells = [f"{found.best_loss:.3f}", rate(found.best_rate), f"{low} to {high}", _number(found), singles]
    return [item.arm, f"{parameters:,}", *cells, str(item.diverged)]


def _number(found: RateRange) -> str:
    return f"{'≥ ' if found.open_low or found.open_high else ''}{found.factor:.1f}"


def _factor(found: RateRange) -> str:
    return f"a factor of {'at least ' if found.open_low or found.open_high else ''}{found.factor:.1f}"


def _short(value: float) -> str:
    """Write a rate that was interpolated: two digits are more than it is worth."""
    return rate(float(f"{value:.2g}"))


def stale_tolerance_figure(folder: Path = RESULTS, path: Path = FIGURE) -> dict[Path, str]:
    """Return the figure if it was not drawn from the result and the code as they are, drawn anew."""
    result = load(NAME, folder)
    if result is None:
        return {}
    runs = [[run[key] for key in ("arm", "learning_rate", "seed", "status", "final")] for run in result["runs"]]
    mark = drawn_from(json.dumps(runs, sort_keys=True), STUDY / "tolerance.py", STUDY / "tolerance_plot.py")
    if not is_stale(path, mark):
        return {}
    svg = tolerance_figure(result, legend=True)
    return {} if svg is None else {path: stand_alone(svg) + mark}
