"""The synthetic retrieval task of the boosted paper: from a noisy pattern, give the pattern back.

K unit patterns in R^d are stored; a query is one of them plus noise sigma N(0, I). The answer counts as right when the
source is the stored pattern nearest to it, by cosine. The best possible predictor is one softmax over the patterns
with inverse temperature 1 / sigma^2: the posterior mean, whose nearest pattern is nearly always the likeliest one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Patterns and queries, all drawn from seeds.

    Attributes:
        width: d.
        count: K, the number of stored patterns.
        noise: sigma.
        seed: of the patterns; 42 in the paper.
        dtype: of patterns and queries.
    """

    width: int = 64
    count: int = 16
    noise: float = 0.5
    seed: int = 42
    dtype: torch.dtype = torch.float32

    def patterns(self) -> Tensor:
        """Return the stored patterns, (K, d), rows of unit length."""
        drawn = torch.randn(self.count, self.width, generator=_generator(self.seed), dtype=torch.float64)
        return F.normalize(drawn, dim=-1).to(self.dtype)

    def queries(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return queries (number, d) and the index of the pattern that each was made from."""
        source = torch.randint(self.count, (number,), generator=generator)
        noise = torch.randn(number, self.width, generator=generator, dtype=self.dtype)
        return self.patterns()[source] + self.noise * noise, source

    @lru_cache(maxsize=4)  # noqa: B019  # of a frozen value; 10 MB each
    def test_queries(self, number: int = 20_000) -> tuple[Tensor, Tensor]:
        """Return the queries that every model is scored on."""
        return self.queries(number, _generator(999))

    def bayes_accuracy(self) -> float:
        """Return the accuracy of the best possible predictor on the test queries, in percent."""
        queries, source = self.test_queries()
        patterns = self.patterns()
        return accuracy((queries @ patterns.T / self.noise**2).softmax(-1) @ patterns, source, patterns)


def accuracy(outputs: Tensor, source: Tensor, patterns: Tensor) -> float:
    """Return how many of the outputs (B, d) are nearest to their source, in percent; the patterns have unit length."""
    return 100 * float((outputs @ patterns.T).argmax(-1).eq(source).double().mean())


def train(
    model: nn.Module,
    task: RetrievalTask,
    answer: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    seed: int,
    batch_size: int = 512,
    target: Literal["pattern", "query"] = "pattern",
) -> None:
    """Train as the paper does: Adam 3e-3, cosine to zero, clip 1, a fresh batch each step, squared error.

    Args:
        model: whose parameters are trained.
        task: where batches come from.
        answer: (queries, patterns) -> outputs, of `model`.
        steps: 150 in the paper.
        seed: of the batches.
        batch_size: 512 in the paper.
        target: what the squared error is taken to: the pattern behind the query, or the query itself.
    """
    generator, patterns = _generator(seed), task.patterns()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        source = torch.randint(task.count, (batch_size,), generator=generator)
        noise = torch.randn(batch_size, task.width, generator=generator, dtype=task.dtype)
        clean = patterns[source]
        queries = clean + task.noise * noise
        loss = F.mse_loss(answer(queries, patterns), clean if target == "pattern" else queries)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
