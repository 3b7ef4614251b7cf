"""The four parts of multi-token attention as one value, and how far its convolutions reach.

Legend: H query heads, c_q x c_k kernel size, c_h heads of a mixing group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


class Parts(NamedTuple):
    """Parameters of the map's changes, None where a part is absent; shapes as in `multi_token_attention`."""

    kq_pre: Float[Tensor, "h cq ck"] | None = None
    kq_post: Float[Tensor, "h cq_post ck_post"] | None = None
    head_pre: Float[Tensor, "groups size size"] | None = None
    head_post: Float[Tensor, "groups_post size_post size_post"] | None = None

    def to(self, dtype: torch.dtype) -> Parts:
        """Return the parts in another type."""
        return Parts(*(None if part is None else part.to(dtype) for part in self))

    def gradient_sums(self, needed: Sequence[bool]) -> Parts:
        """Return zeros to sum the gradients of the needed parts into, None for the others."""
        return Parts(
            *(
                torch.zeros_like(part, memory_format=torch.contiguous_format) if part is not None and wanted else None
                for part, wanted in zip(self, needed, strict=True)
            )
        )

    @property
    def present(self) -> tuple[bool, bool, bool, bool]:
        """Which parts there are."""
        return (
            self.kq_pre is not None,
            self.kq_post is not None,
            self.head_pre is not None,
            self.head_post is not None,
        )


class Reach(NamedTuple):
    """How many earlier rows, earlier keys and later keys a convolution reads."""

    rows: int = 0
    left: int = 0
    right: int = 0

    @classmethod
    def of(cls, kernel: Tensor | None) -> Reach:
        """Return the reach of a kernel (H, c_q, c_k); none for None."""
        if kernel is None:
            return cls()
        return cls(kernel.shape[1] - 1, (kernel.shape[2] - 1) // 2, kernel.shape[2] // 2)
