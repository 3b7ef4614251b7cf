"""The small runs of the fault campaign: what they train, how they are started, and what they must leave."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.measuring import ROOT
from heedful.train.checkpoint_files import check_files, open_checkpoint

MARK = "HEEDFUL_FAULT_RUN"
STEPS, EVALUATE_EVERY = 60, 10
# How long a run may take to end after a fault: torchrun kills what does not stop within 30 s, timeouts come before.
PATIENCE_SECONDS = 120.0
TIMEOUT_SECONDS = 20

RECIPE = """
name = "faults"
seeds = [1]
baseline = "multi-token"
budget = "steps"
learning_rates = [3e-3]

[task]
kind = "language-modelling"
prompt_tokens = 4
sample_tokens = 4

[data]
corpus = "{folder}/text.txt"
documents = "line"
tokenizer = "bytes"
cache_folder = "{folder}/cache"
max_eval_tokens = 512

[model]
hidden_size = 32
num_layers = 2
num_heads = 2
dropout = 0.1
max_positions = 32

[train]
device = "cpu"
steps = {steps}
batch_size = 8
context_length = 32
evaluate_every = {evaluate_every}
log_every = 1
checkpoint_every = 2
trackers = []
parallel = {{ timeout_seconds = {timeout} }}
schedule = {{ warmup_steps = 5 }}

[[arms]]
name = "multi-token"
attention = "multi-token"
"""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a run is spread and saved."""

    name: str
    processes: int
    options: tuple[str, ...]
    reference: str
    """The undisturbed run it must equal; writing in the background changes nothing."""


BACKGROUND = ("--train.asynchronous_checkpoints", "true")
SINGLE = Setting("single", 1, (), "single")
SINGLE_BACKGROUND = Setting("single, background", 1, BACKGROUND, "single")
DDP = Setting("ddp, 2 processes", 2, ("--train.parallel.strategy", "ddp"), "ddp, 2 processes")
FSDP2_OPTIONS = ("--train.parallel.strategy", "fsdp2")
FSDP2 = Setting("fsdp2, 2 processes", 2, FSDP2_OPTIONS, "fsdp2, 2 processes")
FSDP2_BACKGROUND = Setting("fsdp2, 2 processes, background", 2, (*FSDP2_OPTIONS, *BACKGROUND), "fsdp2, 2 processes")
REFERENCES = (SINGLE, DDP, FSDP2)


def write_text(path: Path, lines: int, seed: int = 1) -> None:
    """Write made-up text."""
    generator = random.Random(seed)
    words = ["light", "stone", "river", "north", "copper", "seven", "quiet", "harbour"]
    path.write_text("".join(" ".join(generator.choices(words, k=9)) + "\n" for _ in range(lines)))


def write_recipe(folder: Path) -> Path:
    """Write a corpus and a recipe that trains on it for seconds."""
    write_text(folder / "text.txt", 600)
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(folder=folder, steps=STEPS, timeout=TIMEOUT_SECONDS, evaluate_every=EVALUATE_EVERY))
    return recipe


