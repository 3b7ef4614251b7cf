"""Further texts that tested runs are scored on: whole, by the same rule, and without deciding anything."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import recipe_table, write_corpus

from heedful.study import load_result, make_plan, plain_text, run_comparison
from heedful.study.recipe_file import recipe_from_mapping
from heedful.train import load_best

TEXT = "the moon sees a dog.\nmy aunt finds the moon.\n"


def table(folder: Path, **further: str) -> dict[str, Any]:
    task = {"kind": "language-modelling", "prompt_tokens": 8, "sample_tokens": 6, "further_tests": further}
    return recipe_table(folder, task=task, arms=[{"name": "standard"}, {"name": "twicing", "attention": "twicing"}])


def test_every_token_of_the_further_text_is_scored_once(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    (tmp_path / "other.txt").write_text(TEXT, encoding="utf-8")
    recipe = recipe_from_mapping(table(tmp_path, moon=str(tmp_path / "other.txt")))
    run_comparison(recipe, tmp_path / "study", report=lambda line: None)
    result = load_result(tmp_path / "study")
    assert result["metrics"] == ["perplexity", "bits_per_byte", "perplexity@moon", "bits_per_byte@moon"]
    assert {item["metric"] for item in result["comparisons"]} == set(result["metrics"])
    run = next(run for run in result["runs"] if (run["arm"], run["seed"]) == ("standard", 1))
    model = load_best(tmp_path / "study/runs/standard/lr-0.01/seed-1").eval()
    tokenizer = make_plan(recipe).workload.tokenizer
    assert tokenizer is not None
    ids = [*tokenizer.encode(TEXT), tokenizer.end_of_text]
    nats, context = 0.0, recipe.train.context_length
    for begin in range(0, len(ids), context):
        targets = torch.tensor(ids[begin : begin + context])
        before = ids[begin - 1] if begin else tokenizer.end_of_text
        tokens = torch.tensor([[before, *targets[:-1].tolist()]])
        with torch.no_grad():
            logits, _ = model(tokens)
        nats += float(torch.nn.functional.cross_entropy(logits[0].double(), targets, reduction="sum"))
    assert run["test"]["perplexity@moon"] == pytest.approx(math.exp(nats / len(ids)), rel=1e-5)
    assert "perplexity on moon" in plain_text(result)
    assert "perplexity on moon" in (tmp_path / "study/report.html").read_text(encoding="utf-8")


def test_another_further_text_is_another_comparison(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    other = tmp_path / "other.txt"
    other.write_text(TEXT, encoding="utf-8")
    recipe = recipe_from_mapping(table(tmp_path, moon=str(other)))
    run_comparison(recipe, tmp_path / "study", report=lambda line: None)
    other.write_text(TEXT + "her hat.", encoding="utf-8")
    with pytest.raises(ValueError, match="data changed since the comparison"):
        run_comparison(recipe, tmp_path / "study", report=lambda line: None)


def test_a_missing_further_text_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    recipe = recipe_from_mapping(table(tmp_path, moon=str(tmp_path / "missing.txt")))
    with pytest.raises(ValueError, match=r"task\.further_tests\.moon: there is no file or folder .*missing\.txt"):
        run_comparison(recipe, tmp_path / "study", report=lambda line: None)
    assert not (tmp_path / "study").exists()


def test_names_of_further_texts_are_plain(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="further test 'a b' must be named"):
        recipe_from_mapping(table(tmp_path, **{"a b": "text.txt"}))
