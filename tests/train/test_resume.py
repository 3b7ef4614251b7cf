from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny_run
import torch
from tiny_run import CopyData, metric_lines, run, same_weights, signal_at

from heedful.data.batches import Batch
from heedful.train import TrainResult, read_metrics


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result, model = run(folder)
    torch.set_num_threads(threads)
    return folder, result, model


def assert_ends_alike(folder: Path, result: TrainResult, model: torch.nn.Module, reference: tuple) -> None:
    other_folder, other_result, other_model = reference
    assert same_weights(model, other_model)
    assert metric_lines(folder) == metric_lines(other_folder)
    assert (result.final, result.best, result.best_step) == (
        other_result.final,
        other_result.best,
        other_result.best_step,
    )
    assert result.steps == other_result.steps
    assert not result.interrupted


# 7: an evaluation is owed for the step that was interrupted; 6: in the middle of a log interval; 9: after one step more
# than a checkpoint; 23: the last step.
@pytest.mark.parametrize("step", [0, 1, 6, 7, 9, 23])
def test_a_run_interrupted_and_resumed_equals_one_that_was_not(
    step: int, tmp_path: Path, uninterrupted: tuple[Path, TrainResult, torch.nn.Module]
) -> None:
    first, _ = run(tmp_path, data=CopyData(signal_at(step)))
    assert first.interrupted
    assert first.steps == step + 1
    second, model = run(tmp_path, resume=True)
    assert_ends_alike(tmp_path, second, model, uninterrupted)


def test_a_run_interrupted_many_times_equals_one_that_was_not(
    tmp_path: Path, uninterrupted: tuple[Path, TrainResult, torch.nn.Module]
) -> None:
    for step in (2, 3, 7, 15, 16, 20):
        result, _ = run(tmp_path, data=CopyData(signal_at(step, signal.SIGTERM)), resume=True)
        assert result.interrupted
    result, model = run(tmp_path, resume=True)
    assert_ends_alike(tmp_path, result, model, uninterrupted)


def test_a_failing_run_goes_on_from_its_last_checkpoint(
    tmp_path: Path, uninterrupted: tuple[Path, TrainResult, torch.nn.Module]
) -> None:
    def fail(step: int) -> None:
        if step == 13:
            raise OSError("the disk with the corpus is gone")

    with pytest.raises(OSError, match="disk"):
        run(tmp_path, data=CopyData(fail))
    steps_logged = [line["step"] for line in read_metrics(tmp_path)]
    assert max(steps_logged) == 12  # beyond the checkpoint of step 10, so to be dropped and written again
    result, model = run(tmp_path, resume=True)
    assert_ends_alike(tmp_path, result, model, uninterrupted)


def start_process(folder: Path) -> subprocess.Popen[str]:
    source = Path(tiny_run.__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source.parent), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, str(source), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / "checkpoints" / "last.json").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    return process


def test_a_process_that_gets_sigint_saves_and_its_resumed_run_equals_one_that_was_not_interrupted(
    tmp_path: Path, uninterrupted: tuple[Path, TrainResult, torch.nn.Module]
) -> None:
    process = start_process(tmp_path)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output == "interrupted\n"
    assert errors == ""
    result, model = run(tmp_path, resume=True)
    assert_ends_alike(tmp_path, result, model, uninterrupted)


def test_a_killed_process_can_be_resumed_and_ends_as_one_that_was_not_killed(
    tmp_path: Path, uninterrupted: tuple[Path, TrainResult, torch.nn.Module]
) -> None:
    process = start_process(tmp_path)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    result, model = run(tmp_path, resume=True)
    assert_ends_alike(tmp_path, result, model, uninterrupted)


def test_a_second_sigint_aborts_at_once_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data=CopyData(signal_at(6, signal.SIGINT, signal.SIGINT)))
    checkpoints = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert checkpoints == ["last.json", "step-00000005"]  # nothing of the step that was under way
    assert not (tmp_path / "result.json").exists()


def test_a_second_sigterm_still_saves(tmp_path: Path) -> None:
    result, _ = run(tmp_path, data=CopyData(signal_at(6, signal.SIGTERM, signal.SIGTERM)))
    assert result.interrupted
    assert result.steps == 7


@pytest.mark.parametrize("resume", [False, True])
def test_the_previous_signal_handlers_come_back(resume: bool, tmp_path: Path) -> None:
    def handler(number: int, frame: object) -> None:
        raise AssertionError("not during the run")

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        run(tmp_path, data=CopyData(signal_at(2)), resume=resume)
        assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def test_outside_the_main_thread_no_handler_is_installed(tmp_path: Path) -> None:
    seen = []

    def look(step: int) -> None:
        seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: run(tmp_path, data=CopyData(look), steps=4))
    thread.start()
    thread.join()
    assert seen
    assert set(seen) == {before}
    assert (tmp_path / "result.json").exists()


def test_a_finished_run_returns_its_result_and_weights_without_training(
    tmp_path: Path, uninterrupted: tuple[Path, TrainResult, torch.nn.Module]
) -> None:
    class OnlyTheFirstLook(CopyData):
        def batch(self, step: int, rows: range | None = None) -> Batch:
            assert step == 0, "the run trains although it is finished"
            return super().batch(step, rows)

    folder, result, model = uninterrupted
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again, loaded = run(folder, data=OnlyTheFirstLook(), resume=True)
    assert again == result
    assert same_weights(loaded, model)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_resuming_in_an_empty_folder_starts_the_run(
    tmp_path: Path, uninterrupted: tuple[Path, TrainResult, torch.nn.Module]
) -> None:
    result, model = run(tmp_path / "new", resume=True)
    assert_ends_alike(tmp_path / "new", result, model, uninterrupted)


def test_a_run_is_not_started_over_another(tmp_path: Path) -> None:
    run(tmp_path, data=CopyData(signal_at(2)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"already holds a run .*Pass --resume .* or use another folder"):
        run(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_every_process_of_a_run_is_in_the_environment_file(tmp_path: Path) -> None:
    run(tmp_path, data=CopyData(signal_at(2)))
    run(tmp_path, data=CopyData(signal_at(5)), resume=True)
    run(tmp_path, resume=True)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert [entry["from_step"] for entry in environment["resumed"]] == [3, 6]
    # Some builds add what they are built for to one of the two, as in 2.11.0+cu130.
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_the_peak_measured_in_one_process_survives_the_resume(tmp_path: Path) -> None:
    first, _ = run(tmp_path, data=CopyData(signal_at(6)))
    second, _ = run(tmp_path, resume=True)
    assert first.peak_memory_bytes == second.peak_memory_bytes > 0


def test_what_only_changes_how_a_run_is_watched_may_change_on_resume(tmp_path: Path) -> None:
    run(tmp_path, data=CopyData(signal_at(6)))
    result, _ = run(tmp_path, resume=True, log_every=2, checkpoint_every=3, keep="all")
    assert result.steps == 24
    assert (tmp_path / "checkpoints" / "step-00000009").is_dir()
