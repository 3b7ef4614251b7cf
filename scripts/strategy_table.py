"""The table of docs/parallel.md, printed from the result of `benchmarks/strategies.py`."""

from __future__ import annotations

from pathlib import Path

from scripts.benchmark_tables import RESULTS, missing, results_of, source, table

SERIES = {
    "train/loss": "training loss",
    "grad_norm": "gradient norm",
    "val/loss": "validation loss",
    "weights": "weights",
}


def strategy_table(folder: Path = RESULTS) -> str:
    """Return how far each strategy is from one process, for every arm that was measured."""
    parts = []
    for file, result in results_of("strategies", folder).items():
        parts.append(
            f"{source(file, result, 'all {} steps'.format(result['options']['steps']))} Largest relative differences; "
            "those of weights to the largest weight.\n"
        )
        lines = [
            [row["arm"], row["setting"], row["against"], *(_shown(row[name]) for name in SERIES)]
            for row in result["rows"]
        ]
        parts.append(table(["arm", "run", "compared with", *SERIES.values()], lines, 3))
    return "\n".join(parts) or missing("strategies").replace(" --device cpu", "")


def _shown(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
