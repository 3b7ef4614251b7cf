"""Samples with an answer: packed into rows for training with a loss on the answers only, and scored by exact match."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heedful.data.batches import IGNORED, Batch, BatchRows
from heedful.tasks.intervals import wilson_interval

# Samples that a row of a batch may hold: sample j of row r has the index r * SAMPLES_PER_ROW + j.
SAMPLES_PER_ROW = 256


class Sample(NamedTuple):
    """One sample as tokens.

    Attributes:
        tokens: int64 (length,), prompt and answers.
        answers: where in `tokens` the answers stand; a prompt comes before the first.
    """

    tokens: np.ndarray
    answers: tuple[range, ...]


class AnswerData:
    """Training batches without end: each row is filled with samples that do not see each other.

    Only answers are scored, each token predicted after the true ones. What is left of a row is filled with end-of-text
    as a document of its own.
    """

    def __init__(
        self,
        row: Callable[[int], Iterable[Sample]],
        *,
        context_length: int,
        batch_size: int,
        end_of_text: int,
        fingerprint: str,
    ) -> None:
        """Set up batches of (batch_size, context_length); nothing is generated yet.

        Args:
            row: gives the samples of a row by its number; those from the first that does not fit are left out.
            context_length: tokens of a row.
            batch_size: rows of a batch.
            end_of_text: what rows are filled up with.
            fingerprint: hash of everything that determines the samples.
        """
        self.tokens_per_batch = batch_size * context_length
        self.fingerprint = fingerprint
        self._row, self._context_length, self._end_of_text = row, context_length, end_of_text
        self._rows = BatchRows(batch_size)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Return some rows of the batch of a step, and generate no others: a pure function of (step, rows)."""
        numbers = self._rows.positions(step, rows)
        shape = (len(numbers), self._context_length)
        tokens = np.full(shape, self._end_of_text, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        documents = np.zeros(shape, dtype=np.int64)
        for place, number in enumerate(numbers.tolist()):
            self._fill(tokens[place], targets[place], documents[place], self._row(number))
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(documents))

    def _fill(self, tokens: np.ndarray, targets: np.ndarray, documents: np.ndarray, samples: Iterable[Sample]) -> None:
        start = 0
        for number, sample in enumerate(samples):
            end = start + len(sample.tokens)
            if end > len(tokens) or number == SAMPLES_PER_ROW:
                break
            tokens[start:end] = sample.tokens
            for answer in sample.answers:
                targets[start + answer.start - 1 : start + answer.stop - 1] = sample.tokens[answer.start : answer.stop]
            documents[end:] = number + 1
            start = end


@dataclass(frozen=True, kw_only=True)
class AnswerScore:
    """How often a model's answers were exactly right.

    Attributes:
        samples: how many were scored.
        right: how many had every token of every answer right.
        nats: sum of the cross entropy over the tokens of the answers.
        tokens: how many these are.
    """

    samples: int
    right: int
    nats: float
    tokens: int

    @property
    def accuracy(self) -> float:
        """Per cent of the samples that were right."""
        return 100 * self.right / self.samples

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy in per cent, Wilson's score: it covers the choice of samples."""
        low, high = wilson_interval(self.right, self.samples)
        return 100 * low, 100 * high

    def facts(self) -> dict[str, Any]:
        """Return numbers, accuracy and its interval in plain form, as result files hold them."""
        low, high = self.interval()
        return {"samples": self.samples, "right": self.right, "accuracy": self.accuracy, "low": low, "high": high}


def total(scores: Sequence[AnswerScore]) -> AnswerScore:
    """Return the score of all samples of several scores together."""
    return AnswerScore(
        samples=sum(score.samples for score in scores),
        right=sum(score.right for score in scores),
        nats=sum(score.nats for score in scores),
        tokens=sum(score.tokens for score in scores),
    )


@torch.inference_mode()
def score_answers(
    model: nn.Module, samples: Sequence[Sample], *, batch_tokens: int, device: str | torch.device = "cpu"
) -> AnswerScore:
    """Score a model on some samples, with dropout off; the mode of each of its modules is put back afterwards.

    An answer is right if the most likely token is the true one at each of its places, each after the true ones before
    it. That is the same as greedy decoding giving exactly the answer: greedy decoding goes on with the true token as
    long as it is right, and has lost once it is not. Rows are filled up at their ends, which a causal model cannot see.

    A model with `hidden_states` and `head_parameters`, as `DecoderLM`, computes logits at the answers only; another is
    called as `logits, _ = model(tokens)`.

    Args:
        model: causal, already on `device`.
        samples: not none.
        batch_tokens: tokens computed at a time, at least one sample; it changes speed and memory only.
        device: where the model is.

    Raises:
        ValueError: no samples, or `batch_tokens` below 1.
    """
    if not samples or batch_tokens < 1:
        raise ValueError(
            f"there must be samples to score and batch_tokens of at least 1, got {len(samples)} and {batch_tokens}."
        )
    modes = {module: module.training for module in model.modules()}
    model.eval()
    right, nats, num_tokens = 0, 0.0, 0
    try:
        for group in _groups(samples, batch_tokens):
            tokens, rows, places, targets = (part.to(device) for part in _batch(group))
            logits = _logits_at(model, tokens, rows, places).float()
            wrong = torch.zeros(len(group), dtype=torch.int64, device=logits.device)
            wrong.index_add_(0, rows, (logits.argmax(dim=-1) != targets).long())
            right += int((wrong == 0).sum())
            nats += float(nn.functional.cross_entropy(logits, targets, reduction="sum"))
            num_tokens += len(targets)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return AnswerScore(samples=len(samples), right=right, nats=nats, tokens=num_tokens)


def _groups(samples: Sequence[Sample], batch_tokens: int) -> Iterator[list[Sample]]:
    """Cut the samples into groups that take at most `batch_tokens` once filled up to their longest."""
    group: list[Sample] = []
    longest = 0
    for sample in sorted(samples, key=lambda sample: len(sample.tokens)):
        longest = max(longest, len(sample.tokens))
        if group and longest * (len(group) + 1) > batch_tokens:
            yield group
            group, longest = [], len(sample.tokens)
        group.append(sample)
    yield group


def _batch(samples: list[Sample]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens (samples, longest - 1), and row, place and target of every token of the answers."""
    longest = max(len(sample.tokens) for sample in samples)
    tokens = np.zeros((len(samples), longest - 1), dtype=np.int64)
    rows, places, targets = [], [], []
    for row, sample in enumerate(samples):
        # The last token is never read: it ends an answer, or comes after all of them.
        tokens[row, : len(sample.tokens) - 1] = sample.tokens[:-1]
        for answer in sample.answers:
            rows += [row] * len(answer)
            places += [place - 1 for place in answer]
            targets += sample.tokens[answer.start : answer.stop].tolist()
    return torch.from_numpy(tokens), torch.tensor(rows), torch.tensor(places), torch.tensor(targets)


def _logits_at(model: Any, tokens: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    if hasattr(model, "hidden_states") and hasattr(model, "head_parameters"):
        weight, bias = model.head_parameters()
        return nn.functional.linear(model.hidden_states(tokens)[rows, places], weight, bias)
    return model(tokens)[0][rows, places]
