"""Check of the boosted paper's proposition 2: rounds of attention as gradient boosting of the squared loss."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from heedful.nn import BoostedRetrieval
from heedful.nn.retrieval import RetrievalRound
from heedful.papers.claim import Finding
from heedful.papers.retrieval_task import RetrievalTask, train

ROUNDS = 3
STEPS = 150


def gradient_boosting() -> Finding:
    """Compare the rounds with real gradient boosting, which fits each round to what the ones before left over.

    Autograd of L = |x - F|^2 / 2 must be -r. Then rounds are fitted stage by stage to r, earlier ones frozen, and set
    beside rounds that were trained together on the task's loss, as the paper trains: how far does each lower L?
    """
    task = RetrievalTask()
    queries, patterns = task.test_queries()[0], task.patterns()
    gradient_error = _gradient_error()

    torch.manual_seed(1)
    joint = BoostedRetrieval(task.width, rounds=2)
    train(joint, task, lambda source, stored: joint(source, stored).output, steps=STEPS, seed=1)
    with torch.no_grad():
        first = joint.rounds[0](queries, patterns)[0]
        correction = joint.rounds[1](queries - first, patterns)[0]
        together = [_loss(queries, estimate) for estimate in (first, joint(queries, patterns).output)]
        alignment = float(F.cosine_similarity(correction, queries - first, dim=-1).mean())
    fitted, searched = _stage_wise(task, queries, patterns)

    falls = all(later <= earlier for earlier, later in pairwise(fitted))
    exact = gradient_error < 1e-12
    boosts = together[1] < together[0] and alignment > 0.9
    return Finding(
        verdict="does not hold" if not exact else "holds" if boosts else "holds in part",
        figure=(
            f"L by rounds: {', '.join(f'{loss:.3f}' for loss in fitted)} fitted stage by stage; "
            f"{', '.join(f'{loss:.3f}' for loss in together)} trained together (cosine of c and r {alignment:.2f})"
        ),
        reason=(
            "As notation it is exact: r is the negative gradient of L. But nothing fits a round to r: training "
            f"minimises the task's loss, which {'raises' if together[1] > together[0] else 'lowers'} L here, and "
            "the gate is no line search."
            + ("" if falls else " Even rounds fitted to r stage by stage do not lower L on new queries.")
        ),
        numbers={
            "gradient + r": gradient_error,
            **{f"L after {index + 1} rounds, stage by stage": loss for index, loss in enumerate(fitted)},
            **{f"line search, round {index + 2}": size for index, size in enumerate(searched)},
            **{f"L after {index + 1} rounds, together": loss for index, loss in enumerate(together)},
            "cosine of c and r, together": alignment,
        },
    )


def _gradient_error() -> float:
    drawn = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = drawn[1].clone().requires_grad_()
    loss = (drawn[0] - estimate).square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, estimate)
    return float((gradient + (drawn[0] - drawn[1])).abs().max())


def _stage_wise(task: RetrievalTask, queries: Tensor, patterns: Tensor) -> tuple[list[float], list[float]]:
    """Return L on `queries` after each round, and the best scale (line search) of each round after the first."""
    rounds: list[RetrievalRound] = []
    losses, scales = [], []
    estimate = torch.zeros_like(queries)
    for index in range(ROUNDS):
        torch.manual_seed(index)
        new = RetrievalRound(task.width, task.width, 2.0)
        earlier = tuple(rounds)
        train(new, task, lambda q, p, n=new, e=earlier: _sum(q, p, (*e, n)), steps=STEPS, seed=index, target="query")
        rounds.append(new)
        with torch.no_grad():
            correction = new(queries - estimate, patterns)[0]
            if index:
                scales.append(float((correction * (queries - estimate)).sum() / correction.square().sum()))
            estimate = estimate + correction
            losses.append(_loss(queries, estimate))
    return losses, scales


def _sum(queries: Tensor, patterns: Tensor, rounds: tuple[RetrievalRound, ...]) -> Tensor:
    """Return F after all `rounds`, of which only the last one is trained."""
    estimate = torch.zeros_like(queries)
    for retrieval_round in rounds:
        estimate = estimate.detach() + retrieval_round(queries - estimate.detach(), patterns)[0]
    return estimate


def _loss(queries: Tensor, estimate: Tensor) -> float:
    return float((queries - estimate).square().sum(-1).mean() / 2)
