"""The operators of a training step, by torch's profiler."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch.profiler import ProfilerActivity, profile

from heedful.files import write_bytes_atomically
from heedful.train.step_timing import wait_for

if TYPE_CHECKING:
    from heedful.train.training_step import TrainingStep


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """One kind of operator or kernel in the steps that were profiled.

    Attributes:
        name: as torch or the kernel's author calls it.
        calls: per step.
        milliseconds: per step, of its own: without what it calls.
    """

    name: str
    calls: float
    milliseconds: float


def profile_steps(step: TrainingStep, *, steps: int = 3, trace: Path | None = None) -> list[OperatorTime]:
    """Profile some steps and return where the device spent its time, the costliest first.

    On a GPU these are its kernels, on the CPU torch's operators. A profiled step is slower than another, so read the
    order of things from it and not their speed.

    Args:
        step: with its first steps taken.
        steps: how many.
        trace: where to write what happened when, as JSON for Perfetto or chrome://tracing (a name that ends with .gz is
            compressed).
    """
    on_gpu = step.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:  # older torch warns without it
        for _ in range(steps):
            step.take()
        wait_for(step.device)
    if trace is not None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / trace.name
            profiler.export_chrome_trace(str(file))
            write_bytes_atomically(trace, file.read_bytes())
    taken = []
    for event in profiler.key_averages():
        # On a GPU every kernel is listed by itself and again as the own time of the operator that started it.
        is_kernel = str(event.device_type).endswith("CUDA")
        time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if time > 0 and is_kernel == on_gpu:
            taken.append(OperatorTime(name=event.key, calls=event.count / steps, milliseconds=time / steps / 1000))
    return sorted(taken, key=lambda operator: -operator.milliseconds)
