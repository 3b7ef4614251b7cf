"""What a run leaves at the worst moment, and what becomes of it: the part of the fault campaign that takes no luck.

`benchmarks/fault_campaign.py` does the same to real processes at random moments.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from tiny_run import CopyData, metric_lines, run, same_weights, signal_at, tiny_config, tiny_model, validate
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.fault_runs import FSDP2, SINGLE, Run, wait_until, write_recipe
from test_engine import PoisonedData

from heedful.cli import main
from heedful.train import DivergenceError, train
from heedful.train.checkpoint_files import check_files, open_checkpoint
from heedful.train.parent_watch import watched_parent
from heedful.train.processes import LostProcessError, joined_processes
from heedful.train.state import CheckpointError


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("undisturbed")
    _, model = run(folder)
    return folder, model


def assert_goes_on_identically(folder: Path, undisturbed: tuple[Path, nn.Module], **fields: Any) -> None:
    result, model = run(folder, resume=True, **fields)
    assert not result.interrupted
    assert same_weights(model, undisturbed[1])
    assert metric_lines(folder) == metric_lines(undisturbed[0])
    assert_complete(folder)


def assert_complete(folder: Path) -> None:
    for name in ("last", "best"):
        if (folder / "checkpoints" / f"{name}.json").exists():
            check_files(*open_checkpoint(folder / "checkpoints", name))


def raising(error: Exception) -> Callable[..., None]:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    return fail


class Moments:
    """Copies of a run's folder as a kill would leave it, taken before every change of the file system."""

    def __init__(self, folder: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.copies, self.active = folder, copies, False
        for place, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
            self._watch(place, name, monkeypatch)

    def _watch(self, place: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(place, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            if self.active:
                self.active = False
                shutil.copytree(self.folder, self.copies / f"{len(list(self.copies.iterdir())):03d}-{name}")
                self.active = True
            return original(*arguments, **options)

        monkeypatch.setattr(place, name, watched)


# The first checkpoint, one that is neither the first nor the best, and one that is the best.
@pytest.mark.parametrize(("first", "last"), [(5, 6), (10, 11), (16, 17)])
def test_a_run_killed_between_any_two_changes_of_the_disk_goes_on_identically(
    first: int,
    last: int,
    tmp_path: Path,
    undisturbed: tuple[Path, nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    with monkeypatch.context() as patch:
        moments = Moments(tmp_path / "run", copies, patch)

        def watch(step: int) -> None:
            moments.active = first - 1 <= step < last - 1

        run(tmp_path / "run", data=CopyData(watch))
    left = sorted(copies.iterdir())
    assert any(list((copy / "checkpoints").glob(f".step-{first:08d}.new.*")) for copy in left)
    assert any((copy / "checkpoints" / f"step-{first:08d}").exists() for copy in left)
    for copy in left:
        assert_complete(copy)
    # What differs between neighbours is often a file of the half-written folder alone; all of it is thrown away.
    outside = {tuple(sorted(p.name for p in (copy / "checkpoints").glob("[!.]*"))): copy for copy in reversed(left)}
    for copy in outside.values():
        assert_goes_on_identically(copy, undisturbed)
        assert not list((copy / "checkpoints").glob(".*"))


@pytest.fixture
def limited_files() -> Iterator[Callable[[int], None]]:
    """Let no file of this process grow beyond so many bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_state_that_does_not_fit_stops_the_run_and_loses_nothing(
    asynchronous: bool, tmp_path: Path, undisturbed: tuple[Path, nn.Module], limited_files: Callable[[int], None]
) -> None:
    def full(step: int) -> None:
        if step == 13:
            limited_files(10_000)

    with pytest.raises(CheckpointError, match=r"the checkpoint of step 1[56] could not be written to .*File too large"):
        run(tmp_path, data=CopyData(full), asynchronous_checkpoints=asynchronous)
    limited_files(resource.RLIM_INFINITY)
    assert_complete(tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert_goes_on_identically(tmp_path, undisturbed, asynchronous_checkpoints=asynchronous)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")])
def test_a_model_that_does_not_fit_stops_the_run_and_loses_nothing(
    error: Exception, tmp_path: Path, undisturbed: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def full(step: int) -> None:
            if step == 13:
                patch.setattr("heedful.models.DecoderLM.save", raising(error))

        with pytest.raises(CheckpointError, match=r"the checkpoint of step 15 could not be written to .*No space left"):
            run(tmp_path, data=CopyData(full))
    assert_complete(tmp_path)
    assert_goes_on_identically(tmp_path, undisturbed)


def test_a_line_of_metrics_that_does_not_fit_stops_the_run_and_loses_nothing(
    tmp_path: Path, undisturbed: tuple[Path, nn.Module], limited_files: Callable[[int], None]
) -> None:
    def full(step: int) -> None:
        if step == 11:
            limited_files((tmp_path / "metrics.jsonl").stat().st_size + 20)

    with pytest.raises(OSError, match="File too large"):
        run(tmp_path, data=CopyData(full))
    limited_files(resource.RLIM_INFINITY)
    assert_complete(tmp_path)
    assert_goes_on_identically(tmp_path, undisturbed)


def test_a_lost_pointer_costs_no_step(tmp_path: Path, undisturbed: tuple[Path, nn.Module]) -> None:
    run(tmp_path, data=CopyData(signal_at(12)), keep_last=2)
    (tmp_path / "checkpoints" / "last.json").unlink()
    steps: list[int] = []
    assert_goes_on_identically(tmp_path, undisturbed, data=CopyData(steps.append), keep_last=2)
    assert steps[:2] == [0, 13]  # batch 0 is looked at before a run starts


def test_a_crash_while_an_old_checkpoint_is_removed_leaves_nothing_that_looks_like_one(
    tmp_path: Path, undisturbed: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(folder: Path, **options: Any) -> None:
        if (Path(folder) / "training.json").exists():
            (Path(folder) / "training.json").unlink()
            raise MemoryError

    run(tmp_path, data=CopyData(signal_at(7)))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        with pytest.raises(MemoryError):
            run(tmp_path, resume=True)
    for folder in (tmp_path / "checkpoints").glob("step-*"):
        assert (folder / "training.json").exists()
    assert_goes_on_identically(tmp_path, undisturbed)


def test_a_batch_that_gives_nan_every_time_stops_the_run_at_the_same_step_every_time(
    tmp_path: Path, undisturbed: tuple[Path, nn.Module]
) -> None:
    for _ in range(2):
        model = tiny_model()
        with pytest.raises(DivergenceError, match="diverged at step 14: train/loss nan"):
            train(
                model,
                PoisonedData(model, 13),
                tiny_config(),
                tmp_path,
                evaluate=validate,
                resume=True,
                report=lambda line: None,
            )
        assert json.loads((tmp_path / "checkpoints" / "last.json").read_text())["step"] == 10
        assert_complete(tmp_path)
    assert_goes_on_identically(tmp_path, undisturbed)


def test_a_worker_whose_torchrun_is_gone_gets_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    received = threading.Event()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.set())
    try:
        with watched_parent(0.001):
            assert not received.wait(0.05)
            monkeypatch.setattr(os, "getppid", lambda: 1)
            assert received.wait(60)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_worker_whose_torchrun_is_gone_before_it_joins_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in {**torchrun, "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(LostProcessError, match="torchrun is gone"),
        joined_processes(needs_group=False, timeout_seconds=600, device=torch.device("cpu")),
    ):
        pass


def test_a_process_that_torchrun_did_not_start_watches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with watched_parent(0.001):
        assert "parent watch" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def small_run(tmp_path: Path) -> Run:
    """A run of the command line that has stopped at a checkpoint."""
    write_recipe(tmp_path)
    return Run(tmp_path, "run", SINGLE)


SHORT = ("--train.steps", "12", "--train.evaluate_every", "4")


def test_a_corpus_that_changes_between_runs_is_refused_until_it_is_put_back(
    small_run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # a run that comes to its first checkpoint and no further
        patch.setattr("heedful.train.checkpoint.remove_unused", raising(OSError(errno.ENOSPC, "No space left")))
        assert main(small_run.arguments(*SHORT)) == 2
    text = small_run.home / "text.txt"
    original = text.read_bytes()
    text.write_bytes(original + b"one more line\n")
    before = small_run.contents()
    capsys.readouterr()
    assert main(small_run.arguments(*SHORT)) == 2
    assert "belongs to another run: data.fingerprint is" in capsys.readouterr().err
    assert small_run.contents() == before
    text.write_bytes(original)
    assert main(small_run.arguments(*SHORT)) == 0
    assert "resumed after step 2 of 12" in capsys.readouterr().err


def test_a_disk_that_runs_full_ends_the_command_with_a_sentence_that_names_the_file(
    small_run: Run,
    capsys: pytest.CaptureFixture[str],
    limited_files: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The last file that is written before the metrics.
    monkeypatch.setattr("heedful.cli.run_folder.write_run_description", lambda *arguments: limited_files(700))
    try:
        assert main(small_run.arguments(*SHORT, "--train.checkpoint_every", "99")) == 2
    finally:
        limited_files(resource.RLIM_INFINITY)
    expected = f"heedful: File too large: {small_run.folder / 'metrics.jsonl'}."
    assert capsys.readouterr().err.splitlines()[-1] == expected


def test_torchrun_restarts_after_a_worker_is_killed_and_with_no_restart_left_all_end(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    several = Run(tmp_path, "run", FSDP2)
    started = several.start("--train.steps", "1000", torchrun=("--max_restarts=1",))
    try:
        assert wait_until(several.has_checkpoint, started), started.text()
        started.send(signal.SIGKILL, 1)
        assert wait_until(lambda: "resumed after step" in started.text(), started), started.text()
        resumed = several.last_step()
        assert wait_until(lambda: several.last_step() > resumed, started), started.text()
        started.send(signal.SIGKILL, 1)
        assert started.wait(300) == 1  # torchrun's own
        assert started.left_behind(20) == 0
    finally:
        started.kill_all()
    assert "another process of the run died or did not answer in time" in started.text()
    assert "exitcode  : 3" in started.text()  # of the worker that was not killed
    assert several.broken_checkpoints() == []
    assert several.last_step() > resumed
