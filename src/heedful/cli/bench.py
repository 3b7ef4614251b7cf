"""`heedful bench step`: what a training step of a recipe costs on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from heedful.study.plan import PlannedArm
    from heedful.train.step_profile import OperatorTime
    from heedful.train.step_timing import StepTiming

SHOWN_OPERATORS = 15


@dataclass(frozen=True)
class Bench:
    """Time training steps of one arm of a recipe, as `heedful train` takes them.

    Prints tokens per second, the rate of floating-point operations and what part of the device's peak that is (MFU),
    peak memory, and the shares of data, forward pass, backward pass and optimiser. Nothing is trained or kept.
    """

    what: Annotated[Literal["step"], tyro.conf.Positional]
    """What to measure."""

    recipe: Annotated[Path, tyro.conf.Positional]
    """Recipe in TOML, such as recipes/demo.toml."""

    arm: str | None = None
    """Name of the arm; the recipe's baseline by default."""

    warmup: int = 3
    """Steps before the first that counts."""

    steps: int = 10
    """Steps whose speed counts; as many more are timed phase by phase."""

    peak_flops: float | None = None
    """Floating-point operations per second that one device can do at the recipe's precision; known for some GPUs."""

    profile: Path | None = None
    """Profile three steps more: write a trace for Perfetto or chrome://tracing here, print the costliest operators."""

    json: bool = False
    """Print JSON."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Measure, then print."""
        from contextlib import nullcontext

        import torch

        from heedful.models import DecoderLM
        from heedful.models.counting import training_flops_per_token
        from heedful.schema import did_you_mean
        from heedful.study.plan import make_plan
        from heedful.study.recipe_file import load_recipe
        from heedful.train.processes import environment_rank
        from heedful.train.step_profile import profile_steps
        from heedful.train.step_timing import time_steps, training_step

        if self.peak_flops is not None and not self.peak_flops > 0:
            raise ValueError(f"--peak-flops must be a positive number, got {self.peak_flops:g}.")
        recipe = load_recipe(self.recipe, overrides)
        name = self.arm or recipe.baseline
        names = [arm.name for arm in recipe.arms]
        if name not in names:
            raise ValueError(f"{self.recipe} has no arm {name!r}.{did_you_mean(name, names)}")
        seed = recipe.seeds[0]
        plan = make_plan(recipe, lambda line: None)
        planned = next(arm for arm in plan.arms if arm.name == name)
        config = planned.train_config(planned.learning_rates[0], seed)
        torch.manual_seed(seed)
        with nullcontext() if environment_rank() == 0 else torch.device("meta"):
            model = DecoderLM(planned.config)
        with training_step(model, plan.workload.training_data(seed), config) as step:
            timing = time_steps(step, warmup=self.warmup, steps=self.steps)
            operators = (
                None
                if self.profile is None
                else profile_steps(step, trace=self.profile if step.processes.first else None)
            )
            first = step.processes.first
        flops_per_token = training_flops_per_token(planned.config, config.context_length)
        figures = step_figures(planned, timing, flops_per_token, self.peak_flops)
        if not first:
            return
        if self.json:
            shown = {} if operators is None else {"operators": [vars(operator) for operator in operators]}
            print(json.dumps({**figures, **shown}, indent=2))
            return
        _print_figures(figures)
        if operators is not None:
            _print_operators(operators)
            print(f"trace in {self.profile}")


def step_figures(
    planned: PlannedArm, timing: StepTiming, flops_per_token: int, peak_flops: float | None = None
) -> dict[str, Any]:
    """Return all figures of a step, JSON-able.

    Args:
        flops_per_token: operations of a token's forward and backward pass, without what is computed twice.
        peak_flops: of one device, per second; None looks it up, and where it is not known there is no utilisation.
    """
    from heedful.train.hardware import find_gpu

    gpu = find_gpu(timing.device)
    if peak_flops is None and gpu is not None:
        peak_flops = gpu.bfloat16_flops if planned.train.precision == "bfloat16" else gpu.float32_flops
    achieved = flops_per_token * timing.tokens_per_second / timing.processes
    return {
        "arm": planned.name,
        "parameters": planned.parameters,
        "device": timing.device,
        "processes": timing.processes,
        "precision": planned.train.precision,
        "batch_size": planned.train.batch_size,
        "context_length": planned.train.context_length,
        "tokens_per_second": timing.tokens_per_second,
        "seconds": timing.seconds,
        "flops_per_token": flops_per_token,
        "flops_per_second": achieved,
        "peak_flops": peak_flops,
        "utilisation": None if peak_flops is None else achieved / peak_flops,
        "peak_memory_bytes": timing.peak_memory_bytes,
        "phase_seconds": timing.phase_seconds,
        "shares": timing.shares,
    }


def _print_figures(figures: dict[str, Any]) -> None:
    from heedful.study.wording import count, memory

    several = f"{figures['processes']} x " if figures["processes"] > 1 else ""
    peak, used = figures["peak_flops"], figures["utilisation"]
    mfu = (
        "no peak known for this device; --peak-flops gives one"
        if used is None
        else f"{100 * used:.1f} % of {count(peak)}FLOP/s (MFU)"
    )
    print(
        f"{figures['arm']}: {figures['parameters']:,} parameters, {figures['batch_size']} x "
        f"{figures['context_length']} tokens a step, {figures['precision']}, {several}{figures['device']}"
    )
    lines = {
        "tokens/s": f"{figures['tokens_per_second']:,.0f}",
        "step": f"{1000 * figures['seconds']:,.2f} ms",
        "achieved": f"{count(figures['flops_per_second'])}FLOP/s per device, {mfu}",
        "peak memory": memory(figures["peak_memory_bytes"]),
        **{name: f"{100 * share:.1f} %" for name, share in figures["shares"].items()},
    }
    for name, value in lines.items():
        print(f"  {name:<12} {value}")


def _print_operators(operators: list[OperatorTime]) -> None:
    total = sum(operator.milliseconds for operator in operators)
    print(f"  {'operator':<60} {'calls':>7} {'ms':>9} {'share':>7}   per step, its own time")
    for operator in operators[:SHOWN_OPERATORS]:
        share = 100 * operator.milliseconds / total
        print(f"  {operator.name[:60]:<60} {operator.calls:>7.0f} {operator.milliseconds:>9.3f} {share:>6.1f}%")
