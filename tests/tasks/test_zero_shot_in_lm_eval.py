"""LAMBADA and BLiMP give the same figures here and in lm-eval, by lm-eval's own definitions of both tasks.

The definitions are those of the installed lm-eval; only where the data lie is changed. Nothing is downloaded.
"""

from __future__ import annotations

import json
import math
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from zero_shot_models import fitted_model, sentences

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.zero_shot_in_lm_eval import _fits, score_here, score_in_lm_eval
from scripts.zero_shot_tables import lm_eval_table

from heedful.data.tokenizers import ByteTokenizer, train_bpe, train_whitespace_bpe
from heedful.tasks.blimp import MinimalPair, evaluate_blimp
from heedful.tasks.lambada import evaluate_lambada

pytest.importorskip("lm_eval")
pytest.importorskip("datasets")

TOKENIZERS = {
    "bpe": lambda texts: train_bpe(texts, 290),
    "bpe-whitespace": lambda texts: train_whitespace_bpe(texts, 40),
}
PASSAGES = [f"{first} {second}" for first, second in zip(sentences(40, seed=5), sentences(40, seed=6), strict=True)]


def pairs() -> list[MinimalPair]:
    """Sentences against the same in another order, and against others that are as good."""
    found = []
    for good, other in zip(sentences(40, seed=7), sentences(40, seed=8), strict=True):
        words = good.split()
        turned = " ".join([words[1], words[0], *words[2:]])
        found.append(MinimalPair(uid="order", field="syntax", term="order", good=good, bad=turned))
        if other != good:
            found.append(MinimalPair(uid="nothing", field="none", term="none", good=good, bad=other))
    return found


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Refuse every connection, and tell the libraries not to try."""
    import datasets
    import huggingface_hub

    def refuse(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"a test of lm-eval opens a connection: {arguments[1:]}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    ("mechanism", "kind", "start", "length"),
    [
        ("standard", "bpe", "", 64),
        ("multi-token", "bpe-whitespace", "", 12),
        ("boosted+nonlinear-query", "bpe", ".", 12),
        ("standard", "bpe-whitespace", ".", 64),
    ],
)
def test_both_harnesses_find_the_same(mechanism, kind, start, length, tmp_path):
    texts = sentences(300)
    tokenizer = TOKENIZERS[kind](texts)
    model = fitted_model(mechanism, tokenizer, texts, steps=25)
    given = {"texts": PASSAGES, "pairs": pairs(), "start": start, "max_context": length}
    ours, theirs = score_here(model, tokenizer, **given), score_in_lm_eval(model, tokenizer, **given, batch_size=4)
    assert 0 < ours["lambada_accuracy"] < 1, "only where some are right and some wrong there is something to see"
    assert 0 < ours["blimp"]["nothing"] < 1
    assert ours["lambada_accuracy"] == theirs["lambada_accuracy"]
    assert ours["blimp"] == theirs["blimp"]
    assert_same_perplexity(ours["lambada_perplexity"], theirs["lambada_perplexity"])
    assert (evaluate_lambada(model, tokenizer, PASSAGES, max_context=length).cut > 0) == (length < 20)
    # lm-eval counts equal sentences as right
    assert evaluate_blimp(model, tokenizer, pairs(), max_context=length).indistinguishable == 0


def assert_same_perplexity(ours: float, theirs: float) -> None:
    """Both are float32 sums over few tokens, in batches of other shapes."""
    rounding = 64 * torch.finfo(torch.float32).eps * max(1.0, math.log(ours))
    assert theirs == pytest.approx(ours, rel=rounding)


def test_the_table_shows_both_harnesses(tmp_path):
    figures = {"lambada_accuracy": 0.25, "lambada_perplexity": math.e, "blimp_accuracy": 0.625}
    row = {
        "run": "standard/lr-0.01/seed-1",
        "pairs": 9,
        "here": figures,
        "lm_eval": figures,
        "phenomena_that_differ": 0,
    }
    head = {"command": "python", "lm_eval": "0.4", "machine": "a machine", "commit": "0" * 40, "dirty": False}
    file = tmp_path / "result.json"
    file.write_text(json.dumps({**head, "examples": {"lambada": 4, "blimp": 10}, "rows": [row]}))
    text = lm_eval_table(file)
    assert "4 passages, and of 10 pairs those 9" in text
    assert "| standard/lr-0.01/seed-1 | heedful | 25.00 | 1.00000 | 62.500 |  |" in text
    assert "|  | lm-eval | 25.00 | 1.00000 | 62.500 | 0 |" in text
    assert lm_eval_table(tmp_path / "none.json").startswith("not measured yet")


def test_pairs_that_lm_eval_stops_at_are_known():
    tokenizer = ByteTokenizer()
    pair = MinimalPair(uid="x", field="y", term="z", good="a" * 19, bad="a")
    assert _fits(pair, tokenizer, 20)  # a space stands before it
    assert not _fits(pair, tokenizer, 19)
