"""The learning-rate range test: one short run whose rate rises from far too small to far too large.

It answers "around where" for the price of a hundred steps. What it suggests is a place to begin a sweep, not the rate
of the best model: that one also depends on the length of the run, on its schedule and on its warm-up.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

from heedful.train.checking import require
from heedful.train.device import computing_on, forked_random_state, require_precision, resolve_device
from heedful.train.fitting import require_trainable
from heedful.train.gradients import forward_backward
from heedful.train.loss import TrainingLoss
from heedful.train.optimisation import Optimization
from heedful.train.processes import environment_world_size

if TYPE_CHECKING:
    from heedful.data.batches import TrainingData
    from heedful.train.config import TrainConfig

SMOOTHING = 0.9
EXPLODED = 1.25  # times the first loss
CAUTION = 10


@dataclass(frozen=True, kw_only=True)
class RangeTestResult:
    """What a range test saw.

    Attributes:
        rates: the learning rate of each step whose loss was finite.
        losses: the training loss of each such step, before its update.
        smoothed: the running mean of the losses with weight 0.9 on the past, corrected for its start.
        exploded: whether it stopped because the loss was no longer finite, or its mean above 1.25 times the first loss.
        suggestion: a tenth of the rate at which the smoothed loss was lowest; None where that says nothing.
        reason: why there is no suggestion, or how it came about.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    exploded: bool
    suggestion: float | None
    reason: str


def learning_rate_range_test(
    make_model: Callable[[], nn.Module],
    data: TrainingData,
    config: TrainConfig,
    lowest: float = 1e-5,
    highest: float = 1.0,
    steps: int = 100,
) -> RangeTestResult:
    """Train a new model for a few steps, step i of n at the rate lowest (highest / lowest)^(i / (n - 1)).

    Optimiser, clipping, loss, precision, device, seed and accumulation are those of `config`; schedule, averaging and
    compilation are left out. The rate's own rise serves as warm-up. The first batches of `data` are used. Nothing is
    written, and the global random state is as before afterwards. It stops when the loss explodes, so `highest` can be
    generous.

    The suggestion is a tenth of the rate at which the smoothed loss was lowest: at the lowest point itself the steps
    are already too large for the loss to go on falling, and the mean lags behind by about ten steps. There is none
    where the loss fell by less than twice its scatter from step to step, or was lowest in the last tenth of the range.

    Args:
        make_model: returns a model with new weights; called once, with the random state of `config.seed`.
        data: gives the batches.
        config: how the model is to be trained.
        lowest, highest: the rates of the first and of the last step.
        steps: how many at most, at least 10.

    Raises:
        ValueError: a range or a number of steps that makes no sense, model, data, device or precision that do not fit
            together, or several processes.
    """
    require(0 < lowest < highest < math.inf, "lowest and highest", "rising and above 0", f"{lowest:g} and {highest:g}")
    require(steps >= 10, "steps", "10 or more", steps)
    if environment_world_size() > 1:
        raise ValueError("a range test is one process; start it without torchrun.")
    device = resolve_device(config.device)
    require_precision(config.precision, device)
    rates, losses, smoothed, exploded = [], [], [], False
    with computing_on(device), forked_random_state(config.seed, device):
        model = make_model()
        require_trainable(model, data, config)
        model.to(device).train()
        optimization, loss = Optimization(model, config.optimizer), TrainingLoss(model, config.loss)
        mean = 0.0
        for step in range(steps):
            rate = lowest * (highest / lowest) ** (step / (steps - 1))
            value, _ = forward_backward(
                loss,
                data.batch(step),
                accumulation=config.accumulation,
                device=device,
                precision=config.precision,
            )
            if not math.isfinite(float(value)):
                exploded = True
                break
            rates.append(rate)
            losses.append(float(value))
            mean = SMOOTHING * mean + (1 - SMOOTHING) * losses[-1]
            smoothed.append(mean / (1 - SMOOTHING ** (step + 1)))
            exploded = smoothed[-1] > EXPLODED * losses[0]
            if exploded:
                break
            optimization.clip(config.optimizer.gradient_clip)
            optimization.step(rate)
    if not losses:
        raise ValueError("the loss of the new model is not finite before any step; look at its initial weights.")
    suggestion, reason = _suggest(rates, losses, smoothed, exploded=exploded)
    return RangeTestResult(
        rates=tuple(rates),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        exploded=exploded,
        suggestion=suggestion,
        reason=reason,
    )


def _suggest(
    rates: list[float], losses: list[float], smoothed: list[float], *, exploded: bool
) -> tuple[float | None, str]:
    """Return a rate or None, and the reason in a sentence."""
    best = min(range(len(rates)), key=smoothed.__getitem__)
    fall = losses[0] - smoothed[best]
    # Differences of neighbours, so that the fall itself does not count as scatter.
    changes = [after - before for before, after in pairwise(losses[: best + 1])]
    scatter = statistics.pstdev(changes) / math.sqrt(2) if changes else 0.0
    if not fall > 2 * scatter:
        span = f"{rates[0]:.2g} to {rates[-1]:.2g}"
        return None, f"the loss never fell clearly from {span}: move the range, or take more steps or larger batches"
    if best >= 0.9 * (len(rates) - 1) and not exploded:
        return None, f"the loss was still falling near the highest rate, {rates[-1]:.2g}; raise it"
    return rates[best] / CAUTION, f"a tenth of {rates[best]:.2g}, where the smoothed loss was lowest"
