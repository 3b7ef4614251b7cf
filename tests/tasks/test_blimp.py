"""BLiMP is read in both forms, and scored as a model with known probabilities says."""

from __future__ import annotations

import json
import lzma
from statistics import fmean

import pytest
import torch
from scipy import stats
from zero_shot_models import random_model, sentences, unigram_model

from heedful.data.tokenizers import ByteTokenizer, train_whitespace_bpe
from heedful.tasks.blimp import MinimalPair, draw_pairs, evaluate_blimp, pairs_sha256, read_blimp
from heedful.tasks.intervals import mean_of_shares_interval, wilson_interval
from heedful.tasks.scoring import Continuation, score_continuations

HEADER = "uid\tfield\tterm\tpair_id\tsimple_lm\tsentence_good\tsentence_bad\n"


def pair(uid, good, bad, term="agreement"):
    return MinimalPair(uid=uid, field="syntax", term=term, good=good, bad=bad)


PAIRS = [
    pair("one", "aa", "ab"),
    pair("one", 'a"a', "bbb"),
    pair("one", "b", "a"),
    pair("one", "abb", "aab"),
    pair("two", "aaa", "bbb"),
    pair("two", "aab", "abb"),
    pair("three", "a", "b", term="binding"),
    pair("three", "b", "b", term="binding"),
]


def table(pairs):
    rows = [f"{p.uid}\t{p.field}\t{p.term}\t{index}\t1\t{p.good}\t{p.bad}\n" for index, p in enumerate(pairs)]
    return HEADER + "".join(rows)


