"""`heedful estimate`: what a recipe will cost in memory and hours, without data, weights or a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from heedful.study.estimate import ArmEstimate, RecipeEstimate
    from heedful.train.memory_estimate import StepMemory

LABEL_COLUMNS, ARM_COLUMNS = 29, 16
PARTS = (
    ("weights", "weights"),
    ("optimizer", "optimiser state"),
    ("average", "averaged weights"),
    ("gradients", "gradients"),
    ("gathered", "gathered weights"),
    ("communication", "gradients on their way"),
    ("activations", "activations kept"),
    ("working", "working memory"),
    ("margin", "margin of the allocator"),
    ("total", "all"),
)


@dataclass(frozen=True)
class Estimate:
    """Say what a recipe will cost: parameters, tokens, operations, memory on each GPU, hours.

    An estimate on paper: it reads no data, builds no weights and needs no GPU. Memory is derived from the operations of
    a step; hours follow from the assumed utilisation and are as good as that. A value of the recipe can be changed by
    its dotted name, such as --train.parallel.strategy ddp.
    """

    recipe: Annotated[Path, tyro.conf.Positional]
    """Recipe in TOML, such as recipes/papers/multi-token-880m.toml."""

    gpu: str | None = None
    """H200, H100 or A100; the recipe's by default, else H200."""

    gpus: int | None = None
    """How many; the recipe's by default, else 1."""

    arm: str | None = None
    """Name of one arm; all by default."""

    utilisation: float | None = None
    """Assumed share of the GPU's peak operations that training reaches (MFU); 0.35 by default. Not a measurement."""

    json: bool = False
    """Print JSON."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Print."""
        from heedful.study.estimate import ASSUMED_UTILISATION, estimate_recipe
        from heedful.study.recipe_file import load_recipe

        if self.gpus is not None and self.gpus < 1:
            raise ValueError(f"--gpus must be at least 1, got {self.gpus}.")
        estimate = estimate_recipe(
            load_recipe(self.recipe, overrides),
            gpu=self.gpu,
            gpus=self.gpus,
            arms=None if self.arm is None else (self.arm,),
            utilisation=ASSUMED_UTILISATION if self.utilisation is None else self.utilisation,
        )
        if self.json:
            print(json.dumps(estimate_mapping(estimate), indent=2))
            return
        from rich.console import Console

        needed = LABEL_COLUMNS + ARM_COLUMNS * len(estimate.arms)  # a terminal breaks lines better
        _print(Console(highlight=False, width=max(Console().width, needed)), estimate)


def estimate_mapping(estimate: RecipeEstimate) -> dict[str, Any]:
    """Return the plain form of an estimate."""
    return {
        "recipe": estimate.recipe.name,
        "gpu": estimate.gpu.name,
        "gpu_memory_bytes": estimate.gpu.memory_bytes,
        "gpus": estimate.gpus,
        "strategy": estimate.strategy,
        "shard_size": estimate.shard_size,
        "assumed_utilisation": estimate.utilisation,
        "gpu_hours_of_all_runs": estimate.gpu_hours,
        "arms": [_arm_mapping(arm, estimate) for arm in estimate.arms],
    }


def _arm_mapping(arm: ArmEstimate, estimate: RecipeEstimate) -> dict[str, Any]:
    config = arm.config
    return {
        "name": arm.name,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_heads": config.layers[0].num_heads,
        "feed_forward_size": config.feed_forward_size,
        "vocab_size": config.vocab_size,
        "context_length": arm.train.context_length,
        "parameters": arm.parameters,
        "parameters_without_embeddings": arm.parameters_without_embeddings,
        "steps": arm.train.steps,
        "tokens_per_step": arm.tokens_per_step,
        "tokens": arm.tokens,
        "training_flops_per_token": arm.flops_per_token,
        "training_flops": arm.flops,
        "micro_batch": arm.micro_batch,
        "memory": _memory_mapping(arm.memory),
        "memory_with_recomputation": _memory_mapping(arm.memory_with_recomputation),
        "memory_without_recomputation": _memory_mapping(arm.memory_without_recomputation),
        "fits": arm.fits,
        "largest_micro_batch": arm.largest_micro_batch,
        "estimated_tokens_per_second": arm.tokens_per_second,
        "estimated_hours": arm.hours,
        "estimated_gpu_hours": arm.hours * estimate.gpus,
        "runs": arm.runs,
    }


