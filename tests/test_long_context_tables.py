"""The tables and figures of docs/long-context.md, from results made up for the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts.long_context_tables import long_babi_table, needles_table, stale_heat_maps

from heedful.tasks.intervals import wilson_interval


def result(task: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the tables read of a result of one arm that ran and one that diverged."""
    return {
        "name": f"{task}-small",
        "arms": [{"name": "standard"}, {"name": "broken"}],
        "runs": [
            {"arm": "standard", "test": {"cells": cells}},
            {"arm": "standard", "test": {"cells": [{**cell, "right": cell["right"] + 2} for cell in cells]}},
            {"arm": "broken", "test": None},
        ],
        "recipe": {"seeds": [1, 2], "train": {"steps": 1200}},
        "data": {"task": task, "facts": [["text between", "a book"], ["chance", "low"]]},
        "commit": {"commit": "0123456789abcdef", "dirty": True},
        "command": "heedful compare it",
        "machines": ["a machine"],
        "environment": {"threads": 1},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    needles = [
        {"needles": n, "length": 64, "depth": depth, "samples": 10, "right": right}
        for n, depth, right in ((2, 0.0, 1), (2, 1.0, 3), (4, 0.0, 0), (4, 1.0, 8))
    ]
    babi = [
        {"task": 3, "distraction": amount, "samples": 10, "right": right, "chance": 16.66, "most_frequent": 21.5}
        for amount, right in ((0, 5), (50, 2))
    ]
    for name, cells in (("needles", needles), ("long-babi", babi)):
        (tmp_path / f"{name}-small.json").write_text(json.dumps(result(name, cells)), encoding="utf-8")
    return tmp_path


def shown(right: int, samples: int) -> str:
    """Write what two seeds together found, with the interval for as many samples as one has."""
    low, high = wilson_interval(right // 2, samples // 2)
    return f"{100 * right / samples:.1f}<br>{100 * low:.1f} to {100 * high:.1f}"


def test_needles_are_summed_over_depths_and_seeds(folder: Path) -> None:
    lines = needles_table(folder).splitlines()
    assert lines[0] == "| arm | 2 needles, 64 tokens | 4 needles, 64 tokens |"
    assert lines[2] == "| chance: any one of the needles | 50.0 | 25.0 |"
    assert lines[3] == "| chance: always the last needle | 50.0 | 50.0 |"
    assert lines[4] == f"| standard | {shown(1 + 3 + 3 + 5, 40)} | {shown(0 + 8 + 2 + 10, 40)} |"
    assert lines[5] == "| broken | diverged | diverged |"
    about = "\n".join(lines[6:])
    assert "1,200 steps" in about
    assert "in the text of a book" in about
    assert "commit 0123456789, with changes that were not committed" in about


def test_long_babi_stands_beside_both_chances(folder: Path) -> None:
    lines = long_babi_table(folder).splitlines()
    assert lines[0] == "| arm | task 3, 0 between | task 3, 50 between |"
    assert lines[2:4] == [
        "| chance: one of the answers | 16.7 | 16.7 |",
        "| chance: the most frequent answer | 21.5 | 21.5 |",
    ]
    assert lines[4] == f"| standard | {shown(12, 20)} | {shown(6, 20)} |"


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    assert "there is no `results/needles-small.json`" in needles_table(tmp_path)
    assert "`heedful compare recipes/long-babi-small.toml`" in long_babi_table(tmp_path)
    assert stale_heat_maps(tmp_path) == {}


def test_figures_stand_by_themselves_and_are_drawn_once(folder: Path, tmp_path: Path) -> None:
    files = stale_heat_maps(folder, tmp_path)
    assert [path.name for path in files] == ["needles-small-standard.svg", "long-babi-small-standard.svg"]
    for path, text in files.items():
        assert 'xmlns="http://www.w3.org/2000/svg"' in text
        path.write_text(text, encoding="utf-8")
    assert all(f">{value}</text>" in text for text, value in zip(files.values(), (20, 60), strict=True))
    assert stale_heat_maps(folder, tmp_path) == {}
    assert "figures/needles-small-standard.svg" in needles_table(folder)
