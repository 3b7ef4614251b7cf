"""Boosting (arXiv 2604.03190): further attention rounds correct the estimate so far, through a learned gate.

With x the layer's input, F the concatenated heads of the rounds so far and c the heads of a new round,

    z = x - a F,   c = attention round on z,   F <- F + g * c,   g = sigmoid(gate([F; c])).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heedful.schema import check_choices


@dataclass(frozen=True, kw_only=True)
class Boosting:
    """How many rounds, what they see, and how their corrections enter.

    Attributes:
        rounds: M >= 1; one round is the plain layer.
        kv_source: where keys and values of further rounds come from: "residual" (z, the published models) or "input"
            (x).
        residual_coefficient: a in z = x - a F; 1 in all published runs, 0 lets every round see x only.
        gate: "vector" (a linear map of [F; c] to one gate per dimension), "head" (one per head), "scalar" (one learned
            number), "none" (g = 1), or "scaled-vector": s * the gate "vector", with a learned number s per dimension
            that starts at 0, so that the layer starts exactly as the plain one and becomes the published one at s = 1.
        gate_bias: whether the linear gates have a bias.
        gate_start: the bias, or the scalar, before the sigmoid at the start; 0 gives g = 1/2. Very negative starts
            close to the plain layer.
    """

    rounds: int = 2
    kv_source: Literal["residual", "input"] = "residual"
    residual_coefficient: float = 1.0
    gate: Literal["vector", "head", "scalar", "none", "scaled-vector"] = "vector"
    gate_bias: bool = True
    gate_start: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}.")
        if self.gate in ("vector", "head", "scaled-vector") and not self.gate_bias and self.gate_start != 0.0:
            raise ValueError(f"gate_start = {self.gate_start} needs gate_bias = True: it is the bias' initial value.")

    def build_gate(self, width: int, num_heads: int) -> Gate:
        """Return the gate of one further round, for concatenated heads of this width."""
        if self.gate == "none":
            return OpenGate()
        if self.gate == "scalar":
            return ScalarGate(self.gate_start)
        if self.gate == "scaled-vector":
            return ScaledGate(width, bias=self.gate_bias, start=self.gate_start)
        outputs = width if self.gate == "vector" else num_heads
        return LinearGate(width, outputs, bias=self.gate_bias, start=self.gate_start)

    def gate_multiply_adds(self, width: int, num_heads: int) -> int:
        """Return multiply-adds per token of one gate."""
        vector = 2 * width * width
        return {"vector": vector, "scaled-vector": vector, "head": 2 * width * num_heads}.get(self.gate, 0)


class Gate(nn.Module):
    """Base of the gates: (F, c), both (B, N, width), -> g of the same shape."""

    def forward(self, estimate: Tensor, correction: Tensor) -> Tensor:
        """Return g."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def observe(self, estimate: Tensor, correction: Tensor) -> dict[str, Any]:
        """Return the mean gate over tokens of each dimension (to 4 digits), and the mean and deviation of these."""
        by_dimension = self(estimate, correction).flatten(0, -2).mean(0)
        return {
            "gate_mean": float(by_dimension.mean()),
            "gate_std": float(by_dimension.std(correction=0)),
            "gate_by_dimension": [round(value, 4) for value in by_dimension.tolist()],
        }


class LinearGate(Gate):
    """g = sigmoid([F; c] W + b), one number per dimension or per head (then repeated over the head's dimensions)."""

    def __init__(self, width: int, outputs: int, *, bias: bool, start: float) -> None:
        super().__init__()
        self.width, self.start = width, start
        self.proj = nn.Linear(2 * width, outputs, bias=bias)
        self.set_initial_values()

    @torch.no_grad()
    def set_initial_values(self) -> None:
        """Set the bias to its start."""
        if self.proj.bias is not None:
            self.proj.bias.fill_(self.start)

    def forward(self, estimate: Tensor, correction: Tensor) -> Tensor:
        """Return g, (B, N, width), for F and c of shape (B, N, width)."""
        gate = torch.sigmoid(self.proj(torch.cat([estimate, correction], dim=-1)))
        return gate if gate.shape[-1] == self.width else gate.repeat_interleave(self.width // gate.shape[-1], dim=-1)


class ScaledGate(Gate):
    """g = s * sigmoid([F; c] W + b) with s = 0 at the start, one number per dimension."""

    def __init__(self, width: int, *, bias: bool, start: float) -> None:
        super().__init__()
        self.gate = LinearGate(width, width, bias=bias, start=start)
        self.scale = nn.Parameter(torch.empty(width))
        self.set_initial_values()

    @torch.no_grad()
    def set_initial_values(self) -> None:
        """Set s to 0; the gate sets its own values."""
        self.scale.zero_()

    def forward(self, estimate: Tensor, correction: Tensor) -> Tensor:
        """Return g, (B, N, width), for F and c of shape (B, N, width)."""
        return self.scale * self.gate(estimate, correction)


class ScalarGate(Gate):
    """g = sigmoid(s), one learned number."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.start = start
        # Of one dimension, since parameters of none cannot be sharded.
        self.logit = nn.Parameter(torch.empty(1))
        self.set_initial_values()

    @torch.no_grad()
    def set_initial_values(self) -> None:
        """Set s to its start."""
        self.logit.fill_(self.start)

    def forward(self, estimate: Tensor, correction: Tensor) -> Tensor:
        """Return g for F and c of shape (B, N, width)."""
        return torch.sigmoid(self.logit).expand_as(correction)


class OpenGate(Gate):
    """g = 1."""

    def forward(self, estimate: Tensor, correction: Tensor) -> Tensor:
        """Return ones for F and c of shape (B, N, width)."""
        return torch.ones_like(correction)
