"""The command line as a user meets it: commands that work, and one sentence with exit status 2 for everything wrong."""

import json
import os
import subprocess
import sys

import pytest
import torch

from heedful.cli import main
from heedful.cli.compare import Compare

RECIPE = """
name = "tiny"
seeds = [0]
baseline = "standard"
learning_rates = [1e-3]

[data]
corpus = "CORPUS"
documents = "file"
tokenizer = "bytes"
valid_fraction = 0.2
test_fraction = 0.2

[model]
hidden_size = 16
num_layers = 1
num_heads = 2

[task]
kind = "language-modelling"
prompt_tokens = 8
sample_tokens = 8

[train]
steps = 6
batch_size = 2
context_length = 16
evaluate_every = 3
checkpoint_every = 3

[train.schedule]
warmup_steps = 1

[[arms]]
name = "standard"

[[arms]]
name = "boosted"
attention = "boosted"
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEEDFUL_CACHE", str(tmp_path / "cache"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(12):
        (texts / f"{number}.txt").write_text(f"text number {number} says hello to the world. " * 8)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.replace("CORPUS", str(texts)))
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def files_under(folder):
    """All files but the cache of token shards, which is complete or absent and serves the next command."""
    return sorted(str(path) for path in folder.rglob("*") if "cache" not in path.parts)


def test_train_evaluate_and_generate_work_together(recipe, tmp_path, capsys):
    assert run("train", recipe, "--arm", "boosted", "--folder", tmp_path / "run") == 0
    assert "tokens/s" in capsys.readouterr().out
    assert run("evaluate", tmp_path / "run", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert 1 < scores["perplexity"] < 400
    text = tmp_path / "other.txt"
    text.write_text("another text\n\nwith two paragraphs")
    assert run("evaluate", tmp_path / "run", "--text", text) == 0
    assert "bits_per_byte" in capsys.readouterr().out
    assert run("evaluate", tmp_path / "run", "--split", "valid") == 0
    capsys.readouterr()
    assert run("generate", tmp_path / "run", "--prompt", "hello", "--max-new-tokens", "5") == 0
    first = capsys.readouterr().out
    assert first.startswith("hello")
    assert run("generate", tmp_path / "run", "--prompt", "hello", "--max-new-tokens", "5") == 0
    assert capsys.readouterr().out == first  # the seed decides
    assert run("train", recipe, "--arm", "boosted", "--folder", tmp_path / "run", "--resume") == 0


def test_compare_leaves_a_report_and_is_quick_the_second_time(recipe, tmp_path, capsys):
    assert run("compare", recipe, "--dry-run") == 0
    assert "boosted" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert run("compare", recipe, "--folder", tmp_path / "study") == 0
    shown = capsys.readouterr().out
    assert "boosted" in shown
    assert str(tmp_path / "study" / "report.html") in shown
    before = (tmp_path / "study" / "result.json").read_text()
    assert run("compare", recipe, "--folder", tmp_path / "study") == 0
    assert json.loads(before)["arms"] == json.loads((tmp_path / "study" / "result.json").read_text())["arms"]
    one_run = next((tmp_path / "study").glob("runs/boosted/**/checkpoints")).parent
    assert run("evaluate", one_run) == 0
    assert run("generate", one_run, "--prompt", "text", "--max-new-tokens", "3") == 0


def test_dotted_options_change_the_recipe(recipe, capsys):
    assert run("train", recipe, "--dry-run", "--train.steps", "9", "--train.batch_size=4") == 0
    assert "9 steps of 4 x 16 tokens" in capsys.readouterr().out
    assert run("train", recipe, "--dry-run", "--recipe.seeds", "[5, 6]") == 0
    assert "seed 5" in capsys.readouterr().out


def test_info_shows_presets_and_costs(capsys):
    assert run("info") == 0
    assert "multi-token" in capsys.readouterr().out
    assert run("info", "boosted+nonlinear-query+multi-token") == 0
    shown = capsys.readouterr().out
    assert "8,743,204" in shown
    assert "AttentionConfig(" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "bosted"], ["bosted", "boosted"]),
        (["info", "twicing+multi-token"], ["twicing", "multi-token", "score rule"]),
        (["info", "boosted", "--num-heads", "3"], ["num_heads", "256", "3"]),
        (["info", "boosted", "--train.steps", "3"], ["no recipe", "train.steps"]),
        (["compare", "nowhere.toml"], ["nowhere.toml"]),
        (["compare", "RECIPE", "--train.stepz", "3"], ["stepz", "steps"]),
        (["compare", "RECIPE", "--train.steps"], ["train.steps", "needs a value"]),
        (["compare", "RECIPE", "--train.steps", "many"], ["train.steps", "int", "many"]),
        (["compare", "RECIPE", "--data.corpus", "nowhere"], ["nowhere"]),
        (["compare", "RECIPE", "--data.corpus", "EMPTY"], ["empty"]),
        (["compare", "RECIPE", "--model.num_heads", "3"], ["num_heads", "16", "3"]),
        (["compare", "RECIPE", "--arms.boosted.attention", "boostd"], ["boostd", "boosted"]),
        (["train", "RECIPE", "--arm", "boost"], ["boost", "boosted"]),
        (["train", "RECIPE", "--train.device", "cuda:7"], ["cuda:7"]),
        (["evaluate", "nowhere"], ["nowhere"]),
        (["evaluate", "EMPTY"], ["recipe.json"]),
        (["generate", "nowhere"], ["nowhere"]),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(recipe, tmp_path, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    places = {"RECIPE": str(recipe), "EMPTY": str(tmp_path / "empty")}
    arguments = [places.get(argument, argument) for argument in arguments]
    before = files_under(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    message = error.strip().splitlines()[-1]
    assert message.startswith("heedful: ")
    for word in words:
        assert word in message
    assert "Traceback" not in error
    assert files_under(tmp_path) == before, "nothing may be written"


def test_unknown_commands_and_options_are_refused_with_status_2(recipe, capsys):
    for arguments in (["trian"], ["compare"], ["compare", str(recipe), "--foldr", "x"]):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments)
        assert stopped.value.code == 2
        capsys.readouterr()


def test_a_second_run_in_a_folder_is_refused_and_a_damaged_one_named(recipe, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("train", recipe, "--folder", folder) == 0
    before = {path: (folder / path).read_bytes() for path in ("config.json", "result.json")}
    assert run("train", recipe, "--folder", folder) == 2
    assert "--resume" in capsys.readouterr().err
    assert before == {path: (folder / path).read_bytes() for path in before}
    for weights in folder.glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-100])
    assert run("evaluate", folder) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_other_data_than_the_training_had_are_refused(recipe, tmp_path, capsys):
    assert run("train", recipe, "--folder", tmp_path / "run") == 0
    assert run("evaluate", tmp_path / "run", "--data.tokenizer", "bpe", "--data.vocab_size", "280") == 2
    assert "tokenizer_sha256" in capsys.readouterr().err


def test_python_dash_m_is_the_same_and_a_closed_pipe_is_quiet(tmp_path):
    environment = {**os.environ, "HEEDFUL_CACHE": str(tmp_path)}
    command = f"{sys.executable} -m heedful info | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0
    assert "heedful" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")]
)
def test_too_little_memory_is_one_sentence(monkeypatch, capsys, error):
    def run(self, overrides):
        raise error

    monkeypatch.setattr("heedful.cli.info.Info.run", run)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == "heedful: there is not enough memory for this model on this machine.\n"
    monkeypatch.setattr(
        "heedful.cli.info.Info.run", lambda self, overrides: (_ for _ in ()).throw(RuntimeError("a bug"))
    )
    with pytest.raises(RuntimeError, match="a bug"):
        main(["info"])


def test_checkpoints_are_written_for_transformers_too(recipe):
    transformers = pytest.importorskip("transformers")
    import heedful.hf  # noqa: F401  # registers the model
    from heedful.train import best_folder, load_best

    assert run("train", recipe, "--arm", "boosted", "--folder", "run", "--hf") == 0
    folder = best_folder("run")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    tokens = tokenizer("hello", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens).logits, load_best("run").eval()(tokens)[0])


def test_a_comparison_is_not_spread_over_processes(recipe, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="start it without torchrun, or train single arms"):
        Compare(recipe=recipe).run({})
