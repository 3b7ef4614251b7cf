"""The optimiser of a run and its learning rate: AdamW, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from heedful.train.parallel import whole
from heedful.train.sharded_muon import ShardedMuon
from heedful.train.treatment import Treatment, treatments

if TYPE_CHECKING:
    from heedful.train.optimizer_config import OptimizerConfig, ScheduleConfig

# torch has AdamW as one kernel for all parameters there, DTensors included; elsewhere it takes a few kernels.
FUSED_DEVICES = ("cpu", "cuda")


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Return the learning rate of step `step` (counted from 0) of a run of `steps`.

    With w warm-up steps, peak p and final ratio f it is p (step + 1) / (w + 1) before step w, so that the first step
    moves the weights, and from step w on, with u = (step - w) / (steps - w):

    | kind     | rate                                                                                  |
    |----------|---------------------------------------------------------------------------------------|
    | cosine   | p (f + (1 - f) (1 + cos(pi u)) / 2)                                                   |
    | linear   | p (1 - (1 - f) u)                                                                     |
    | constant | p                                                                                     |
    | wsd      | p up to step s, then p (1 - (1 - f) (step - s) / (steps - s)); s = max(w, steps - d) |

    where d is `decay_fraction` of all steps, rounded, at least 1. p f is what a curve has at `steps`, one past the last
    step: "linear" to zero takes its last step at p / (steps - w).
    """
    peak, warmup = optimizer.learning_rate, schedule.warmup_steps
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule.kind == "constant":
        return peak
    start = warmup
    if schedule.kind == "wsd":
        start = max(warmup, steps - max(1, round(schedule.decay_fraction * steps)))
    done = max(0.0, (step - start) / (steps - start))
    fall = (1 - math.cos(math.pi * done)) / 2 if schedule.kind == "cosine" else done
    return peak * (1 - (1 - schedule.final_ratio) * fall)


class Optimization:
    """What the loop knows of optimisers: clip, one step at a learning rate, and a state of tensors by name.

    `treatments` says what each parameter gets. AdamW runs in torch's fused form on CPU and CUDA, also for DTensors, and
    in the foreach form elsewhere. Muon is torch's, for DTensors `ShardedMuon`; both scale the step of an (m, n) matrix
    by 0.2 sqrt(max(m, n)), so that its root mean square is about that of AdamW's, and one learning rate serves both.

    Build it when the parameters are where they stay: on their device, spread over processes.

    Attributes:
        parameters: the trainable parameters, each once.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        held = treatments(model, config)
        self._names = {treatment.parameter: treatment.name for treatment in held}
        self.parameters = list(self._names)
        self._pulled = [(treatment, treatment.target) for treatment in held if treatment.target is not None]
        self._optimizers: list[torch.optim.Optimizer] = []
        adamw, muon = _groups(held, "adamw"), _groups(held, "muon")
        if adamw:
            fused = all(parameter.device.type in FUSED_DEVICES for parameter in self.parameters)
            self._optimizers.append(
                torch.optim.AdamW(
                    adamw, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused, foreach=not fused
                )
            )
        for sharded, build in ((False, torch.optim.Muon), (True, ShardedMuon)):
            groups = [group for group in muon if isinstance(group["params"][0], DTensor) == sharded]
            if groups:
                self._optimizers.append(
                    build(groups, lr=config.learning_rate, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")
                )

    def clip(self, largest_norm: float) -> Tensor:
        """Scale all gradients so that their global norm is at most `largest_norm` (0: leave them).

        Returns:
            The norm before, over all parts of all parameters, a plain 0-dimensional tensor on the gradients' device.
            Nothing waits for it; with DTensors, all processes must call.
        """
        with_gradient = [parameter for parameter in self.parameters if parameter.grad is not None]
        groups = list(_by_mesh(with_gradient).values())
        norms = [whole(nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])) for group in groups]
        norm = norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)
        if largest_norm > 0:
            for group in groups:
                nn.utils.clip_grads_with_norm_(group, largest_norm, norm)
        return norm

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move the weights along their gradients and drop the gradients."""
        for treatment, target in self._pulled:
            if treatment.parameter.grad is not None:  # as weight decay, which only moves what the optimiser moves
                strength = learning_rate * treatment.learning_rate_factor * treatment.weight_decay
                treatment.parameter.lerp_(target, strength)
        self._step_optimizers(learning_rate)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def prepare_state(self) -> None:
        """Make every state tensor that does not exist yet, as before the first step; weights and counters stay.

        A loader can then fill `tensors()` in place. Gradients are left as they are.
        """
        states = [optimizer.state for optimizer in self._optimizers]
        missing = [p for p in self.parameters if not any(p in state for state in states)]
        if not missing:
            return
        gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        for parameter in missing:
            parameter.grad = torch.zeros_like(parameter)
        self._step_optimizers(0.0)  # torch makes the state; at rate 0, nothing moves
        for parameter in missing:
            for state in states:
                for value in state.get(parameter, {}).values():
                    value.zero_()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def tensors(self) -> dict[str, Tensor]:
        """Return the live state as `{"<parameter name>/<state name>": tensor}`; empty before the first step.

        AdamW has "step" (0-dimensional), "exp_avg" and "exp_avg_sq", Muon "momentum_buffer"; DTensors stay DTensors.
        """
        return {
            f"{name}/{key}": value
            for optimizer in self._optimizers
            for parameter, name in self._names.items()
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def _step_optimizers(self, learning_rate: float) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["learning_rate_factor"]
            optimizer.step()


def _groups(held: Iterable[Treatment], method: str) -> list[dict[str, Any]]:
    """Return torch's parameter groups of one method: by decay, rate, and what can be computed in one kernel."""
    groups: dict[tuple[float, float, Any], dict[str, Any]] = {}
    for treatment in held:
        if treatment.method == method:
            decay = 0.0 if treatment.target is not None else treatment.weight_decay
            key = (decay, treatment.learning_rate_factor, _mesh(treatment.parameter))
            empty = {"params": [], "weight_decay": decay, "learning_rate_factor": treatment.learning_rate_factor}
            groups.setdefault(key, empty)["params"].append(treatment.parameter)
    return list(groups.values())


def _mesh(tensor: Tensor) -> Any:
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def _by_mesh(parameters: Iterable[nn.Parameter]) -> dict[Any, list[nn.Parameter]]:
    """Put together what one torch function takes at a time: plain tensors, and the DTensors of each mesh."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(_mesh(parameter), []).append(parameter)
    return groups
