"""Packing samples into rows, and scoring answers, against a row and a token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heedful.data.batches import IGNORED
from heedful.models import DecoderLM, decoder_config
from heedful.ops import AttentionMask
from heedful.tasks.answers import AnswerData, Sample, score_answers
from heedful.tasks.draws import Draws
from tolerance import assert_close

VOCABULARY, END = 13, 12


def sample(index: int, length: int | None = None) -> Sample:
    """Return a sample of random tokens with one or two answers."""
    words = Draws(5, 99, index)
    length = 4 + words.below(6) if length is None else length
    tokens = np.array([words.below(END) for _ in range(length)])
    answers = (range(length - 2, length),) if index % 2 else (range(1, 2), range(length - 1, length))
    return Sample(tokens, answers)


def data(context_length: int = 20, batch_size: int = 3) -> AnswerData:
    return AnswerData(
        lambda row: (sample(10 * row + j) for j in range(10)),
        context_length=context_length,
        batch_size=batch_size,
        end_of_text=END,
        fingerprint="",
    )


def test_a_row_holds_whole_samples_one_after_the_other_and_then_end_of_text() -> None:
    batch = data().batch(2)
    assert batch.document_ids is not None
    for place, row in enumerate(range(6, 9)):
        expected: list[int] = []
        targets = [IGNORED] * 20
        documents: list[int] = []
        for number in range(10):
            own = sample(10 * row + number)
            if len(expected) + len(own.tokens) > 20:
                break
            for answer in own.answers:
                for where in answer:  # predicted at the place before
                    targets[len(expected) + where - 1] = int(own.tokens[where])
            expected += own.tokens.tolist()
            documents += [number] * len(own.tokens)
        assert len(set(documents)) > 1, "the test needs rows of several samples"
        assert batch.tokens[place].tolist() == expected + [END] * (20 - len(expected))
        assert batch.targets[place].tolist() == targets
        assert batch.document_ids[place].tolist() == documents + [max(documents) + 1] * (20 - len(expected))


def test_rows_are_a_pure_function_of_their_number() -> None:
    whole = data().batch(4)
    assert whole.document_ids is not None
    for row in range(3):
        part = data().batch(4, range(row, row + 1))
        assert part.document_ids is not None
        assert torch.equal(part.tokens[0], whole.tokens[row])
        assert torch.equal(part.targets[0], whole.targets[row])
        assert torch.equal(part.document_ids[0], whole.document_ids[row])
    assert not torch.equal(whole.tokens, data().batch(5).tokens)


@pytest.mark.parametrize("preset", ["standard", "multi-token", "boosted"])
def test_a_packed_sample_is_predicted_as_if_it_were_alone(preset: str) -> None:
    torch.manual_seed(0)
    config = decoder_config(preset, vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=2, max_positions=20)
    model = DecoderLM(config).double().eval()
    batch = data(batch_size=1).batch(0)
    packed, _ = model(batch.tokens, mask=AttentionMask(document_ids=batch.document_ids))
    start = 0
    for number in range(10):
        own = sample(number)
        if start + len(own.tokens) > 20:
            break
        alone, _ = model(torch.from_numpy(own.tokens)[None])
        assert_close(packed[0, start : start + len(own.tokens)], alone[0])
        start += len(own.tokens)
    assert start > len(sample(0).tokens), "the test needs a row of several samples"


class Fallible(nn.Module):
    """Predicts a hash of the prefix, which for most prefixes is the true next token of the samples it was made for."""

    def __init__(self, samples: list[Sample], right_of_ten: int) -> None:
        super().__init__()
        self.next = {
            tuple(own.tokens[:place].tolist()): int(own.tokens[place])
            for own in samples
            for place in range(len(own.tokens))
        }
        self.right_of_ten = right_of_ten
        self.inner = nn.Dropout(0.99)
        self.sizes: list[tuple[int, int]] = []

    def predict(self, prefix: list[int]) -> int:
        true = self.next.get(tuple(prefix), 0)
        luck = Draws(0, 98, sum((token + 1) * 14**place for place, token in enumerate(prefix)) % 2**63).below(10)
        return true if luck < self.right_of_ten else (true + 1) % END

    def forward(self, tokens: Tensor, mask: None = None) -> tuple[Tensor, None]:
        self.sizes.append((tokens.shape[0], tokens.shape[1]))
        logits = torch.zeros(*tokens.shape, VOCABULARY)
        for row, own in enumerate(tokens.tolist()):
            for place in range(len(own)):
                logits[row, place, self.predict(own[: place + 1])] = 20.0
        return self.inner(logits), None


def test_an_answer_is_right_exactly_when_greedy_decoding_gives_it() -> None:
    samples = [sample(index, length=9) for index in range(1, 120, 2)]
    model = Fallible(samples, right_of_ten=7)
    expected = 0
    for own in samples:
        (answer,) = own.answers
        tokens = own.tokens[: answer.start].tolist()
        for _ in answer:
            tokens.append(model.predict(tokens))
        right = tokens[answer.start :] == own.tokens[answer.start :].tolist()
        assert score_answers(model, [own], batch_tokens=100).right == right
        expected += right
    assert 0 < expected < len(samples)
    assert score_answers(model, samples, batch_tokens=100).right == expected


def test_every_answer_of_a_sample_must_be_right() -> None:
    samples = [sample(index) for index in range(0, 40, 2)]
    assert all(len(own.answers) == 2 for own in samples)
    expected = 0
    model = Fallible(samples, right_of_ten=6)
    for own in samples:
        tokens = own.tokens.tolist()
        expected += all(model.predict(tokens[:place]) == tokens[place] for answer in own.answers for place in answer)
    assert 0 < expected < len(samples)
    score = score_answers(model, samples, batch_tokens=40)
    assert (score.right, score.samples, score.tokens) == (expected, 20, 40)


def test_how_many_are_computed_at_a_time_changes_nothing() -> None:
    samples = [sample(index) for index in range(30)]
    model = Fallible(samples, right_of_ten=6)
    scores = [score_answers(model, samples, batch_tokens=tokens) for tokens in (1, 25, 10_000)]
    assert len({score.right for score in scores}) == 1
    assert max(score.nats for score in scores) == pytest.approx(min(score.nats for score in scores), rel=1e-5)
    longest = max(len(own.tokens) for own in samples)
    assert model.sizes[-1] == (30, longest - 1), "the last token is never read"
    assert all(rows * (width + 1) <= 25 for rows, width in model.sizes[30:-1])


def test_a_decoder_gives_the_same_score_by_hidden_states_as_by_logits() -> None:
    torch.manual_seed(0)
    config = decoder_config("standard", vocab_size=5, hidden_size=16, num_layers=1, num_heads=2, max_positions=20)
    model = DecoderLM(config)
    samples = [Sample(own.tokens % 5, own.answers) for own in (sample(index) for index in range(60))]

    class Plain(nn.Module):
        def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
            return model(tokens)

    own, plain = (score_answers(scored, samples, batch_tokens=50) for scored in (model, Plain()))
    assert own.right == plain.right > 0
    assert own.nats == pytest.approx(plain.nats, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_is_without_dropout_and_puts_modes_back(training: bool) -> None:
    samples = [sample(index, length=9) for index in (1, 3, 5, 7)]
    model = Fallible(samples, right_of_ten=10).train(training)
    model.inner.train(not training)
    assert score_answers(model, samples, batch_tokens=50).accuracy == 100
    assert (model.training, model.inner.training) == (training, not training)
    broken = Sample(np.array([1, 2]), (range(1, 2),))
    model.next = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        score_answers(model, [broken], batch_tokens=50)
    assert (model.training, model.inner.training) == (training, not training)


def test_the_interval_is_wilsons() -> None:
    score = score_answers(Fallible([], 0), [Sample(np.array([1, 2]), (range(1, 2),))] * 30, batch_tokens=50)
    low, high = score.interval()
    assert (score.accuracy, low) == (0, 0)
    assert high == pytest.approx(100 * 1.959964**2 / (30 + 1.959964**2), rel=1e-4)
    assert score.facts() == {"samples": 30, "right": 0, "accuracy": 0, "low": low, "high": high}


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 and 5"):
        score_answers(Fallible([], 0), [], batch_tokens=5)
    with pytest.raises(ValueError, match="got 1 and 0"):
        score_answers(Fallible([], 0), [sample(0)], batch_tokens=0)
