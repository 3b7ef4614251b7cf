"""What the latest steps gave, kept on the device until it is needed.

Reading a loss from a GPU makes the host wait for every kernel in flight. A run therefore leaves losses, gradient norms
and time marks where they are and reads them together, at log lines, evaluations and checkpoints.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from heedful.train.processes import ALONE, Processes


@dataclass(frozen=True)
class StepRecord:
    """One finished step, the `step`-th of the run (the first is 1), with its loss before the update."""

    step: int
    loss: float
    grad_norm: float
    seconds: float


class StepBuffer:
    """Collects steps between `start` and `finish` without waiting for the device; `read` waits once for all of them."""

    def __init__(self, device: torch.device, processes: Processes = ALONE) -> None:
        self._processes = processes
        self._on_gpu = device.type == "cuda"
        self._steps: list[int] = []
        self._values: list[Tensor] = []
        self._marks: list[float | torch.cuda.Event] = []

    def start(self) -> None:
        """Mark the beginning of a step."""
        self._mark()

    def finish(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Mark the end of a step and keep its results, 0-dimensional: the share of the loss here, and the norm."""
        self._mark()
        self._steps.append(step)
        self._values += [loss, grad_norm]

    def read(self) -> list[StepRecord]:
        """Return the steps since the last call, oldest first; the losses are summed over all processes."""
        if not self._steps:
            return []
        values = torch.stack([value.float() for value in self._values]).cpu().view(-1, 2)
        losses = self._processes.sum(values[:, 0].double()).tolist()
        records = [
            StepRecord(step, losses[i], norm, self._seconds(2 * i))
            for i, (step, norm) in enumerate(zip(self._steps, values[:, 1].tolist(), strict=True))
        ]
        self._steps, self._values, self._marks = [], [], []
        return records

    def _mark(self) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def _seconds(self, index: int) -> float:
        begin, end = self._marks[index], self._marks[index + 1]
        if isinstance(begin, float):
            return end - begin  # type: ignore[operator]
        return begin.elapsed_time(end) / 1000  # type: ignore[arg-type]  # milliseconds; `read` has waited for both