def published(pairs):
    rows = [
        {
            "sentence_good": p.good,
            "sentence_bad": p.bad,
            "field": p.field,
            "linguistics_term": p.term,
            "UID": p.uid,
            "simple_LM_method": True,
            "pairID": str(index),
        }
        for index, p in enumerate(pairs)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def likes_a(a=0.5, b=0.25):
    probabilities = torch.full((257,), (1 - a - b) / 255, dtype=torch.float64)
    probabilities[ord("a")], probabilities[ord("b")] = a, b
    return unigram_model(probabilities)


def test_the_table_and_the_published_folder_hold_the_same_pairs(tmp_path):
    (tmp_path / "blimp.tsv").write_text(table(PAIRS), encoding="utf-8")
    (tmp_path / "blimp.tsv.xz").write_bytes(lzma.compress(table(PAIRS).encode()))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "README.md").write_text("not data")
    by_file = {"1.jsonl": PAIRS[:4], "2.jsonl": PAIRS[4:6], "3.jsonl": PAIRS[6:]}
    for name, pairs in by_file.items():
        (folder / name).write_text(published(pairs), encoding="utf-8")
    assert read_blimp(tmp_path / "blimp.tsv") == read_blimp(tmp_path / "blimp.tsv.xz") == read_blimp(folder) == PAIRS
    assert read_blimp(folder / "1.jsonl") == PAIRS[:4]
    assert pairs_sha256(PAIRS) != pairs_sha256(PAIRS[::-1])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.tsv", "", "has no uid, field, term, sentence_good, sentence_bad; .*got nothing"),
        ("a.tsv", HEADER, "no pairs"),
        ("a.tsv", "uid\tsentence_good\nx\ty\n", "has no field, term, sentence_bad"),
        ("a.tsv", table(PAIRS).replace("\t", ","), "has no uid"),
        ("a.tsv", HEADER + "one\tsyntax\tterm\t0\t1\tgood\n", "line 2: sentence_bad is empty"),
        ("a.tsv", HEADER + "one\tsyntax\tterm\t0\t1\t \tbad\n", "line 2: sentence_good is empty"),
        ("a.jsonl", '{"UID": "x"}\n', "has no field, linguistics_term"),
        ("a.jsonl", published([pair("x", "", "b")]), "pair 1: sentence_good is empty"),
        ("a.jsonl", "", "no pairs"),
    ],
)
def test_files_of_something_else_are_refused(name, text, words, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        read_blimp(tmp_path / name)


def test_missing_data_are_named(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        read_blimp(tmp_path / "elsewhere.tsv")
    with pytest.raises(ValueError, match=r"no \.jsonl file"):
        read_blimp(tmp_path)


def test_known_probabilities_decide_each_pair():
    """The sentence with more "a" is likelier; of equally long ones without other letters nothing else counts."""
    found = evaluate_blimp(likes_a(), ByteTokenizer(), PAIRS)
    assert [(p.uid, p.correct, p.pairs) for p in found.phenomena] == [("one", 1, 4), ("two", 2, 2), ("three", 1, 2)]
    assert found.accuracy == pytest.approx(fmean([1 / 4, 2 / 2, 1 / 2]))
    assert [(t.term, t.phenomena, t.pairs, t.accuracy) for t in found.terms] == [
        ("agreement", 2, 6, 0.625),
        ("binding", 1, 2, 0.5),
    ]
    assert (found.chance, found.pairs, found.indistinguishable, found.cut) == (0.5, 8, 1, 0)
    assert [p.interval for p in found.phenomena] == [
        wilson_interval(1, 4),
        wilson_interval(2, 2),
        wilson_interval(1, 2),
    ]
    assert found.terms[1].interval == wilson_interval(1, 2)
    assert found.interval == mean_of_shares_interval([(1, 4), (2, 2), (1, 2)])
    expected = stats.ttest_1samp([0.25, 1.0, 0.5], 0).confidence_interval(0.95)
    assert found.interval_over_phenomena == pytest.approx((expected.low, expected.high))
    turned = evaluate_blimp(likes_a(0.25, 0.5), ByteTokenizer(), PAIRS)
    assert [p.correct for p in turned.phenomena] == [2, 0, 0]  # equal sentences are wrong whoever asks


def test_one_phenomenon_has_no_interval_over_others():
    found = evaluate_blimp(likes_a(), ByteTokenizer(), PAIRS[:4])
    assert found.interval_over_phenomena is None
    assert found.interval == wilson_interval(1, 4)


@pytest.mark.parametrize("start", ["", "."])
def test_the_first_word_is_predicted_from_what_stands_before_it(start):
    model, tokenizer = random_model("boosted"), ByteTokenizer()
    pairs = [pair("x", "the cat sees", "cat the sees"), pair("x", "a dog", "dog a"), pair("x", "her hat", "hat her")]
    before = list(start.encode()) or [256]

    def likelihood(text):
        target = list(f" {text}".encode())
        return score_continuations(model, [Continuation(context=before, target=target)])[0].log_likelihood

    expected = sum(likelihood(p.good) > likelihood(p.bad) for p in pairs)
    found = evaluate_blimp(model, tokenizer, pairs, start=start)
    assert (found.phenomena[0].correct, found.start) == (expected, start)


def test_long_sentences_are_scored_whole_and_counted():
    """The last letter decides, which a model that only read the beginning would not see."""
    pairs = [pair("x", "a" * 90 + "a", "a" * 90 + "b"), pair("x", "b" * 90 + "b", "b" * 90 + "a"), pair("x", "a", "b")]
    found = evaluate_blimp(likes_a(), ByteTokenizer(), pairs)
    assert (found.phenomena[0].correct, found.cut) == (2, 2)
    assert evaluate_blimp(likes_a(), ByteTokenizer(), pairs, max_context=1).phenomena[0].correct == 2


def test_a_tokenizer_that_loses_what_differs_makes_pairs_equal():
    tokenizer = train_whitespace_bpe(sentences(200), 40)
    model = random_model(vocab_size=tokenizer.vocab_size)
    pairs = [pair("x", "the moon", "the moöon"), pair("x", "the cat", "thecat"), pair("x", "the cat", "cat the")]
    found = evaluate_blimp(model, tokenizer, pairs)
    assert (found.indistinguishable, found.incomplete) == (2, 1)  # white space vanishes as well, which is usual
    with pytest.raises(ValueError, match="nothing of the sentence 'öö'"):
        evaluate_blimp(model, tokenizer, [pair("x", "the", "öö")])
    with pytest.raises(ValueError, match="no pair"):
        evaluate_blimp(model, tokenizer, [])


def test_a_limit_holds_for_each_phenomenon():
    many = [pair(uid, f"{uid} {number}", "b") for number in range(30) for uid in ("x", "y")]
    drawn = draw_pairs(many, 10, seed=1)
    assert [p.uid for p in drawn] == ["x"] * 10 + ["y"] * 10
    numbers = [{p.good.split()[1] for p in drawn if p.uid == uid} for uid in ("x", "y")]
    assert numbers[0] != numbers[1]
    assert sorted(map(hash, draw_pairs(many, None, seed=1))) == sorted(map(hash, many))
    assert len(draw_pairs(many, 100, seed=1)) == 60
