"""What a training run is: its length, its batches, its optimiser and its schedule, checked before anything starts.

Frozen dataclasses, the single schema for recipes, command lines and checkpoints. Every wrong value is refused on
construction, so a run never fails after an hour because of a number that was wrong from the beginning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from heedful.train.checking import require, require_one_of
from heedful.train.optimizer_config import OptimizerConfig, ScheduleConfig
from heedful.train.parallel_config import ParallelConfig

Precision = Literal["float32", "bfloat16"]
KeepRule = Literal["best and last", "all"]
Tracker = Literal["tensorboard", "trackio", "wandb"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy over the scored tokens, with an optional penalty on the size of the logits.

    Attributes:
        z_loss: coefficient of the mean of logsumexp(logits)^2, 0 or more; it is trained on and not reported.
        chunk_tokens: tokens whose logits exist at one time in training; None takes as many as make 2^26 logits. It
            changes memory, not the result beyond rounding.
    """

    z_loss: float = 0.0
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        require(self.z_loss >= 0 and math.isfinite(self.z_loss), "z_loss", "0 or more", self.z_loss)
        require(self.chunk_tokens is None or self.chunk_tokens >= 1, "chunk_tokens", "1 or more", self.chunk_tokens)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences per step, over all processes and micro-batches.
        context_length: tokens per sequence, at most.
        accumulation: micro-batches that the rows of each process are split into; it changes memory, not the result (up
            to rounding, and to which numbers dropout draws).
        seed: seeds the dropout of the run; the batches have a seed of their own.
        device: "auto" (CUDA when there is one, else the CPU), "cpu", "cuda" or "cuda:1".
        precision: "float32", or "bfloat16": float32 weights, the forward pass under bfloat16 autocast.
        optimizer: the optimiser.
        schedule: the learning rate over the steps.
        loss: the loss.
        parallel: how the run is spread over processes.
        evaluate_every: steps between evaluations; the last step is always evaluated.
        checkpoint_every: steps between checkpoints; there is one at every new best, at the end and on interruption too.
        log_every: steps between lines in metrics.jsonl; a line holds the mean over the steps since the one before.
        probe_every: steps between looks into the model (sizes of attention logits, gates, kernels, nonlinear terms),
            written to metrics.jsonl under "probe/"; 0 is never.
        keep: which checkpoints stay on disk: the best one and the last ones, or all.
        keep_last: how many of the last ones, 1 or more.
        asynchronous_checkpoints: write checkpoints in the background while training goes on.
        trackers: where metrics go besides metrics.jsonl; None is TensorBoard where it is installed.
        compile: compile each block of the model with `torch.compile`.
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
    loss: LossConfig = field(default_factory=LossConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluate_every: int = 200
    checkpoint_every: int = 500
    log_every: int = 10
    probe_every: int = 0
    keep: KeepRule = "best and last"
    keep_last: int = 1
    asynchronous_checkpoints: bool = False
    trackers: tuple[Tracker, ...] | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "context_length", "accumulation", "evaluate_every", "checkpoint_every")
        for name in (*counts, "log_every", "keep_last"):
            require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        require(self.probe_every >= 0, "probe_every", "0 (never) or more", self.probe_every)
        require(0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1", self.seed)
        require_one_of(Precision, "precision", self.precision)
        require_one_of(KeepRule, "keep", self.keep)
        for tracker in self.trackers or ():
            require_one_of(Tracker, "trackers", tracker)
        if self.accumulation > self.batch_size:
            raise ValueError(
                f"accumulation splits the rows of a batch, so it must be at most batch_size, got {self.accumulation} "
                f"and {self.batch_size}."
            )
        if self.parallel.gather_precision == "bfloat16" and self.precision == "float32":
            raise ValueError(
                "parallel.gather_precision = 'bfloat16' computes in bfloat16, so it needs precision = 'bfloat16', got "
                "'float32'; change one of them."
            )
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps must be smaller than steps, got {self.schedule.warmup_steps} and {self.steps}; "
                f"a tenth of the steps ({self.steps // 10}) is a usual choice."
            )
