"""The learning-rate tolerance on docs/results/nonlinear-query.md: table, sentences and figure, from one result file.

A second table has the rates that the larger study of language models tried, for the arms that both have.
"""

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
LARGER = "language-models-one-epoch"
LARGER_ARMS = ("standard", NEW, "nonlinear-query-linear-control", "identity-query")


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


def sweep_part(folder: Path = RESULTS) -> str:
    """Return the generated part: validation losses of the larger study at every rate it tried."""
    result = load(LARGER, folder)
    if result is None:
        return missing(LARGER) + "\n"
    arms = [arm for arm in result["arms"] if arm["name"] in LARGER_ARMS]
    rates = sorted({item["learning_rate"] for arm in arms for item in arm["sweep"]})
    rows = []
    for arm in arms:
        losses = {item["learning_rate"]: item["validation_loss"] for item in arm["sweep"]}
        best = min(loss for loss in losses.values() if loss is not None)
        cells = [_beyond(losses.get(value), best) for value in rates]
        rows.append([arm["name"], f"{arm['parameters']:,}", *cells])
    headers = ["arm", "parameters", *(f"at rate {rate(value)}" for value in rates)]
    words = (
        "Validation losses in nats of the first seed, one run at each rate; in brackets how far above the arm's best."
    )
    return "\n".join([table(headers, rows, numbers=len(headers) - 1), words, "", provenance(LARGER, result), ""])


def _beyond(loss: float | None, best: float) -> str:
    if loss is None:
        return "diverged"
    return f"{loss:.3f}" if loss == best else f"{loss:.3f} ({signed(loss - best, 3)})"


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