class Started:
    """A run as processes, in a session of its own and marked, so that whatever is left of it can be found."""

    def __init__(self, command: Sequence[str], output: Path, prefix: Sequence[str] = ()) -> None:
        self.mark = uuid.uuid4().hex
        environment = {
            **os.environ,
            MARK: self.mark,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}",
        }
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *command],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def running(self) -> dict[int, int]:
        """Return the processes with this run's mark and their ranks, -1 for torchrun itself and other helpers."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                variables = (place / "environ").read_bytes().split(b"\0")
            except OSError:  # it ended just now
                continue
            if f"{MARK}={self.mark}".encode() in variables:
                ranks = [int(item[5:]) for item in variables if item.startswith(b"RANK=")]
                found[int(place.name)] = ranks[0] if ranks else -1
        return found

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int | None:
        """Return the exit status, None when it does not end in time (it is killed then)."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            self.process.wait()
            return None

    def left_behind(self, seconds: float) -> int:
        """Return how many of its processes are still there after so long; they are killed."""
        deadline = time.monotonic() + seconds
        while (left := self.running()) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.kill_all()
        return len(left)

    def kill_all(self) -> None:
        """Kill every process with the mark."""
        for pid in self.running():
            _send(pid, signal.SIGKILL)

    def send(self, number: int, rank: int | None = None) -> None:
        """Send a signal to the process that was started or, of torchrun's, to the worker of that rank."""
        if rank is None:
            _send(self.process.pid, number)
        for pid, found in self.running().items() if rank is not None else ():
            if found == rank:
                _send(pid, number)

    def text(self) -> str:
        """Return what it said so far."""
        return self.output.read_text(errors="replace")


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Run:
    """One run folder and what is started in it."""

    def __init__(self, home: Path, name: str, setting: Setting, folder: Path | None = None) -> None:
        self.home, self.setting = home, setting
        self.folder = folder or home / "runs" / name.replace(" ", "-").replace(",", "")
        self.output = home / "output" / self.folder.name
        self.output.mkdir(parents=True, exist_ok=True)
        self.starts = 0
        self.began = 0.0

    def arguments(self, *options: str, resume: bool = True) -> list[str]:
        """Return the arguments of heedful."""
        recipe, folder = str(self.home / "recipe.toml"), str(self.folder)
        return ["train", recipe, "--folder", folder, *(["--resume"] if resume else []), *self.setting.options, *options]

    def start(
        self,
        *options: str,
        resume: bool = True,
        module: Sequence[str] = ("heedful",),
        torchrun: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> Started:
        """Start it, or go on with it; `module` is what runs instead of heedful, with arguments before heedful's."""
        self.starts += 1
        self.began = time.time()
        command = ["-m", *module, *self.arguments(*options, resume=resume)]
        if self.setting.processes > 1 or torchrun:
            count = f"--nproc_per_node={self.setting.processes}"
            command = ["-m", "torch.distributed.run", "--standalone", count, *torchrun, *command]
        return Started(command, self.output / f"{self.starts}.txt", prefix)

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    def is_saving(self) -> bool:
        """Return whether the process that was started last is writing a checkpoint."""
        for folder in self.checkpoints.glob(".step-*.new.*"):
            with suppress(FileNotFoundError):  # complete by now
                if folder.stat().st_mtime >= self.began:  # else a kill before left it
                    return True
        return False

    def has_checkpoint(self) -> bool:
        """Return whether there is one to go on from."""
        return (self.checkpoints / "last.json").exists()

    def trains(self) -> bool:
        """Return whether the process that was started last has come to training: it says so in config.json."""
        file = self.folder / "config.json"
        return file.exists() and file.stat().st_mtime >= self.began

    def last_step(self) -> int:
        """Return the step of the last checkpoint."""
        return int(json.loads((self.checkpoints / "last.json").read_text())["step"]) if self.has_checkpoint() else 0

    def broken_checkpoints(self) -> list[str]:
        """Return what is wrong with what last.json and best.json name."""
        problems = []
        for name in ("last", "best"):
            if (self.checkpoints / f"{name}.json").exists():
                try:
                    check_files(*open_checkpoint(self.checkpoints, name))
                except ValueError as error:
                    problems.append(str(error))
        return problems

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl without times."""
        measured = ("tokens_per_second", "seconds", "memory")
        text = (self.folder / "metrics.jsonl").read_text()
        lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
        return [{name: value for name, value in line.items() if name not in measured} for line in lines]

    def differences(self, other: Run) -> list[str]:
        """Return in what this finished run differs from another: curve, result, any tensor of the last state."""
        found = []
        if self.metrics() != other.metrics():
            found.append("metrics.jsonl")
        for name in ("steps", "final", "best", "best_step", "interrupted"):
            if self._result()[name] != other._result()[name]:
                found.append(f"result.json: {name}")
        for pointer in ("last", "best"):
            mine, theirs = (_tensors(open_checkpoint(run.checkpoints, pointer)[0]) for run in (self, other))
            found += [
                f"{pointer}: {name}" for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)
            ]
        return found

    def _result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    def finished(self) -> bool:
        """Return whether it came to its end."""
        return (self.folder / "result.json").exists() and not self._result()["interrupted"]

    def contents(self) -> dict[str, bytes]:
        """Return all its files."""
        return {str(path): path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}


def _tensors(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every tensor of a checkpoint's model and state."""
    found = {}
    for file in [folder / "model.safetensors", *sorted((folder / "state").glob("*.safetensors"))]:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no mapping
                found[f"{file.name}/{name}"] = opened.get_tensor(name).numpy().tobytes()
    return found


def wait_until(condition: Callable[[], bool], started: Started, seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait until a condition holds; False when the run ends first or it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if started.process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a file system in memory that holds so much; it takes root."""
    folder.mkdir(parents=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    subprocess.run(options, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def fill(disk: Path, free_kilobytes: int) -> Path:
    """Fill a disk up to so much, and what becomes free within half a second, too; removing the file empties it."""
    ballast = disk / "ballast"
    for _ in range(10):
        with suppress(OSError), ballast.open("ab") as file:  # the run takes its share meanwhile
            file.write(b"\1" * max(shutil.disk_usage(disk).free - free_kilobytes * 1024, 0))
        time.sleep(0.05)
    return ballast
