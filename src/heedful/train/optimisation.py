"""The optimiser and its schedule: which parameters decay, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from heedful.train.optimizer_config import DecayRule, OptimizerConfig, ScheduleConfig


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Return the learning rate of step `step` (counted from 0) of a run of `steps`.

    With w warm-up steps, peak p and final ratio f: p (step + 1) / (w + 1) up to step w, where it is p; afterwards, with
    u = (step - w) / (steps - w), p (f + (1 - f) (1 + cos(pi u)) / 2), p (1 - (1 - f) u) or p. The first step thus
    moves the weights, and p f is the value the curve has at `steps`, one past the last step.
    """
    peak, warmup = optimizer.learning_rate, schedule.warmup_steps
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule.kind == "constant":
        return peak
    done = (step - warmup) / (steps - warmup)
    fall = (1 - math.cos(math.pi * done)) / 2 if schedule.kind == "cosine" else done
    return peak * (1 - (1 - schedule.final_ratio) * fall)


def parameter_groups(model: nn.Module, decay: DecayRule) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the trainable parameters that decay and those that do not, by name; tied parameters occur once.

    `model.parameters_without_decay()`, where the model has it, names what "matrices" leaves out besides vectors.

    Raises:
        ValueError: the model names a parameter it does not have.
    """
    excepted: set[int] = set()
    names_of_model: Any = getattr(model, "parameters_without_decay", None)
    if decay == "matrices" and names_of_model is not None:
        every_name = dict(model.named_parameters(remove_duplicate=False))
        for name in names_of_model():
            if name not in every_name:
                raise ValueError(
                    f"{type(model).__name__}.parameters_without_decay() names {name!r}, which is no parameter."
                )
            excepted.add(id(every_name[name]))
    decayed, kept = {}, {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = decay == "all" or (parameter.dim() >= 2 and id(parameter) not in excepted)
            (decayed if decays else kept)[name] = parameter
    return decayed, kept


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW over the model's trainable parameters, in torch's fused form (one kernel for all of them).

    Raises:
        ValueError: the model has no trainable parameter.
    """
    decayed, kept = parameter_groups(model, config.decay)
    groups = [
        {"params": list(parameters.values()), "weight_decay": weight_decay}
        for parameters, weight_decay in ((decayed, config.weight_decay), (kept, 0.0))
        if parameters
    ]
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter.")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def clip_gradients(parameters: list[nn.Parameter], largest_norm: float) -> Tensor:
    """Scale all gradients so that their global norm is at most `largest_norm` (0: leave them), return the norm before.

    The norm is a 0-dimensional tensor on the gradients' device; nothing waits for it.
    """
    if largest_norm > 0:
        return nn.utils.clip_grad_norm_(parameters, largest_norm)
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as `{"<parameter name>/<state name>": tensor}`."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned, copied to the parameters' devices.

    Raises:
        ValueError: a tensor of a parameter the optimiser does not hold, or of another shape.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index_of = {names[id(parameter)]: index for index, parameter in enumerate(held)}
    state: dict[int, dict[str, Tensor]] = {}
    for name_and_key, value in tensors.items():
        name, _, key = name_and_key.rpartition("/")
        if name not in index_of:
            raise ValueError(f"optimiser state of {name!r}, which is not trained here.")
        here = tuple(held[index_of[name]].shape)
        if value.dim() and value.shape != here:
            raise ValueError(f"optimiser state of {name!r} has shape {tuple(value.shape)}, the parameter {here}.")
        state.setdefault(index_of[name], {})[key] = value.clone()  # torch would keep this very tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Optimization:
    """What the loop knows of optimisers: one step at a learning rate, and a state of tensors by name.

    Attributes:
        parameters: the trainable parameters, each once.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self._model = model
        self._optimizer = make_optimizer(model, config)
        self.parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def step(self, learning_rate: float) -> None:
        """Move the weights along their gradients and drop the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as `{"<parameter name>/<state name>": tensor}`; empty before the first step."""
        return optimizer_tensors(self._model, self._optimizer)

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` returned; ValueError for a tensor of a parameter that is not trained here."""
        load_optimizer_tensors(self._model, self._optimizer, tensors)
