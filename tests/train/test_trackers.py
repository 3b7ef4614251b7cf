from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from heedful.train import DivergenceError, read_metrics
from heedful.train.metrics import MetricsWriter
from heedful.train.trackers import ExperimentTracker, Trackers, open_trackers

CONFIGURATION = {"train": {"steps": 10}}


class FakeModule:
    """Has the `init`, `log` and `finish` of trackio and wandb, and remembers what it was told."""

    def __init__(self, fail_at: str = "") -> None:
        self.fail_at = fail_at
        self.started: list[dict[str, Any]] = []
        self.points: list[tuple[int, dict[str, float]]] = []
        self.finished: list[dict[str, Any]] = []

    def init(self, **options: Any) -> None:
        print("a greeting")
        if self.fail_at == "init":
            raise RuntimeError("not logged in.")
        self.started.append(options)

    def log(self, metrics: dict[str, float], step: int) -> None:
        if self.fail_at == "log" and step >= 3:
            raise OSError("connection lost")
        self.points.append((step, metrics))

    def finish(self, **options: Any) -> None:
        if self.fail_at == "finish":
            raise RuntimeError("still uploading")
        self.finished.append(options)


def group(module: FakeModule, lines: list[str] | None = None, name: Any = "trackio") -> Trackers:
    return Trackers([ExperimentTracker(name, lambda: module)], [].append if lines is None else lines.append)


def write_steps(folder: Path, trackers: Trackers, first: int, last: int, *, resumed: int = 0) -> None:
    with MetricsWriter(folder, resumed, resumed, trackers=trackers, run=CONFIGURATION) as writer:
        for step in range(first, last + 1):
            writer.write(step, {"train/loss": 1 / step, "odd": float("nan")})
        writer.ending = "finished" if last == 10 else "interrupted"


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_gets_every_finite_value_once_also_after_a_resume(tmp_path: Path, name: str) -> None:
    module = FakeModule()
    write_steps(tmp_path, group(module, name=name), 1, 7)
    write_steps(tmp_path, group(module, name=name), 5, 10, resumed=4)  # 5 to 7 are written again
    assert module.points == [(step, {"train/loss": 1 / step}) for step in range(1, 11)]
    first, second = module.started
    assert first == second  # the same run
    assert first["project"] == "heedful"
    assert first["config"] == CONFIGURATION
    assert first["resume"] == "allow"
    identity = json.loads((tmp_path / "trackers.json").read_text())[name]
    if name == "wandb":
        assert (first["id"], first["name"], first["dir"]) == (identity, tmp_path.name, str(tmp_path))
        assert module.finished == [{"exit_code": 0}, {"exit_code": 0}]
    else:
        assert first["name"] == f"{tmp_path.name} {identity}"
        assert module.finished == [{}, {}]


def test_two_runs_of_one_name_are_two(tmp_path: Path) -> None:
    module = FakeModule()
    for place in ("a/run", "b/run"):
        (tmp_path / place).mkdir(parents=True)
        write_steps(tmp_path / place, group(module), 1, 2)
    names = [options["name"] for options in module.started]
    assert all(name.startswith("run ") for name in names)
    assert names[0] != names[1]


def test_runs_of_a_comparison_are_called_by_arm_rate_and_seed(tmp_path: Path) -> None:
    module = FakeModule()
    folder = tmp_path / "demo" / "runs" / "boosted" / "lr-0.001" / "seed-1"
    folder.mkdir(parents=True)
    write_steps(folder, group(module, name="wandb"), 1, 2)
    assert module.started[0]["name"] == "boosted lr-0.001 seed-1"


def test_the_project_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    module = FakeModule()
    write_steps(tmp_path, group(module), 1, 1)
    assert module.started[0]["project"] == "mine"


def test_an_evaluation_that_shares_a_step_with_a_sent_line_is_new(tmp_path: Path) -> None:
    module = FakeModule()
    write_steps(tmp_path, group(module), 1, 4)
    with MetricsWriter(tmp_path, 2, 2, trackers=group(module), run=CONFIGURATION) as writer:
        for step in (3, 4):
            writer.write(step, {"train/loss": 1 / step, "odd": 1.0})  # more than was sent
            writer.write(step, {"val/loss": 2 / step})
    assert module.points[4:] == [
        (3, {"train/loss": 1 / 3, "odd": 1.0}), (3, {"val/loss": 2 / 3}),
        (4, {"train/loss": 1 / 4, "odd": 1.0}), (4, {"val/loss": 2 / 4}),
    ]  # fmt: skip


def test_a_tracker_that_fails_is_told_once_and_left_out(tmp_path: Path) -> None:
    broken, sound, lines = FakeModule("log"), FakeModule(), []
    trackers = Trackers(
        [ExperimentTracker("wandb", lambda: broken), ExperimentTracker("trackio", lambda: sound)], lines.append
    )
    write_steps(tmp_path, trackers, 1, 10)
    assert lines == ["wandb failed at step 3 and is left out from now on: OSError: connection lost."]
    assert len(sound.points) == 10
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 11))
    assert broken.finished == []


