"""Saving and resuming a run: every process writes its part, the first one makes the checkpoint appear.

What lies where on disk is in `heedful.train.checkpoint_files`, which tensors are kept in
`heedful.train.checkpoint_state`. Reading checks the hashes, the run, and every name and shape before the first weight
is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from heedful.files import atomic_folder, write_bytes_atomically
from heedful.schema import from_mapping, to_mapping
from heedful.train.checkpoint_files import (
    FORMAT,
    STATE,
    TRAINING,
    check_files,
    files_of,
    hash_files,
    new_folder,
    newest_complete,
    open_checkpoint,
    open_named,
    point_to,
    points_to_something,
    remove_unused,
    rewind,
    write_training,
)
from heedful.train.checkpoint_state import (
    cpu_mesh,
    on_cpu,
    process_seed,
    random_states,
    read_tensors,
    require_same_tensors,
    restore_random_states,
    run_tensors,
    write_tensors,
)
from heedful.train.device import seed_random_states
from heedful.train.parallel import whole_weights
from heedful.train.run_folder import require_same_run
from heedful.train.state import CheckpointError, TrainingState

if TYPE_CHECKING:
    from heedful.models import DecoderLM
    from heedful.train.training_step import TrainingStep

DURATIONS = "training.safetensors"

Export = Callable[[Path, dict[str, Tensor]], object]


class FoundCheckpoint(NamedTuple):
    """A checkpoint to go on from: the name of its folder, its training.json, and whether last.json names it."""

    name: str
    training: dict[str, Any]
    is_last: bool


class Checkpoints:
    """The checkpoints of one run, as one of its processes sees them.

    Args:
        folder: where they are.
        step: model, optimiser and averaged weights; these are what model.safetensors holds if there are any.
        description: what the run is (`describe_run`).
        keep_last: how many of the newest checkpoints stay besides the best, None for all of them.
        asynchronous: write in the background, one checkpoint at a time. The copies it is made of are taken at once, on
            the CPU: those of the part of the state that this process holds, which with "ddp" is all of it.
        export: writes the weights, whole and on the CPU, into a folder; called in the first process.
    """

    def __init__(
        self,
        folder: Path,
        step: TrainingStep,
        description: dict[str, Any],
        *,
        keep_last: int | None,
        asynchronous: bool,
        export: Export,
    ) -> None:
        self.folder, self.step, self.description = folder, step, description
        self.keep_last, self.export = keep_last, export
        self.processes, self.device = step.processes, step.device
        self.tensors = run_tensors(step.model, step.optimization, step.average)
        # What the background exchanges must not mix with what the training does.
        self._writers = self.processes.another_group() if asynchronous else self.processes
        self._cpu_mesh = cpu_mesh(step.mesh) if asynchronous else None
        self._executor = ThreadPoolExecutor(1, "checkpoint", self._enter_thread) if asynchronous else None
        self._pending: Future[None] | None = None

    def save(self, state: TrainingState, *, is_best: bool) -> None:
        """Write the checkpoint of `state.step`, point last.json (and best.json) to it, remove what is not to be kept.

        Written in the background, it may still be incomplete when this returns; `wait` waits for it.

        Raises:
            CheckpointError: this process could not write its part of this one or the one before; `RemoteError` where
                another process could not.
        """
        self.wait()
        state = dataclasses.replace(state, metrics=dict(state.metrics), best=dict(state.best))
        # The weights that are exported are gathered now, since all processes take part in that.
        average = self.step.average
        with nullcontext() if average is None else average.applied():
            weights = whole_weights(self.step.model, keep=self.processes.first)
        tensors = self.tensors | random_states(self.processes, self.device)
        if self._executor is None:
            self._write(tensors, weights, state, is_best=is_best)
        else:
            staged = on_cpu(tensors, self._cpu_mesh)
            self._pending = self._executor.submit(self._write, staged, weights, state, is_best=is_best)

    def wait(self) -> None:
        """Wait until nothing is being written any more.

        Raises:
            CheckpointError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """End the background thread, after what it is writing; errors are for `wait`."""
        if self._executor is not None:
            self._executor.shutdown()

    def load(self, name: str | None = None) -> TrainingState | None:
        """Bring the run to its last checkpoint, or to the one called `name`, and return its state.

        None when there is no checkpoint. With the number of processes it was written by, the run goes on exactly as if
        it had not been stopped. With another, random states are drawn anew from (seed, step, process); all else is the
        same up to rounding. One that is named is the last checkpoint from then on; where last.json is missing it is the
        newest.

        Raises:
            ValueError: the checkpoint is damaged, belongs to another run, or does not fit the model; the message names
                the file and what differs. Model, optimiser and files are as before.
        """
        processes = self.processes
        found = processes.from_first(lambda: self._find(name))
        if found is None:
            return None
        found = FoundCheckpoint(*found)
        folder = self.folder / found.name
        processes.together(lambda: check_files(folder, found.training, processes.rank, processes.world_size))
        processes.together(lambda: require_same_tensors(self.tensors, folder / STATE))
        state = from_mapping(TrainingState, found.training["state"], f"{folder / TRAINING}: state")
        state.step_seconds = tuple(load_file(folder / DURATIONS)["step_seconds"].tolist())
        self._read(folder, found.training, state.step)
        if not found.is_last:
            processes.on_first(lambda: rewind(self.folder, folder, state.step, state.best_step))
        if not processes.from_first(lambda: points_to_something(self.folder, "best")):
            state.best_step, state.best = None, {}
        return state

    def _find(self, name: str | None) -> FoundCheckpoint | None:
        """Return the checkpoint to go on from; for the first process."""
        if name is None and not points_to_something(self.folder, "last"):
            name = newest_complete(self.folder)
            if name is None:
                return None
        if name is not None:
            folder, training = open_named(self.folder, name)
        else:
            if points_to_something(self.folder, "best"):  # found damaged now rather than when the run is over
                check_files(*open_checkpoint(self.folder, "best"))
            folder, training = open_checkpoint(self.folder, "last")
        require_same_run(training.get("run"), self.description, folder / TRAINING)
        return FoundCheckpoint(folder.name, training, is_last=name is None)

    def _read(self, folder: Path, training: dict[str, Any], step: int) -> None:
        """Read all tensors, and put random states back or draw them anew."""
        processes = self.processes
        states: dict[str, Tensor] = {}
        if training["world_size"] == processes.world_size:
            states = {key: torch.empty_like(value) for key, value in random_states(processes, self.device).items()}
            if training["device"] != self.device.type:
                states = {key: value for key, value in states.items() if key.endswith("/cpu")}
        try:
            read_tensors({**self.tensors, **states}, folder / STATE, processes)
        except CheckpointException as error:
            raise ValueError(f"{folder / STATE} cannot be read: {_first_cause(error)}.") from error
        seed_random_states(process_seed(self.step.config.seed, processes.rank, step), self.device)
        restore_random_states(states, processes, self.device)

    def _write(
        self, tensors: dict[str, Tensor], weights: dict[str, Tensor], state: TrainingState, *, is_best: bool
    ) -> None:
        """Write a checkpoint; what one process cannot do, all of them are told."""
        writers = self._writers
        try:
            with ExitStack() as stack:

                def begin() -> list[str]:
                    folder = new_folder(self.folder, state.step)
                    return [str(folder), str(stack.enter_context(atomic_folder(folder)))]

                def appear() -> None:
                    stack.close()
                    point_to(self.folder, folder, state.step, is_best=is_best)
                    remove_unused(self.folder, self.keep_last)

                folder, temporary = map(Path, writers.from_first(begin))
                write_tensors(tensors, temporary / STATE, writers)
                writers.on_first(lambda: self._write_rest(temporary, weights, state))
                files = writers.from_first(lambda: files_of(temporary))
                hashes = writers.together(lambda: hash_files(temporary, files[writers.rank :: writers.world_size]))
                writers.on_first(lambda: self._describe(temporary, state, hashes))
                writers.on_first(appear)
        except OSError as error:
            raise self._failed(state, error.strerror or str(error)) from error
        except SafetensorError as error:  # its own writer, which an export may use, wraps what the system said
            raise self._failed(state, str(error)) from error
        except CheckpointException as error:
            raise self._failed(state, _first_cause(error)) from error

    def _describe(self, folder: Path, state: TrainingState, hashes: list[dict[str, str]]) -> None:
        write_training(
            folder,
            {
                "format": FORMAT,
                "world_size": self.processes.world_size,
                "device": self.device.type,
                "state": to_mapping(dataclasses.replace(state, step_seconds=())),
                "run": self.description,
                "sha256": {name: digest for part in hashes for name, digest in sorted(part.items())},
            },
        )

    def _write_rest(self, folder: Path, weights: dict[str, Tensor], state: TrainingState) -> None:
        self.export(folder, weights)
        seconds = torch.tensor(state.step_seconds, dtype=torch.float64)
        write_bytes_atomically(folder / DURATIONS, save({"step_seconds": seconds}))

    def _enter_thread(self) -> None:
        """Make the device of this process that of the thread, too; else all processes would open the first GPU."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _failed(self, state: TrainingState, reason: str) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint of step {state.step} could not be written to {self.folder} ({reason}). Those before it "
            "are untouched: when the cause is removed, --resume goes on from the last of them."
        )


def _first_cause(error: CheckpointException) -> str:
    """Return what went wrong in one of the processes, something with the system first."""
    causes = [cause for cause, _ in error.failures.values()]
    cause = next((cause for cause in causes if isinstance(cause, OSError)), causes[0])
    return getattr(cause, "strerror", None) or f"{type(cause).__name__}: {cause}"


def best_folder(folder: str | Path) -> Path:
    """Return the checkpoint folder with the lowest "val/loss" of the run in `folder`, its hashes checked.

    Where nothing was evaluated yet it is the last one.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    checkpoints = Path(folder) / "checkpoints"
    evaluated = points_to_something(checkpoints, "best") or not points_to_something(checkpoints, "last")
    best, training = open_checkpoint(checkpoints, "best" if evaluated else "last")
    check_files(best, training)
    return best


def load_best(folder: str | Path, device: str | torch.device = "cpu") -> DecoderLM:
    """Return the model with the lowest "val/loss" of the run in `folder` (the newest when nothing was evaluated).

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    from heedful.models import load_decoder

    return load_decoder(best_folder(folder), device=device)
