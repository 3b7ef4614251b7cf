"""One optimiser step and everything it needs: model, loss, optimiser, averaged weights, batches.

A run takes such steps with everything else around them; a measurement takes them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from heedful.train.averaging import WeightAverage
from heedful.train.device import require_precision, resolve_device
from heedful.train.fitting import require_trainable
from heedful.train.gradients import forward_backward
from heedful.train.loss import TrainingLoss
from heedful.train.optimisation import Optimization, learning_rate
from heedful.train.parallel import build_mesh, gradient_module, local, parallelize, resolve_strategy
from heedful.train.processes import environment_world_size, joined_processes, share_of

if TYPE_CHECKING:
    from heedful.data.batches import TrainingData
    from heedful.train.config import TrainConfig
    from heedful.train.processes import Processes


class TakenStep(NamedTuple):
    """What a step gives: this process's share of the loss and the gradient norm, 0-dimensional on the device, and
    whether any process wants to stop.
    """

    loss: Tensor
    grad_norm: Tensor
    stopping: bool


class TrainingStep:
    """The steps of a run, one at a time and without anything around them.

    Attributes:
        number: how many were taken.
        rows: those of each batch that this process computes, None for all.
    """

    def __init__(
        self, model: nn.Module, data: TrainingData, config: TrainConfig, device: torch.device, processes: Processes
    ) -> None:
        """Spread the model over the processes and build everything on it; all of them must do this together."""
        self.mesh = build_mesh(config.parallel, processes.world_size, device.type)
        parallelize(model, self.mesh, config.parallel, device=device, compile_blocks=config.compile)
        self.model, self.data, self.config, self.device, self.processes = model, data, config, device, processes
        self.loss = gradient_module(TrainingLoss(model, config.loss), self.mesh)
        self.optimization = Optimization(model, config.optimizer)
        self.optimization.prepare_state()
        self.average = WeightAverage(model, config.optimizer.ema_decay) if config.optimizer.ema_decay > 0 else None
        rows = share_of(config.batch_size, processes.world_size, processes.rank)
        self.rows = None if len(rows) == config.batch_size else rows
        self.number = 0
        model.train()

    def take(
        self, ended: Callable[[str], object] = lambda phase: None, *, stop: Callable[[], bool] = lambda: False
    ) -> TakenStep:
        """Take the next step; nothing waits for the device, but multi-token attention where documents are masked.

        Args:
            ended: told the name of each phase that ended here.
            stop: asked, once the batch is made, whether this process wants the run to end after this step.
        """
        config = self.config
        loss, stopping = forward_backward(
            self.loss,
            self.data.batch(self.number, self.rows),
            accumulation=config.accumulation,
            device=self.device,
            precision=config.precision,
            processes=self.processes,
            stop=stop(),
        )
        ended("backward")
        grad_norm = self.optimization.clip(config.optimizer.gradient_clip)
        self.optimization.step(self.learning_rate(self.number))
        ended("optimiser")
        if self.average is not None:
            self.average.update()
        ended("other")
        self.number += 1
        return TakenStep(loss, grad_norm, stopping)

    def learning_rate(self, number: int) -> float:
        """Return the learning rate of a step counted from 0; steps beyond the end of the run have the last one."""
        steps = self.config.steps
        return learning_rate(min(number, steps - 1), steps, self.config.optimizer, self.config.schedule)

    def resident(self) -> list[Tensor]:
        """Return the tensors that stay from step to step, as far as this process holds them."""
        tensors = [*self.model.parameters(), *self.model.buffers(), *self.optimization.tensors().values()]
        tensors += [] if self.average is None else self.average.tensors().values()
        return [local(tensor) for tensor in tensors]


@contextmanager
def joined_for(config: TrainConfig) -> Iterator[tuple[torch.device, Processes]]:
    """Find the device of a run, and join its processes for as long as it goes on.

    Raises:
        ValueError: device, precision or strategy are not to be had.
    """
    device = resolve_device(config.device)
    require_precision(config.precision, device)
    strategy = resolve_strategy(config.parallel, environment_world_size())
    timeout = config.parallel.timeout_seconds
    with joined_processes(needs_group=strategy != "single", timeout_seconds=timeout, device=device) as processes:
        yield device, processes


def require_fitting(model: nn.Module, data: TrainingData, config: TrainConfig, processes: Processes) -> None:
    """Refuse, in every process, what some of them could not train.

    Raises:
        ValueError: the batch is too small for the processes; model, data and configuration do not fit together.
    """
    smallest = config.batch_size // processes.world_size
    if smallest < config.accumulation:
        remedy = f"use accumulation {smallest} or fewer" if smallest else "use fewer processes"
        raise ValueError(
            f"batch_size {config.batch_size} over {processes.world_size} processes leaves {smallest} rows for some, "
            f"fewer than accumulation = {config.accumulation}: {remedy}, or a larger batch."
        )
    processes.together(lambda: require_trainable(model, data, config))
