"""The annealed query: from a trained linear query to the nonlinear one, by a coefficient that the training moves.

    Q = (1 - a) x W_Q + a Q_nonlinear(x),   Q_nonlinear(x) = gain (x + f(x))

a = 0 is the model whose W_Q was taken over, a = 1 the published nonlinear query, after which W_Q can be dropped. The
coefficient is a buffer: it is saved with the weights and is not learned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heedful.nn.queries import NonlinearQuery, QueryMap


@dataclass(frozen=True, kw_only=True)
class AnnealedQuery:
    """Q = (1 - a) x W_Q + a target(x).

    Attributes:
        target: the nonlinear query at a = 1; its anchor must be "identity" or "none", since a linear anchor would be a
            second W_Q.
    """

    kind: Literal["annealed"] = "annealed"
    target: NonlinearQuery = field(default_factory=NonlinearQuery)

    def __post_init__(self) -> None:
        if self.target.anchor == "linear":
            raise ValueError("the target of an annealed query must have anchor 'identity' or 'none', got 'linear'.")

    def check(self, hidden_size: int, width: int) -> None:
        """Refuse widths that the target's anchor does not fit."""
        self.target.check(hidden_size, width)

    def build(self, hidden_size: int, width: int, head_dim: int, *, bias: bool) -> QueryMap:
        """Return the module."""
        return AnnealedQueryMap(self, hidden_size, width, head_dim, bias=bias)

    def multiply_adds(self, hidden_size: int, width: int) -> int:
        """Return multiply-adds per token, of both queries."""
        return hidden_size * width + self.target.multiply_adds(hidden_size, width)


class AnnealedQueryMap(QueryMap):
    """Module of `AnnealedQuery`: q_proj, target, and the buffer coefficient, 0 at the start."""

    coefficient: Tensor

    def __init__(self, config: AnnealedQuery, hidden_size: int, width: int, head_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.q_proj = nn.Linear(hidden_size, width, bias=bias)
        self.target = config.target.build(hidden_size, width, head_dim, bias=bias)
        self.register_buffer("coefficient", torch.zeros(()))

    def set_coefficient(self, value: float) -> None:
        """Set a.

        Raises:
            ValueError: a outside [0, 1].
        """
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"the annealing coefficient must lie in [0, 1], got {value}.")
        self.coefficient.fill_(value)

    def observe(self, x: Tensor) -> dict[str, Any]:
        """Return a."""
        return {"annealing_coefficient": float(self.coefficient)}

    def forward(self, x: Tensor) -> Tensor:
        """Return (1 - a) x W_Q + a target(x)."""
        linear, target = self.q_proj(x), self.target(x)
        return torch.lerp(linear, target.to(linear.dtype), self.coefficient.to(linear.dtype))
