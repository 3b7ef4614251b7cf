"""`report.html`: one self-contained page that says which arm is better, by how much, how surely and at what cost.

The page is made from the result alone, so `heedful.study` can draw it again from `result.json` at any time. It loads
nothing: styles and figures are inside it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from heedful.study import plots
from heedful.study.attention_plots import attention_pictures, example_picture
from heedful.study.facts import limits, provenance, sample_note, seeds_in_words, setting, sweep_rule
from heedful.study.gate_plots import gate_pictures
from heedful.study.headline import headline
from heedful.study.heat_maps import heat_map_figures
from heedful.study.look_plots import look_pictures
from heedful.study.mechanism_plots import mechanism_pictures
from heedful.study.svg import VARIABLES
from heedful.study.table import columns, rows
from heedful.study.tolerance import tolerances
from heedful.study.tolerance_plot import tolerance_caption, tolerance_figure
from heedful.study.wording import (
    NONE,
    count,
    metric_difference,
    metric_facts,
    metric_value,
    number_of,
    p_value,
    rate,
)

TEMPLATES = Path(__file__).parent / "templates"


def render_report(result: dict[str, Any]) -> str:
    """Return the whole page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    controls = [item for item in result["comparisons"] if item["kind"] == "control"]
    return environment.get_template("report.html.j2").render(
        title=result["title"] or result["name"],
        result=result,
        headline=headline(result),
        columns=columns(result),
        difference_column=len(result["metrics"]),
        rows=rows(result),
        table_notes=_table_notes(result),
        swatches={name: f"var({VARIABLES[colour]})" for name, colour in plots.arm_colours(result).items()},
        dashed={arm["name"]: bool(arm["match"]) for arm in result["arms"]},
        figures=_figures(result),
        mechanisms=_mechanisms(result),
        first_seed=f"seed {result['recipe']['seeds'][0]}",
        samples=[{"arm": arm["name"], **arm["sample"]} for arm in result["arms"] if arm["sample"]],
        sample_note=sample_note(result),
        setting=setting(result),
        arm_details=[_arm_details(arm) for arm in result["arms"]],
        run_columns=["arm", "seed", "learning rate", "steps", "best step", "best validation loss"]
        + [metric_facts(key)["name"] for key in result["metrics"]]
        + ["tokens / s", "minutes", "remarks"],
        run_rows=[_run_row(run, result) for run in result["runs"]],
        controls=[_control_row(item) for item in controls],
        provenance=provenance(result),
        recipe_text=json.dumps(result["recipe"], indent=2, ensure_ascii=False),
        limits=limits(result),
        footer=f"Written {result['written']} by heedful {result['heedful']}. The same numbers are in result.json.",
    )


def _figures(result: dict[str, Any]) -> list[dict[str, Any]]:
    metric = result["metrics"][0]
    name, baseline = metric_facts(metric)["name"], result["baseline"]
    everyone = [arm["name"] for arm in result["arms"]]
    figures = []
    if any(item["mean"] is not None and item["kind"] == "baseline" for item in result["comparisons"]):
        tested = any(item["low"] is not None for item in result["comparisons"])
        bars = (
            "the bars are 95 % intervals (Student's t on the paired differences)"
            if tested
            else "there are no intervals"
        )
        figures.append(
            {
                "title": f"Difference to {baseline}",
                "svg": plots.differences(result, metric),
                "caption": f"Diamonds are means over seeds, light dots single seeds, {bars}.",
                "legend": [],
            }
        )
        figures.append(
            {
                "title": "Quality against cost",
                "svg": plots.quality_against_cost(result, metric),
                "caption": f"Lower left is better: {name} (mean, one standard deviation over seeds) against what the "
                "arm costs. Squares are controls.",
                "legend": everyone,
            }
        )
    figures.append(
        {
            "title": "Validation during training",
            "svg": plots.validation_curves(result),
            "caption": "Means over seeds; light lines are single seeds. The axes leave out the first tenth of the "
            "steps. Below zero on the right is better than the baseline at the same step.",
            "legend": everyone,
        }
    )
    swept = [arm["name"] for arm in result["arms"] if len(arm["sweep"]) > 1]
    curves = list(tolerances(result))
    edges = [arm["learning_rate_note"] for arm in result["arms"] if arm["learning_rate_note"]]
    if len(curves) < len(swept):
        figures.append(
            {
                "title": "Learning rates",
                "svg": plots.learning_rate_sweep(result),
                "caption": f"Learning rates were chosen {sweep_rule(result['recipe'])}; the one with the lowest "
                f"validation loss (ringed) was then used for every seed. {' '.join(edges)}",
                "legend": swept,
            }
        )
    tolerance = tolerance_figure(result)
    if tolerance is not None:
        figures.append(
            {
                "title": "Validation loss against learning rate",
                "svg": tolerance,
                "caption": f"{tolerance_caption(result)} {' '.join(edges)}".strip(),
                "legend": curves,
            }
        )
    return figures + heat_map_figures(result)