def _memory_mapping(memory: StepMemory) -> dict[str, Any]:
    return {"moment": memory.moment, "attention": memory.attention} | {
        field: getattr(memory, field) for field, _ in PARTS
    }


def _print(console: Console, estimate: RecipeEstimate) -> None:
    from heedful.study.wording import count, number_of

    recipe, first = estimate.recipe, estimate.arms[0]
    console.print(f"[bold]{recipe.title or recipe.name}[/bold]")
    console.print(
        f"{estimate.gpus} x {estimate.gpu.name}, {estimate.strategy}"
        + (f" over {estimate.shard_size}" if estimate.shard_size > 1 else "")
        + f"; {first.train.batch_size:,} sequences of {first.train.context_length:,} tokens a step, "
        f"{first.micro_batch} at a time on each GPU; {first.train.precision}"
    )
    _sizes(console, estimate)
    _memory(console, estimate)
    _time(console, estimate)
    runs = sum(arm.runs for arm in estimate.arms)
    console.print(
        f"All {number_of(runs, 'run')}: {count(estimate.gpu_hours)} GPU-hours, estimated. Mechanisms that reach less "
        "of the peak than the assumed share take longer.",
        soft_wrap=True,
    )


def _sizes(console: Console, estimate: RecipeEstimate) -> None:
    from heedful.study.wording import count

    rows = {
        "layers x width": lambda arm: f"{arm.config.num_layers} x {arm.config.hidden_size:,}",
        "feed-forward": lambda arm: f"{arm.config.feed_forward_size:,}",
        "parameters": lambda arm: f"{arm.parameters:,}",
        "without embeddings": lambda arm: f"{arm.parameters_without_embeddings:,}",
        "steps": lambda arm: f"{arm.train.steps:,}",
        "tokens": lambda arm: count(arm.tokens),
        "FLOPs": lambda arm: f"{arm.flops:.3g}",
    }
    _table(console, "One run of each arm", rows, estimate)


def _memory(console: Console, estimate: RecipeEstimate) -> None:
    from heedful.study.wording import memory

    rows: dict[str, Callable[[ArmEstimate], str]] = {
        name: lambda arm, field=field: memory(getattr(arm.memory, field))
        for field, name in PARTS
        if any(getattr(arm.memory, field) for arm in estimate.arms)
    }
    rows["fits"] = lambda arm: "yes" if arm.fits else "no"
    rows["largest micro-batch"] = lambda arm: str(arm.largest_micro_batch)
    rows["all, recomputing blocks"] = lambda arm: memory(arm.memory_with_recomputation.total)
    rows["all, keeping everything"] = lambda arm: memory(arm.memory_without_recomputation.total)
    title = f"Memory on each GPU of {memory(estimate.gpu.memory_bytes)}, derived, at the moment that needs the most"
    _table(console, title, rows, estimate)


def _time(console: Console, estimate: RecipeEstimate) -> None:
    from heedful.study.wording import count

    rows = {
        "tokens/s": lambda arm: count(arm.tokens_per_second),
        "hours": lambda arm: f"{arm.hours:,.1f}",
        "GPU-hours": lambda arm: f"{arm.hours * estimate.gpus:,.1f}",
        "runs": lambda arm: str(arm.runs),
    }
    title = f"Time of one run if {100 * estimate.utilisation:g} % of the peak operations are reached, an assumption"
    _table(console, title, rows, estimate)


def _table(
    console: Console, title: str, rows: Mapping[str, Callable[[ArmEstimate], str]], estimate: RecipeEstimate
) -> None:
    from rich.table import Table

    console.print(f"\n{title}", soft_wrap=True)
    table = Table()
    table.add_column("", no_wrap=True)
    for arm in estimate.arms:
        table.add_column(arm.name, justify="right")
    for name, cell in rows.items():
        table.add_row(name, *(cell(arm) for arm in estimate.arms))
    console.print(table)
