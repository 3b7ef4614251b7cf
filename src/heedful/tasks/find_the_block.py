"""Find the block: the multi-token attention paper's toy task (arXiv:2504.00927), without its truncation.

    kdmze.tqjpb.aowfn#pb  ->  tqjpb       (answer "all"; "first" -> t, "last" -> b)

A model that weighs one token at a time cannot see which block holds *both* letters of the query; one that combines the
attention of neighbouring tokens can. The prompt is the same for all three answers. A row is BOS, prompt, answer, EOS,
then "_" up to the length of a row, which is one number for a configuration. Only the answer and EOS are scored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from heedful.data.batches import IGNORED, Batch, EpochOrder, fingerprint_of
from heedful.data.randomness import FIND_THE_BLOCK_TEST, FIND_THE_BLOCK_TRAIN, check_seed
from heedful.data.shuffling import ORDER_VERSION
from heedful.tasks.block_samples import ALPHABET, MAX_BLOCK_LENGTH, draw_samples, most_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable

Answer = Literal["all", "first", "last"]

VOCAB_SIZE = 32  # the paper's; entry 31 is unused
DOT, HASH, PADDING, BEGIN, END = range(ALPHABET, ALPHABET + 5)
_SYMBOLS = [*"abcdefghijklmnopqrstuvwxyz.#_", "<s>", "</s>", "<unused>"]
_PAPER_CHARACTERS = 319


@dataclass(frozen=True, kw_only=True)
class FindTheBlockConfig:
    """Which find-the-block.

    Attributes:
        block_length: letters in a block, all distinct, 2 to 13.
        num_blocks: None fits as many whole blocks as `characters` allow with the longest answer: of the paper's 319, 52
            blocks of 5 letters fill all (5 * 52 + 51 dots + "#" + 2 + 5) and 34 of 8 letters leave 3, where the paper
            cuts its 35th short.
        answer: the whole target block, its first letter, or its last.
        query_letters: letters of the target block that are asked for.
        characters: of prompt and answer together, what is left over being padded with "_"; None is the paper's 319
            where `num_blocks` is None too, else as many as the prompt and a whole block take.
        train_samples: size of the training set, which is passed through in a new order each epoch.

    Raises:
        ValueError: a size out of range, more blocks than there can be, or a row too short for them.
    """

    block_length: int = 5
    num_blocks: int | None = None
    answer: Answer = "all"
    query_letters: int = 2
    characters: int | None = None
    train_samples: int = 1_000_000

    def __post_init__(self) -> None:
        """Refuse tasks that cannot be generated."""
        if self.answer not in get_args(Answer):
            raise ValueError(f"answer must be one of {', '.join(get_args(Answer))}, got {self.answer!r}.")
        if not 2 <= self.block_length <= MAX_BLOCK_LENGTH:
            raise ValueError(f"block_length must be from 2 to {MAX_BLOCK_LENGTH}, got {self.block_length}.")
        if not 1 <= self.query_letters <= self.block_length:
            raise ValueError(
                f"query_letters must be from 1 to block_length={self.block_length}, got {self.query_letters}."
            )
        if self.train_samples < 1:
            raise ValueError(f"train_samples must be at least 1, got {self.train_samples}.")
        most = most_blocks(self.block_length, self.query_letters)
        if not 1 <= self.resolved_num_blocks <= most:
            raise ValueError(
                f"num_blocks must be from 1 to {most} for blocks of {self.block_length} letters and a query of "
                f"{self.query_letters}, got {self.resolved_num_blocks}."
            )
        if self.resolved_characters < self._needed_characters:
            raise ValueError(
                f"characters={self.characters} is too short: {self.resolved_num_blocks} blocks of {self.block_length} "
                f"letters, the query and the answer take {self._needed_characters}."
            )

    @property
    def resolved_num_blocks(self) -> int:
        """Number of blocks, also where it is left to `characters`."""
        if self.num_blocks is not None:
            return self.num_blocks
        characters = _PAPER_CHARACTERS if self.characters is None else self.characters
        return (characters - self.query_letters - self.block_length) // (self.block_length + 1)

    @property
    def resolved_characters(self) -> int:
        """Characters of prompt, answer and padding, also where they follow from `num_blocks`."""
        if self.characters is not None:
            return self.characters
        return _PAPER_CHARACTERS if self.num_blocks is None else self._needed_characters

    @property
    def _needed_characters(self) -> int:
        return self._prompt_characters + self.block_length

    @property
    def _prompt_characters(self) -> int:
        return self.resolved_num_blocks * (self.block_length + 1) + self.query_letters

    @property
    def answer_letters(self) -> int:
        """Letters of the answer."""
        return self.block_length if self.answer == "all" else 1

    @property
    def context_length(self) -> int:
        """Tokens of a row that a model reads: BOS and the characters; what it predicts ends one later."""
        return 1 + self.resolved_characters


class FindTheBlockData:
    """Training batches: `train_samples` samples drawn from `seed`, in a new order each epoch."""

    def __init__(self, config: FindTheBlockConfig, seed: int, batch_size: int) -> None:
        """Set up batches of (batch_size, `config.context_length`); nothing is generated yet."""
        self.tokens_per_batch = batch_size * config.context_length
        self.fingerprint = fingerprint_of(
            kind="find the block", order=ORDER_VERSION, seed=seed, batch_size=batch_size, **asdict(config)
        )
        self._config = config
        self._seed = seed
        self._order = EpochOrder(config.train_samples, batch_size, seed)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Return some rows of the batch of a step, and generate no others: a pure function of (seed, step, rows)."""
        return _batch(self._config, self._seed, FIND_THE_BLOCK_TRAIN, self._order.items(step, rows))


