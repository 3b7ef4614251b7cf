"""Needles in text, as in the multi-token attention paper (arXiv:2504.00927): 2, 4 or 6 facts, one of them asked for.

Accuracy over a grid of depth and length. The paper gives the sentence ("the magic number of [city] is [number]"), the
counts of needles, 500 samples per setup and no script; wording, cities and text here are our own, see
`heedful.tasks.needle_samples`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch import nn

from heedful.data.batches import fingerprint_of
from heedful.data.randomness import NEEDLES_TEST, NEEDLES_TRAIN, check_seed
from heedful.tasks.answers import SAMPLES_PER_ROW, AnswerData, AnswerScore, Sample, score_answers, total
from heedful.tasks.draws import Draws
from heedful.tasks.filler import Filler
from heedful.tasks.needle_samples import CITIES, NeedlePieces, NeedleRequest, NeedleWriter, Role

if TYPE_CHECKING:
    import torch

    from heedful.data.tokenizers import Tokenizer

Questions = Literal["one", "each"]
_MOST_DIGITS = 9


@dataclass(frozen=True, kw_only=True)
class NeedlesConfig:
    """Which needles.

    Attributes:
        needles: how many facts a sample holds; every count is tested, in training one of them is drawn per sample.
        lengths: tokens of a sample, needles, question and answer included; every length is tested, in training one of
            them is drawn per row of a batch.
        depths: where the needle that is asked for stands in the test, as shares of the text. In training it stands
            anywhere, and so do the others in both.
        digits: of the numbers.
        training_questions: "one" asks for one needle at the end of a sample, as the test does; "each" asks for all, one
            after the other, in random order: more to learn from in each sample.

    Raises:
        ValueError: a value out of range, or one given twice.
    """

    needles: tuple[int, ...] = (2, 4, 6)
    lengths: tuple[int, ...] = (2048,)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    digits: int = 4
    training_questions: Questions = "one"

    def __post_init__(self) -> None:
        """Refuse tasks that cannot be generated."""
        for name, values, low, high in (
            ("needles", self.needles, 1, len(CITIES)),
            ("lengths", self.lengths, 1, 2**31),
            ("depths", self.depths, 0, 1),
        ):
            if not values or not all(low <= value <= high for value in values):
                raise ValueError(f"{name} must be one or more values from {low} to {high}, got {list(values)}.")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must not hold a value twice, got {list(values)}.")
        if not 2 <= self.digits <= _MOST_DIGITS:
            raise ValueError(f"digits must be from 2 to {_MOST_DIGITS}, got {self.digits}.")
        if self.training_questions not in get_args(Questions):
            raise ValueError(f"training_questions must be 'one' or 'each', got {self.training_questions!r}.")

    @property
    def context_length(self) -> int:
        """Tokens of the longest sample."""
        return max(self.lengths)

    def request(
        self, needles: int, length: int, role: Role, *, depth: float | None = None, questions: int = 1
    ) -> NeedleRequest:
        """Return what a sample of this task is made from."""
        return NeedleRequest(
            needles=needles, length=length, depth=depth, questions=questions, digits=self.digits, role=role
        )


class NeedlesData:
    """Training batches without end, drawn from `seed`: samples of mixed lengths, packed, with a loss on the answers."""

    def __init__(
        self,
        config: NeedlesConfig,
        tokenizer: Tokenizer,
        tokens: np.ndarray,
        *,
        tokens_sha256: str,
        seed: int,
        batch_size: int,
        context_length: int | None = None,
    ) -> None:
        """Set up batches of (batch_size, context_length); nothing is generated yet.

        Args:
            config: the task.
            tokenizer: what made `tokens`.
            tokens: the text that is trained in, such as the `tokens` of a `TokenSplit`.
            tokens_sha256: their hash, for the fingerprint.
            seed: of the samples.
            batch_size: rows of a batch.
            context_length: tokens of a row, which holds as many samples of its length as fit; None is the longest
                length.

        Raises:
            ValueError: a row too short for a sample, needles that fill a sample, or too little text.
        """
        self.config, self._seed = config, check_seed(seed)
        self._context_length = config.context_length if context_length is None else context_length
        if self._context_length < config.context_length:
            raise ValueError(
                f"a row of {self._context_length} tokens has no room for a sample of {config.context_length}: use a "
                "longer context or shorter lengths."
            )
        self._writer = NeedleWriter(Filler(tokens, tokenizer), tokenizer)
        for needles in config.needles:
            for length in config.lengths:
                self._writer.require(self._request(needles, length))
        fingerprint = fingerprint_of(
            kind="needles",
            tokens=tokens_sha256,
            tokenizer=tokenizer.sha256,
            seed=seed,
            batch_size=batch_size,
            context_length=self._context_length,
            **asdict(config),
        )
        self._data = AnswerData(
            self._samples,
            context_length=self._context_length,
            batch_size=batch_size,
            end_of_text=tokenizer.end_of_text,
            fingerprint=fingerprint,
        )
        self.tokens_per_batch, self.fingerprint, self.batch = (
            self._data.tokens_per_batch,
            self._data.fingerprint,
            self._data.batch,
        )

    def _request(self, needles: int, length: int) -> NeedleRequest:
        questions = needles if self.config.training_questions == "each" else 1
        return self.config.request(needles, length, "train", questions=questions)

    def _samples(self, row: int) -> Iterator[Sample]:
        """Give the samples of one row: all of the length that the row's first word decides."""
        config, first = self.config, row * SAMPLES_PER_ROW
        length = config.lengths[Draws(self._seed, NEEDLES_TRAIN, first).below(len(config.lengths))]
        for index in range(first, first + min(SAMPLES_PER_ROW, self._context_length // length)):
            draws = Draws(self._seed, NEEDLES_TRAIN, index)
            draws.below(len(config.lengths))  # the row's word
            needles = config.needles[draws.below(len(config.needles))]
            yield self._writer.write(self._request(needles, length), draws).sample


@dataclass(frozen=True, kw_only=True)
class NeedlesCell:
    """One setup of the test, and the model's score in it."""

    needles: int
    length: int
    depth: float
    score: AnswerScore

    @property
    def chance(self) -> float:
        """Accuracy, in per cent, of giving the number of any one of the needles; a free guess gets 10^-digits."""
        return 100 / self.needles

    def facts(self) -> dict[str, Any]:
        """Return the cell in plain form: needles, length, depth, chance, samples, right, accuracy, low, high."""
        own = {"needles": self.needles, "length": self.length, "depth": self.depth, "chance": self.chance}
        return {**own, **self.score.facts()}


@dataclass(frozen=True, kw_only=True)
class NeedlesResult:
    """What came out of a test: a cell for each count of needles, length and depth, in this order."""

    cells: tuple[NeedlesCell, ...]

    @property
    def total(self) -> AnswerScore:
        """The score over all cells, which have equally many samples."""
        return total([cell.score for cell in self.cells])


def evaluation_sample(
    config: NeedlesConfig, writer: NeedleWriter, seed: int, needles: int, length: int, depth: float, index: int,
    role: Role = "test",
) -> NeedlePieces:  # fmt: skip
    """Return a test sample: a pure function of these, which does not depend on what else is tested."""
    setup = json.dumps([needles, length, depth, config.digits, role]).encode()
    number = int.from_bytes(hashlib.sha256(setup).digest()[:4], "little")
    draws = Draws(seed, NEEDLES_TEST, (number << 31) + index)
    return writer.write(config.request(needles, length, role, depth=depth), draws)


def evaluate_needles(
    model: nn.Module,
    tokenizer: Tokenizer,
    tokens: np.ndarray,
    config: NeedlesConfig,
    *,
    seed: int,
    samples_per_cell: int = 500,
    role: Role = "test",
    batch_tokens: int = 16384,
    device: str | torch.device = "cpu",
) -> NeedlesResult:
    """Score a model in every cell of the grid, on samples 0 to `samples_per_cell` - 1 of `seed`.

    Args:
        model: causal, with room for the longest length.
        tokenizer: what made `tokens`, and the model's own.
        tokens: the text, such as the `tokens` of a test split.
        config: the grid.
        seed: of the samples; they come from a stream of their own, which training with any seed never reads.
        samples_per_cell: the paper has 500.
        role: whose pairs of city and number; "valid" for choosing between models.
        batch_tokens: tokens computed at a time; it changes speed and memory only.
        device: where the model is.

    Raises:
        ValueError: needles that fill a sample, too little text, or no samples asked for.
    """
    if samples_per_cell < 1:
        raise ValueError(f"samples_per_cell must be at least 1, got {samples_per_cell}.")
    check_seed(seed)
    writer = NeedleWriter(Filler(tokens, tokenizer), tokenizer)
    for needles in config.needles:
        for length in config.lengths:
            writer.require(config.request(needles, length, role))
    cells = []
    for needles in config.needles:
        for length in config.lengths:
            for depth in config.depths:
                samples = [
                    evaluation_sample(config, writer, seed, needles, length, depth, index, role).sample
                    for index in range(samples_per_cell)
                ]
                score = score_answers(model, samples, batch_tokens=batch_tokens, device=device)
                cells.append(NeedlesCell(needles=needles, length=length, depth=depth, score=score))
    return NeedlesResult(cells=tuple(cells))
