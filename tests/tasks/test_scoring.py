"""Continuations get the probabilities that the whole, unbatched forward pass gives, and intervals cover."""

from __future__ import annotations

import gzip
import itertools
import lzma
import math

import pytest
import torch
from scipy import stats
from zero_shot_models import random_model, sentences

from heedful.data.tokenizers import ByteTokenizer, train_bpe, train_whitespace_bpe
from heedful.models import DecoderLM
from heedful.tasks.intervals import mean_interval, mean_of_shares_interval, wilson_interval
from heedful.tasks.scoring import (
    Continuation,
    encode_continuations,
    is_cut,
    lost_characters,
    score_continuations,
)
from heedful.tasks.task_files import content_sha256, draw, json_lines, read_text
from tolerance import relative_rounding

MECHANISMS = ["standard", "multi-token", "boosted+nonlinear-query", "differential", "talking-heads"]


@torch.no_grad()
def by_hand(model: DecoderLM, context: list[int], target: list[int]) -> tuple[float, bool]:
    """The whole row at once, alone, with every logit."""
    logits = model(torch.tensor([context + target[:-1]]))[0][0, len(context) - 1 :].log_softmax(-1)
    wanted = torch.tensor(target)
    return float(logits.gather(-1, wanted[:, None]).sum()), bool((logits.argmax(-1) == wanted).all())


def drawn(vocab_size: int, lengths: list[tuple[int, int]]) -> list[Continuation]:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(vocab_size, (sum(pair),), generator=generator).tolist() for pair in lengths]
    return [
        Continuation(context=row[:first], target=row[first:]) for row, (first, _) in zip(rows, lengths, strict=True)
    ]


def assert_scores(found, expected):
    for (likelihood, greedy), (other, other_greedy) in zip(found, expected, strict=True):
        assert likelihood == pytest.approx(other, rel=relative_rounding())
        assert greedy == other_greedy


@pytest.mark.parametrize("tokens_per_batch", [1, 64, 8192])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_batches_of_unequal_rows_score_as_each_row_alone(mechanism, tokens_per_batch):
    model = random_model(mechanism, vocab_size=19)
    examples = drawn(19, [(1, 1), (7, 3), (30, 2), (1, 40), (13, 13), (2, 1), (47, 1)])
    found = score_continuations(model, examples, tokens_per_batch=tokens_per_batch)
    assert_scores(found, [by_hand(model, example.context, example.target) for example in examples])


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_long_context_loses_its_beginning(mechanism):
    model = random_model(mechanism, vocab_size=19)
    (example,) = drawn(19, [(90, 5)])
    (found,) = score_continuations(model, [example])
    assert_scores([found], [by_hand(model, example.context[-44:], example.target)])
    assert is_cut(example, 48)
    assert not is_cut(Continuation(context=example.context[-44:], target=example.target), 48)
    (shorter,) = score_continuations(model, [example], max_context=10)
    assert_scores([shorter], [by_hand(model, example.context[-6:], example.target)])


def test_a_target_longer_than_the_model_is_scored_in_pieces():
    model = random_model(vocab_size=19, max_positions=8)
    (example,) = drawn(19, [(3, 19)])
    tokens = example.context + example.target
    (found,) = score_continuations(model, [example])
    pieces = [by_hand(model, tokens[2:3], tokens[3:11]), by_hand(model, tokens[10:11], tokens[11:19])]
    pieces.append(by_hand(model, tokens[13:19], tokens[19:22]))
    assert_scores([found], [(sum(score for score, _ in pieces), all(greedy for _, greedy in pieces))])


def test_greedy_is_what_greedy_decoding_writes():
    model = random_model("boosted", vocab_size=19)
    (example,) = drawn(19, [(6, 1)])
    longer = model.generate(torch.tensor([example.context]), 5, temperature=0.0)[0].tolist()
    written = longer[6:]
    others = [[*written[:place], (written[place] + 1) % 19, *written[place + 1 :]] for place in range(5)]
    found = score_continuations(model, [Continuation(context=longer[:6], target=ids) for ids in [written, *others]])
    assert [score.greedy for score in found] == [True, *[False] * 5]


def test_dropout_is_off_and_the_mode_is_put_back():
    model = random_model(vocab_size=19, dropout=0.5)
    examples = drawn(19, [(5, 5), (3, 9)])
    expected = [by_hand(model, example.context, example.target) for example in examples]
    assert_scores(score_continuations(model.train(), examples), expected)
    assert model.training
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("example", "options", "words"),
    [
        (Continuation(context=[1], target=[]), {}, ["at least one token"]),
        (Continuation(context=[], target=[1]), {}, ["at least one token"]),
        (Continuation(context=[1], target=[19]), {}, ["token 19", "19", "tokenizer"]),
        (Continuation(context=[1], target=[2]), {"max_context": 49}, ["48", "49"]),
        (Continuation(context=[1], target=[2]), {"max_context": 0}, ["48", "0"]),
    ],
)
def test_what_cannot_be_scored_is_refused(example, options, words):
    with pytest.raises(ValueError, match=".*".join(words)):
        score_continuations(random_model(vocab_size=19), [example], **options)


