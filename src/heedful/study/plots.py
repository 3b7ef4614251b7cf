"""The figures every comparison has: differences with intervals, cost against quality, curves, learning rates.

Each function takes the result (see `heedful.study.results`) and returns one inline SVG. An arm has one colour in all of
them, the baseline is in the colour of the text, and a control is dashed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from heedful.study.statistics import summarise
from heedful.study.svg import FAINT, INK, NUM_SERIES, SERIES, SURFACE, figure, to_svg
from heedful.study.wording import metric_facts, tick

WIDTH = 860


def arm_colours(result: dict[str, Any]) -> dict[str, str]:
    """Return the placeholder colour of each arm: the baseline in ink, the others by their order."""
    others = [arm["name"] for arm in result["arms"] if arm["name"] != result["baseline"]]
    return {result["baseline"]: INK, **{name: SERIES[index % NUM_SERIES] for index, name in enumerate(others)}}


def arm_dashes(result: dict[str, Any]) -> dict[str, str]:
    """Return the line style of each arm: controls are dashed."""
    return {arm["name"]: "--" if arm["match"] else "-" for arm in result["arms"]}


def differences(result: dict[str, Any], metric: str) -> str:
    """Draw each arm's mean difference to the baseline, its 95 % interval and the single seeds."""
    colours = arm_colours(result)
    values = by_seed(result, metric)
    rows = [
        item
        for item in result["comparisons"]
        if item["kind"] == "baseline" and item["metric"] == metric and item["mean"] is not None
    ]
    with figure(WIDTH, 78 + 38 * max(1, len(rows))) as (drawing, [axes]):
        axes.axvline(0, color=INK, linewidth=1.2)
        for row, item in enumerate(rows):
            arm, colour = item["arm"], colours[item["arm"]]
            baseline = values[result["baseline"]]
            single = [values[arm][seed] - baseline[seed] for seed in values[arm].keys() & baseline.keys()]
            axes.plot(
                single, [row + 0.24] * len(single), "o", color=colour, alpha=0.5, markersize=4.5, markeredgewidth=0
            )
            if item["low"] is not None:
                ends = [item["low"], item["high"]]
                axes.plot(ends, [row, row], color=colour, linewidth=2.4, solid_capstyle="butt")
                axes.plot(ends, [row, row], "|", color=colour, markersize=9, markeredgewidth=2)
            axes.plot(item["mean"], row, "D", color=colour, markersize=7, markeredgecolor=SURFACE)
        axes.set_yticks(range(len(rows)), [item["arm"] for item in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        unit = (
            "percentage points" if metric_facts(metric)["unit"] else metric_facts(metric)["name"].removeprefix("test ")
        )
        axes.set_xlabel(f"difference to {result['baseline']} in {unit} (left of the line is better)")
        return to_svg(drawing, f"Differences in {metric_facts(metric)['name']} to {result['baseline']}")


def quality_against_cost(result: dict[str, Any], metric: str) -> str:
    """Draw the mean metric of each arm against its parameters and against its multiply-adds per token."""
    colours = arm_colours(result)
    arms = [arm for arm in result["arms"] if arm["metrics"][metric]["mean"] is not None]
    panels = (("parameters", "parameters"), ("multiply_adds_per_token", "multiply-adds per token"))
    with figure(WIDTH, 300, len(panels)) as (drawing, all_axes):
        for axes, (key, label) in zip(all_axes, panels, strict=True):
            for arm in arms:
                mean = arm["metrics"][metric]["mean"]
                spread = arm["metrics"][metric]["std"]
                marker = "s" if arm["match"] else "o"
                axes.errorbar(
                    arm[key], mean, yerr=spread, fmt=marker, color=colours[arm["name"]], capsize=3, markersize=7
                )
            axes.xaxis.set_major_formatter(lambda value, _: tick(value))
            axes.locator_params(axis="x", nbins=5)
            axes.margins(x=0.12)
            axes.set_xlabel(label)
        all_axes[0].set_ylabel(f"{metric_facts(metric)['name']}{metric_facts(metric)['unit'] and ' (%)'}")
        return to_svg(drawing, f"{metric_facts(metric)['name']} against parameters and multiply-adds per token")


def validation_curves(result: dict[str, Any]) -> str:
    """Draw the validation curve of each arm (mean, single seeds light), and its distance to the baseline's mean."""
    key = result["curve"]["key"]
    curves = {arm["name"]: _curves(result, arm["name"], key) for arm in result["arms"]}
    means = {name: _mean_curve(lines) for name, lines in curves.items()}
    reference = dict(means[result["baseline"]])
    colours, dashes = arm_colours(result), arm_dashes(result)
    with figure(WIDTH, 320, 2) as (drawing, [left, right]):
        for name, lines in curves.items():
            for line in lines:
                left.plot(*_points(line), color=colours[name], alpha=0.22, linewidth=0.9)
            left.plot(*_points(means[name]), dashes[name], color=colours[name])
            distance = [(step, value - reference[step]) for step, value in means[name] if step in reference]
            right.plot(*_points(distance), dashes[name], color=colours[name])
        late = _after_the_start(means)
        for axes, values in ((left, [value for line in late.values() for _, value in line]), (right, None)):
            axes.set_xlabel("steps")
            if values:
                margin = 0.06 * (max(values) - min(values)) or 0.1
                axes.set_ylim(min(values) - margin, max(values) + margin)
        gaps = [value - reference[step] for line in late.values() for step, value in line if step in reference]
        if gaps:
            margin = 0.1 * (max(gaps) - min(gaps)) or 0.01
            right.set_ylim(min(gaps) - margin, max(gaps) + margin)
        left.set_title(result["curve"]["label"])
        right.set_title(f"the same, minus {result['baseline']}")
        return to_svg(drawing, f"{result['curve']['label']} against steps")


def learning_rate_sweep(result: dict[str, Any]) -> str:
    """Draw the best validation loss of each learning rate of the arms that tried several; the chosen one is ringed."""
    colours, dashes = arm_colours(result), arm_dashes(result)
    with figure(WIDTH, 280) as (drawing, [axes]):
        for arm in result["arms"]:
            tried = [item for item in arm["sweep"] if item["validation_loss"] is not None]
            if len(arm["sweep"]) < 2 or not tried:
                continue
            rates, losses = [item["learning_rate"] for item in tried], [item["validation_loss"] for item in tried]
            axes.plot(rates, losses, dashes[arm["name"]], marker="o", markersize=4, color=colours[arm["name"]])
            chosen = next((item for item in tried if item["learning_rate"] == arm["learning_rate"]), None)
            if chosen:
                axes.plot(
                    chosen["learning_rate"],
                    chosen["validation_loss"],
                    "o",
                    markersize=10,
                    markerfacecolor="none",
                    markeredgecolor=colours[arm["name"]],
                    markeredgewidth=2,
                )
        axes.set_xscale("log")
        rates = sorted({item["learning_rate"] for arm in result["arms"] for item in arm["sweep"]})
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.set_xlabel("learning rate")
        axes.set_ylabel("best validation loss", color=FAINT)
        return to_svg(drawing, "Best validation loss against the learning rate")


def by_seed(result: dict[str, Any], metric: str) -> dict[str, dict[int, float]]:
    """Return the test metric by arm and seed, at the learning rate each arm chose."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for run in result["runs"]:
        if run["test"] is not None:
            values[run["arm"]][run["seed"]] = run["test"][metric]
    return values


def _curves(result: dict[str, Any], arm: str, key: str) -> list[list[tuple[int, float]]]:
    return [
        [(point["step"], point[key]) for point in run["curve"] if key in point]
        for run in result["runs"]
        if run["arm"] == arm and run["chosen"] and run["status"] == "finished"
    ]


def _mean_curve(lines: list[list[tuple[int, float]]]) -> list[tuple[int, float]]:
    at: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        for step, value in line:
            at[step].append(value)
    return [(step, summarise(at[step]).mean or 0.0) for step in sorted(at) if len(at[step]) == len(lines)]


def _after_the_start(curves: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """Leave out the first tenth of the steps, whose steep fall would flatten everything after it."""
    last = max((line[-1][0] for line in curves.values() if line), default=0)
    return {name: [point for point in line if point[0] > last / 10] for name, line in curves.items()}


def _points(line: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in line], [value for _, value in line]
