"""The scripts in examples/ run from the command line as their first lines say, here with tiny sizes."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parent.parent / "examples"
LICENSE = EXAMPLES.parent / "LICENSE"
SMALL_TEXT = ("--vocab-size", "300", "--hidden-size", "64", "--context-length", "32")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The licence of this repository, several times in numbered parts: enough for a tokenizer and three splits."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    words = LICENSE.read_text(encoding="utf-8")
    file.write_text("\n\n".join(f"{number}\n{part}" for number, part in enumerate(words.split("\n\n") * 3)))
    return file


def run(name, *arguments, folder):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "HEEDFUL_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_native_model_is_trained_saved_loaded_and_continues_the_prompt(text, tmp_path):
    options = ("--steps", "10", "--num-layers", "2", "--prompt", "the License", "--folder", "model")
    printed = run("train_save_generate.py", "--text", text, *SMALL_TEXT, *options, folder=tmp_path)
    assert "trained 10 steps" in printed
    assert "the License" in printed.splitlines()[-1] or "\nthe License" in printed
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_upcycling_starts_where_the_plain_model_is_and_writes_its_figures(text, tmp_path):
    options = ("--pretrain-steps", "20", "--steps", "10", "--num-layers", "3", "--held-out-rows", "8")
    places = ("--json", "figures.json", "--save", "saved")
    run("upcycle_llama.py", "--text", text, *SMALL_TEXT, *options, *places, folder=tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["largest logit difference at step 0"] < 1e-5 * max(1.0, figures["largest logit"])
    assert figures["upcycled"]["before"] == pytest.approx(figures["plain"]["before"], abs=1e-5)
    for name in ("plain", "upcycled"):
        assert figures[name]["after"] < figures[name]["before"]
    # and again from the checkpoint that this wrote
    options = ("--steps", "2", "--context-length", "32", "--held-out-rows", "4", "--json", "again.json")
    run("upcycle_llama.py", "--text", text, "--model", "saved/plain", "--add", "boosted", *options, folder=tmp_path)
    again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert again["largest logit difference at step 0"] < 1e-5 * max(1.0, again["largest logit"])


def test_the_audit_removes_the_queries_of_the_model_without_norms_and_skips(tmp_path):
    printed = run("audit_queries.py", "--hidden-size", "32", "--num-layers", "3", folder=tmp_path)
    for name, removed in (("Llama", 0), ("GPT-2", 0), ("no norms, no skips", 3), ("no norms, with skips", 1)):
        assert re.search(rf"{name} +│ {removed} of 3", printed), (name, printed)
    error = float(re.search(r"verified it: (\S+)", printed)[1])
    assert error < 1e-9
    assert "lossless True" in printed


def test_lm_eval_reads_both_files_and_prints_chance_and_standard_error(tmp_path):
    pytest.importorskip("lm_eval")
    words = LICENSE.read_text(encoding="utf-8").split()
    lines = [json.dumps({"text": " ".join(words[index : index + 12])}) for index in range(0, 120, 12)]
    (tmp_path / "lambada.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = ["uid\tsentence_good\tsentence_bad"]
    rows += [f"order\t{' '.join(words[i : i + 5])}\t{' '.join(words[i + 5 : i : -1])}" for i in range(0, 60, 6)]
    (tmp_path / "blimp.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    options = ("--lambada", "lambada.jsonl", "--blimp", "blimp.tsv", "--limit", "6", "--json", "figures.json")
    printed = run("evaluate_with_lm_eval.py", *options, folder=tmp_path)
    assert re.search(r"local_lambada: accuracy 0\.\d+ \+- \d.*6 examples; chance about 0\).*perplexity", printed)
    assert re.search(r"local_blimp: accuracy \d\.\d+ \+- 0\.\d+ \(standard error; 6 examples; chance 0\.5\)", printed)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert {facts["examples"] for facts in figures["results"].values()} == {6}


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_says_how_it_is_run_and_is_run_here(script):
    explanation = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    assert f"python examples/{script.name}" in explanation
    assert f'"{script.name}"' in Path(__file__).read_text(encoding="utf-8")
