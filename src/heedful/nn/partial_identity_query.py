"""The partial identity query: the stream itself for the first heads, a linear map for the rest.

    q = gain [x, x W_rest]

A trained W_Q that is wider than the stream cannot vanish altogether: a change of basis turns d of its columns into the
identity, and the remaining columns stay (`heedful.convert.queries`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from heedful.nn.queries import QueryMap


@dataclass(frozen=True, kw_only=True)
class PartialIdentityQuery:
    """Q = gain [x, x W_rest], for query heads that are together wider than the layer's input.

    Attributes:
        gain: factor on the query.
    """

    kind: Literal["partial-identity"] = "partial-identity"
    gain: float = 1.0

    def check(self, hidden_size: int, width: int) -> None:
        """Refuse a query that is not wider than the input.

        Raises:
            ValueError: width <= hidden_size, where nothing would be left for W_rest.
        """
        if width <= hidden_size:
            raise ValueError(
                f"a partial identity query needs query heads * head_dim above hidden_size, got {width} and "
                f"{hidden_size}; use IdentityQuery with anchor_fit 'exact' or 'slice'."
            )

    def build(self, hidden_size: int, width: int, head_dim: int, *, bias: bool) -> QueryMap:
        """Return the module."""
        return PartialIdentityQueryMap(self, hidden_size, width, bias=bias)

    def multiply_adds(self, hidden_size: int, width: int) -> int:
        """Return multiply-adds per token."""
        return hidden_size * (width - hidden_size)


class PartialIdentityQueryMap(QueryMap):
    """Module of `PartialIdentityQuery`; its one linear map is `rest_proj`."""

    def __init__(self, config: PartialIdentityQuery, hidden_size: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.gain = config.gain
        self.rest_proj = nn.Linear(hidden_size, width - hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return gain [x, x W_rest]."""
        rest = self.rest_proj(x)
        query = torch.cat([x.to(rest.dtype), rest], dim=-1)  # under autocast the projection rounds and x does not
        return query if self.gain == 1.0 else self.gain * query
