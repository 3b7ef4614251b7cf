"""Everything that can go wrong before the first step goes wrong here: data, models, budgets, lengths, device.

A plan holds each arm's final configuration, its costs and its steps, and lists them, which is what a dry run prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from heedful.models import DecoderConfig, DecoderLM
from heedful.models.counting import cache_bytes_per_token, count_parameters, multiply_adds_per_token
from heedful.study.arms import arm_config
from heedful.study.budgets import budgeted_configs, budgeted_train_config
from heedful.study.recipe import Arm, Recipe
from heedful.study.wording import count, listed, memory, number_of, rate
from heedful.study.workloads import Workload, open_workload
from heedful.train import TrainConfig
from heedful.train.device import require_precision, resolve_device


@dataclass(frozen=True, kw_only=True)
class PlannedArm:
    """An arm as it will be trained. Multiply-adds are of the forward pass in a full context, bytes of float32."""

    arm: Arm
    config: DecoderConfig
    train: TrainConfig
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    parameters: int
    parameters_without_embeddings: int
    multiply_adds_per_token: int
    cache_bytes_per_token: int
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The arm's name."""
        return self.arm.name

    def train_config(self, learning_rate: float, seed: int) -> TrainConfig:
        """Return the training configuration of one run."""
        return replace(self.train, seed=seed, optimizer=replace(self.train.optimizer, learning_rate=learning_rate))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison that can start: the recipe, its data, and its arms in the order of the recipe."""

    recipe: Recipe
    workload: Workload
    arms: tuple[PlannedArm, ...]
    tokens_per_step: int

    @property
    def baseline(self) -> PlannedArm:
        """The arm that the others are compared with."""
        return next(arm for arm in self.arms if arm.name == self.recipe.baseline)

    @property
    def num_runs(self) -> int:
        """Training runs in all."""
        return sum(self.recipe.runs_of(arm) for arm in self.recipe.arms)

    def lines(self) -> Iterator[str]:
        """List what will run, for people."""
        recipe = self.recipe
        yield f"{recipe.title or recipe.name}: {number_of(len(self.arms), 'arm')}, budget: equal {recipe.budget}"
        for name, value in self.workload.describe()["facts"]:
            yield f"  {name}: {value}"
        for arm in self.arms:
            rates = listed([rate(value) for value in arm.learning_rates])
            yield (
                f"  {arm.name}: {arm.parameters:,} parameters, {count(arm.multiply_adds_per_token)} multiply-adds and "
                f"{memory(arm.cache_bytes_per_token)} of KV cache per token, {arm.train.steps:,} steps, "
                f"learning rate {rates}"
            )
            yield from (f"    {note}" for note in arm.notes)
        yield (
            f"  {number_of(self.num_runs, 'run')} (seeds {listed([str(seed) for seed in recipe.seeds])}), "
            f"{self.tokens_per_step:,} tokens per step, on {resolve_device(recipe.train.device)}"
        )


def make_plan(recipe: Recipe, report: Callable[[str], None] = lambda line: None) -> Plan:
    """Check everything about `recipe` that can be checked without training, and count what it will cost.

    Args:
        recipe: the comparison.
        report: takes one line at each stage of building token shards.

    Raises:
        ValueError: data, a model, a budget or the device cannot be had; the message names the arm or the key.
    """
    device = resolve_device(recipe.train.device)
    require_precision(recipe.train.precision, device)
    workload = open_workload(recipe, report)
    tokens_per_step = workload.training_data(recipe.seeds[0]).tokens_per_batch
    context = recipe.train.context_length
    given = {
        arm.name: arm_config(recipe, arm, vocab_size=workload.vocab_size, max_positions=context) for arm in recipe.arms
    }
    configs = budgeted_configs(recipe, given)
    costs = {name: multiply_adds_per_token(config, context) for name, config in configs.items()}
    arms = []
    for arm in recipe.arms:
        config = configs[arm.name]
        _require_buildable(arm, config, context)
        parameters = count_parameters(config)
        train = budgeted_train_config(recipe, costs[arm.name], costs[recipe.baseline])
        planned = PlannedArm(
            arm=arm,
            config=config,
            train=train,
            seeds=recipe.seeds_of(arm),
            learning_rates=recipe.rates(arm),
            parameters=parameters.total,
            parameters_without_embeddings=parameters.without_embeddings,
            multiply_adds_per_token=costs[arm.name],
            cache_bytes_per_token=cache_bytes_per_token(config),
            notes=(),
        )
        arms.append(replace(planned, notes=tuple(_notes(recipe, planned, given[arm.name], configs))))
    return Plan(recipe=recipe, workload=workload, arms=tuple(arms), tokens_per_step=tokens_per_step)


def _require_buildable(arm: Arm, config: DecoderConfig, context_length: int) -> None:
    if config.max_positions < context_length:
        raise ValueError(
            f"arm {arm.name!r}: model.max_positions = {config.max_positions} is smaller than the context of "
            f"{context_length} tokens; raise it or leave it out."
        )
    try:
        with torch.device("meta"):
            DecoderLM(config)
    except ValueError as error:
        raise ValueError(f"arm {arm.name!r}: {error}") from error


def _notes(
    recipe: Recipe, planned: PlannedArm, given: DecoderConfig, configs: dict[str, DecoderConfig]
) -> Iterator[str]:
    """Say how a resized arm came out, and how near to its target."""
    arm, config = planned.arm, planned.config
    if config != given:
        changes = [
            f"{name} {getattr(given, key)} -> {getattr(config, key)}"
            for name, key in (("width", "hidden_size"), ("layers", "num_layers"), ("feed-forward", "feed_forward_size"))
            if getattr(given, key) != getattr(config, key)
        ]
        yield f"resized: {', '.join(changes)}"
    if arm.match is not None:
        yield _distance(planned, arm.match.by, arm.match.arm, configs[arm.match.arm], recipe.train.context_length)
    elif recipe.budget == "parameters" and arm.name != recipe.baseline:
        yield _distance(planned, "parameters", recipe.baseline, configs[recipe.baseline], recipe.train.context_length)
    if planned.train.steps != recipe.train.steps:
        yield f"steps {recipe.train.steps:,} -> {planned.train.steps:,} for equal training multiply-adds"


def _distance(planned: PlannedArm, by: str, goal_name: str, goal: DecoderConfig, context_length: int) -> str:
    if by == "parameters":
        own, target, what = planned.parameters, count_parameters(goal).total, "parameters"
    else:
        own, target = planned.multiply_adds_per_token, multiply_adds_per_token(goal, context_length)
        what = "multiply-adds per token"
    return f"{own:,} {what} against {target:,} of {goal_name} ({100 * (own / target - 1):+.2f} %)"
