"""The peak of live tensor memory during one call, the same number every time.

Process-wide figures (resident set, the high-water mark of an allocator) include what other code left behind, so two
arms of a comparison in one process could not be compared by them. What a call allocates and frees itself can.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def can_measure() -> bool:
    """Return whether `peak_tensor_bytes` can run now: not inside another profile, which it would end."""
    return not torch.autograd._profiler_enabled()


def peak_tensor_bytes(step: Callable[[], object], *, resident: Iterable[Tensor] = ()) -> int:
    """Return the largest number of bytes of tensors alive at one time while `step()` runs.

    That is the size of the `resident` tensors (weights, optimiser state: each storage once) plus the largest sum of
    what `step` had allocated and not yet freed. On the CPU torch's profiler reports every allocation of its allocator,
    scratch space of operations included, but not what libraries such as oneDNN allocate for themselves. On CUDA the
    caching allocator keeps the mark. Memory that was allocated before the call and is not in `resident` never counts.

    The device is that of the resident tensors, without any the CPU. The call runs `step` exactly once and touches no
    random state. It waits for the device and costs a profiler start, so it is for one step and not for all of them.

    Raises:
        ValueError: a torch profiler is running, see `can_measure`.
    """
    if not can_measure():
        raise ValueError("memory cannot be measured while a torch profiler runs; end its context first.")
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in resident}
    held = sum(storage.nbytes() for storage in storages.values())
    device = next((storage.device for storage in storages.values()), torch.device("cpu"))
    collecting = gc.isenabled()
    gc.disable()  # garbage of earlier code must not be freed, and counted, in the middle of the measurement
    try:
        return held + (_cuda_peak(step, device) if device.type == "cuda" else _cpu_peak(step))
    finally:
        if collecting:
            gc.enable()


def _cuda_peak(step: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(step: Callable[[], object]) -> int:
    options: Any = {"activities": [ProfilerActivity.CPU], "profile_memory": True, "acc_events": True}
    with _quiet_profiler(), profile(**options) as profiler:  # acc_events: older torch warns without it
        step()
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results  # torch's type stubs lack nbytes
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    live = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):  # a stable sort: equal times keep their order
        live += change
        peak = max(peak, live)
    return peak


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep the profiler library from writing two lines about itself to stderr; it reads this when it starts."""
    name, level_above_all = "KINETO_LOG_LEVEL", "99"
    unset = name not in os.environ
    os.environ.setdefault(name, level_above_all)
    try:
        yield
    finally:
        if unset:
            del os.environ[name]
