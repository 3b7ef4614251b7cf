"""Where a run stands, read from its folder: running, finished, or why not; and the lock that keeps a folder to one run.

Nothing but the lock is written for it. The lock belongs to the process, so the system frees it however that ends, and a
run that was killed needs nobody to say so.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from heedful.train.metrics import read_metrics
from heedful.train.progress import seconds_per_step
from heedful.train.run_folder import read_json

LOCK = ".lock"
PATIENCE_SECONDS = 2.0
"""Whoever looks whether a run is going holds its lock for a moment; a run that starts waits that long."""

RECENT_LINES = 1000

State = Literal["not started", "running", "interrupted", "stopped", "diverged", "finished", "damaged"]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a run's folder says of the run; None where it says nothing.

    Attributes:
        folder: the run folder.
        state: "running" while a process trains in it; "interrupted" by a signal, with everything saved; "stopped" when
            the process was killed or failed; "diverged"; "finished"; "not started" when there is nothing yet;
            "damaged" when its files cannot be read, or are not those of a run.
        reason: what is damaged, or at which step it diverged.
        step: the last step that is known of.
        steps: how many there shall be.
        tokens: in the batches up to `step`, scored or not.
        train_loss: the newest.
        val_loss: the newest.
        best_loss: the lowest "val/loss".
        best_step: where that was.
        tokens_per_second: the newest; of the median step when the run is finished.
        seconds: wall time of all processes, up to the newest line of metrics.
        seconds_left: until the end of a running run, evaluations and checkpoints included.
        started: when its first process started, in ISO format.
        changed: when one of its files last changed, in ISO format.
        resumed: how often it went on from a checkpoint.
        command: of its last process.
        processes: how many trained it last.
        strategy: how it was spread over them.
    """

    folder: Path
    state: State
    reason: str = ""
    step: int = 0
    steps: int | None = None
    tokens: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    started: str | None = None
    changed: str | None = None
    resumed: int = 0
    command: str | None = None
    processes: int | None = None
    strategy: str | None = None


@contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Keep `folder`, which is made where it is missing, to this process; what was made is removed if it stays empty.

    The file systems of a cluster must share locks (`flock`) for this to hold between machines.

    Raises:
        ValueError: another process trains in it, or the folder cannot be made.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{folder} is a file, or lies in one; the folder of a run was expected.") from None
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        raise ValueError(
            f"another process is training in {folder}; wait for it, stop it, or use another folder."
        ) from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is held: nobody else can be about to get this one
        lock.release()
        for place in missing:
            try:
                place.rmdir()
            except OSError:  # there is something in it
                break


def is_locked(folder: str | Path) -> bool:
    """Return whether a process holds `locked_folder`; a lock that a killed process left is none."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _is_taken(Path(folder) / LOCK)
    try:
        handle = os.open(Path(folder) / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared, so that two who look do not take each other for the run, and a folder that one may only read is seen.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(handle)
    return False


def _is_taken(lock: Path) -> bool:
    from filelock import FileLock, Timeout

    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def run_state(folder: str | Path) -> RunState:
    """Return where the run in `folder` stands. Whatever is in the folder, this raises nothing."""
    folder = Path(folder)
    try:
        return _run_state(folder)
    except (ValueError, OSError) as error:
        reason = str(error)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"its files do not have the form of a run's ({type(error).__name__}: {error})."
    return RunState(folder=folder, state="damaged", reason=reason, changed=_changed(folder))


def find_runs(folder: str | Path) -> list[Path]:
    """Return the run folders in and below `folder`, those inside comparisons too, in the order of their names."""
    found = []
    for place, inside, files in os.walk(folder):
        if {"metrics.jsonl", "environment.json", LOCK} & {*files}:
            found.append(Path(place))
            inside.clear()
        inside[:] = sorted(name for name in inside if not name.startswith("."))
    return sorted(found)


def _run_state(folder: Path) -> RunState:
    running = is_locked(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    if not (folder / "config.json").exists():
        names = {path.name for path in folder.iterdir()} - {LOCK, "recipe.json", "tokenizer", "data.json"}
        if names:
            raise ValueError(f"{folder / 'config.json'} is missing; {sorted(names)[0]} alone makes no run.")
        return RunState(folder=folder, state="running" if running else "not started")
    config = read_json(folder / "config.json")
    lines = read_metrics(folder)
    result = _optional(folder / "result.json")
    first = _optional(folder / "environment.json") or {}
    later = first.get("resumed", [])
    process = later[-1] if later else first
    last = _optional(folder / "checkpoints" / "last.json")
    training = [line for line in lines if "train/loss" in line]
    evaluated = [line for line in lines if line.get("val/loss") is not None]
    best = min(evaluated, key=lambda line: line["val/loss"], default={})
    steps = int(config["train"]["steps"])
    step = max([line["step"] for line in lines[-1:]] + [int(item["step"]) for item in (last,) if item] + [0])
    diverged = bool(lines) and "diverged" in lines[-1]
    if running:
        state = "running"
    elif diverged:
        state = "diverged"
    elif result and not result["interrupted"] and result["steps"] >= steps:
        state = "finished"
    else:
        state = "interrupted" if result and result["interrupted"] and result["steps"] >= step else "stopped"
    speed = result["tokens_per_second"] if result and state == "finished" else _newest(training, "tokens_per_second")
    return RunState(
        folder=folder,
        state=state,
        reason=f"at step {lines[-1]['step']}" if state == "diverged" else "",
        step=step,
        steps=steps,
        tokens=step * int(config["data"]["tokens_per_batch"]),
        train_loss=_newest(training, "train/loss"),
        val_loss=_newest(evaluated, "val/loss"),
        best_loss=best.get("val/loss"),
        best_step=best.get("step"),
        tokens_per_second=speed,
        seconds=result["seconds"] if result and state == "finished" else _newest(training, "seconds"),
        seconds_left=_seconds_left(training, steps - step, later) if state == "running" else None,
        started=first.get("time"),
        changed=_changed(folder),
        resumed=len(later),
        command=process.get("command"),
        processes=process.get("processes"),
        strategy=process.get("strategy"),
    )


def _seconds_left(training: list[dict[str, Any]], steps: int, later: list[dict[str, Any]]) -> float | None:
    """Estimate from the lines of this process, or from all of them while it has too few."""
    began = later[-1]["from_step"] if later else 0
    own = [line for line in training if line["step"] > began]
    lines = (own if len(own) > 2 else training)[-RECENT_LINES:]
    durations = [
        (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(lines)
        if after["step"] > before["step"]
    ]
    each = seconds_per_step(durations)
    return None if each is None else each * steps


def _newest(lines: list[dict[str, Any]], name: str) -> float | None:
    values = (line[name] for line in reversed(lines) if line.get(name) is not None)
    return next((float(value) for value in values if math.isfinite(value)), None)


def _optional(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _changed(folder: Path) -> str | None:
    names = ("metrics.jsonl", "environment.json", "config.json", "result.json", "checkpoints/last.json", LOCK)
    times = [path.stat().st_mtime for path in (folder / name for name in names) if path.exists()]
    return datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds") if times else None
