"""A comparison small enough for a test: its text, its recipe, and results without what differs from run to run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from heedful.study import Recipe
from heedful.study.recipe_file import recipe_from_mapping


def write_corpus(folder: Path, words: int = 3000) -> Path:
    """Write a text of made-up sentences, a paragraph a document, with a grammar that a model can learn something of."""
    random_words = random.Random(7)
    subjects, verbs, objects = (
        ("the cat", "a dog", "my aunt"),
        ("sees", "hears", "finds"),
        ("a bone", "the moon", "her hat"),
    )
    lines, written = [], 0
    while written < words:
        sentence = " ".join(random_words.choice(part) for part in (subjects, verbs, objects)) + "."
        lines.append(sentence)
        written += len(sentence.split())
        if random_words.random() < 0.25:
            lines.append("")
    path = folder / "text.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def recipe_table(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the plain form of a recipe of three arms on a text in `folder`, with some top-level keys changed."""
    table: dict[str, Any] = {
        "name": "tiny",
        "title": "A tiny comparison",
        "seeds": [1, 2, 3],
        "baseline": "standard",
        "learning_rates": [1e-2],
        "task": {"kind": "language-modelling", "prompt_tokens": 8, "sample_tokens": 6},
        "data": {
            "corpus": str(folder / "text.txt"),
            "tokenizer": "bytes",
            "cache_folder": str(folder / "cache"),
            "valid_fraction": 0.02,
            "test_fraction": 0.02,
            "max_eval_tokens": 90,
        },
        "model": {"hidden_size": 16, "num_layers": 3, "num_heads": 2},
        "train": {
            "steps": 6,
            "batch_size": 2,
            "context_length": 16,
            "evaluate_every": 2,
            "log_every": 3,
            "schedule": {"warmup_steps": 1},
        },
        "arms": [
            {"name": "standard"},
            {"name": "boosted", "attention": "boosted"},
            {"name": "sum", "attention": "nonlinear-query+multi-token"},
        ],
    }
    return {**table, **changes}


def tiny_recipe(folder: Path, **changes: Any) -> Recipe:
    """Return `recipe_table` as a recipe, its text written."""
    if not (folder / "text.txt").exists():
        write_corpus(folder)
    return recipe_from_mapping(recipe_table(folder, **changes))


TIMES = ("written", "environment", "command", "commit", "seconds", "tokens_per_second", "peak_memory_bytes", "memory")


def without_times(value: Any) -> Any:
    """Return a result without clocks, speeds and where it was computed."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value
