"""What scoring with dropout left on does to a model that makes no mistakes (the baseline of the paper's toy task).

The official code drops attention weights of the standard model with probability 0.1 while testing too. Here is a lookup
that knows where each letter of the answer stands, on test samples of the task: one key holds the letter, the query
matches that key alone. With its one weight dropped, nothing is read.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from heedful.papers.claim import Finding
from heedful.tasks.find_the_block import VOCAB_SIZE, FindTheBlockConfig, evaluation_batch

DROPOUT = 0.1
SAMPLES, DRAWS = 1000, 4
MATCH = 1e4  # so far above the other scores that their weights are exactly 0
NOTHING_READ = 0.5


def baseline_scored_with_dropout() -> Finding:
    """Score the lookup with dropout off and on, with one head and with two that read the same letter."""
    off, one_head, two_heads = (error_of_lookup(p, heads) for p, heads in ((0.0, 1), (DROPOUT, 1), (DROPOUT, 2)))
    expected, expected_two = (100 * (1 - (1 - DROPOUT**heads) ** 5) for heads in (1, 2))
    deviation = 100 * (expected / 100 * (1 - expected / 100) / (SAMPLES * DRAWS)) ** 0.5
    as_expected = off == 0 and abs(one_head - expected) < 4 * deviation and 0 < two_heads < one_head
    return Finding(
        verdict="holds in part" if as_expected else "does not hold",
        figure=f"a lookup without mistakes: 0 % with dropout off, {expected:.0f} % with it on",
        reason=f"A letter that is read from one key by one head is lost with probability {DROPOUT}: 1 - 0.9^5 of the "
        f"answers are wrong, {expected_two:.0f} % where two heads read it. So the published figure is no measure of "
        "what was learned alone; how much of it comes from scoring cannot be told without the authors' models. Our "
        "runs score with dropout off.",
        numbers={
            "error with dropout off, percent": off,
            "error with dropout on, percent": one_head,
            "error with dropout on, two heads, percent": two_heads,
            "expected error, percent": expected,
            "expected error, two heads, percent": expected_two,
        },
    )


@torch.no_grad()
def error_of_lookup(dropout: float, heads: int) -> float:
    """Return the share of answers with a wrong letter, in percent, on the paper's 52 blocks of five letters."""
    task = FindTheBlockConfig()
    tokens = evaluation_batch(task, 0, np.arange(SAMPLES)).tokens
    letters, length = task.block_length, tokens.shape[1]
    answer_begin = 1 + task.resolved_num_blocks * (letters + 1) + task.query_letters
    answer, prompt = tokens[:, answer_begin : answer_begin + letters], tokens[:, :answer_begin]
    begin = _where_block_begins(prompt, answer)
    positions = begin[:, None] + torch.arange(letters)
    code = 1.0 - 2.0 * (
        torch.arange(length)[:, None] >> torch.arange(length.bit_length()) & 1
    )  # +1, -1 by binary digit
    weights = (MATCH * code[positions] @ code.T).softmax(-1)
    value = one_hot(tokens, VOCAB_SIZE).float()
    generator, wrong = torch.Generator().manual_seed(0), 0.0
    for _ in range(DRAWS):
        kept = torch.rand(heads, *weights.shape, generator=generator) >= dropout
        read = (weights * kept / (1 - dropout) @ value).sum(0)
        found = pad(read, (0, 1), value=NOTHING_READ).argmax(-1)
        wrong += float((found != answer).any(1).double().mean())
    return 100 * wrong / DRAWS


def _where_block_begins(prompt: Tensor, answer: Tensor) -> Tensor:
    """Return the position at which each answer stands in its prompt; it stands there once."""
    windows = prompt.unfold(1, answer.shape[1], 1)
    return (windows == answer[:, None]).all(-1).int().argmax(1)
