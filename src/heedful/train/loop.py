"""The training loop: steps, log lines, evaluations, probes and checkpoints in their order, the same in every process.

Every place where the host waits for the device is `_settle`; between two of them steps are only queued.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import nn

from heedful.models.probes import evaluating
from heedful.train.device import autocast
from heedful.train.loss import to_device
from heedful.train.memory import can_measure, peak_tensor_bytes
from heedful.train.parallel import reshard
from heedful.train.probing import PROBED_ROWS, probe_metrics
from heedful.train.processes import RemoteError
from heedful.train.progress import UNTIMED_STEPS, format_metrics
from heedful.train.state import CheckpointError, DivergenceError, TrainResult
from heedful.train.step_buffer import StepBuffer

if TYPE_CHECKING:
    from heedful.train.checkpoint import Checkpoints
    from heedful.train.interruption import StopRequest
    from heedful.train.metrics import MetricsWriter
    from heedful.train.progress import Reporter
    from heedful.train.state import TrainingState
    from heedful.train.training_step import TrainingStep

Evaluate = Callable[[nn.Module], Mapping[str, float]]


class TrainingLoop:
    """A run from the step it stands at to its end, or to the step after which a signal stops it.

    Args:
        step: takes the steps.
        state: where the run stands.
        checkpoints: where it is saved.
        evaluate: see `train`.
        writer: where metrics go, in the first process alone.
        reporter: what people see.
        stop: whether a signal came.
        saved: whether the state as it is now is on disk.
    """

    def __init__(
        self,
        step: TrainingStep,
        state: TrainingState,
        checkpoints: Checkpoints,
        *,
        evaluate: Evaluate | None,
        writer: MetricsWriter | None,
        reporter: Reporter,
        stop: StopRequest,
        saved: bool,
    ) -> None:
        self.step, self.state, self.checkpoints, self.evaluate = step, state, checkpoints, evaluate
        self.model, self.data, self.config, self.processes = step.model, step.data, step.config, step.processes
        self.writer, self.reporter, self.stop, self.saved = writer, reporter, stop, saved
        self.stopping = False  # as all processes agreed
        self.buffer = StepBuffer(step.device, step.processes)
        self.first_step = step.number = state.step  # of this process
        self.began = time.monotonic() - state.seconds

    def run(self) -> TrainResult:
        """Train, and return how it ended; `interrupted` says whether a signal ended it early."""
        self.reporter.start(self.state.step, self.config.steps)
        if 0 < self.state.step < self.config.steps:
            self.reporter.message(f"resumed after step {self.state.step} of {self.config.steps}")
        try:
            self._loop()
            self.checkpoints.wait()
        finally:
            self.reporter.close()
        if self.stopping and self.writer is not None:
            self.writer.ending = "interrupted"
        return self._result()

    def _loop(self) -> None:
        while True:  # evaluations and checkpoints come first: a resumed run may still owe those of its last step
            if not self.processes.several:  # with several, they agree during a step
                self.stopping = self.stop.requested
            if self._evaluation_is_due():
                self._evaluate()
            if self._checkpoint_is_due():
                self._save()
            if self._ends():
                break
            self._step()
            if self._is_due(self.config.log_every):
                self._log()
            if self.config.probe_every and self._is_due(self.config.probe_every):
                self._probe()
        if self.stopping:
            self.checkpoints.wait()  # before it is said
            name = self.stop.signal_name or "a signal to another process"
            self.reporter.message(f"{name}: saved after step {self.state.step}; --resume goes on from there.")

    def _ends(self) -> bool:
        return self.saved and (self.stopping or self.state.step == self.config.steps)

    def _is_due(self, every: int) -> bool:
        return self.state.step > 0 and (self.state.step % every == 0 or self.state.step == self.config.steps)

    def _step(self) -> None:
        self.buffer.start()
        warm = self.state.step >= min(1, self.config.steps - 1)
        if self.state.peak_memory_bytes is None and warm and can_measure():
            self.state.peak_memory_bytes = peak_tensor_bytes(self._update, resident=self.step.resident())
        else:
            self._update()
        self.reporter.advance(self.state.step)

    def _update(self) -> None:
        taken = self.step.take(stop=lambda: self.stop.requested)
        self.stopping = taken.stopping
        self.state.step += 1
        self.saved = False
        self.buffer.finish(self.state.step, taken.loss, taken.grad_norm)

    def _settle(self) -> None:
        """Read the latest steps from the device; stop at the first of them that is not finite."""
        records = self.buffer.read()
        for record in records:
            if not (math.isfinite(record.loss) and math.isfinite(record.grad_norm)):
                self._diverged(record.step, {"train/loss": record.loss, "grad_norm": record.grad_norm})
        self.state.recent += tuple(records)
        first_timed = self.first_step + UNTIMED_STEPS + 1
        self.state.step_seconds += tuple(record.seconds for record in records if record.step >= first_timed)

    def _log(self) -> None:
        self._settle()
        recent = self.state.recent
        metrics = {
            "train/loss": statistics.fmean(record.loss for record in recent),
            "lr": self.step.learning_rate(self.state.step - 1),
            "grad_norm": statistics.fmean(record.grad_norm for record in recent),
            "tokens_per_second": self.data.tokens_per_batch / statistics.fmean(record.seconds for record in recent),
            "seconds": time.monotonic() - self.began,
        }
        if self.state.peak_memory_bytes is not None:
            metrics["memory"] = float(self.state.peak_memory_bytes)
        self.state.recent = ()
        self.state.metrics["train/loss"] = metrics["train/loss"]
        self._write(self.state.step, metrics)
        self.reporter.training(self.state.step, metrics)

    def _probe(self) -> None:
        rows = range(self.config.batch_size) if self.step.rows is None else self.step.rows
        few = to_device(self.data.batch(self.state.step - 1, rows[:PROBED_ROWS]), self.step.device)
        with self._only_looking(), autocast(self.config.precision, self.step.device):
            found = probe_metrics(self.model, few)
        self._write(self.state.step, self.processes.agree(found))

    @contextmanager
    def _only_looking(self) -> Iterator[None]:
        """Forward passes that train nothing: evaluation mode, no gradients, uncompiled, nothing gathered left behind.

        Evaluations have other lengths than steps, and compiling for each of them takes longer than it saves.
        """
        eager = torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()
        try:
            with evaluating(self.model), torch.no_grad(), eager:
                yield
        finally:
            reshard(self.model)

    def _evaluation_is_due(self) -> bool:
        pending = self.evaluate is not None and self.state.evaluated_step < self.state.step
        return pending and self._is_due(self.config.evaluate_every) and not self.stopping

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        self._settle()
        state = self.state
        with nullcontext() if self.step.average is None else self.step.average.applied(), self._only_looking():
            found = {name: float(value) for name, value in self.evaluate(self.model).items()}
        metrics = self.processes.agree(found)
        if "val/loss" not in metrics:
            raise ValueError(
                f'evaluate must return "val/loss", which the best checkpoint is chosen by; got {sorted(metrics)}.'
            )
        if not math.isfinite(metrics["val/loss"]):
            self._diverged(state.step, metrics)
        state.evaluated_step, self.saved = state.step, False
        state.metrics |= metrics
        if state.best_step is None or metrics["val/loss"] < state.best["val/loss"]:
            state.best_step, state.best = state.step, metrics
        self._write(state.step, metrics)
        best = "  (best)" if state.best_step == state.step else ""
        self.reporter.message(f"step {state.step}/{self.config.steps}  {format_metrics(metrics)}{best}")

    def _checkpoint_is_due(self) -> bool:
        if self.saved:
            return False
        new_best = self.state.step > 0 and self.state.best_step == self.state.step
        return self.stopping or new_best or self._is_due(self.config.checkpoint_every)

    def _save(self) -> None:
        self._settle()
        self.state.seconds = time.monotonic() - self.began
        if self.writer is not None:
            self.writer.sync()
        never_evaluated = self.evaluate is None and self.state.best_step is None
        is_best = never_evaluated or self.state.best_step == self.state.step
        self.checkpoints.save(self.state, is_best=is_best)
        self.saved = True

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(step, metrics)

    def _diverged(self, step: int, metrics: dict[str, float]) -> NoReturn:
        rate = self.step.learning_rate(step - 1)
        self._write(step, {**metrics, "lr": rate, "diverged": 1.0})
        with suppress(CheckpointError):  # the divergence is the news
            self.checkpoints.wait()
        last = self.checkpoints.folder / "last.json"
        kept = (
            f"The last checkpoint, named in {last}, is from before that."
            if last.exists()
            else "There was no checkpoint yet."
        )
        message = (
            f"training diverged at step {step}: {format_metrics(metrics)}, learning rate {rate:.3g}. {kept} "
            "A lower learning rate, a longer warm-up or a smaller gradient_clip usually helps."
        )
        raise DivergenceError(message) if self.processes.first else RemoteError(message)

    def _result(self) -> TrainResult:
        state = self.state
        if state.step_seconds:
            tokens_per_second = self.data.tokens_per_batch / statistics.median(state.step_seconds)
        else:  # too short a run to leave anything out
            tokens_per_second = self.data.tokens_per_batch * state.step / max(state.seconds, 1e-9)
        evaluated = state.best_step is not None
        return TrainResult(
            steps=state.step,
            final=dict(state.metrics),
            best=dict(state.best if evaluated else state.metrics),
            best_step=state.best_step if state.best_step is not None else state.step,
            tokens_per_second=tokens_per_second,
            peak_memory_bytes=state.peak_memory_bytes or 0,
            seconds=state.seconds,
            interrupted=self.stopping,
        )
