"""What a recipe will cost, on paper: parameters, tokens, operations, memory on each GPU, hours at an assumed speed.

Needs neither data nor weights nor a GPU. Memory is `heedful.train.memory_estimate`'s. Hours are operations divided by
the GPUs' peak times a utilisation that is assumed, so they are as good as that number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from heedful.models import DecoderConfig
from heedful.models.counting import count_parameters, multiply_adds_per_token, training_flops_per_token
from heedful.schema import did_you_mean
from heedful.study.arms import arm_config
from heedful.study.budgets import budgeted_configs, budgeted_train_config
from heedful.study.recipe import Arm, FindTheBlockTask, Hardware, Recipe
from heedful.tasks.find_the_block import VOCAB_SIZE
from heedful.train.config import TrainConfig
from heedful.train.hardware import Gpu, gpu_named
from heedful.train.memory_estimate import StepMemory, estimate_memory
from heedful.train.parallel import resolve_strategy

Strategy = Literal["single", "ddp", "fsdp2", "hsdp"]
ASSUMED_UTILISATION = 0.35
"""Model FLOPs over peak FLOPs. Not measured here: the multi-token paper's standard 880M model on 32 H200s comes to 0.34
by the counts used here (54,300 tokens per second and GPU)."""
GPUS_PER_MACHINE = 8
FIXED_VOCABULARIES = {"bytes": 257, "gpt2": 50_257}
MOST_SEQUENCES = 4096


@dataclass(frozen=True, kw_only=True)
class ArmEstimate:
    """One arm. Operations, tokens and hours are of one run, and all runs of a comparison follow from `runs`.

    Attributes:
        name: the arm's.
        config: its decoder.
        train: its training configuration, with its steps.
        runs: runs of the comparison, one for each seed and further learning rate.
        parameters, parameters_without_embeddings: numbers of weights.
        tokens_per_step, tokens: inputs, whether they are scored or not.
        flops_per_token, flops: of forward and backward pass, `heedful.models.counting.training_flops_per_token`.
        micro_batch: sequences that one GPU computes at a time.
        memory: what a step needs on each GPU, as the recipe says.
        memory_with_recomputation, memory_without_recomputation: the same with `recompute_blocks` on and off.
        fits: whether the GPU has that memory.
        largest_micro_batch: sequences at a time that would still fit, 0 if none do; None where it was not asked for.
        tokens_per_second: of all GPUs together, at the assumed utilisation.
        hours: of one run on all GPUs, at the assumed utilisation.
    """

    name: str
    config: DecoderConfig
    train: TrainConfig
    runs: int
    parameters: int
    parameters_without_embeddings: int
    tokens_per_step: int
    tokens: int
    flops_per_token: int
    flops: int
    micro_batch: int
    memory: StepMemory
    memory_with_recomputation: StepMemory
    memory_without_recomputation: StepMemory
    fits: bool
    largest_micro_batch: int | None
    tokens_per_second: float
    hours: float


@dataclass(frozen=True, kw_only=True)
class RecipeEstimate:
    """A recipe on some GPUs.

    Attributes:
        recipe: the recipe.
        gpu: the model of GPU.
        gpus: how many.
        strategy: how the model is spread over them.
        shard_size: GPUs that share one copy of the weights.
        utilisation: the assumed share of the peak.
        arms: in the order of the recipe.
    """

    recipe: Recipe
    gpu: Gpu
    gpus: int
    strategy: Strategy
    shard_size: int
    utilisation: float
    arms: tuple[ArmEstimate, ...]

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all runs of all arms."""
        return sum(arm.hours * arm.runs for arm in self.arms) * self.gpus


def estimate_recipe(
    recipe: Recipe,
    *,
    gpu: str | None = None,
    gpus: int | None = None,
    arms: tuple[str, ...] | None = None,
    utilisation: float = ASSUMED_UTILISATION,
    search: bool = True,
) -> RecipeEstimate:
    """Return what `recipe` costs.

    Args:
        recipe: the comparison.
        gpu: model of GPU; None takes the recipe's, or H200.
        gpus: how many; None takes the recipe's, or 1.
        arms: names of the arms; None for all.
        utilisation: assumed share of the GPU's peak that the counted operations reach, above 0, at most 1.
        search: look for the largest micro-batch, which takes some seconds.

    Raises:
        ValueError: an unknown GPU or arm, more GPUs than sequences, a strategy that does not go with so many GPUs.
    """
    planned = recipe.hardware or Hardware()
    card, count = gpu_named(gpu or planned.gpu), gpus or planned.gpus
    if not 0 < utilisation <= 1:
        raise ValueError(f"the assumed utilisation must be above 0 and at most 1, got {utilisation}.")
    if count > recipe.train.batch_size:
        raise ValueError(
            f"{count} GPUs are more than the {recipe.train.batch_size} sequences of a step; take fewer, or a larger "
            "train.batch_size."
        )
    policy = recipe.train.parallel
    if policy.strategy == "hsdp" and policy.shard_size is None:
        policy = replace(policy, shard_size=min(count, GPUS_PER_MACHINE))
    strategy = cast(Strategy, resolve_strategy(policy, count))
    shard_size = {"fsdp2": count, "hsdp": policy.shard_size or 1}.get(strategy, 1)
    configs = arm_configs(recipe)
    names = [arm.name for arm in recipe.arms]
    for name in arms or ():
        if name not in names:
            raise ValueError(f"the recipe has no arm {name!r}.{did_you_mean(name, names)}")
    chosen = [arm for arm in recipe.arms if arms is None or arm.name in arms]
    context = recipe.train.context_length
    costs = {name: multiply_adds_per_token(config, context) for name, config in configs.items()}
    estimates = []
    for arm in chosen:
        train = budgeted_train_config(recipe, costs[arm.name], costs[recipe.baseline])
        spread: dict[str, Any] = {"strategy": strategy, "shard_size": shard_size}
        estimates.append(
            _estimate_arm(
                recipe, arm, configs[arm.name], train, card, count, spread, utilisation=utilisation, search=search
            )
        )
    return RecipeEstimate(
        recipe=recipe,
        gpu=card,
        gpus=count,
        strategy=strategy,
        shard_size=shard_size,
        utilisation=utilisation,
        arms=tuple(estimates),
    )


