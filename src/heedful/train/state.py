"""What a run knows of itself: the state it carries from step to step, and the result it ends with."""

from __future__ import annotations

from dataclasses import dataclass, field

from heedful.train.step_buffer import StepRecord


class DivergenceError(ValueError):
    """The loss or the gradient norm of a step is not finite; the checkpoints before it are untouched."""


class CheckpointError(ValueError):
    """A checkpoint could not be written; those before it are untouched."""


@dataclass(kw_only=True)
class TrainingState:
    """Everything that goes on after a resume besides weights, optimiser and random states.

    Attributes:
        step: finished steps.
        evaluated_step: the last step an evaluation followed.
        best_step: the step of the lowest "val/loss", None before the first evaluation.
        best: the metrics of that evaluation.
        metrics: the newest value of every metric.
        recent: the steps since the last log line, so that a resumed run writes the line an uninterrupted one writes.
        step_seconds: durations of the steps, without the first few of each process and the one that measured memory.
        seconds: wall time of all processes of the run, evaluations and checkpoints included.
        peak_memory_bytes: `peak_tensor_bytes` of one step, None before it was measured.
    """

    step: int = 0
    evaluated_step: int = 0
    best_step: int | None = None
    best: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    recent: tuple[StepRecord, ...] = ()
    step_seconds: tuple[float, ...] = ()
    seconds: float = 0.0
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended; the same is in result.json.

    Attributes:
        steps: finished steps.
        final: the newest value of every metric.
        best: the metrics of the evaluation with the lowest "val/loss"; `final` when nothing was evaluated.
        best_step: the step of that evaluation; the weights are in the folder checkpoints/best.json names.
        tokens_per_second: of the median step, batch included, evaluations and checkpoints not.
        peak_memory_bytes: the most tensor memory alive at one time in a training step, weights and optimiser included.
        seconds: wall time of all processes of the run.
        interrupted: whether a signal ended it early; run it again with `resume=True`.
    """

    steps: int
    final: dict[str, float]
    best: dict[str, float]
    best_step: int
    tokens_per_second: float
    peak_memory_bytes: int
    seconds: float
    interrupted: bool
