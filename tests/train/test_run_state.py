from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import run

from heedful.train.run_state import LOCK, find_runs, is_locked, locked_folder, run_state
from run_folders import TOKENS_PER_BATCH, add_line, make_run, training_line

HOLD = """
import sys, time
from heedful.train.run_state import locked_folder
with locked_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that trains in tmp_path / "run"."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_in_a_folder_is_refused_until_the_first_is_dead(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heedful.train.run_state.PATIENCE_SECONDS", 0.0)
    folder = tmp_path / "run"
    assert is_locked(folder)
    assert run_state(folder).state == "running"
    with (
        pytest.raises(ValueError, match=r"another process is training in .*run; wait for it, stop it, or use another"),
        locked_folder(folder),
    ):
        raise AssertionError("must not get here")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (folder / LOCK).exists()  # nobody tidied up
    assert not is_locked(folder)
    with locked_folder(folder):
        assert is_locked(folder)
    assert not is_locked(folder)


def test_a_refusal_leaves_nothing_and_a_run_no_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such model"), locked_folder(tmp_path / "runs" / "one"):
        raise ValueError("no such model")
    assert list(tmp_path.iterdir()) == []
    with locked_folder(tmp_path / "runs" / "two"):
        (tmp_path / "runs" / "two" / "config.json").touch()
    assert [path.name for path in (tmp_path / "runs" / "two").iterdir()] == ["config.json"]
    (tmp_path / "kept").mkdir()
    with locked_folder(tmp_path / "kept"):
        pass
    assert list((tmp_path / "kept").iterdir()) == []  # it was there before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="is a file, or lies in one"), locked_folder(place):
            pass


def test_looking_does_not_refuse_a_run_that_starts(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    import fcntl
    import threading

    with (tmp_path / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # somebody looks
        threading.Timer(0.2, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with locked_folder(tmp_path):
            assert is_locked(tmp_path)


def test_a_finished_run(tmp_path: Path) -> None:
    state = run_state(make_run(tmp_path / "run", result="finished"))
    assert (state.state, state.step, state.steps, state.tokens) == ("finished", 100, 100, 100 * TOKENS_PER_BATCH)
    assert state.tokens_per_second == 1100.0
    assert state.best_step == 100
    assert state.best_loss == state.val_loss
    assert state.val_loss == pytest.approx(training_line(100)["train/loss"] + 0.1)
    assert state.train_loss == training_line(100)["train/loss"]
    assert state.started == "2030-01-02T03:04:05+00:00"
    assert state.changed is not None
    assert state.seconds_left is None
    assert (state.processes, state.strategy, state.resumed) == (1, "single", 0)


def test_an_interrupted_run_and_one_that_was_killed_after_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", done=60, result="interrupted")
    assert run_state(folder).state == "interrupted"
    add_line(folder, training_line(70))
    assert run_state(folder).state == "stopped"


def test_killed_runs(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", done=60, resumed=(20, 40))
    state = run_state(folder)
    assert (state.state, state.step, state.resumed) == ("stopped", 60, 2)
    assert (state.processes, state.strategy) == (2, "ddp")
    (folder / "metrics.jsonl").unlink()
    assert run_state(folder).step == 60  # from the checkpoint
    early = make_run(tmp_path / "early", done=0)
    assert (run_state(early).state, run_state(early).step) == ("stopped", 0)


def test_a_diverged_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", done=60)
    add_line(folder, {"step": 63, "train/loss": None, "grad_norm": None, "lr": 1e-3, "diverged": 1.0})
    state = run_state(folder)
    assert (state.state, state.step, state.reason) == ("diverged", 63, "at step 63")
    assert state.train_loss == training_line(60)["train/loss"]


def test_a_running_run_has_an_estimate(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    folder = make_run(tmp_path / "run", done=40)
    state = run_state(folder)
    assert (state.state, state.step) == ("running", 40)
    assert state.seconds_left == pytest.approx(60 * 0.5)
    add_line(folder, training_line(50, seconds=25 + 30))  # an evaluation took half a minute
    # Four intervals of half a second a step, the last with three seconds a step more.
    assert run_state(folder).seconds_left == pytest.approx(50 * (0.5 + 3 / 4))


def test_the_estimate_is_of_the_newest_process(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    folder = make_run(tmp_path / "run", done=40, resumed=(40,))
    for step in (50, 60, 70):
        add_line(folder, training_line(step, seconds=20 + (step - 40) * 2))
    assert run_state(folder).seconds_left == pytest.approx(30 * 2)


def test_nothing_yet(tmp_path: Path) -> None:
    assert run_state(tmp_path).state == "not started"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", r"config.json is damaged"),
        ("config.json", "[]", r"do not have the form of a run's \(TypeError"),
        ("config.json", '{"train": {}}', r"do not have the form of a run's \(KeyError: 'steps'"),
        ("environment.json", "[3]", "do not have the form"),
        ("environment.json", '{"resumed": 5}', "do not have the form"),
        ("result.json", "true", "do not have the form"),
        ("checkpoints/last.json", "[]", None),  # an empty pointer points nowhere
        ("checkpoints/last.json", '{"step": "x"}', "invalid literal"),
        ("metrics.jsonl", 'no\n{"step": 1}\n', r"metrics.jsonl:1 is damaged"),
    ],
)
def test_damaged_folders_have_a_reason(tmp_path: Path, name: str, content: str, said: str | None) -> None:
    folder = make_run(tmp_path / "run", done=40)
    (folder / name).write_text(content)
    state = run_state(folder)
    if said is None:
        assert state.state == "stopped"
        return
    assert state.state == "damaged"
    assert re.search(said, state.reason), state.reason


def test_any_bytes_in_any_file_raise_nothing(tmp_path: Path) -> None:
    for name in ("config.json", "environment.json", "result.json", "checkpoints/last.json", "metrics.jsonl"):
        folder = make_run(tmp_path / name.replace("/", "-"), done=40, result="finished")
        for content in (b"", b"\xff\xfe", b"null", b"0", b'"x"', b"{}", b"[]", b'{"step": null}', b'{"train": 3}'):
            (folder / name).write_bytes(content)
            assert run_state(folder).folder == folder


def test_foreign_folders_are_damaged_and_missing_ones_too(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    state = run_state(tmp_path)
    assert state.state == "damaged"
    assert "config.json is missing; photo.jpg alone makes no run" in state.reason
    assert run_state(tmp_path / "gone").state == "damaged"


def test_runs_are_found_where_they_are(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", done=40)
    nested = make_run(tmp_path / "study" / "runs" / "boosted" / "lr-0.001" / "seed-1", done=20)
    (first / "tensorboard").mkdir()
    (first / "tensorboard" / "metrics.jsonl").touch()  # not a run of its own
    (tmp_path / "empty").mkdir()
    assert find_runs(tmp_path) == [first, nested]
    assert find_runs(first) == [first]


def test_the_state_is_told_of_a_folder_that_one_may_only_read(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    folder = make_run(tmp_path / "run", done=40)
    (folder / LOCK).chmod(0o444)
    folder.chmod(0o555)
    try:
        assert run_state(folder).state == "running"
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGKILL, "stopped"), (signal.SIGTERM, "interrupted")], ids=["SIGKILL", "SIGTERM"]
)
def test_a_real_run_is_told_apart_by_how_it_ends(tmp_path: Path, number: int, expected: str) -> None:
    folder = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).parent / "tiny_run.py"
    process = subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, env=environment)
    try:
        while (state := run_state(folder)).step < 8:  # there is a checkpoint by then
            assert process.poll() is None, "it ended before anybody looked"
        assert state.state == "running"
        assert state.steps == 24
        process.send_signal(number)
        process.wait()
    finally:
        process.kill()
        process.communicate()
    assert run_state(folder).state == expected
    run(folder, resume=True)
    finished = run_state(folder)
    assert (finished.state, finished.step, finished.resumed) == ("finished", 24, 1)
    assert finished.processes == 1
