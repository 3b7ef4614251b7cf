"""The one table of a comparison, for page and terminal: quality, difference, certainty and cost of each arm."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heedful.study.headline import headline, verdict
from heedful.study.wording import (
    NONE,
    count,
    memory,
    metric_difference,
    metric_facts,
    metric_value,
    p_value,
    ratio,
    signed,
)

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number as text, and a smaller remark under it (an interval, a ratio to the baseline)."""

    text: str
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm: `verdict` colours its difference, `best` marks the lowest metric."""

    arm: str
    role: str
    verdict: str
    best: bool
    cells: tuple[Cell, ...]


def columns(result: dict[str, Any]) -> list[str]:
    """Return the column headers, without that of the arms."""
    metrics = [metric_facts(key)["name"] for key in result["metrics"]]
    return [
        *metrics,
        f"difference to {result['baseline']}",
        "p",
        "parameters",
        "multiply-adds / token",
        "KV cache / token",
        *(["tokens / s"] if _has_speeds(result) else []),
        "peak memory",
    ]


def _has_speeds(result: dict[str, Any]) -> bool:
    """Return whether the runs had the machine to themselves, so that their speeds say something."""
    return any(arm["tokens_per_second"] is not None for arm in result["arms"])


def rows(result: dict[str, Any]) -> list[Row]:
    """Return one row for each arm, in the order of the recipe."""
    metric = result["metrics"][0]
    arms = {arm["name"]: arm for arm in result["arms"]}
    baseline = arms[result["baseline"]]
    against = {
        item["arm"]: item for item in result["comparisons"] if item["kind"] == "baseline" and item["metric"] == metric
    }
    means = {name: arm["metrics"][metric]["mean"] for name, arm in arms.items()}
    lowest = min((mean for mean in means.values() if mean is not None), default=None)
    return [
        Row(
            arm=name,
            role=_role(arm, result),
            verdict=verdict(against[name]) if name in against else "baseline",
            best=lowest is not None and means[name] == lowest,
            cells=(
                *(_metric_cell(key, arm) for key in result["metrics"]),
                *_difference_cells(against.get(name), metric),
                _cost_cell("parameters", arm, baseline, count),
                _cost_cell("multiply_adds_per_token", arm, baseline, count),
                _cost_cell("cache_bytes_per_token", arm, baseline, memory),
                *([_cost_cell("tokens_per_second", arm, baseline, count)] if _has_speeds(result) else []),
                _cost_cell("peak_memory_bytes", arm, baseline, memory),
            ),
        )
        for name, arm in arms.items()
    ]


def _role(arm: dict[str, Any], result: dict[str, Any]) -> str:
    if arm["name"] == result["baseline"]:
        return "baseline"
    if arm["match"]:
        return f"control: {arm['match']['by']} of {arm['match']['arm']}"
    return arm["attention_label"] if arm["attention_label"] != arm["name"] else ""


def _metric_cell(key: str, arm: dict[str, Any]) -> Cell:
    summary = arm["metrics"][key]
    if summary["mean"] is None:
        return Cell(text="diverged")
    metric = metric_facts(key)
    remarks = []
    if summary["std"] is not None:
        remarks.append(f"± {summary['std']:.{metric['digits']}f}")
    wilson = arm["error_interval"]
    if key == "error" and wilson:
        remarks.append(f"Wilson {wilson['low']:.1f} to {wilson['high']:.1f} %")
    return Cell(text=metric_value(key, summary["mean"]), remark=" · ".join(remarks))


def _difference_cells(comparison: dict[str, Any] | None, metric: str) -> tuple[Cell, Cell]:
    if comparison is None or comparison["mean"] is None:
        return Cell(text=NONE), Cell(text=NONE)
    percent = "" if metric_facts(metric)["unit"] else f" ({signed(comparison['percent'], 1)} %)"
    text = metric_difference(metric, comparison["mean"]) + percent
    if comparison["p_value"] is None:
        return Cell(text=text, remark=""), Cell(text=NONE, remark=comparison["note"])
    low, high = (metric_difference(metric, comparison[key]) for key in ("low", "high"))
    interval = Cell(text=text, remark=f"{low} to {high}")
    return interval, Cell(text=p_value(comparison["p_value"]), remark=f"Holm {p_value(comparison['p_holm'])}")


def _cost_cell(key: str, arm: dict[str, Any], baseline: dict[str, Any], write: Any) -> Cell:
    remark = "" if arm is baseline or arm[key] is None else ratio(arm[key], baseline[key])
    return Cell(text=write(arm[key]), remark=remark)


def render_terminal(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the headline and the table: drawn by rich on a terminal, plain aligned lines anywhere else."""
    from rich.console import Console

    console = console or Console(file=sys.stdout)
    if not console.is_terminal:
        console.file.write(plain_text(result) + "\n")
        return
    from rich.table import Table

    drawn = Table(title=result["title"] or result["name"], title_justify="left", header_style="bold")
    drawn.add_column("arm")
    for header in columns(result):
        drawn.add_column(header, justify="right")
    styles = {"better": "green", "worse": "red"}
    for row in rows(result):
        cells = [f"{cell.text}\n[dim]{cell.remark}[/dim]" if cell.remark else cell.text for cell in row.cells]
        name = f"[bold]{row.arm}[/bold]" if row.best else row.arm
        drawn.add_row(name, *cells, style=styles.get(row.verdict, ""))
    console.print(drawn)
    for sentence in headline(result):
        console.print(sentence, highlight=False, markup=False)


def plain_text(result: dict[str, Any]) -> str:
    """Return headline and table as plain text with aligned columns."""
    lines = [["arm", *columns(result)]]
    for row in rows(result):
        cells = [f"{cell.text} [{cell.remark}]" if cell.remark else cell.text for cell in row.cells]
        lines.append([row.arm, *cells])
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    table = [
        "  ".join(text.ljust(width) if index == 0 else text.rjust(width) for index, (text, width) in enumerate(row))
        for row in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join([*headline(result), "", *table])
