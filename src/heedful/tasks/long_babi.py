"""Long bAbI: the facts of a story spread through running text, as in BABILong (arXiv:2406.10149).

The multi-token attention paper (arXiv:2504.00927) tests tasks 1 to 5 so, with 0, 1, 2 and 4 thousand tokens between.

The facts keep their order and stand between sentences of the text; the question is the last line, and its answer is
what follows. The text around is that of the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from torch import nn

from heedful.data.batches import fingerprint_of
from heedful.data.randomness import LONG_BABI_TEST, LONG_BABI_TRAIN, check_seed
from heedful.data.shuffling import EndlessOrder
from heedful.tasks.answers import SAMPLES_PER_ROW, AnswerData, AnswerScore, Sample, score_answers, total
from heedful.tasks.babi_stories import NUM_TASKS, BabiArchive, BabiQuestion
from heedful.tasks.draws import Draws
from heedful.tasks.filler import Filler

if TYPE_CHECKING:
    import torch

    from heedful.data.tokenizers import Tokenizer

Part = Literal["train", "valid", "test"]
# The published files have no validation part: every tenth story of the training file is kept for it.
_VALID_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class LongBabiConfig:
    """Which stories, and how much text between their facts.

    Attributes:
        archive: path of a tar archive of bAbI with the test files, and the training files where `train_archive` is
            None.
        folder: of the files in the archive, such as "en"; None where only one has them.
        train_archive: another archive for the training files, such as that of the 10,000 questions.
        train_folder: of the files in it, such as "en-10k".
        tasks: numbers of the tasks, 1 to 20.
        distractions: tokens of text that are put between the facts; every number is tested, in training one of them is
            drawn per row of a batch.

    Raises:
        ValueError: a value out of range, or one given twice.
    """

    archive: str
    folder: str | None = None
    train_archive: str | None = None
    train_folder: str | None = None
    tasks: tuple[int, ...] = (1, 2, 3, 4, 5)
    distractions: tuple[int, ...] = (0, 1000, 2000, 4000)

    def __post_init__(self) -> None:
        """Refuse tasks that do not exist."""
        for name, values, low, high in (
            ("tasks", self.tasks, 1, NUM_TASKS),
            ("distractions", self.distractions, 0, 2**31),
        ):
            if not values or not all(low <= value <= high for value in values):
                raise ValueError(f"{name} must be one or more numbers from {low} to {high}, got {list(values)}.")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must not hold a number twice, got {list(values)}.")
        if not self.archive:
            raise ValueError("archive is empty: give the path of a tar archive of bAbI.")
        if self.train_folder is not None and self.train_archive is None:
            raise ValueError("train_folder does not go without train_archive; of one archive, set folder.")


class EncodedQuestion(NamedTuple):
    """A question in tokens: its facts, itself, its answer."""

    facts: tuple[tuple[int, ...], ...]
    question: tuple[int, ...]
    answer: tuple[int, ...]
    answer_text: str

    @property
    def length(self) -> int:
        """Tokens of a sample without any text between."""
        return sum(map(len, self.facts)) + len(self.question) + len(self.answer)


class BabiStories:
    """The questions of one part whose stories fit, in tokens.

    The same questions are used with every amount of text between, so that its effect is not one of other questions.
    """

    def __init__(self, config: LongBabiConfig, tokenizer: Tokenizer, part: Part, context_length: int) -> None:
        """Read and encode the questions; every piece is encoded by itself.

        Args:
            config: which tasks, from which files.
            tokenizer: the model's.
            part: "train" and "valid" are of the training files, which share no story; "test" is of the test files.
            context_length: most tokens of a sample, with as much text between as there can be.

        Raises:
            ValueError: an archive that is missing, damaged or without a task; or no story of a task that fits.
        """
        archive = BabiArchive(config.archive, config.folder)
        if part != "test" and config.train_archive is not None:
            archive = BabiArchive(config.train_archive, config.train_folder)
        read = archive.questions(config.tasks, "test" if part == "test" else "train")
        room = context_length - max(config.distractions)
        self.archive_sha256 = archive.sha256
        self.read: dict[int, int] = {}
        self.by_task: dict[int, list[EncodedQuestion]] = {}
        encode = _Encoder(tokenizer)
        for task, questions in read.items():
            own = [q for q in questions if part == "test" or (q.story % _VALID_EVERY == 0) == (part == "valid")]
            encoded = [encode(question) for question in own]
            self.read[task] = len(encoded)
            self.by_task[task] = [question for question in encoded if question.length <= room]
            if not self.by_task[task]:
                shortest = min((question.length for question in encoded), default=0)
                raise ValueError(
                    f"no story of bAbI task {task} fits: the shortest takes {shortest} tokens of this tokenizer, and a "
                    f"context of {context_length} leaves {room} beside {max(config.distractions)} tokens of text: use "
                    "a longer context, less text between, or other tasks."
                )

    def chance(self, task: int) -> tuple[float, float]:
        """Return, in per cent, the accuracy of guessing among the answers that occur, and of always giving the most
        frequent one.
        """
        answers = Counter(question.answer_text for question in self.by_task[task])
        return 100 / len(answers), 100 * max(answers.values()) / len(self.by_task[task])


class _Encoder:
    """Encodes questions; bAbI's sentences recur, so each is encoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode, self._known = tokenizer.encode, {}

    def __call__(self, question: BabiQuestion) -> EncodedQuestion:
        return EncodedQuestion(
            facts=tuple(self._tokens(f" {fact}") for fact in question.facts),
            question=self._tokens(f"\n{question.question}"),
            answer=self._tokens(f" {question.answer}"),
            answer_text=question.answer,
        )

    def _tokens(self, text: str) -> tuple[int, ...]:
        if text not in self._known:
            self._known[text] = tuple(self._encode(text))
        return self._known[text]