def test_a_tracker_that_cannot_start_is_refused_at_the_beginning_and_left_out_of_a_resume(tmp_path: Path) -> None:
    sound, lines = FakeModule(), []

    def trackers() -> Trackers:
        pair = [
            ExperimentTracker("trackio", lambda: sound),
            ExperimentTracker("wandb", lambda: FakeModule("init")),
        ]
        return Trackers(pair, lines.append)

    expected = r"wandb cannot start: RuntimeError: not logged in. Set it up, or leave it out of train.trackers."
    with pytest.raises(ValueError, match=expected):
        write_steps(tmp_path, trackers(), 1, 10)
    assert len(sound.finished) == 1  # not left hanging
    write_steps(tmp_path, trackers(), 5, 10, resumed=4)
    assert lines == ["wandb cannot start and is left out: RuntimeError: not logged in."]
    assert [step for step, _ in sound.points] == [5, 6, 7, 8, 9, 10]


def test_a_tracker_that_cannot_finish_harms_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    write_steps(tmp_path, group(FakeModule("finish"), lines), 1, 10)
    assert lines == ["trackio could not finish: RuntimeError: still uploading."]


@pytest.mark.parametrize(
    ("error", "code"), [(DivergenceError("nan"), 1), (OSError("disk full"), 1), (KeyboardInterrupt(), 1), (None, 0)]
)
def test_wandb_is_told_how_it_ended(tmp_path: Path, error: BaseException | None, code: int) -> None:
    module = FakeModule()

    def end() -> None:
        with MetricsWriter(tmp_path, 0, 0, trackers=group(module, name="wandb"), run=CONFIGURATION):
            if error is not None:
                raise error

    if error is None:
        end()
    else:
        with pytest.raises(type(error)):
            end()
    assert module.finished == [{"exit_code": code}]


def test_a_finished_run_starts_no_tracker(tmp_path: Path) -> None:
    module = FakeModule()
    with MetricsWriter(tmp_path, 10, 10, trackers=group(module), run=CONFIGURATION):
        pass
    assert module.started == []
    assert not (tmp_path / "trackers.json").exists()


def test_greetings_stay_off_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_steps(tmp_path, group(FakeModule()), 1, 2)
    output = capsys.readouterr()
    assert output.out == ""
    assert "a greeting" in output.err


def test_trackers_that_are_not_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("tensorboard", "trackio", "wandb"):
        with pytest.raises(ValueError, match=rf"names {name}, which is not installed: pip install 'heedful\[track\]'"):
            open_trackers([name])
    open_trackers(None)  # TensorBoard only where it is installed
    open_trackers(())


def test_opening_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("raise AssertionError('imported')")
    code = "from heedful.train.trackers import open_trackers; open_trackers(['wandb'])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# Nothing may be sent: every way out of this machine fails the test.
OFFLINE = """
import socket, sys
def refuse(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
        sys.stderr.write(f"CONNECTS TO {address}")
        raise OSError("no network")
    return connect(self, address)
connect, socket.socket.connect = socket.socket.connect, refuse
from pathlib import Path
from heedful.train.metrics import MetricsWriter
from heedful.train.trackers import open_trackers
folder, name, configuration = Path(sys.argv[1]), sys.argv[2], {"train": {"steps": 8}}
for resumed, steps in ((0, (1, 2, 3)), (2, (3, 4, 5, 6, 7, 8))):
    with MetricsWriter(folder, resumed, resumed, trackers=open_trackers([name]), run=configuration) as writer:
        for step in steps:
            writer.write(step, {"train/loss": 1 / step})
            if step % 2 == 0:
                writer.write(step, {"val/loss": 2 / step, "gone": float("inf")})
"""


def run_offline(folder: Path, name: str, **variables: str) -> str:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(folder.parent), **variables}
    environment = {key: value for key, value in environment.items() if not key.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE, str(folder), name],
        capture_output=True, text=True, env=environment, cwd=folder.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "CONNECTS" not in done.stderr
    assert "left out" not in done.stderr
    return done.stderr


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is an extra")
def test_real_trackio_keeps_one_run_on_this_machine(tmp_path: Path) -> None:
    run_offline(tmp_path / "run", "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    [database] = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    identity = json.loads((tmp_path / "run" / "trackers.json").read_text())["trackio"]
    assert {name for name, _, _ in rows} == {f"run {identity}"}
    points = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [(step, value["train/loss"]) for step, value in points if "train/loss" in value] == [
        (step, 1 / step) for step in range(1, 9)
    ]
    assert [(step, value) for step, value in points if "val/loss" in value] == [
        (step, {"val/loss": 2 / step}) for step in (2, 4, 6, 8)
    ]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is an extra")
def test_real_wandb_runs_offline_inside_the_run_folder(tmp_path: Path) -> None:
    run_offline(tmp_path / "run", "wandb", WANDB_MODE="offline")
    identity = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
    files = list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(files) >= 1
