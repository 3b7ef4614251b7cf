"""Saving and resuming a run: every process writes its part, the first one makes the checkpoint appear.

What lies where on disk is in `heedful.train.checkpoint_files`, which tensors are kept in
`heedful.train.checkpoint_state`. Reading checks the hashes, the run, and every name and shape before the first weight
is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh

from heedful.files import atomic_folder, file_sha256, write_bytes_atomically, write_json_atomically
from heedful.schema import from_mapping, to_mapping
from heedful.train.checkpoint_files import (
    FORMAT,
    STATE,
    TRAINING,
    best_step_on_disk,
    check_files,
    files_of,
    new_folder,
    newest_complete,
    open_checkpoint,
    open_named,
    point_to,
    remove_unused,
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
from heedful.train.parallel import whole_weights
from heedful.train.processes import Processes
from heedful.train.run_folder import require_same_run
from heedful.train.state import CheckpointError, TrainingState

if TYPE_CHECKING:
    from heedful.models import DecoderLM
    from heedful.train.averaging import WeightAverage
    from heedful.train.optimisation import Optimization

SECONDS = "training.safetensors"

Export = Callable[[Path, dict[str, Tensor]], object]


class Checkpoints:
    """The checkpoints of one run, as one of its processes sees them.

    Args:
        folder: where they are.
        model: the model, after `parallelize`.
        optimization: its optimiser.
        average: its averaged weights, if they are kept; they are what model.safetensors holds then.
        description: what the run is (`describe_run`).
        processes: those of the run.
        mesh: how they are arranged.
        device: where this process computes.
        seed: of the run.
        keep_last: how many of the newest checkpoints stay besides the best, None for all of them.
        asynchronous: write in the background; one checkpoint at a time, and the copies it is made of are taken at once.
        export: writes the weights, whole and on the CPU, into a folder; called in the first process.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimization: Optimization,
        average: WeightAverage | None,
        description: dict[str, Any],
        *,
        processes: Processes,
        mesh: DeviceMesh | None,
        device: torch.device,
        seed: int,
        keep_last: int | None,
        asynchronous: bool,
        export: Export,
    ) -> None:
        self.folder, self.model, self.description = folder, model, description
        self.average, self.device, self.seed = average, device, seed
        self.keep_last, self.asynchronous, self.export = keep_last, asynchronous, export
        self.processes = processes
        self.tensors = run_tensors(model, optimization, average)
        self._cpu_mesh = cpu_mesh(mesh) if asynchronous else None
        # What the background exchanges must not mix with what the training does.
        self._writers = processes.another_group() if asynchronous else processes
        self._executor = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._pending: Future[None] | None = None

    def save(self, state: TrainingState, *, is_best: bool) -> None:
        """Write the checkpoint of `state.step`, point last.json (and best.json) to it, remove what is not to be kept.

        Written in the background, it may still be incomplete when this returns; `wait` waits for it.

        Raises:
            CheckpointError: this one or the one before could not be written, in every process.
        """
        self.wait()
        state = dataclasses.replace(state)
        # The weights that are exported are gathered now, since all processes take part in that.
        with nullcontext() if self.average is None else self.average.applied():
            weights = whole_weights(self.model, keep=self.processes.first)
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
        same up to rounding.

        Raises:
            ValueError: the checkpoint is damaged, belongs to another run, or does not fit the model; the message names
                the file and what differs. Model, optimiser and files are as before.
        """
        processes = self.processes
        found = processes.from_first(lambda: self._find(name))
        if found is None:
            return None
        folder, training = self.folder / found[0], found[1]
        processes.together(lambda: check_files(folder, training, processes.rank, processes.world_size))
        processes.together(lambda: require_same_tensors(self.tensors, folder / STATE))
        same_world = training["world_size"] == processes.world_size
        wanted = {name: torch.empty_like(value) for name, value in random_states(processes, self.device).items()}
        if training["device"] != self.device.type:
            wanted = {name: value for name, value in wanted.items() if name.endswith("/cpu")}
        read_tensors({**self.tensors, **(wanted if same_world else {})}, folder / STATE, processes)
        state = from_mapping(TrainingState, training["state"], f"{folder / TRAINING}: state")
        state.step_seconds = tuple(load_file(folder / SECONDS)["step_seconds"].tolist())
        if found[2]:
            state.best_step, state.best = None, {}
        if same_world:
            restore_random_states(wanted, processes, self.device)
        else:
            torch.manual_seed(process_seed(self.seed, processes.rank, state.step))
        return state

    def _find(self, name: str | None) -> tuple[str, dict[str, Any], bool] | None:
        """Return the folder to go on from, its training.json, and whether the best checkpoint is of a later step, which
        the run is about to take anew; for the first process.
        """
        if name is None and not (self.folder / "last.json").exists():
            name = newest_complete(self.folder)
            if name is None:
                return None
        if name is None:
            if (self.folder / "best.json").exists():  # found damaged now rather than when the run is over
                best, training = open_checkpoint(self.folder, "best")
                check_files(best, training)
            folder, training = open_checkpoint(self.folder, "last")
        else:
            folder, training = open_named(self.folder, name)
        require_same_run(training.get("run"), self.description, folder / TRAINING)
        forget_best = name is not None and best_step_on_disk(self.folder) > training["state"]["step"]
        return folder.name, training, forget_best

    def _write(
        self, tensors: dict[str, Tensor], weights: dict[str, Tensor], state: TrainingState, *, is_best: bool
    ) -> None:
        try:
            if not self._writers.first:
                self._write_parts(None, tensors, weights, state)
                return
            folder = new_folder(self.folder, state.step)
            with atomic_folder(folder) as temporary:
                self._write_parts(temporary, tensors, weights, state)
            point_to(self.folder, folder, state.step, is_best=is_best)
            if self.keep_last is not None:
                remove_unused(self.folder, self.keep_last)
        except OSError as error:
            raise self._failed(state, error.strerror or str(error)) from error
        except SafetensorError as error:  # its own writer, which an export may use, wraps what the system said
            raise self._failed(state, str(error)) from error
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            known = next((cause for cause in causes if isinstance(cause, OSError)), causes[0])
            raise self._failed(state, getattr(known, "strerror", None) or str(known)) from error

    def _write_parts(
        self, temporary: Path | None, tensors: dict[str, Tensor], weights: dict[str, Tensor], state: TrainingState
    ) -> None:
        """Fill a folder, each process with its part; `temporary` is known to the first process alone."""
        writers = self._writers
        folder = Path(writers.from_first(lambda: str(temporary)))
        write_tensors(tensors, folder / STATE, writers)
        if writers.first:
            writers.together(lambda: self._write_rest(folder, weights, state))
        else:
            writers.together(lambda: None)
        hashes: dict[str, str] = {}
        for part in writers.together(lambda: self._hash_part(folder)):
            hashes |= part
        if writers.first:
            training = {
                "format": FORMAT,
                "world_size": writers.world_size,
                "device": self.device.type,
                "state": to_mapping(dataclasses.replace(state, step_seconds=())),
                "run": self.description,
                "sha256": dict(sorted(hashes.items())),
            }
            write_json_atomically(folder / TRAINING, training)

    def _write_rest(self, folder: Path, weights: dict[str, Tensor], state: TrainingState) -> None:
        self.export(folder, weights)
        seconds = torch.tensor(state.step_seconds, dtype=torch.float64)
        write_bytes_atomically(folder / SECONDS, save({"step_seconds": seconds}))

    def _hash_part(self, folder: Path) -> dict[str, str]:
        mine = files_of(folder)[self._writers.rank :: self._writers.world_size]
        return {path.relative_to(folder).as_posix(): file_sha256(path) for path in mine}

    def _failed(self, state: TrainingState, reason: str) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint of step {state.step} could not be written to {self.folder} ({reason}). Those before it "
            "are untouched: when the cause is removed, --resume goes on from the last of them."
        )


def best_folder(folder: str | Path) -> Path:
    """Return the checkpoint folder with the lowest "val/loss" of the run in `folder`, its hashes checked.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    best, training = open_checkpoint(Path(folder) / "checkpoints", "best")
    check_files(best, training)
    return best


def load_best(folder: str | Path, device: str | torch.device = "cpu") -> DecoderLM:
    """Return the model with the lowest "val/loss" of the run in `folder` (the newest when nothing was evaluated).

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    from heedful.models import load_decoder

    return load_decoder(best_folder(folder), device=device)
