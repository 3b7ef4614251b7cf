"""Runs that are trained several at a time: the same results, and the same going on after every kind of end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_study import recipe_table, without_times, write_corpus

from heedful.study import load_result, run_comparison
from heedful.study.recipe_file import recipe_from_mapping

# The same sums in the same order, whoever computes them.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LONG = ("--train.steps", "100000", "--train.evaluate_every", "50000", "--train.checkpoint_every", "2")


def compare(folder: Path, recipe: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "heedful", "compare", str(recipe), "--folder", str(folder), *options]
    return subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def comparable(folder: Path) -> Any:
    """Return the result without times and without what says how the runs were spread."""
    result = without_times(load_result(folder))
    for holder in (result, *result["runs"]):
        holder.pop("runs_at_once")
    return result


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two arms and two learning rates, its text prepared."""
    folder = tmp_path_factory.mktemp("recipe")
    write_corpus(folder)
    path = folder / "recipe.json"
    arms = [{"name": "standard"}, {"name": "boosted", "attention": "boosted"}]
    table = recipe_table(folder, arms=arms, learning_rates=[1e-2, 2e-2])
    path.write_text(json.dumps({"recipe": table}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def two_at_a_time(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison of two workers."""
    folder = tmp_path_factory.mktemp("two") / "study"
    process = compare(folder, recipe, "--workers", "2")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "tokens / s" not in output
    return folder


def test_two_at_a_time_give_what_one_after_the_other_gives(recipe: Path, two_at_a_time: Path, tmp_path: Path) -> None:
    process = compare(tmp_path / "one", recipe)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "tokens / s" in output
    assert comparable(two_at_a_time) == comparable(tmp_path / "one")


def test_runs_that_shared_the_machine_have_no_speeds(two_at_a_time: Path) -> None:
    result = load_result(two_at_a_time)
    assert {run["runs_at_once"] for run in result["runs"]} == {2}
    assert all(arm["tokens_per_second"] is None for arm in result["arms"])
    assert "Two runs at a time shared the machine" in (two_at_a_time / "report.html").read_text(encoding="utf-8")


def test_finished_runs_are_not_repeated_by_workers(recipe: Path, two_at_a_time: Path) -> None:
    expected = comparable(two_at_a_time)
    for file in ("result.json", "runs/boosted/lr-0.01/seed-1/record.json"):
        (two_at_a_time / file).unlink()
    before = {path: path.stat().st_mtime_ns for path in two_at_a_time.glob("runs/*/*/*/record.json")}
    process = compare(two_at_a_time, recipe, "--workers", "2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert comparable(two_at_a_time)["arms"] == expected["arms"]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_comparison_ended_from_outside_keeps_its_checkpoints_and_leaves_no_worker(
    recipe: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    folder = tmp_path / "study"
    process = compare(folder, recipe, "--workers", "2", *LONG)
    wait_for(lambda: len(list(folder.glob("runs/*/*/*/checkpoints/last.json"))) >= 2, process)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(ending)
    process.communicate(timeout=120)
    assert process.returncode == (130 if ending == signal.SIGINT else -ending)
    wait_for(lambda: not any(alive(worker) for worker in workers))
    assert not list(folder.glob("runs/*/*/*/record.json"))
    assert len(list(folder.glob("runs/*/*/*/checkpoints/last.json"))) == 2


def test_minutes_end_a_comparison_as_an_interruption_does(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    process = compare(folder, recipe, "--minutes", "0.1", *LONG)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert list(folder.glob("runs/*/*/*/checkpoints/last.json"))


def test_a_killed_worker_is_said(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    process = compare(folder, recipe, "--workers", "2", *LONG)
    wait_for(lambda: len(list(folder.glob("runs/*/*/*/checkpoints/last.json"))) >= 2, process)
    workers = [pid for pid in children(process.pid) if "spawn_main" in command_line(pid)]
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "a worker process ended before its run did" in errors
    wait_for(lambda: not any(alive(worker) for worker in workers))


def test_no_workers_is_refused(recipe: Path, tmp_path: Path) -> None:
    table = json.loads(recipe.read_text(encoding="utf-8"))["recipe"]
    with pytest.raises(ValueError, match="workers must be at least 1"):
        run_comparison(recipe_from_mapping(table), tmp_path / "study", workers=0)
    assert not (tmp_path / "study").exists()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 120) -> None:
    """Wait until `condition()`; fail when `process` ends before that."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
