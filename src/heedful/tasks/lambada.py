"""LAMBADA: the last word of a passage that people can only guess from the whole of it (Paperno et al., 2016).

    ... "I can make it there on my own,  ->   Shane

Scored as lm-eval scores its `lambada_openai`: the target is what follows the last space, with that space; it is right
if greedy decoding would give exactly its tokens. That the word ends there is not asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from heedful.models import DecoderLM
from heedful.tasks.intervals import Interval, mean_interval, wilson_interval
from heedful.tasks.scoring import (
    TextTokenizer,
    encode_continuations,
    is_cut,
    lost_characters,
    room,
    score_continuations,
)
from heedful.tasks.task_files import json_lines, read_text

LARGEST_EXPONENT = 700.0  # exp of more is no float


@dataclass(frozen=True, kw_only=True)
class LambadaResult:
    """How well a model finds the last words.

    Attributes:
        examples: how many were scored.
        correct: of how many all target tokens are the likeliest.
        accuracy: correct / examples.
        accuracy_interval: 95 % by Wilson, over the draw of examples.
        nats_per_word: mean of -ln p(target).
        nats_interval: 95 % of it, Student's t over examples; None for one example.
        perplexity: exp(nats_per_word), per word, so it depends on the tokenizer only by what it loses.
        perplexity_interval: exp of `nats_interval`.
        chance_accuracy, chance_perplexity: of guessing each target token with equal probability.
        tokens: of all targets.
        max_context: how many tokens the model read at a time.
        cut: examples whose beginning the model did not read.
        incomplete_targets: targets of which the tokenizer lost characters.
    """

    examples: int
    correct: int
    accuracy: float
    accuracy_interval: Interval
    nats_per_word: float
    nats_interval: Interval | None
    perplexity: float
    perplexity_interval: Interval | None
    chance_accuracy: float
    chance_perplexity: float
    tokens: int
    max_context: int
    cut: int
    incomplete_targets: int


def read_lambada(path: str | Path) -> list[str]:
    """Read a file with one `{"text": ...}` per line, also compressed (.xz, .gz).

    Raises:
        ValueError: no such file, no examples, a line without a text of two words or more.
    """
    texts = []
    for number, row in enumerate(json_lines(read_text(path), path), start=1):
        text = row.get("text")
        if not isinstance(text, str):
            raise ValueError(f'{path}, example {number}: expected {{"text": "..."}}, got the keys {", ".join(row)}.')
        context, _, word = text.rpartition(" ")
        if not context.strip() or not word:
            raise ValueError(f"{path}, example {number}: expected a text and its last word, got {text[-60:]!r}.")
        texts.append(text)
    if not texts:
        raise ValueError(f'{path} holds no examples; expected one {{"text": "..."}} per line.')
    return texts


def split_last_word(text: str) -> tuple[str, str]:
    """Return the text before the last space, and the rest with that space."""
    context, space, word = text.rpartition(" ")
    return context, space + word


def evaluate_lambada(
    model: DecoderLM,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    *,
    max_context: int | None = None,
    tokens_per_batch: int = 8192,
) -> LambadaResult:
    """Score a model on passages, see `heedful.tasks.scoring` for what it reads of a long one.

    Args:
        model: computes where it is, in float32 or what its weights are.
        tokenizer: that of its training.
        texts: what `read_lambada` returns, or some of it.
        max_context: None is the model's max_positions.
        tokens_per_batch: changes speed and memory only.

    Raises:
        ValueError: no texts, or a target of which the tokenizer leaves nothing.
    """
    if not texts:
        raise ValueError("there is no text to score.")
    pairs = [split_last_word(text) for text in texts]
    examples = encode_continuations(tokenizer, pairs)
    for (_, word), example in zip(pairs, examples, strict=True):
        if not example.target:
            raise ValueError(
                f"the tokenizer leaves nothing of the last word {word.strip()!r}: it knows none of its characters. "
                "Leave this example out, or use a model whose tokenizer loses nothing."
            )
    scores = score_continuations(model, examples, max_context=max_context, tokens_per_batch=tokens_per_batch)
    correct = sum(score.greedy for score in scores)
    nats = [-score.log_likelihood for score in scores]
    interval = mean_interval(nats)
    lengths = [len(example.target) for example in examples]
    choices = model.config.vocab_size
    length = room(model, max_context)
    return LambadaResult(
        examples=len(texts),
        correct=correct,
        accuracy=correct / len(texts),
        accuracy_interval=wilson_interval(correct, len(texts)),
        nats_per_word=fmean(nats),
        nats_interval=interval,
        perplexity=_exponential(fmean(nats)),
        perplexity_interval=None if interval is None else (_exponential(interval[0]), _exponential(interval[1])),
        chance_accuracy=fmean(choices**-count for count in lengths),
        chance_perplexity=_exponential(fmean(lengths) * math.log(choices)),
        tokens=sum(lengths),
        max_context=length,
        cut=sum(is_cut(example, length) for example in examples),
        incomplete_targets=sum(
            lost_characters(tokenizer, example, word) for example, (_, word) in zip(examples, pairs, strict=True)
        ),
    )


def _exponential(nats: float) -> float:
    return math.exp(nats) if nats < LARGEST_EXPONENT else math.inf
