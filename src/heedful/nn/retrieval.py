"""Boosted retrieval from stored patterns: the synthetic module of the boosted paper (arXiv 2604.03190, section 2 of
its study).

Not a layer of a language model: one head, no mask, keys and values are stored patterns, and a query vector is refined
over the rounds. It is the smallest place where the claims about boosting can be seen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


class Retrieval(NamedTuple):
    """What a retrieval returns: the output (B, d), the first round's weights (B, K) and their entropy (B,) in nats."""

    output: Tensor
    weights: Tensor
    entropy: Tensor


class RetrievalRound(nn.Module):
    """w = softmax(beta (z W_q)(P W_k)^T),  output w (P W_v);  beta = exp(log_beta) is learned."""

    def __init__(self, width: int, key_width: int, beta: float) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, key_width, bias=False)
        self.k_proj = nn.Linear(width, key_width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.log_beta = nn.Parameter(torch.tensor(math.log(beta)))

    def forward(self, source: Tensor, patterns: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output (B, d) and the weights (B, K)."""
        logits = self.log_beta.exp() * self.q_proj(source) @ self.k_proj(patterns).T
        weights = logits.softmax(-1)
        return weights @ self.v_proj(patterns), weights


class BoostedRetrieval(nn.Module):
    """Rounds of retrieval from the residual of the estimate.

        F_0 = round_0(x, P),   c_m = round_m(x - F_{m-1}, P),   F_m = F_{m-1} + g_m * c_m

    Args:
        width: d, of queries, patterns and outputs.
        rounds: M >= 1.
        gate: "network" (a gate per dimension from [F; c; entropy of the first weights] through one hidden layer),
            "scalar" (sigmoid of one number, which starts at 0.5) or "none" (g = 1).
        key_width: width of the projected queries and keys; None for d.
        beta: initial inverse temperature.
        gate_width: hidden units of the gate network.
    """

    def __init__(
        self,
        width: int,
        *,
        rounds: int = 2,
        gate: Literal["network", "scalar", "none"] = "network",
        key_width: int | None = None,
        beta: float = 2.0,
        gate_width: int = 32,
    ) -> None:
        super().__init__()
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}.")
        if gate not in ("network", "scalar", "none"):
            raise ValueError(f"gate must be 'network', 'scalar' or 'none', got {gate!r}.")
        self.rounds = nn.ModuleList(RetrievalRound(width, key_width or width, beta) for _ in range(rounds))
        further = range(1, rounds)
        self.gate_networks = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width + 1, gate_width), nn.GELU(), nn.Linear(gate_width, width))
            for _ in (further if gate == "network" else ())
        )
        self.gate_logits = nn.ParameterList(
            nn.Parameter(torch.tensor(0.5)) for _ in (further if gate == "scalar" else ())
        )

    def forward(self, query: Float[Tensor, "b d"], patterns: Float[Tensor, "k d"]) -> Retrieval:
        """Retrieve for each query vector; see the class."""
        estimate, weights = self.rounds[0](query, patterns)
        entropy = -(weights * (weights + 1e-10).log()).sum(-1)
        for index, retrieval_round in enumerate(list(self.rounds)[1:]):
            correction, _ = retrieval_round(query - estimate, patterns)
            estimate = estimate + self._gate(index, estimate, correction, entropy) * correction
        return Retrieval(estimate, weights, entropy)

    def _gate(self, index: int, estimate: Tensor, correction: Tensor, entropy: Tensor) -> Tensor:
        if len(self.gate_networks):
            features = torch.cat([estimate, correction, entropy[:, None]], dim=-1)
            return torch.sigmoid(self.gate_networks[index](features))
        if len(self.gate_logits):
            return torch.sigmoid(self.gate_logits[index])
        return torch.ones_like(correction)
