"""LAMBADA is read from its files, and scored as a model with known probabilities says."""

from __future__ import annotations

import gzip
import json
import lzma
import math

import pytest
import torch
from scipy import stats
from zero_shot_models import fitted_model, random_model, sentences, unigram_model

from heedful.data.tokenizers import ByteTokenizer, train_bpe, train_whitespace_bpe
from heedful.tasks.lambada import evaluate_lambada, read_lambada, split_last_word
from tolerance import relative_rounding

TEXTS = ["the cat sees\nher hat", "a dog hears a", "my aunt finds the moon"]


def write(path, rows, opener=open):
    with opener(path, "wt", encoding="utf-8", newline="\n") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_compressed_files_read_alike(tmp_path):
    rows = [{"text": text, "domain": None} for text in TEXTS]
    for name, opener in (("a.jsonl", open), ("a.jsonl.xz", lzma.open), ("a.jsonl.gz", gzip.open)):
        assert read_lambada(write(tmp_path / name, rows, opener)) == TEXTS


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no examples"),
        ([{"text": "two words"}, {"words": "x"}], "example 2.*words"),
        ([{"text": 3}], "example 1.*text"),
        ([{"text": "one"}], "last word.*'one'"),
        ([{"text": "ends with a space "}], "last word"),
        ([[1, 2]], "line 1.*list"),
    ],
)
def test_files_of_something_else_are_refused(rows, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read_lambada(write(tmp_path / "file.jsonl", rows))
    with pytest.raises(ValueError, match="no file"):
        read_lambada(tmp_path / "elsewhere.jsonl")


def test_the_last_word_is_what_follows_the_last_space():
    assert split_last_word("a b c") == ("a b", " c")
    assert split_last_word("a b\nc") == ("a", " b\nc")


def test_known_probabilities_give_their_perplexity_and_accuracy():
    """ "a" is the likeliest byte, so " a" is greedy only where the space is, which it never is."""
    probabilities = torch.full((257,), 0.25 / 255, dtype=torch.float64)
    probabilities[ord("a")], probabilities[ord(" ")] = 0.5, 0.25
    model = unigram_model(probabilities)
    texts = ["x a", "x aa", "x ba"]
    found = evaluate_lambada(model, ByteTokenizer(), texts)
    rare = -math.log(0.25 / 255)
    nats = [math.log(4) + math.log(2), math.log(4) + 2 * math.log(2), math.log(4) + rare + math.log(2)]
    assert found.nats_per_word == pytest.approx(sum(nats) / 3, rel=relative_rounding())
    assert found.perplexity == pytest.approx(math.exp(sum(nats) / 3), rel=relative_rounding())
    expected = stats.ttest_1samp(nats, 0).confidence_interval(0.95)
    assert found.nats_interval == pytest.approx((expected.low, expected.high))
    assert found.perplexity_interval == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert (found.correct, found.examples, found.tokens) == (0, 3, 2 + 3 + 3)
    assert found.chance_accuracy == pytest.approx((257**-2 + 2 * 257**-3) / 3)
    assert found.chance_perplexity == pytest.approx(257 ** (8 / 3))
    probabilities[ord("a")], probabilities[ord(" ")] = 0.25, 0.5
    assert evaluate_lambada(unigram_model(probabilities), ByteTokenizer(), texts).correct == 0


def test_an_example_is_right_where_greedy_decoding_writes_its_word():
    texts = sentences(400)
    tokenizer = train_bpe(texts, 290)
    model = fitted_model("standard", tokenizer, texts)
    held_out = sentences(60, seed=9)
    hits = 0
    for text in held_out:
        context, word = split_last_word(text)
        start = torch.tensor([tokenizer.encode(context)])
        wanted = tokenizer.encode(word)
        hits += model.generate(start, len(wanted), temperature=0.0)[0, start.shape[1] :].tolist() == wanted
    found = evaluate_lambada(model, tokenizer, held_out)
    assert 0 < hits < len(held_out)
    assert found.correct == hits
    assert found.accuracy == hits / len(held_out)
    assert found.accuracy_interval[0] < found.accuracy < found.accuracy_interval[1]


def test_passages_that_were_cut_are_counted():
    texts = ["x" * 46 + " a", "x" * 47 + " a", "x" * 48 + " a"]
    model = random_model(max_positions=48)
    assert evaluate_lambada(model, ByteTokenizer(), texts).cut == 1  # the last token of a row is predicted only
    found = evaluate_lambada(model, ByteTokenizer(), texts, max_context=20)
    assert (found.cut, found.max_context) == (3, 20)


def test_a_tokenizer_that_loses_characters_is_told_of_and_refused_where_nothing_is_left():
    tokenizer = train_whitespace_bpe(sentences(200), 40)
    model = random_model(vocab_size=tokenizer.vocab_size)
    found = evaluate_lambada(model, tokenizer, ["the cat sees the moon", "the cat sees the moöon"])
    assert found.incomplete_targets == 1
    with pytest.raises(ValueError, match="nothing of the last word 'öö'"):
        evaluate_lambada(model, tokenizer, ["the cat sees the moon", "the cat sees the öö"])
    with pytest.raises(ValueError, match="no text"):
        evaluate_lambada(model, tokenizer, [])