def write_sample(question: EncodedQuestion, filler: Filler, distraction: int, draws: Draws) -> Sample:
    """Return a question with `distraction` tokens of text between, before and after its facts."""
    window = filler.window(draws, distraction)
    starts = filler.sentence_starts(window)
    places = sorted(int(starts[draws.below(len(starts))]) for _ in question.facts)
    parts: list[np.ndarray] = []
    done = 0
    for fact, place in zip(question.facts, places, strict=True):
        parts += [window[done:place], np.array(fact, dtype=np.int64)]
        done = place
    tail = [window[done:], np.array((*question.question, *question.answer), dtype=np.int64)]
    tokens = np.concatenate([*parts, *tail])
    return Sample(tokens, (range(len(tokens) - len(question.answer), len(tokens)),))


class LongBabiData:
    """Training batches without end, drawn from `seed`: samples packed into rows, with a loss on the answers.

    A row has one amount of text between and as many samples as fit, so of several tasks short stories are a little more
    frequent than long ones.
    """

    def __init__(
        self,
        config: LongBabiConfig,
        tokenizer: Tokenizer,
        tokens: np.ndarray,
        *,
        tokens_sha256: str,
        seed: int,
        batch_size: int,
        context_length: int,
    ) -> None:
        """Read the stories and set up batches of (batch_size, context_length).

        Args:
            config: the task.
            tokenizer: what made `tokens`.
            tokens: the text between, such as the `tokens` of a `TokenSplit`.
            tokens_sha256: their hash, for the fingerprint.
            seed: of the samples.
            batch_size: rows of a batch.
            context_length: tokens of a row.

        Raises:
            ValueError: see `BabiStories`; or too little text.
        """
        self.config, self._seed = config, check_seed(seed)
        self.stories = BabiStories(config, tokenizer, "train", context_length)
        self._filler = Filler(tokens, tokenizer)
        self._filler.require(max(config.distractions))
        fingerprint = fingerprint_of(
            kind="long bAbI",
            tokens=tokens_sha256,
            tokenizer=tokenizer.sha256,
            stories=self.stories.archive_sha256,
            seed=seed,
            batch_size=batch_size,
            context_length=context_length,
            **{key: value for key, value in asdict(config).items() if "archive" not in key},
        )
        data = AnswerData(
            self._samples,
            context_length=context_length,
            batch_size=batch_size,
            end_of_text=tokenizer.end_of_text,
            fingerprint=fingerprint,
        )
        self.tokens_per_batch, self.fingerprint, self.batch = data.tokens_per_batch, data.fingerprint, data.batch

    def _samples(self, row: int) -> Iterator[Sample]:
        config, first = self.config, row * SAMPLES_PER_ROW
        draws = Draws(self._seed, LONG_BABI_TRAIN, first)
        distraction = config.distractions[draws.below(len(config.distractions))]
        for index in range(first, first + SAMPLES_PER_ROW):
            draws = Draws(self._seed, LONG_BABI_TRAIN, index)
            draws.below(1)  # the row's word
            questions = self.stories.by_task[config.tasks[draws.below(len(config.tasks))]]
            yield write_sample(questions[draws.below(len(questions))], self._filler, distraction, draws)