def _mechanisms(result: dict[str, Any]) -> list[dict[str, Any]]:
    mechanisms = []
    for arm in result["arms"]:
        name, layers, attention = arm["name"], arm["diagnostics"], arm.get("attention_maps")
        pictures = [
            *(mechanism_pictures(name, layers) if layers else []),
            *gate_pictures(name, layers),
            *look_pictures(name, attention),
            *example_picture(name, attention),
        ]
        maps = attention_pictures(name, attention)
        for picture in pictures + maps:
            box = re.search(r'viewBox="0 0 ([\d.]+)', picture["svg"])
            picture["width"] = box.group(1) if box else "420"
        if pictures or maps:
            mechanisms.append({"arm": name, "pictures": pictures, "maps": maps})
    return mechanisms


def _table_notes(result: dict[str, Any]) -> list[str]:
    seeds = seeds_in_words(result["recipe"])
    metric = metric_facts(result["metrics"][0])
    notes = [
        f"Means over {seeds} ± the sample standard deviation (n - 1). Differences are paired by seed: every arm sees "
        "the same batches in the same order under the same seed. In the difference column green is better and red is "
        "worse, where the corrected p-value is below 0.05."
    ]
    if result["tests"]:
        notes.append(
            f"p: two-sided paired t-test on {metric['name']}. Below it the same p-value after Holm's correction for "
            f"{number_of(result['tests'], 'test')}, all of this report (arms against the baseline and against their "
            "controls). Intervals are not corrected."
        )
    if any(arm["error_interval"] for arm in result["arms"]):
        notes.append(
            "The Wilson interval pools the seeds: it covers the choice of test samples, not the spread between seeds."
        )
    notes.append(
        "Multiply-adds: forward pass, whole context, output layer included. KV cache: what one more token adds to the "
        "decoding state of all layers in float32. Peak memory: weights, optimiser state and one training step. "
        "Small numbers: ratio to the baseline."
    )
    return notes


def _arm_details(arm: dict[str, Any]) -> dict[str, Any]:
    shape = arm["shape"]
    return {
        "name": arm["name"],
        "cells": [
            arm["attention_label"],
            shape["hidden_size"],
            shape["num_layers"],
            shape["intermediate_size"],
            f"{arm['parameters']:,}",
            f"{arm['parameters_without_embeddings']:,}",
            f"{arm['steps']:,}",
            count(arm["training_multiply_adds"]),
            NONE if arm["learning_rate"] is None else rate(arm["learning_rate"]),
            "; ".join(arm["notes"]),
        ],
    }


def _run_row(run: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    test = run["test"] or {}
    remark = run["message"] or ("" if run["chosen"] else "learning-rate sweep only, not tested")
    loss = run["best"].get("val/loss") if run["best"] else None
    return {
        "arm": run["arm"],
        "status": run["status"],
        "cells": [
            run["seed"],
            rate(run["learning_rate"]),
            run["steps"],
            NONE if run["best_step"] is None else run["best_step"],
            NONE if loss is None else f"{loss:.4f}",
            *(metric_value(key, test.get(key)) for key in result["metrics"]),
            count(run["tokens_per_second"]),
            NONE if run["seconds"] is None else f"{run['seconds'] / 60:.1f}",
            remark,
        ],
    }


def _control_row(item: dict[str, Any]) -> dict[str, Any]:
    metric = item["metric"]
    low, high = (metric_difference(metric, item[key]) for key in ("low", "high"))
    return {
        "arm": item["arm"],
        "cells": [
            item["reference"],
            metric_facts(metric)["name"],
            metric_difference(metric, item["mean"]),
            NONE if item["low"] is None else f"{low} to {high}",
            item["note"] or p_value(item["p_value"]),
            p_value(item["p_holm"]),
        ],
    }