def test_white_space_before_a_continuation_belongs_to_it():
    examples = encode_continuations(ByteTokenizer(), [("a b ", " c"), ("", "d"), ("e\n", "f"), ("  ", "g")])
    assert [bytes(example.target) for example in examples] == [b"  c", b"d", b"\nf", b"  g"]
    assert [example.context for example in examples] == [list(b"a b"), [256], list(b"e"), [256]]


def test_a_tokenizer_that_joins_context_and_continuation_is_refused():
    tokenizer = train_bpe(["the cat sees the cat. " * 40], 262)
    assert tokenizer.encode("the cat") != tokenizer.encode("the c") + tokenizer.encode("at")
    with pytest.raises(ValueError, match="space"):
        encode_continuations(tokenizer, [("the c", "at")])
    (example,) = encode_continuations(tokenizer, [("the", " cat")])
    assert example.context + example.target == tokenizer.encode("the cat")


def test_characters_that_a_tokenizer_does_not_know_are_noticed():
    tokenizer = train_whitespace_bpe(sentences(200), 40)
    words = [" moon", " moöon", " öö"]
    examples = encode_continuations(tokenizer, [("the cat sees the", word) for word in words])
    assert examples[0].target == examples[1].target  # what is left of it
    assert examples[2].target == []
    lost = [lost_characters(tokenizer, example, word) for example, word in zip(examples, words, strict=True)]
    assert lost == [False, True, True]
    kept = encode_continuations(ByteTokenizer(), [("a", words[1])])[0]
    assert not lost_characters(ByteTokenizer(), kept, words[1])


@pytest.mark.parametrize(("correct", "count"), [(0, 7), (3, 10), (500, 1000), (20, 20)])
def test_wilsons_interval_holds_the_shares_that_a_score_test_accepts(correct, count):
    for share in wilson_interval(correct, count):
        deviation = math.sqrt(share * (1 - share) / count)
        if deviation > 1e-9:  # the ends at 0 and 1 are no solutions of the test
            assert abs(correct / count - share) / deviation == pytest.approx(stats.norm.ppf(0.975))
    assert wilson_interval(0, 7)[0] == 0
    assert wilson_interval(20, 20)[1] == 1


def test_the_interval_of_a_mean_is_students():
    values = [3.0, 4.5, 2.0, 8.0, 5.5]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval([1.0]) is None
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.3, 0.9), (0.95, 0.6)])
def test_the_interval_of_a_mean_of_shares_covers_it(shares):
    """Exactly, over all outcomes: the true mean lies inside at least 93 % of the time and outside sometimes."""
    count = 25
    inside = 0.0
    for outcome in itertools.product(range(count + 1), repeat=2):
        chance = math.prod(stats.binom.pmf(hits, count, share) for hits, share in zip(outcome, shares, strict=True))
        low, high = mean_of_shares_interval([(hits, count) for hits in outcome])
        inside += chance * (low <= sum(shares) / 2 <= high)
    assert 0.93 < inside < 0.985


@pytest.mark.parametrize("counts", [[], [(1, 0)], [(3, 2)]])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="expected"):
        mean_of_shares_interval(counts)
    if counts:
        with pytest.raises(ValueError, match="expected"):
            wilson_interval(*counts[0])


def test_files_are_read_compressed_or_not_and_damage_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("é\r\n".encode())
    (tmp_path / "b.xz").write_bytes(lzma.compress("é\r\n".encode()))
    (tmp_path / "c.gz").write_bytes(gzip.compress("é\r\n".encode()))
    assert {read_text(tmp_path / name) for name in ("a.txt", "b.xz", "c.gz")} == {"é\r\n"}
    (tmp_path / "d.xz").write_bytes(b"no archive")
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"x" * 1000)[:-9])
    for name, word in (("d.xz", "xz"), ("e.txt", "UTF-8"), ("f.gz", "gz"), ("g.txt", "no file")):
        with pytest.raises(ValueError, match=word):
            read_text(tmp_path / name)
    for text in ('{"a": 1}\n[2]', '{"a": 1}\n{"a"'):
        with pytest.raises(ValueError, match="file, line 2"):
            json_lines(text, "file")


def test_a_draw_keeps_the_order_and_grows():
    items = list(range(100))
    few, more = draw(items, 10, 1, "x"), draw(items, 30, 1, "x")
    assert few == sorted(few)
    assert set(few) < set(more)
    assert len(few) == 10
    assert draw(items, 10, 2, "x") != few != draw(items, 10, 1, "y")
    assert draw(items, 200, 1, "x") == draw(items, None, 1, "x") == items
    assert few == [8, 17, 28, 39, 46, 51, 57, 76, 83, 93]  # whatever the version of anything
    with pytest.raises(ValueError, match="limit"):
        draw(items, 0, 1, "x")


def test_the_hash_of_a_content_knows_its_parts():
    assert content_sha256(["a", "b"]) != content_sha256(["b", "a"])
    assert (
        content_sha256(["a"]) == "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7"
    )  # sha256 of "a\n"
