"""`heedful prepare` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heedful.cli import main
from heedful.data import open_dataset

RECIPE = """
name = "tiny"
seeds = [0]
baseline = "standard"
learning_rates = [1e-3]
[data]
corpus = "text.txt"
tokenizer = "bytes"
[train]
steps = 6
batch_size = 2
context_length = 16
evaluate_every = 3
schedule = { warmup_steps = 1 }
[[arms]]
name = "standard"
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEEDFUL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("".join(f"Paragraph {i} of a text.\n\n" for i in range(100)))
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def test_it_says_what_it_made_and_the_next_time_only_opens_it(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(recipe)]) == 0
    said = capsys.readouterr()
    assert "reading text.txt" in said.err
    folder = Path(said.out.splitlines()[-1].rpartition(" in ")[2])
    dataset = open_dataset(folder)
    words = said.out.split()
    for split in (dataset.train, dataset.valid, dataset.test):
        at = words.index(split.name)
        assert words[at + 1 : at + 6 : 2] == [
            f"{n:,}" for n in (split.num_tokens, split.num_documents, split.num_bytes)
        ]
    assert main(["prepare", str(recipe), "--verify"]) == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert again.out.splitlines()[:3] == said.out.splitlines()[:3]


def test_values_of_the_recipe_can_be_changed_and_sources_are_listed(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(recipe), "--data.separator", "false", "--workers", "1"]) == 0
    assert open_dataset(Path(capsys.readouterr().out.split()[-1])).manifest["separator"] is False
    source = '[[data.sources]]\nname = "mine"\ncorpus = "text.txt"\n'
    recipe.write_text(RECIPE.replace('corpus = "text.txt"\n', "").replace("[train]", f"{source}[train]"))
    assert main(["prepare", str(recipe)]) == 0
    assert "tokens of train from mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.corpus", "nowhere.txt"], "'nowhere.txt' is not a file or folder"),
        (["--workers", "-1"], "workers must be 0 or more, got -1"),
        (["--data.tokenizer", "words"], "tokenizer"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(
    recipe: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["prepare", str(recipe), *options]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_recipe_without_text_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, train = RECIPE.index("[data]"), RECIPE.index("[train]")
    recipe.write_text(
        (RECIPE[:data] + '[task]\nkind = "find-the-block"\n' + RECIPE[train:]).replace("context_length = 16\n", "")
    )
    assert main(["prepare", str(recipe)]) == 2
    assert "makes its own samples, so there is no text to prepare" in capsys.readouterr().err


# Small parts, so that there are many of them to be interrupted between.
SMALL_PARTS = """
import sys
from heedful.cli import main
from heedful.data import tokenizing
tokenizing.PART_BYTES = 1000
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_has_status_130_and_the_same_command_goes_on(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{i} " * 100 + "\n\n" for i in range(2000)))
    command = [sys.executable, "-c", SMALL_PARTS, "prepare", str(recipe), "--workers", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not list(tmp_path.glob("cache/shards/.*.work/parts-0/*")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("heedful: interrupted; what is finished is saved")
    assert "Traceback" not in errors
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "going on with what an earlier preparation left" in again.stderr
    manifest = json.loads((Path(again.stdout.split()[-1]) / "manifest.json").read_text())
    assert sum(split["bytes"] for split in manifest["splits"].values()) == (tmp_path / "text.txt").stat().st_size
