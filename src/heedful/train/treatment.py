"""What each parameter gets of the optimiser: the method, its part of the learning rate, and where decay pulls it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from heedful.train.optimizer_config import OptimizerConfig, OptimizerKind, ParameterRule
from heedful.train.sharded_muon import part_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Treatment:
    """How one parameter moves.

    Attributes:
        name: the parameter's first name in the model.
        parameter: itself.
        method: "adamw" or "muon".
        learning_rate_factor: multiplies the learning rate, and with it the decay.
        weight_decay: the coefficient of the pull.
        target: the values that decay pulls to, of the parameter's shape and spread; None is zero.
    """

    name: str
    parameter: nn.Parameter
    method: OptimizerKind
    learning_rate_factor: float
    weight_decay: float
    target: Tensor | None


def treatments(model: nn.Module, config: OptimizerConfig) -> list[Treatment]:
    """Return how each trainable parameter of `model` moves, in the model's order; tied parameters occur once.

    Of the model it asks, where they exist: `parameters_without_decay()`, the names of its kernels and head mixing;
    `identity_values()`, what these are as the identity; and, for Muon, `blocks`, a module list.

    Raises:
        ValueError: nothing is trainable; the model names a parameter it does not have; a rule matches nothing; Muon
            and a model without `blocks`.
    """
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError(f"{type(model).__name__} has no trainable parameter.")
    _require_matches(config.rules, [name for parameter in trainable.values() for name in aliases[id(parameter)]])
    kernels = _named_by_model(model, "parameters_without_decay", aliases)
    identities: Mapping[str, Tensor] = getattr(model, "identity_values", dict)()
    matrices = _hidden_matrices(model) if config.kind == "muon" else set()
    found = []
    for name, parameter in trainable.items():
        names, is_kernel = aliases[id(parameter)], id(parameter) in kernels
        decay = config.weight_decay if config.decay == "all" or (parameter.dim() >= 2 and not is_kernel) else 0.0
        target = None
        if is_kernel and config.kernel_decay == "identity":
            decay, target = config.weight_decay, _identity_of(parameter, names, identities)
        rule = next((rule for rule in reversed(config.rules) if _matches(rule, names)), None)
        if rule is not None and rule.weight_decay is not None:
            decay = rule.weight_decay
        found.append(
            Treatment(
                name=name,
                parameter=parameter,
                method="muon" if id(parameter) in matrices and not is_kernel else "adamw",
                learning_rate_factor=1.0 if rule is None else rule.learning_rate_factor,
                weight_decay=decay,
                target=target,
            )
        )
    return found


def _matches(rule: ParameterRule, names: list[str]) -> bool:
    return any(fnmatchcase(name, rule.parameters) for name in names)


def _require_matches(rules: tuple[ParameterRule, ...], names: list[str]) -> None:
    for rule in rules:
        if not _matches(rule, names):
            raise ValueError(
                f"the rule for {rule.parameters!r} matches no trainable parameter; a pattern covers whole names with * "
                f"and ?, and there are, for example, {', '.join(_near(rule.parameters, names))}."
            )


def _near(pattern: str, names: list[str]) -> list[str]:
    """Return a few of `names` that end much as `pattern` does, or the first ones."""
    examples = {name.rpartition(".")[2]: name for name in reversed(names)}
    ends = difflib.get_close_matches(pattern.rpartition(".")[2].strip("*"), examples, n=3)
    return [examples[end] for end in ends] or names[:3]


def _named_by_model(model: nn.Module, method: str, aliases: Mapping[int, list[str]]) -> set[int]:
    identity_of = {name: identity for identity, names in aliases.items() for name in names}
    found = set()
    for name in getattr(model, method, tuple)():
        if name not in identity_of:
            raise ValueError(f"{type(model).__name__}.{method}() names {name!r}, which is no parameter.")
        found.add(identity_of[name])
    return found


def _hidden_matrices(model: nn.Module) -> set[int]:
    """Return the identities of the two-dimensional weights inside the blocks; a single row or column is a vector."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(
            f"optimizer kind 'muon' is for the matrices inside the blocks, but {type(model).__name__} has no module "
            "list `blocks` that tells them from embeddings and head; use 'adamw'."
        )
    return {id(parameter) for parameter in blocks.parameters() if parameter.dim() == 2 and min(parameter.shape) > 1}


def _identity_of(parameter: nn.Parameter, names: list[str], identities: Mapping[str, Tensor]) -> Tensor:
    value = next((identities[name] for name in names if name in identities), None)
    if value is None:
        raise ValueError(
            f"kernel_decay 'identity' needs to know the identity of {names[0]!r}, but the model's identity_values() "
            "does not give it; add it there, or choose kernel_decay 'none'."
        )
    value = value.to(device=parameter.device, dtype=parameter.dtype)
    return part_of(value, parameter) if isinstance(parameter, DTensor) else value
