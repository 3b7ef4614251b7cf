"""How likely a model finds a continuation of a text, by the rules of lm-eval, so that figures can be compared.

A context and its continuation are encoded together, and the ids after those of the context alone are the target; white
space at the end of the context goes to the continuation. Before an empty context stands end of text. What is longer
than the model reads loses its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from heedful.models import DecoderLM
from heedful.models.probes import evaluating

# Logits that exist at a time: 64 MiB in float32.
LOGITS = 1 << 24


class TextTokenizer(Protocol):
    """What the tasks need of a tokenizer; those of `heedful.data` have it."""

    @property
    def end_of_text(self) -> int:
        """Id of the token between documents."""
        ...

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, nothing added."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some ids."""
        ...


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Token ids: what stands before (one at least), and what is scored (one at least)."""

    context: list[int]
    target: list[int]


class Score(NamedTuple):
    """What a model makes of a continuation.

    Attributes:
        log_likelihood: ln p(target | context), nats.
        greedy: whether every token of the target is the likeliest one after those before it.
    """

    log_likelihood: float
    greedy: bool


def encode_continuations(tokenizer: TextTokenizer, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """Encode pairs of a context and its continuation.

    A target may come out empty where the tokenizer drops characters that it does not know; whoever asks decides.

    Raises:
        ValueError: the tokenizer merges the end of a context with the beginning of its continuation.
    """
    moved = [_white_space_moved(*pair) for pair in pairs]
    contexts = tokenizer.encode_many([context for context, _ in moved])
    wholes = tokenizer.encode_many([context + continuation for context, continuation in moved])
    encoded = []
    for context, whole, (text, continuation) in zip(contexts, wholes, moved, strict=True):
        if whole[: len(context)] != context:
            raise ValueError(
                f"the tokenizer joins the end of the context {text[-20:]!r} with the continuation "
                f"{continuation[:20]!r}, so there is no boundary to score from; begin continuations with a space."
            )
        encoded.append(Continuation(context=context or [tokenizer.end_of_text], target=whole[len(context) :]))
    return encoded


def lost_characters(tokenizer: TextTokenizer, continuation: Continuation, text: str) -> bool:
    """Return whether characters other than white space are not in the target's ids: they vanished or were replaced.

    Args:
        tokenizer: what encoded it.
        continuation: what came out.
        text: the continuation's text.
    """
    return _without_space(tokenizer.decode(continuation.target)) != _without_space(text)


def room(model: DecoderLM, max_context: int | None) -> int:
    """Return how many tokens the model reads at a time: its `max_positions`, or fewer where `max_context` says so.

    Raises:
        ValueError: `max_context` is below 1 or above `max_positions`.
    """
    most = model.config.max_positions
    if max_context is None:
        return most
    if not 1 <= max_context <= most:
        raise ValueError(
            f"the longest context must be from 1 to the model's max_positions = {most}, got {max_context}."
        )
    return max_context


def is_cut(continuation: Continuation, length: int) -> bool:
    """Return whether the first tokens of a context are not read by a model that reads `length` tokens at a time."""
    return len(continuation.context) + len(continuation.target) > length + 1


@torch.inference_mode()
def score_continuations(
    model: DecoderLM,
    continuations: Sequence[Continuation],
    *,
    max_context: int | None = None,
    tokens_per_batch: int = 8192,
) -> list[Score]:
    """Score continuations, each target token predicted from what is before it, in evaluation mode.

    The last token of a target of n <= L tokens is predicted from the L tokens before it or fewer, L being
    `max_context`; of a longer context the beginning is left out, and learned positions count from what is left. A
    target of more than L tokens is scored L tokens at a time, each piece with what then fits before it. Rows of a batch
    are filled up on the right, which a causal model cannot see. Logits are float32, sums float64.

    Args:
        model: where it is, in the type it has.
        continuations: what to score.
        max_context: None is the model's max_positions. A model may have more positions than it was trained on.
        tokens_per_batch: rows times the longest row; it changes speed and memory only.

    Raises:
        ValueError: an empty target, an id that the model does not have, an impossible `max_context`.
    """
    length = room(model, max_context)
    for continuation in continuations:
        if not continuation.context or not continuation.target:
            raise ValueError(f"a context and a target need at least one token each, got {continuation}.")
        if (largest := max(max(continuation.context), max(continuation.target))) >= model.config.vocab_size:
            raise ValueError(
                f"token {largest} is not in the model's vocabulary of {model.config.vocab_size}; use the tokenizer "
                "that it was trained with."
            )
    windows = [
        (number, window, scored)
        for number, continuation in enumerate(continuations)
        for window, scored in _windows(continuation, length)
    ]
    windows.sort(key=lambda window: -len(window[1]))
    likelihoods, greedy = [0.0] * len(continuations), [True] * len(continuations)
    with evaluating(model):
        start = 0
        while start < len(windows):
            rows = windows[start : start + max(1, tokens_per_batch // len(windows[start][1]))]
            start += len(rows)
            found = _score_rows(model, [(window, scored) for _, window, scored in rows])
            for (number, _, _), (likelihood, best) in zip(rows, found, strict=True):
                likelihoods[number] += likelihood
                greedy[number] &= best
    return [Score(likelihood, best) for likelihood, best in zip(likelihoods, greedy, strict=True)]


def _windows(continuation: Continuation, length: int) -> list[tuple[list[int], int]]:
    """Return what a model reads and is to predict, at most `length` + 1 tokens, and how many of the last are scored."""
    tokens, first = continuation.context + continuation.target, len(continuation.context)
    windows = []
    for begin in range(first, len(tokens), length):
        end = min(begin + length, len(tokens))
        windows.append((tokens[max(0, end - length - 1) : end], end - begin))
    return windows


def _score_rows(model: DecoderLM, rows: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
    device = next(model.parameters()).device
    longest = max(len(window) for window, _ in rows)
    # Whatever fills the rows up is read after all that is scored.
    tokens = torch.tensor([window + [0] * (longest - len(window)) for window, _ in rows])
    places = torch.tensor(
        [
            (row, position)
            for row, (window, scored) in enumerate(rows)
            for position in range(len(window) - 1 - scored, len(window) - 1)
        ]
    )
    targets = tokens[places[:, 0], places[:, 1] + 1].to(device)
    hidden = model.hidden_states(tokens[:, :-1].to(device))[places[:, 0].to(device), places[:, 1].to(device)]
    weight, bias = model.head_parameters()
    parts = [
        _predicted(torch.nn.functional.linear(some, weight, bias), wanted)
        for some, wanted in zip(
            hidden.split(max(1, LOGITS // weight.shape[0])),
            targets.split(max(1, LOGITS // weight.shape[0])),
            strict=True,
        )
    ]
    likelihoods = torch.cat([likelihood for likelihood, _ in parts]).double().cpu()
    best = torch.cat([hit for _, hit in parts]).cpu()
    counts = [scored for _, scored in rows]
    return [
        (float(own.sum()), bool(hits.all()))
        for own, hits in zip(likelihoods.split(counts), best.split(counts), strict=True)
    ]


def _predicted(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return ln p of each target, and whether it is the likeliest token."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    likelihood = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    return likelihood, logits.argmax(-1) == targets


def _white_space_moved(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _without_space(text: str) -> str:
    return "".join(text.split())
