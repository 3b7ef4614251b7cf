"""Retrieval iterated to a fixed point, differentiated by unrolling or by the implicit function theorem.

One step from stored patterns P is z <- softmax(beta (z W_q)(P W_k)^T) P W_v. After the first step z is w P W_v with
weights w (B, K), and the steps are those of the weights alone,

    w <- softmax(w S),   S = beta (P W_v) W_q (P W_k)^T   (K, K),

which is what is iterated here: the same numbers, for a K-th of the work.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heedful.nn.retrieval import RetrievalRound


class FixedPointRetrieval(nn.Module):
    """A deep-equilibrium model of retrieval: the query chooses where the iteration starts, and nothing else.

    Args:
        width: d.
        beta: inverse temperature at the start.
        identity: start from identity projections instead of torch's default.
        implicit: differentiate by the implicit function theorem at the fixed point; else through `unrolled` steps.
        unrolled: number of steps that are differentiated through.
        steps: most steps of an implicit iteration; 30 in the paper.
        tolerance: where that iteration ends, by the largest change of a weight; 1e-5 in the paper.
    """

    def __init__(
        self,
        width: int,
        *,
        beta: float = 2.0,
        identity: bool = False,
        implicit: bool = False,
        unrolled: int = 20,
        steps: int = 30,
        tolerance: float = 1e-5,
    ) -> None:
        super().__init__()
        self.round = RetrievalRound(width, width, beta)
        self.implicit, self.unrolled, self.steps, self.tolerance = implicit, unrolled, steps, tolerance
        if identity:
            for projection in (self.round.q_proj, self.round.k_proj, self.round.v_proj):
                nn.init.eye_(projection.weight)

    def forward(self, query: Tensor, patterns: Tensor) -> Tensor:
        """Return the fixed points (B, d) that queries (B, d) lead to."""
        layer = self.round
        values = layer.v_proj(patterns)
        scores = layer.log_beta.exp() * layer.q_proj(values) @ layer.k_proj(patterns).T
        if not self.implicit:
            weights = layer(query, patterns)[1]
            for _ in range(self.unrolled):
                weights = (weights @ scores).softmax(-1)
            return weights @ values
        with torch.no_grad():
            weights = layer(query, patterns)[1]
            for _ in range(self.steps):
                before, weights = weights, (weights @ scores).softmax(-1)
                if float((weights - before).abs().max()) < self.tolerance:
                    break
        return _attach(weights, scores) @ values


def _attach(fixed: Tensor, scores: Tensor) -> Tensor:
    """Return the fixed points with their exact derivative: dw = (I - J)^-1 df, J the derivative of one step."""
    weights = (fixed @ scores).softmax(-1)
    if weights.requires_grad:
        with torch.no_grad():
            spread = torch.diag_embed(weights) - weights[:, :, None] * weights[:, None, :]
            system = torch.eye(len(scores), dtype=scores.dtype) - spread @ scores.T  # (B, K, K): I - J
        weights.register_hook(lambda gradient: torch.linalg.solve(system.mT, gradient))
    return weights
