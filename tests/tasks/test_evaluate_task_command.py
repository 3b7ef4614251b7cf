"""`heedful evaluate --task` as a user meets it, on a run, on its export, and on what is not there."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from zero_shot_models import sentences

from heedful.cli import main
from heedful.cli.evaluate_task import open_model
from heedful.files import atomic_folder
from heedful.tasks.blimp import evaluate_blimp, read_blimp
from heedful.tasks.lambada import evaluate_lambada, read_lambada

RECIPE = """
name = "tiny"
seeds = [0]
baseline = "standard"
learning_rates = [1e-2]

[data]
corpus = "text.txt"
documents = "line"
tokenizer = "bytes"
valid_fraction = 0.1
test_fraction = 0.1

[model]
hidden_size = 16
num_layers = 1
num_heads = 2
max_positions = 220

[task]
kind = "language-modelling"
prompt_tokens = 8
sample_tokens = 8

[train]
steps = 30
batch_size = 4
context_length = 180
evaluate_every = 15

[train.schedule]
warmup_steps = 1

[[arms]]
name = "standard"
"""
STORY = "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n"


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a trained run and the data of every task."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "text.txt").write_text("\n".join(" ".join(sentences(6, seed)) for seed in range(40)) + "\n")
    (folder / "tiny.toml").write_text(RECIPE)
    lines = [json.dumps({"text": " ".join(sentences(5, seed))}) for seed in range(100, 130)]
    (folder / "lambada.jsonl").write_text("\n".join(lines) + "\n")
    rows = ["uid\tfield\tterm\tpair_id\tsimple_lm\tsentence_good\tsentence_bad"]
    for number, text in enumerate(sentences(24, seed=200)):
        kind = ("first", "second")[number % 2]
        rows.append(f"{kind}\tsyntax\torder\t{number}\t1\t{text}\t{' '.join(text.split()[::-1])}")
    (folder / "blimp.tsv").write_text("\n".join(rows) + "\n")
    with tarfile.open(folder / "babi.tar", "w") as archive:
        content = (STORY * 12).encode()
        member = tarfile.TarInfo("en/qa1_single-supporting-fact_test.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HEEDFUL_CACHE", str(folder / "cache"))
        assert run("train", "tiny.toml", "--folder", "run") == 0
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HEEDFUL_CACHE", str(place / "cache"))


def scores(capsys, *arguments):
    assert run("evaluate", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_lambada_of_a_run_is_scored_in_the_context_of_its_training(capsys):
    found = scores(capsys, "run", "--task", "lambada", "--task-data", "lambada.jsonl")
    opened = open_model(Path("run"), {})
    expected = evaluate_lambada(
        opened["model"], opened["tokenizer"], read_lambada("lambada.jsonl"), max_context=180, tokens_per_batch=500
    )
    assert found["perplexity"] == pytest.approx(expected.perplexity)
    assert (found["correct"], found["examples"], found["max_context"]) == (expected.correct, 30, 180)
    assert (found["task"], found["data"], len(found["data_sha256"])) == ("lambada", "lambada.jsonl", 64)
    few = scores(capsys, "run", "--task", "lambada", "--task-data", "lambada.jsonl", "--limit", "7", "--seed", "3")
    assert few["examples"] == 7
    assert few["data_sha256"] == found["data_sha256"]
    shorter = scores(capsys, "run", "--task", "lambada", "--task-data", "lambada.jsonl", "--context-length", "20")
    assert (shorter["max_context"], shorter["cut"]) == (20, 30)
    assert run("evaluate", "run", "--task", "lambada", "--task-data", "lambada.jsonl", "--context-length", 20) == 0
    shown = capsys.readouterr().out
    assert "30 of 30 passages" in shown
    assert "The beginning of 30 passages was not read" in shown


def test_blimp_of_a_run_prints_groups_and_chance(capsys):
    found = scores(capsys, "run", "--task", "blimp", "--task-data", "blimp.tsv")
    opened = open_model(Path("run"), {})
    expected = evaluate_blimp(opened["model"], opened["tokenizer"], read_blimp("blimp.tsv"), max_context=180)
    assert found["accuracy"] == expected.accuracy
    assert found["chance"] == 0.5
    assert [row["uid"] for row in found["phenomena"]] == ["first", "second"]
    assert (
        run("evaluate", "run", "--task", "blimp", "--task-data", "blimp.tsv", "--limit", "5", "--task.start", ".") == 0
    )
    shown = capsys.readouterr().out
    assert "10 of 24 pairs in 2 phenomena; chance 50 %" in shown
    assert "order" in shown
    assert "never saw end of text" not in shown


def test_a_model_trained_without_end_of_text_is_told_of(capsys):
    arguments = ("evaluate", "run", "--task", "blimp", "--task-data", "blimp.tsv", "--data.separator", "false")
    assert run(*arguments) == 0
    assert "never saw end of text" in capsys.readouterr().out
    assert run(*arguments, "--task.start", ".") == 0
    assert "never saw end of text" not in capsys.readouterr().out


def test_an_export_is_scored_as_its_run(capsys, tmp_path):
    pytest.importorskip("transformers")
    assert run("export", "run", tmp_path / "exported", "--hf") == 0
    capsys.readouterr()
    for task, data in (("lambada", "lambada.jsonl"), ("blimp", "blimp.tsv")):
        arguments = ("--task", task, "--task-data", data, "--context-length", "180")
        ours, exported = scores(capsys, "run", *arguments), scores(capsys, tmp_path / "exported", *arguments)
        assert ours.pop("run") != exported.pop("run")
        assert ours == exported
    (tmp_path / "exported" / "tokenizer_config.json").unlink()
    assert run("evaluate", tmp_path / "exported", "--task", "blimp", "--task-data", "blimp.tsv") == 2
    assert "no tokenizer" in capsys.readouterr().err


def test_needles_and_long_babi_of_a_run(capsys):
    found = scores(
        capsys, "run", "--task", "needles", "--task-data", "text.txt", "--limit", "3", "--task.needles", "[2]"
    )
    assert found["config"]["lengths"] == [180]
    assert [cell["samples"] for cell in found["cells"]] == [3] * 5
    assert found["cells"][0]["chance"] == 50
    babi = ("run", "--task", "long-babi", "--task-data", "babi.tar", "--task.tasks", "[1]", "--limit", "4")
    found = scores(capsys, *babi)
    assert [(cell["task"], cell["distraction"], cell["samples"]) for cell in found["cells"]] == [(1, 0, 4)]
    found = scores(capsys, *babi, "--task.distractions", "[0, 40]", "--task.filler", "text.txt")
    assert [cell["distraction"] for cell in found["cells"]] == [0, 40]
    assert run("evaluate", *babi) == 0
    assert "chance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "lambada"], ["--task lambada", "--task-data"]),
        (["--task", "lambada", "--task-data", "nowhere"], ["nowhere", "--task-data"]),
        (["--task", "lambada", "--task-data", "blimp.tsv"], ["blimp.tsv", "line 1", "JSON"]),
        (["--task", "blimp", "--task-data", "lambada.jsonl"], ["UID", "lambada.jsonl"]),
        (["--task", "blimp", "--task-data", "text.txt"], ["has no uid"]),
        (["--task", "lambada", "--task-data", "lambada.jsonl", "--task.start", "."], ["start"]),
        (["--task", "blimp", "--task-data", "blimp.tsv", "--task.begin", "."], ["begin", "start"]),
        (["--task", "blimp", "--task-data", "blimp.tsv", "--limit", "0"], ["limit", "0"]),
        (["--task", "blimp", "--task-data", "blimp.tsv", "--context-length", "221"], ["220", "221"]),
        (["--task", "blimp", "--task-data", "blimp.tsv", "--split", "valid"], ["--split"]),
        (["--task-data", "blimp.tsv"], ["--task-data", "--task"]),
        (["--limit", "3"], ["--limit", "--task"]),
        (["--task", "needles", "--task-data", "text.txt", "--task.lengths", "[200]"], ["200", "180"]),
        (["--task", "long-babi", "--task-data", "babi.tar", "--task.distractions", "[9]"], ["task.filler"]),
        (["--task", "long-babi", "--task-data", "text.txt"], ["tar"]),
    ],
)
def test_wrong_input_is_one_sentence(arguments, words, capsys):
    assert run("evaluate", "run", *arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for word in words:
        assert word in error


def test_folders_of_something_else_are_refused(capsys, tmp_path):
    for folder, word in ((tmp_path, "recipe.json"), (tmp_path / "nowhere", "no folder")):
        assert run("evaluate", folder, "--task", "blimp", "--task-data", "blimp.tsv") == 2
        assert word in capsys.readouterr().err
    with atomic_folder(tmp_path / "other") as folder:
        (folder / "config.json").write_text('{"model_type": "llama"}')
    assert run("evaluate", tmp_path / "other", "--task", "blimp", "--task-data", "blimp.tsv") == 2
    assert "llama" in capsys.readouterr().err
