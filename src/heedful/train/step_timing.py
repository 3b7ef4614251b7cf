"""What a training step costs: its speed, where its time goes, and its memory.

Speed comes from steps that nothing disturbs, as `train` takes them: on a GPU they are queued and the host runs ahead.
Where the time goes comes from other steps, which wait for the device between their phases. The phases of those add up
to all of their time, but a step that waits is slower than one that does not, so only their shares are of interest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from heedful.train.checkpoint_state import process_seed
from heedful.train.device import computing_on, forked_random_state
from heedful.train.environment import cpu_name
from heedful.train.memory import peak_tensor_bytes
from heedful.train.step_buffer import StepBuffer
from heedful.train.training_step import TrainingStep, joined_for, require_fitting

if TYPE_CHECKING:
    from heedful.data.batches import TrainingData
    from heedful.train.config import TrainConfig

PHASES: tuple[str, ...] = ("data", "forward", "backward", "optimiser", "other")


@dataclass(frozen=True, kw_only=True)
class StepTiming:
    """What a training step costs.

    Attributes:
        device: the name of the GPU or CPU.
        processes: how many took part, each on a device of its own.
        tokens: positions of the whole batch, scored or not.
        seconds: of a step, the median over steps that nothing disturbs.
        phase_seconds: medians over the steps that wait between their phases. "data" is making the batch and copying it
            to the device; "forward" includes the loss and the gradient of its logits; "optimiser" includes clipping;
            "other" is the averaging of weights.
        peak_memory_bytes: of tensors alive during a step, weights and optimiser state included, in this process.
    """

    device: str
    processes: int
    tokens: int
    seconds: float
    phase_seconds: dict[str, float]
    peak_memory_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Positions of the whole batch by the seconds of a step."""
        return self.tokens / self.seconds

    @property
    def shares(self) -> dict[str, float]:
        """The part of each phase in a step, together 1."""
        total = sum(self.phase_seconds.values())
        return {name: seconds / total for name, seconds in self.phase_seconds.items()}


@contextmanager
def training_step(model: nn.Module, data: TrainingData, config: TrainConfig) -> Iterator[TrainingStep]:
    """Set up the steps of the run that `train` would make of the same arguments, torchrun included, without a folder.

    Raises:
        ValueError: as `train`, where device, precision, model, data and configuration do not fit.
    """
    with joined_for(config) as (device, processes):
        require_fitting(model, data, config, processes)
        with computing_on(device), forked_random_state(process_seed(config.seed, processes.rank), device):
            yield TrainingStep(model, data, config, device, processes)


def take_in_phases(step: TrainingStep) -> dict[str, float]:
    """Take the next step, waiting for the device between phases, and return the seconds of each phase."""
    seconds = dict.fromkeys(PHASES, 0.0)
    started = False

    def ended(phase: str) -> None:
        nonlocal last
        wait_for(step.device)
        now = time.perf_counter()
        seconds[phase] += now - last
        last = now

    def before(*_: Any) -> None:
        nonlocal started
        ended("backward" if started else "data")  # before the first micro-batch it is made, before others one went back
        started = True

    handles = (
        step.loss.register_forward_pre_hook(before),
        step.loss.register_forward_hook(lambda *_: ended("forward")),
    )
    try:
        wait_for(step.device)
        last = time.perf_counter()
        step.take(ended)
    finally:
        for handle in handles:
            handle.remove()
    return seconds


def wait_for(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(step: TrainingStep, *, warmup: int = 3, steps: int = 10) -> StepTiming:
    """Measure steps: `warmup` that do not count, `steps` for the speed, as many for the phases, one for the memory.

    Raises:
        ValueError: fewer than 2 steps to warm up (memory is allocated in the first two), none to measure, or a torch
            profiler that is running.
    """
    if warmup < 2 or steps < 1:
        raise ValueError(f"steps are measured from warmup >= 2 and steps >= 1, got {warmup} and {steps}.")
    for _ in range(warmup):
        step.take()
    buffer = StepBuffer(step.device, step.processes)
    for number in range(steps):
        buffer.start()
        taken = step.take()
        buffer.finish(number, taken.loss, taken.grad_norm)
    seconds = statistics.median(record.seconds for record in buffer.read())
    phases = [take_in_phases(step) for _ in range(steps)]
    return StepTiming(
        device=device_name(step.device),
        processes=step.processes.world_size,
        tokens=step.data.tokens_per_batch,
        seconds=seconds,
        phase_seconds={name: statistics.median(taken[name] for taken in phases) for name in PHASES},
        peak_memory_bytes=peak_tensor_bytes(step.take, resident=step.resident()),
    )


def device_name(device: torch.device) -> str:
    """Return the name of a GPU or of this machine's CPU, with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"
