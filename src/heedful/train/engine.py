"""The training loop: one process, written in the shape a distributed engine takes.

The model knows nothing of the loop, the batch of a step is a pure function of the step, the loss is normalised by the
scored tokens of the whole batch, the state is one small object, and every place where the host waits for the device is
`_settle`. Interrupted at any step and resumed, a run on the CPU gives the same weights and the same metrics, bit for
bit, as one that was not.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from heedful.files import write_json_atomically
from heedful.schema import to_mapping
from heedful.train.checkpoint import load_checkpoint, save_checkpoint
from heedful.train.device import computing_on, forked_random_state, require_precision, resolve_device
from heedful.train.evaluation import evaluating
from heedful.train.fitting import require_trainable
from heedful.train.gradients import forward_backward
from heedful.train.interruption import StopRequest
from heedful.train.loss import TrainingLoss
from heedful.train.memory import can_measure, peak_tensor_bytes
from heedful.train.metrics import MetricsWriter
from heedful.train.optimisation import clip_gradients, learning_rate, make_optimizer
from heedful.train.progress import Reporter, choose_reporter, format_metrics
from heedful.train.run_folder import claim_folder, describe_run, record_start
from heedful.train.state import DivergenceError, TrainingState, TrainResult
from heedful.train.step_buffer import StepBuffer

if TYPE_CHECKING:
    from heedful.data.batches import TrainingData
    from heedful.train.config import TrainConfig

Evaluate = Callable[[nn.Module], Mapping[str, float]]

# The first steps of a process fill caches and allocators; they are left out of the speed.
UNTIMED_STEPS = 3


def train(
    model: nn.Module,
    data: TrainingData,
    config: TrainConfig,
    folder: str | Path,
    *,
    evaluate: Evaluate | None = None,
    resume: bool = False,
    report: Reporter | Callable[[str], object] | None = None,
    on_start: Callable[[], object] | None = None,
) -> TrainResult:
    """Train `model` on `data` and leave everything about the run in `folder`.

    The model is moved to the device of the run and holds its final weights afterwards; `load_best` reads the best ones.
    The global random state is as before afterwards: dropout is seeded by `config.seed`. SIGINT and SIGTERM end the run
    after the current step with a checkpoint (a second SIGINT ends it at once, without).

    Args:
        model: called as `logits, _ = model(tokens, mask=...)`, with `save(folder)`; float32 weights.
        data: gives the batch of each step.
        config: how to train.
        folder: the run folder, see `heedful.train.run_folder`.
        evaluate: returns metrics of the model, "val/loss" among them; called in evaluation mode. The random state it
            finds is the one the training goes on with, so it should not draw from it without need.
        resume: go on from the last checkpoint in `folder`. With none there the run starts from its beginning, so that
            one command can be repeated until it is done; a finished run returns its result at once.
        report: a `Reporter`, a function that takes lines, or None for a bar on a terminal and lines elsewhere.
        on_start: called once nothing can be refused any more, to write further files into `folder`.

    Raises:
        ValueError: the folder holds a run and `resume` is off, or it holds another or a damaged one; device or
            precision are not available; model, data and configuration do not fit together. Nothing was written.
        DivergenceError: a loss or a gradient norm was not finite.
    """
    folder = Path(folder)
    device = resolve_device(config.device)
    require_precision(config.precision, device)
    require_trainable(model, data, config)
    description = describe_run(model, data, config)
    claim_folder(folder, description, resume=resume)
    with computing_on(device), forked_random_state(config.seed, device):
        run = _Run(model.to(device), data, config, folder, device, description, evaluate, choose_reporter(report))
        if on_start is not None:
            on_start()
        return run.train()


class _Run:
    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        config: TrainConfig,
        folder: Path,
        device: torch.device,
        description: dict[str, Any],
        evaluate: Evaluate | None,
        reporter: Reporter,
    ) -> None:
        self.model, self.data, self.config, self.folder, self.device = model, data, config, folder, device
        self.description, self.evaluate, self.reporter = description, evaluate, reporter
        self.loss = TrainingLoss(model, config.loss)
        self.optimizer = make_optimizer(model, config.optimizer)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        loaded = load_checkpoint(folder / "checkpoints", model, self.optimizer, description)
        self.state = loaded or TrainingState()
        self.saved = loaded is not None
        self.buffer = StepBuffer(device)
        self.stop = StopRequest()
        self.first_step = self.state.step  # of this process
        self.began = time.monotonic() - self.state.seconds

    def train(self) -> TrainResult:
        if self.state.step < self.config.steps:
            record_start(self.folder, self.description, self.device, self.state.step)
        with MetricsWriter(self.folder, self.state.step, self.state.evaluated_step) as self.writer, self.stop:
            self.reporter.start(self.state.step, self.config.steps)
            if 0 < self.state.step < self.config.steps:
                self.reporter.message(f"resumed after step {self.state.step} of {self.config.steps}")
            try:
                self._loop()
            finally:
                self.reporter.close()
        result = self._result()
        write_json_atomically(self.folder / "result.json", to_mapping(result))
        return result

    def _loop(self) -> None:
        self.model.train()
        while True:  # evaluations and checkpoints come first: a resumed run may still owe those of its last step
            if self._evaluation_is_due():
                self._evaluate()
            if self._checkpoint_is_due():
                self._save()
            if self.stop.requested or self.state.step == self.config.steps:
                break
            self._step()
            if self._is_due(self.config.log_every):
                self._log()
        if self.stop.requested:
            if not self.saved:  # the signal came between the look at the checkpoints and the end of the loop
                self._save()
            self.reporter.message(
                f"{self.stop.signal_name}: saved after step {self.state.step}; --resume goes on from there."
            )

    def _is_due(self, every: int) -> bool:
        return self.state.step > 0 and (self.state.step % every == 0 or self.state.step == self.config.steps)

    def _learning_rate(self, step: int) -> float:
        return learning_rate(step, self.config.steps, self.config.optimizer, self.config.schedule)

    def _step(self) -> None:
        self.buffer.start()
        second_step_on = self.state.step >= min(1, self.config.steps - 1)  # when the optimiser state exists
        if self.state.peak_memory_bytes is None and second_step_on and can_measure():
            optimizer_state = [tensor for state in self.optimizer.state.values() for tensor in state.values()]
            resident = [*self.model.parameters(), *self.model.buffers(), *optimizer_state]
            self.state.peak_memory_bytes = peak_tensor_bytes(self._update, resident=resident)
        else:
            self._update()
        self.reporter.advance(self.state.step)

    def _update(self) -> None:
        config, state = self.config, self.state
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(state.step)
        loss = forward_backward(
            self.loss,
            self.data.batch(state.step),
            accumulation=config.accumulation,
            device=self.device,
            precision=config.precision,
        )
        grad_norm = clip_gradients(self.parameters, config.optimizer.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        self.saved = False
        self.buffer.finish(state.step, loss, grad_norm)

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
            "lr": self._learning_rate(self.state.step - 1),
            "grad_norm": statistics.fmean(record.grad_norm for record in recent),
            "tokens_per_second": self.data.tokens_per_batch / statistics.fmean(record.seconds for record in recent),
            "seconds": time.monotonic() - self.began,
        }
        if self.state.peak_memory_bytes is not None:
            metrics["memory"] = float(self.state.peak_memory_bytes)
        self.state.recent = ()
        self.state.metrics["train/loss"] = metrics["train/loss"]
        self.writer.write(self.state.step, metrics)
        self.reporter.training(self.state.step, metrics)

    def _evaluation_is_due(self) -> bool:
        pending = self.evaluate is not None and self.state.evaluated_step < self.state.step
        return pending and self._is_due(self.config.evaluate_every) and not self.stop.requested

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        self._settle()
        state = self.state
        with evaluating(self.model), torch.no_grad():
            metrics = {name: float(value) for name, value in self.evaluate(self.model).items()}
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
        self.writer.write(state.step, metrics)
        best = "  (best)" if state.best_step == state.step else ""
        self.reporter.message(f"step {state.step}/{self.config.steps}  {format_metrics(metrics)}{best}")

    def _checkpoint_is_due(self) -> bool:
        if self.saved:
            return False
        new_best = self.state.step > 0 and self.state.best_step == self.state.step
        return self.stop.requested or new_best or self._is_due(self.config.checkpoint_every)

    def _save(self) -> None:
        self._settle()
        self.state.seconds = time.monotonic() - self.began
        save_checkpoint(
            self.folder / "checkpoints",
            self.model,
            self.optimizer,
            self.state,
            self.description,
            is_best=self.evaluate is None or self.state.best_step == self.state.step,
            keep_all=self.config.keep == "all",
        )
        self.saved = True

    def _diverged(self, step: int, metrics: dict[str, float]) -> NoReturn:
        rate = self._learning_rate(step - 1)
        self.writer.write(step, {**metrics, "lr": rate, "diverged": 1.0})
        last = self.folder / "checkpoints" / "last.json"
        kept = (
            f"The last checkpoint, named in {last}, is from before that."
            if last.exists()
            else "There was no checkpoint yet."
        )
        raise DivergenceError(
            f"training diverged at step {step}: {format_metrics(metrics)}, learning rate {rate:.3g}. {kept} "
            "A lower learning rate, a longer warm-up or a smaller gradient_clip usually helps."
        )

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
            interrupted=self.stop.requested,
        )
