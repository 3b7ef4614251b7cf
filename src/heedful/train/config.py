"""What a training run is: its length, its batches, its optimiser and its schedule, checked before anything starts.

Three frozen dataclasses, the single schema for recipes, command lines and checkpoints. Every wrong value is refused on
construction, so a run never fails after an hour because of a number that was wrong from the beginning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Precision = Literal["float32", "bfloat16"]
DecayRule = Literal["matrices", "all"]
ScheduleKind = Literal["cosine", "linear", "constant"]
KeepRule = Literal["best and last", "all"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay.

    Attributes:
        learning_rate: the peak of the schedule.
        betas: decay rates of the running mean and mean square of the gradient, each in [0, 1).
        eps: added to the denominator.
        weight_decay: the coefficient; the schedule scales it together with the learning rate.
        decay: "matrices" decays every parameter of two or more dimensions except those the model names in
            `parameters_without_decay()`; "all" decays everything, as the published boosted runs do.
        gradient_clip: largest global gradient norm; 0 switches clipping off (the norm is still measured).
    """

    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: DecayRule = "matrices"
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        _require(
            self.learning_rate > 0 and math.isfinite(self.learning_rate), "learning_rate", "above 0", self.learning_rate
        )
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "betas",
            "two numbers in [0, 1)",
            self.betas,
        )
        _require(self.eps > 0, "eps", "above 0", self.eps)
        _require(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        _require_one_of(DecayRule, "decay", self.decay)
        _require(self.gradient_clip >= 0, "gradient_clip", "0 (no clipping) or more", self.gradient_clip)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up to the peak learning rate, then a decay to `final_ratio` of it.

    Attributes:
        kind: how the rate falls after the warm-up; "constant" stays at the peak and ignores `final_ratio`.
        warmup_steps: steps before the peak is reached; 0 starts at the peak.
        final_ratio: learning rate at the end of the run as a fraction of the peak, in [0, 1].
    """

    kind: ScheduleKind = "cosine"
    warmup_steps: int = 100
    final_ratio: float = 0.1

    def __post_init__(self) -> None:
        _require_one_of(ScheduleKind, "kind", self.kind)
        _require(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        _require(0 <= self.final_ratio <= 1, "final_ratio", "between 0 and 1", self.final_ratio)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences per step, over all micro-batches.
        context_length: tokens per sequence, at most.
        accumulation: micro-batches a batch is split into; it changes memory, not the result (up to rounding).
        seed: seeds the dropout of the run; the batches have a seed of their own.
        device: "auto" (CUDA when there is one, else the CPU), "cpu", "cuda" or "cuda:1".
        precision: "float32", or "bfloat16": float32 weights, the forward pass under bfloat16 autocast.
        optimizer: the optimiser.
        schedule: the learning rate over the steps.
        evaluate_every: steps between evaluations; the last step is always evaluated.
        checkpoint_every: steps between checkpoints; there is one at every new best, at the end and on interruption too.
        log_every: steps between lines in metrics.jsonl; a line holds the mean over the steps since the one before.
        keep: which checkpoints stay on disk.
        compile: run the training forward and backward passes through `torch.compile`.
    """

    steps: int
    batch_size: int
    context_length: int
    accumulation: int = 1
    seed: int = 0
    device: str = "auto"
    precision: Precision = "float32"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluate_every: int = 200
    checkpoint_every: int = 500
    log_every: int = 10
    keep: KeepRule = "best and last"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "context_length",
            "accumulation",
            "evaluate_every",
            "checkpoint_every",
            "log_every",
        ):
            _require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        _require(0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1", self.seed)
        _require_one_of(Precision, "precision", self.precision)
        _require_one_of(KeepRule, "keep", self.keep)
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation must divide batch_size, got {self.accumulation} and {self.batch_size}; "
                f"{math.gcd(self.accumulation, self.batch_size)} would."
            )
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps must be smaller than steps, got {self.schedule.warmup_steps} and {self.steps}; "
                f"a tenth of the steps ({self.steps // 10}) is a usual choice."
            )


def _require(holds: bool, name: str, expected: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value}.")


def _require_one_of(literal: Any, name: str, value: Any) -> None:
    choices = get_args(literal)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
