"""The table of docs/faults.md, printed from the result of `benchmarks/fault_campaign.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.benchmark_tables import ROOT, Result, missing, table

FILE = ROOT / "results/fault-campaign-cpu.json"
EVENTS = ("times", "while_saving", "checkpoints_lost", "processes_left")
HEADERS = ("fault", "run", "outcome", "exit status", "of workers", *(name.replace("_", " ") for name in EVENTS))


def fault_table(file: Path = FILE) -> str:
    """Return one line for each fault and setting, and where they come from."""
    if not file.exists():
        return missing("fault_campaign").replace(" --device cpu", "")
    result: Result = json.loads(file.read_text(encoding="utf-8"))
    faults = list(dict.fromkeys(row["fault"] for row in result["rows"]))
    rows = sorted(result["rows"], key=lambda row: faults.index(row["fault"]))
    times, _, lost, left = (sum(row[name] for row in rows) for name in EVENTS)
    dirty = ", with changes that were not committed" if result["dirty"] else ""
    summary = (
        f"{result['kills']} kills, {result['kills_while_saving']} of them while a checkpoint was being written, and "
        f"{times - result['kills']} other faults: {lost} checkpoints lost, {left} processes left, "
        f"{len(result['violations'])} expectations violated."
    )
    origin = (
        f"`{result['command']}`, {result['machine']}, torch {result['environment']['packages']['torch']}, commit "
        f"{result['commit'][:10]}{dirty}; all figures in `results/{file.name}`."
    )
    return "\n".join([summary, "", table(HEADERS, map(_line, rows), 5), origin]) + "\n"


def _line(row: dict[str, Any]) -> list[str]:
    return [
        row["fault"],
        row["setting"],
        _counted(row["outcomes"]),
        _counted(row["statuses"]),
        ", ".join(row["worker_statuses"]),
        *(str(row[name]) for name in EVENTS),
    ]


def _counted(found: dict[str, int]) -> str:
    """List what happened, with how often where it was not always the same."""
    return "; ".join(name if len(found) == 1 else f"{name} ({times})" for name, times in found.items())