@dataclass(frozen=True, kw_only=True)
class LongBabiCell:
    """One task with one amount of text between, and the model's score in it.

    Attributes:
        task: its number.
        distraction: tokens of text between.
        score: the model's.
        chance: accuracy, in per cent, of guessing among the answers that occur.
        most_frequent: accuracy, in per cent, of always giving the most frequent answer.
    """

    task: int
    distraction: int
    score: AnswerScore
    chance: float
    most_frequent: float

    def facts(self) -> dict[str, Any]:
        """Return the cell in plain form: task, distraction, chance, most_frequent, samples, right, accuracy, low,
        high.
        """
        own = {"task": self.task, "distraction": self.distraction}
        return {**own, "chance": self.chance, "most_frequent": self.most_frequent, **self.score.facts()}


@dataclass(frozen=True, kw_only=True)
class LongBabiResult:
    """What came out of a test.

    Attributes:
        cells: one for each task and amount of text, in this order.
        questions: by task, how many questions there are and how many of them fit.
    """

    cells: tuple[LongBabiCell, ...]
    questions: dict[int, tuple[int, int]]

    @property
    def total(self) -> AnswerScore:
        """The score over all cells."""
        return total([cell.score for cell in self.cells])


def evaluation_samples(
    stories: BabiStories, filler: Filler, seed: int, task: int, distraction: int, count: int
) -> list[Sample]:
    """Return the test samples of one cell: different questions as long as there are, in an order drawn from `seed`.

    The order is that of the task, so every amount of text has the same questions.
    """
    questions = stories.by_task[task]
    order = EndlessOrder(len(questions), seed=seed, stream=LONG_BABI_TEST).items(np.arange(count))
    first = (task << 56) + (distraction << 24)
    return [
        write_sample(questions[item], filler, distraction, Draws(seed, LONG_BABI_TEST, first + index))
        for index, item in enumerate(order.tolist())
    ]


def evaluate_long_babi(
    model: nn.Module,
    tokenizer: Tokenizer,
    tokens: np.ndarray,
    config: LongBabiConfig,
    *,
    context_length: int,
    seed: int,
    samples_per_cell: int = 500,
    part: Part = "test",
    batch_tokens: int = 16384,
    device: str | torch.device = "cpu",
    stories: BabiStories | None = None,
) -> LongBabiResult:
    """Score a model on each task with each amount of text between.

    Args:
        model: causal, with room for `context_length` positions.
        tokenizer: what made `tokens`, and the model's own.
        tokens: the text between, such as the `tokens` of a test split.
        config: tasks, files and amounts.
        context_length: most tokens of a sample; questions whose story is too long beside the largest amount are left
            out of all cells, and the result says how many there are.
        seed: of order and places.
        samples_per_cell: the published test files have 1,000 questions a task; no cell has more than fit.
        part: "valid" for choosing between models.
        batch_tokens: tokens computed at a time; it changes speed and memory only.
        device: where the model is.
        stories: read before with the same arguments, instead of reading the archive again.

    Raises:
        ValueError: see `BabiStories`; too little text; no samples asked for.
    """
    if samples_per_cell < 1:
        raise ValueError(f"samples_per_cell must be at least 1, got {samples_per_cell}.")
    check_seed(seed)
    filler = Filler(tokens, tokenizer)
    filler.require(max(config.distractions))
    stories = BabiStories(config, tokenizer, part, context_length) if stories is None else stories
    cells = []
    for task in config.tasks:
        chance, most_frequent = stories.chance(task)
        count = min(samples_per_cell, len(stories.by_task[task]))
        for distraction in config.distractions:
            samples = evaluation_samples(stories, filler, seed, task, distraction, count)
            score = score_answers(model, samples, batch_tokens=batch_tokens, device=device)
            cells.append(
                LongBabiCell(
                    task=task, distraction=distraction, score=score, chance=chance, most_frequent=most_frequent
                )
            )
    questions = {task: (stories.read[task], len(stories.by_task[task])) for task in config.tasks}
    return LongBabiResult(cells=tuple(cells), questions=questions)
