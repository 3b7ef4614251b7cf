from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heedful.train import describe_environment
from heedful.train.environment import git_state


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_it_is_plain_json_and_names_what_matters() -> None:
    environment = describe_environment("cpu")
    assert json.loads(json.dumps(environment)) == environment
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["device"] == "cpu"
    assert environment["gpu"] is None
    assert environment["cpu"]
    assert environment["threads"] == torch.get_num_threads()
    assert environment["time"].endswith("+00:00")


def test_the_commit_is_that_of_the_checkout_and_changes_make_it_dirty(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("one\n")
    assert git_state(file) is None
    git(tmp_path, "init")
    assert git_state(file) is None  # in a checkout, but not part of it
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "-m", "first")
    state = git_state(file)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    file.write_text("two\n")
    assert git_state(file) == {"commit": state["commit"], "dirty": True}


def test_importing_the_training_loads_nothing_it_may_not_need() -> None:
    code = (
        "import sys, heedful.train; "
        "print(sorted({'rich', 'tensorboard', 'matplotlib', 'heedful.study', 'heedful.cli'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_environment()["source"] is None
