"""What an attention layer must remember between calls, and nothing more.

States are immutable values: a call takes one and returns the next, so a caller can keep an old one and go back to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundState:
    """The memory of one attention round.

    Attributes:
        key, value: (batch, key heads, length, head_dim) and (batch, value heads, length, value_dim) of all positions so
            far, positions already rotated into the keys.
        memory: what the score rule keeps besides: the last rotated queries (multi-token convolutions), the corrected
            values (twicing), or None.
    """

    key: Tensor | None = None
    value: Tensor | None = None
    memory: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all positions, the new ones last."""
        if self.key is None or self.value is None:
            return key, value
        return torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionState:
    """The memory of one attention layer: one `RoundState` per boosting round."""

    rounds: tuple[RoundState, ...]

    @classmethod
    def empty(cls, rounds: int) -> AttentionState:
        """Return the state before the first token."""
        return cls(rounds=(RoundState(),) * rounds)

    @property
    def length(self) -> int:
        """The number of positions seen so far."""
        key = self.rounds[0].key
        return 0 if key is None else key.shape[2]

    def nbytes(self) -> int:
        """Return the bytes held, for all batch rows."""
        tensors = (tensor for r in self.rounds for tensor in (r.key, r.value, r.memory) if tensor is not None)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
