from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from heedful.train import describe_environment
from heedful.train.environment import git_state, record_process


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_it_is_plain_json_and_names_what_matters() -> None:
    environment = describe_environment("cpu")
    assert json.loads(json.dumps(environment)) == environment
    # Some builds add what they are built for to one of the two, as in 2.11.0+cu130.
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
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


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose package takes the place of heedful's as the source of the runs."""
    package = tmp_path / "checkout" / "src" / "package"
    (package / "train").mkdir(parents=True)
    (package / "__init__.py").write_text("one = 1\n")
    (package / "train" / "environment.py").write_text("two = 2\n")
    (package.parent.parent / "README.md").write_text("read me\n")
    (package.parent.parent / ".gitignore").write_text("*.log\n")
    git(tmp_path / "checkout", "init")
    git(tmp_path / "checkout", "add", ".")
    git(tmp_path / "checkout", "commit", "-m", "first")
    monkeypatch.setattr("heedful.train.environment.__file__", str(package / "train" / "environment.py"))
    return tmp_path / "checkout"


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "environment.json").read_text())


def test_the_diff_of_a_checkout_rebuilds_what_ran(tmp_path: Path, checkout: Path) -> None:
    run = tmp_path / "run"
    package = checkout / "src" / "package"
    record_process(run, "cpu", 0, processes=2, strategy="ddp")
    assert read(run)["source"]["diff"] is None
    assert (read(run)["processes"], read(run)["strategy"]) == (2, "ddp")
    assert not list(run.glob("*.diff"))
    (package / "__init__.py").write_text("one = 11\n")
    (package / "new module.py").write_text("three = 3\n")
    (package / "image.bin").write_bytes(bytes(range(256)))
    (package / "noise.log").write_text("ignored")
    (checkout / "note.txt").write_text("outside the package and untracked")
    git(checkout, "config", "diff.noprefix", "true")  # a setting of the user's that would make it unusable
    record_process(run, "cpu", 0)
    diff = read(run)["source"]["diff"]
    content = (run / "source.diff").read_bytes()
    assert diff == {"file": "source.diff", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    subprocess.run(["git", "clone", "-q", str(checkout), str(tmp_path / "clone")], check=True)
    git(tmp_path / "clone", "apply", str(run / "source.diff"))
    clone = tmp_path / "clone" / "src" / "package"
    assert (clone / "__init__.py").read_text() == "one = 11\n"
    assert (clone / "new module.py").read_text() == "three = 3\n"
    assert (clone / "image.bin").read_bytes() == bytes(range(256))
    assert not (clone / "noise.log").exists()
    assert not (tmp_path / "clone" / "note.txt").exists()


def test_each_process_has_its_diff_and_equal_ones_are_kept_once(tmp_path: Path, checkout: Path) -> None:
    run, module = tmp_path / "run", checkout / "src" / "package" / "__init__.py"
    for step, text in (
        (0, "one = 11\n"),
        (10, "one = 11\n"),
        (20, "one = 12\n"),
        (30, "one = 1\n"),
        (40, "one = 12\n"),
    ):
        module.write_text(text)
        record_process(run, "cpu", step)
    first = read(run)
    assert [item["from_step"] for item in first["resumed"]] == [10, 20, 30, 40]
    diffs = [item["source"]["diff"] for item in (first, *first["resumed"])]
    assert [diff and diff["file"] for diff in diffs] == [
        "source.diff", "source.diff", "source-2.diff", None, "source-2.diff"
    ]  # fmt: skip
    assert "+one = 11" in (run / "source.diff").read_text()
    assert "+one = 12" in (run / "source-2.diff").read_text()


def test_a_diff_that_is_too_large_is_named_and_not_cut(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "README.md").write_text("read this\n")
    record_process(tmp_path / "small", "cpu", 0)
    size = read(tmp_path / "small")["source"]["diff"]["bytes"]
    monkeypatch.setattr("heedful.train.environment.LARGEST_DIFF_BYTES", size)
    record_process(tmp_path / "fits", "cpu", 0)
    assert (tmp_path / "fits" / "source.diff").stat().st_size == size
    monkeypatch.setattr("heedful.train.environment.LARGEST_DIFF_BYTES", size - 1)
    record_process(tmp_path / "large", "cpu", 0)
    diff = read(tmp_path / "large")["source"]["diff"]
    assert (diff["file"], diff["bytes"]) == (None, size)
    assert not list((tmp_path / "large").glob("*.diff"))


def test_a_process_that_goes_on_takes_the_result_of_the_earlier_one_away(tmp_path: Path) -> None:
    record_process(tmp_path, "cpu", 0)
    (tmp_path / "result.json").write_text("{}")
    record_process(tmp_path, "cpu", 5)
    assert not (tmp_path / "result.json").exists()


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    for content in ("{", "[]"):
        (tmp_path / "environment.json").write_text(content)
        with pytest.raises(ValueError, match=r"environment.json is damaged"):
            record_process(tmp_path, "cpu", 5)
        assert (tmp_path / "environment.json").read_text() == content


def test_importing_the_training_loads_nothing_it_may_not_need() -> None:
    code = (
        "import sys, heedful.train; optional = {'rich', 'tensorboard', 'trackio', 'wandb', 'matplotlib'}; "
        "print(sorted((optional | {'heedful.study', 'heedful.cli'}) & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_environment()["source"] is None
