"""What an attention layer must remember between calls, and nothing more.

States are immutable values: a call takes one and returns the next, so a caller can keep an old one and go back to it.
Going back into the middle of a call, as when some of several drafted tokens are rejected, is `rollback`; a state must
be made for it, since convolutions over queries then need earlier queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

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

    def __iter__(self) -> Iterator[Tensor | None]:
        """Yield key, value and memory."""
        return iter((self.key, self.value, self.memory))

    def map(self, function: Callable[[Tensor], Tensor]) -> RoundState:
        """Return the memory with every tensor replaced by what `function` makes of it."""
        tensors = {"key": self.key, "value": self.value, "memory": self.memory}
        return RoundState(**{name: None if one is None else function(one) for name, one in tensors.items()})

    def without_last(self, tokens: int) -> RoundState:
        """Return the memory without the last positions; every part of it ends with the newest position."""
        return self.map(lambda tensor: tensor[:, :, : max(tensor.shape[2] - tokens, 0)])


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionState:
    """The memory of one attention layer.

    Attributes:
        rounds: one `RoundState` per boosting round.
        spare: by how many tokens the state after each call can go back.
        taken_back: by how many of these it has gone back already, new tokens made good again.
    """

    rounds: tuple[RoundState, ...]
    spare: int = 0
    taken_back: int = 0

    @classmethod
    def empty(cls, rounds: int, *, spare: int = 0) -> AttentionState:
        """Return the state before the first token; ValueError for a negative `spare`."""
        if spare < 0:
            raise ValueError(f"a state can go back by 0 or more tokens, got {spare}.")
        return cls(rounds=(RoundState(),) * rounds, spare=spare)

    def after(self, rounds: tuple[RoundState, ...], tokens: int) -> AttentionState:
        """Return the state after a call on so many tokens, with the memories that it gave."""
        return AttentionState(rounds=rounds, spare=self.spare, taken_back=max(self.taken_back - tokens, 0))

    def map(self, function: Callable[[Tensor], Tensor]) -> AttentionState:
        """Return the state with every tensor replaced, as when rows of a batch are chosen or moved to a device."""
        return replace(self, rounds=tuple(memory.map(function) for memory in self.rounds))

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> AttentionState:
        """Return the state with its tensors on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def rollback(self, tokens: int) -> AttentionState:
        """Return the state as it was `tokens` tokens earlier.

        After going back by k the state can go back by k fewer, until k new tokens have followed.

        Raises:
            ValueError: more tokens than the state was made for, or than there are.
        """
        room = min(self.spare - self.taken_back, self.length)
        if not 0 <= tokens <= room:
            raise ValueError(
                f"this state can go back by 0 to {room} tokens, got {tokens}; it holds {self.length} tokens and was "
                f"made with empty_state(rollback={self.spare})."
            )
        rounds = tuple(memory.without_last(tokens) for memory in self.rounds)
        return replace(self, rounds=rounds, taken_back=self.taken_back + tokens)

    @property
    def length(self) -> int:
        """The number of positions seen so far."""
        key = self.rounds[0].key
        return 0 if key is None else key.shape[2]

    def nbytes(self) -> int:
        """Return the bytes held, for all batch rows."""
        tensors = (tensor for memory in self.rounds for tensor in memory if tensor is not None)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