def arm_configs(recipe: Recipe) -> dict[str, DecoderConfig]:
    """Return the decoder of each arm by name, resized as the recipe asks, without opening its data."""
    vocabulary, context = known_vocabulary(recipe), recipe.train.context_length
    given = {arm.name: arm_config(recipe, arm, vocab_size=vocabulary, max_positions=context) for arm in recipe.arms}
    return budgeted_configs(recipe, given)


def known_vocabulary(recipe: Recipe) -> int:
    """Return the vocabulary that the recipe's task or tokenizer will have; a trained one may end up a little smaller
    where the text is too short for it.
    """
    if isinstance(recipe.task, FindTheBlockTask):
        return VOCAB_SIZE
    return FIXED_VOCABULARIES.get(recipe.data.tokenizer, recipe.data.vocab_size)


def peak_flops(train: TrainConfig, gpu: Gpu) -> float:
    """Return the GPU's peak in the type that the run multiplies in."""
    return gpu.bfloat16_flops if train.precision == "bfloat16" else gpu.float32_flops


def _estimate_arm(
    recipe: Recipe,
    arm: Arm,
    config: DecoderConfig,
    train: TrainConfig,
    gpu: Gpu,
    gpus: int,
    spread: dict[str, Any],
    *,
    utilisation: float,
    search: bool,
) -> ArmEstimate:
    rows = -(-train.batch_size // gpus)
    pieces = min(train.accumulation, rows)
    micro_batch = -(-rows // pieces)

    def memory(sequences: int, recompute: bool) -> StepMemory:
        policy = replace(train.parallel, recompute_blocks=recompute)
        changed = replace(train, parallel=policy)
        return estimate_memory(config, changed, **spread, micro_batch=sequences, accumulation=pieces)

    both = {recompute: memory(micro_batch, recompute) for recompute in (False, True)}
    asked = train.parallel.recompute_blocks
    largest = None
    if search:
        largest = largest_micro_batch(lambda sequences: memory(sequences, asked).total, gpu.memory_bytes)
    parameters = count_parameters(config)
    tokens_per_step = train.batch_size * train.context_length
    flops_per_token = training_flops_per_token(config, train.context_length)
    tokens_per_second = gpus * peak_flops(train, gpu) * utilisation / flops_per_token
    tokens = tokens_per_step * train.steps
    return ArmEstimate(
        name=arm.name,
        config=config,
        train=train,
        runs=recipe.runs_of(arm),
        parameters=parameters.total,
        parameters_without_embeddings=parameters.without_embeddings,
        tokens_per_step=tokens_per_step,
        tokens=tokens,
        flops_per_token=flops_per_token,
        flops=flops_per_token * tokens,
        micro_batch=micro_batch,
        memory=both[asked],
        memory_with_recomputation=both[True],
        memory_without_recomputation=both[False],
        fits=both[asked].total <= gpu.memory_bytes,
        largest_micro_batch=largest,
        tokens_per_second=tokens_per_second,
        hours=tokens / tokens_per_second / 3600,
    )


def largest_micro_batch(needed: Callable[[int], int], room: int) -> int:
    """Return the most sequences (at most 4096) of which `needed` bytes are in `room`, 0 if not even one is.

    What is needed grows with the sequences, nearly in proportion, so the slope between two figures leads near the
    answer.
    """
    low, at_low, high = 1, needed(1), MOST_SEQUENCES + 1
    if at_low > room:
        return 0
    slope, candidate = 0.0, 4
    while high - low > 1:
        if slope > 0:
            candidate = low + math.floor((room - at_low) / slope)
        candidate = min(max(candidate, low + 1), high - 1)
        found = needed(candidate)
        slope = (found - at_low) / (candidate - low)
        if found <= room:
            low, at_low = candidate, found
        else:
            high = candidate
    return low
