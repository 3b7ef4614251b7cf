"""What every benchmark shares: clock, rounds in turns, and the head of a result file."""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from heedful.files import write_json_atomically
from heedful.train.environment import cpu_name, describe_environment

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results/benchmarks"

Call = Callable[[], object]


class Timing(NamedTuple):
    """Median seconds of a call, and the median over the rounds of its multiple of the baseline's seconds."""

    seconds: float
    ratio: float


def require_device(device: str) -> None:
    """End the program where the device is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; use --device cpu")


def storage_type(device: str) -> torch.dtype:
    """Return the type that benchmarks compute in: bfloat16 on CUDA, float32 on the CPU."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def seconds(function: Call, device: str) -> float:
    """Time one call; on CUDA until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(
    calls: Mapping[str, Call], *, baseline: str, device: str, rounds: int, fewer: Mapping[str, int] | None = None
) -> dict[str, Timing]:
    """Time all calls in turn, round after round, so that a machine whose speed drifts favours none of them.

    Args:
        calls: what to time, by name.
        baseline: the name whose seconds are 1.0.
        device: "cpu" or "cuda".
        rounds: how many rounds count; one more before them warms up.
        fewer: calls that take part in the first rounds only, with how many of them count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            if number <= (fewer or {}).get(name, rounds):
                taken = seconds(call, device)
                if number:
                    times[name].append(taken)
    return {
        name: Timing(
            statistics.median(own),
            statistics.median(one / other for one, other in zip(own, times[baseline], strict=False)),
        )
        for name, own in times.items()
    }


def describe(module: str, device: str) -> dict[str, Any]:
    """Return the head of a result file: command, source, machine, versions, number type."""
    environment = describe_environment(device)
    source = environment["source"] or {"commit": "unknown", "dirty": None}
    cuda = device == "cuda"
    return {
        "command": f"python -m benchmarks.{module} {shlex.join(sys.argv[1:])}".strip(),
        "commit": source["commit"],
        "dirty": source["dirty"],
        "machine": torch.cuda.get_device_name() if cuda else f"{cpu_name()}, {torch.get_num_threads()} threads",
        "environment": environment,
        "dtype": str(storage_type(device)).removeprefix("torch."),
    }


def write_result(result: dict[str, Any], name: str, folder: Path = FOLDER) -> None:
    """Write a result and say where it is."""
    target = folder / f"{name}.json"
    write_json_atomically(target, result)
    print(f"wrote {target.relative_to(ROOT) if target.is_relative_to(ROOT) else target}")
