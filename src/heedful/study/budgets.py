"""What makes a comparison fair: controls of equal size or cost, and budgets of equal parameters or equal compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from heedful.models import DecoderConfig
from heedful.models.counting import count_parameters, multiply_adds_per_token
from heedful.models.matching import match_compute, match_parameters
from heedful.study.recipe import Arm, Recipe
from heedful.train.config import TrainConfig


def budgeted_configs(recipe: Recipe, given: Mapping[str, DecoderConfig]) -> dict[str, DecoderConfig]:
    """Resize the arms as their `match` tables and the budget rule ask.

    Args:
        recipe: the comparison.
        given: the decoder of each arm by name, as given.

    Raises:
        ValueError: no size of an arm comes near its target; the message names the arm.
    """
    resized: dict[str, DecoderConfig] = {}

    def resolve(arm: Arm) -> DecoderConfig:
        if arm.name not in resized:
            if recipe.budget == "parameters" and arm.name != recipe.baseline:
                target = count_parameters(given[recipe.baseline]).total
                resized[arm.name] = _named(arm, match_parameters, given[arm.name], target, vary="feed-forward")
            elif arm.match is not None:
                goal = resolve(next(other for other in recipe.arms if other.name == arm.match.arm))
                resized[arm.name] = _match(recipe, arm, given[arm.name], goal)
            else:
                resized[arm.name] = given[arm.name]
        return resized[arm.name]

    return {arm.name: resolve(arm) for arm in recipe.arms}


def _match(recipe: Recipe, arm: Arm, config: DecoderConfig, goal: DecoderConfig) -> DecoderConfig:
    assert arm.match is not None
    if arm.match.by == "parameters":
        return _named(arm, match_parameters, config, count_parameters(goal).total, vary=arm.match.vary)
    context = recipe.train.context_length
    target = multiply_adds_per_token(goal, context)
    return _named(arm, match_compute, config, target, context, vary=arm.match.vary)


def _named(arm: Arm, matcher: Callable[..., DecoderConfig], *arguments: Any, vary: str) -> DecoderConfig:
    try:
        return matcher(*arguments, vary=vary)
    except ValueError as error:
        raise ValueError(f"arm {arm.name!r}: {error}") from error


def budgeted_train_config(recipe: Recipe, multiply_adds: int, baseline_multiply_adds: int) -> TrainConfig:
    """Return the training configuration of an arm: under budget "compute" its steps and warm-up are scaled.

    Steps times multiply-adds per token then equal the baseline's as nearly as whole steps allow; the schedule keeps its
    shape because it spans the arm's own steps.

    Args:
        multiply_adds: forward multiply-adds per token of the arm.
        baseline_multiply_adds: the same of the baseline.
    """
    train = recipe.train
    if recipe.budget != "compute":
        return train
    factor = baseline_multiply_adds / multiply_adds
    steps = max(1, round(train.steps * factor))
    warmup = min(round(train.schedule.warmup_steps * factor), steps - 1)
    return replace(train, steps=steps, schedule=replace(train.schedule, warmup_steps=warmup))
