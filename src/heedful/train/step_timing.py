"""What a training step costs: its speed, where its time goes, and its memory.

Speed comes from steps that nothing disturbs, as `train` takes them: on a GPU they are queued and the host runs ahead.
Where the time goes comes from other steps, which wait for the device between their phases. The phases of those add up
to all of their time, but a step that waits is slower than one that does not, so only their shares are of interest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heedful.train.averaging import WeightAverage
from heedful.train.checkpoint_state import process_seed
from heedful.train.device import computing_on, forked_random_state, require_precision, resolve_device
from heedful.train.engine import require_enough_rows
from heedful.train.environment import cpu_name
from heedful.train.fitting import require_trainable
from heedful.train.gradients import forward_backward
from heedful.train.loss import TrainingLoss
from heedful.train.memory import peak_tensor_bytes
from heedful.train.optimisation import Optimization, learning_rate
from heedful.train.parallel import SHARDED, build_mesh, gradient_module, local, parallelize, resolve_strategy
from heedful.train.processes import environment_world_size, joined_processes, share_of
from heedful.train.step_buffer import StepBuffer

if TYPE_CHECKING:
    from heedful.data.batches import TrainingData
    from heedful.train.config import TrainConfig
    from heedful.train.processes import Processes

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


class TrainingStep:
    """The steps of a run, one at a time and without anything around them; see `training_step`."""

    def __init__(
        self, model: nn.Module, data: TrainingData, config: TrainConfig, device: torch.device, processes: Processes
    ) -> None:
        mesh = build_mesh(config.parallel, processes.world_size, device.type)
        parallelize(model, mesh, config.parallel, device=device, compile_blocks=config.compile)
        self.model, self.data, self.config, self.device, self.processes = model, data, config, device, processes
        self.loss = gradient_module(TrainingLoss(model, config.loss), mesh)
        self.optimization = Optimization(model, config.optimizer)
        self.average = WeightAverage(model, config.optimizer.ema_decay) if config.optimizer.ema_decay > 0 else None
        rows = share_of(config.batch_size, processes.world_size, processes.rank)
        self.rows = None if len(rows) == config.batch_size else rows
        self.step = 0  # how many were taken
        model.train()

    def take(self, ended: Callable[[str], object] = lambda phase: None) -> tuple[Tensor, Tensor]:
        """Take the next step and return its loss and gradient norm, on the device; steps beyond the end of the run have
        the last learning rate.

        Args:
            ended: told the name of each phase that ended here.
        """
        config = self.config
        loss, _ = forward_backward(
            self.loss,
            self.data.batch(self.step, self.rows),
            accumulation=config.accumulation,
            device=self.device,
            precision=config.precision,
            processes=self.processes,
        )
        ended("backward")
        norm = self.optimization.clip(config.optimizer.gradient_clip)
        step = min(self.step, config.steps - 1)
        self.optimization.step(learning_rate(step, config.steps, config.optimizer, config.schedule))
        ended("optimiser")
        if self.average is not None:
            self.average.update()
        ended("other")
        self.step += 1
        return loss, norm

    def take_in_phases(self) -> dict[str, float]:
        """Take the next step, waiting for the device between phases, and return the seconds of each phase."""
        seconds = dict.fromkeys(PHASES, 0.0)
        started = False

        def ended(phase: str) -> None:
            nonlocal last
            self.wait()
            now = time.perf_counter()
            seconds[phase] += now - last
            last = now

        def before(
            *_: Any,
        ) -> None:  # what comes before the first micro-batch is its making, later it is a backward pass
            nonlocal started
            ended("backward" if started else "data")
            started = True

        handles = (
            self.loss.register_forward_pre_hook(before),
            self.loss.register_forward_hook(lambda *_: ended("forward")),
        )
        try:
            self.wait()
            last = time.perf_counter()
            self.take(ended)
        finally:
            for handle in handles:
                handle.remove()
        return seconds

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def resident(self) -> list[Tensor]:
        """Return the tensors that stay from step to step, as far as this process holds them."""
        tensors = [*self.model.parameters(), *self.model.buffers(), *self.optimization.tensors().values()]
        tensors += [] if self.average is None else self.average.tensors().values()
        return [local(tensor) for tensor in tensors]


@contextmanager
def training_step(model: nn.Module, data: TrainingData, config: TrainConfig) -> Iterator[TrainingStep]:
    """Set up the steps of the run that `train` would make of the same arguments, torchrun included, without a folder.

    Raises:
        ValueError: as `train`, where device, precision, model, data and configuration do not fit.
    """
    device = resolve_device(config.device)
    require_precision(config.precision, device)
    needs_group = resolve_strategy(config.parallel, environment_world_size()) in SHARDED
    timeout = config.parallel.timeout_seconds
    with joined_processes(needs_group=needs_group, timeout_seconds=timeout, device=device) as processes:
        require_enough_rows(config, processes.world_size)
        processes.together(lambda: require_trainable(model, data, config))
        seed = process_seed(config.seed, processes.rank)
        with computing_on(device), forked_random_state(seed, device):
            yield TrainingStep(model, data, config, device, processes)


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
        buffer.finish(number, *step.take())
    seconds = statistics.median(record.seconds for record in buffer.read())
    phases = [step.take_in_phases() for _ in range(steps)]
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