@dataclass(frozen=True, kw_only=True)
class FindTheBlockResult:
    """How often a model failed.

    Attributes:
        error: per cent of the sequences with a wrong token in answer or EOS, each token predicted after the true ones.
        confidence_interval: of the error, per cent, 95 % by Wilson's score.
        loss: mean cross entropy of the scored tokens, nats.
        num_samples: sequences scored.
    """

    error: float
    confidence_interval: tuple[float, float]
    loss: float
    num_samples: int


def evaluation_batch(config: FindTheBlockConfig, seed: int, indices: np.ndarray) -> Batch:
    """Return test samples by index; they come from a stream of their own, which training with any seed never reads."""
    return _batch(config, check_seed(seed), FIND_THE_BLOCK_TEST, indices)


@torch.inference_mode()
def evaluate_find_the_block(
    model: nn.Module,
    config: FindTheBlockConfig,
    seed: int,
    num_samples: int = 1000,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> FindTheBlockResult:
    """Score a model on the test samples 0 to `num_samples` - 1 of `seed`, the last incomplete batch included.

    The model is called as `logits, state = model(tokens)` in evaluation mode (no dropout); the mode of each of its
    modules is put back afterwards.

    Raises:
        ValueError: `num_samples` or `batch_size` below 1.
    """
    from scipy.stats import binomtest

    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"num_samples and batch_size must be at least 1, got {num_samples} and {batch_size}.")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    num_wrong, nats, num_scored = 0, 0.0, 0
    try:
        for first in range(0, num_samples, batch_size):
            indices = np.arange(first, min(first + batch_size, num_samples))
            batch = evaluation_batch(config, seed, indices)
            targets = batch.targets.to(device)
            logits = model(batch.tokens.to(device))[0].float()
            scored = targets != IGNORED
            num_wrong += int(((logits.argmax(dim=-1) != targets) & scored).any(dim=1).sum())
            nats += float(nn.functional.cross_entropy(logits[scored], targets[scored], reduction="sum"))
            num_scored += int(scored.sum())
    finally:
        for module, mode in modes.items():
            module.training = mode
    interval = binomtest(num_wrong, num_samples).proportion_ci(confidence_level=0.95, method="wilson")
    return FindTheBlockResult(
        error=100 * num_wrong / num_samples,
        confidence_interval=(100 * float(interval.low), 100 * float(interval.high)),
        loss=nats / num_scored,
        num_samples=num_samples,
    )


def to_text(tokens: Tensor | Iterable[int]) -> str:
    """Return tokens as readable text, BOS as `<s>` and EOS as `</s>`."""
    return "".join(_SYMBOLS[int(token)] for token in tokens)


def _batch(config: FindTheBlockConfig, seed: int, stream: int, indices: np.ndarray) -> Batch:
    """Return samples as tokens (rows without their last) and targets (rows without their first, mostly IGNORED)."""
    drawn = draw_samples(
        block_length=config.block_length,
        num_blocks=config.resolved_num_blocks,
        query_letters=config.query_letters,
        seed=seed,
        stream=stream,
        indices=indices,
    )
    count, prompt_end = len(indices), 1 + config._prompt_characters
    answer_end = prompt_end + config.answer_letters
    rows = np.full((count, config.context_length + 1), PADDING, dtype=np.int64)
    rows[:, 0] = BEGIN
    with_dots = np.full((count, config.resolved_num_blocks, config.block_length + 1), DOT, dtype=np.int64)
    with_dots[:, :, :-1] = drawn.blocks
    query_begin = prompt_end - config.query_letters
    rows[:, 1:query_begin] = with_dots.reshape(count, query_begin - 1)
    rows[:, query_begin - 1] = HASH
    rows[:, query_begin:prompt_end] = drawn.query
    block = drawn.blocks[np.arange(count), drawn.target]
    rows[:, prompt_end:answer_end] = {"all": block, "first": block[:, :1], "last": block[:, -1:]}[config.answer]
    rows[:, answer_end] = END
    targets = np.full((count, config.context_length), IGNORED, dtype=np.int64)
    targets[:, prompt_end - 1 : answer_end] = rows[:, prompt_end : answer_end + 1]
    return Batch(torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(targets))
