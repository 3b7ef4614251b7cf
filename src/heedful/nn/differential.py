"""The differential score rules, versions 1 and 2; the head norm of version 1 belongs to the layer's head output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heedful.nn.score_rule import HeadLayout, LayerSizes, MapCost, PlainLayout, ScoreRule
from heedful.ops.backends import Situation
from heedful.ops.differential import differential_attention, differential_attention_v2, differential_backends
from heedful.ops.shapes import compute_dtype


def depth_lambda(layer_index: int | None) -> float:
    """Return lambda_init = 0.8 - 0.6 exp(-0.3 l) of layer l, counted from 0; a layer that stands alone counts as 0."""
    return 0.8 - 0.6 * math.exp(-0.3 * (layer_index or 0))


@dataclass(frozen=True, kw_only=True)
class DifferentialRule(PlainLayout):
    """A1 - lambda A2 with values of doubled width, as `heedful.ops.differential_attention`.

    The layer's `num_heads` counts the sub-heads, so that the projections have the standard sizes: num_heads / 2 heads
    come out, each 2 head_dim wide. The published layer also needs a head norm with depth scale (the preset has it).
    """

    kind: Literal["differential"] = "differential"

    def layout(self, sizes: LayerSizes) -> HeadLayout:
        """Pair the heads; both counts must be even."""
        if sizes.num_heads % 2 or sizes.num_kv_heads % 2:
            raise ValueError(
                f"differential attention pairs heads: num_heads and num_kv_heads must be even, got {sizes.num_heads} "
                f"and {sizes.num_kv_heads}."
            )
        return HeadLayout(
            sizes.num_heads,
            sizes.num_kv_heads,
            sizes.num_kv_heads // 2,
            2 * sizes.head_dim,
            sizes.num_heads // 2,
        )

    def build(self, sizes: LayerSizes) -> ScoreRule:
        """Return the module."""
        return DifferentialScores(sizes.head_dim, depth_lambda(sizes.layer_index))

    def backends(self, sizes: LayerSizes, situation: Situation, *, dropout_p: float) -> Mapping[str, str | None]:
        """Return the operation's backends."""
        return differential_backends(dropout_p=dropout_p)

    def cost(self, sizes: LayerSizes) -> MapCost:
        """As standard: the maps are subtracted before one product with values of doubled width."""
        return MapCost(per_pair=2 * sizes.num_heads * sizes.head_dim, per_token=0)


class DifferentialScores(ScoreRule):
    """Module of `DifferentialRule`: lambda = exp(lq1 . lk1) - exp(lq2 . lk2) + lambda_init, one for all heads."""

    def __init__(self, head_dim: int, lambda_init: float) -> None:
        super().__init__()
        self.lambda_init = lambda_init
        self.lambda_q1 = nn.Parameter(torch.empty(head_dim))
        self.lambda_k1 = nn.Parameter(torch.empty(head_dim))
        self.lambda_q2 = nn.Parameter(torch.empty(head_dim))
        self.lambda_k2 = nn.Parameter(torch.empty(head_dim))
        self.set_initial_values()

    def set_initial_values(self) -> None:
        """Draw the four vectors from N(0, 0.1^2), so that lambda starts close to lambda_init."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)

    def factor(self) -> Tensor:
        """Return lambda as a number; it may leave [0, 1]."""
        wide = compute_dtype(self.lambda_q1.dtype)
        first = torch.exp(self.lambda_q1.to(wide) @ self.lambda_k1.to(wide))
        second = torch.exp(self.lambda_q2.to(wide) @ self.lambda_k2.to(wide))
        return first - second + self.lambda_init

    def observe(self, *inputs: Tensor) -> dict[str, Any]:
        """Return lambda."""
        return {"lambda": float(self.factor())}

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        source: Tensor,
        memory: Tensor | None,
        spare: int,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the difference of the maps; see `ScoreRule.forward`."""
        return differential_attention(query, key, value, self.factor(), **options), None


@dataclass(frozen=True, kw_only=True)
class DifferentialV2Rule(PlainLayout):
    """Twice the query heads, neighbours subtracted with a factor per token, `heedful.ops.differential_attention_v2`."""

    kind: Literal["differential-v2"] = "differential-v2"

    def layout(self, sizes: LayerSizes) -> HeadLayout:
        """Double the query heads only."""
        return HeadLayout(2 * sizes.num_heads, sizes.num_kv_heads, sizes.num_kv_heads, sizes.head_dim, sizes.num_heads)

    def build(self, sizes: LayerSizes) -> ScoreRule:
        """Return the module."""
        return DifferentialV2Scores(sizes.hidden_size, sizes.num_heads)

    def backends(self, sizes: LayerSizes, situation: Situation, *, dropout_p: float) -> Mapping[str, str | None]:
        """Return the operation's backends."""
        return differential_backends(dropout_p=dropout_p)

    def cost(self, sizes: LayerSizes) -> MapCost:
        """Twice the heads, and the projection of the factors."""
        return MapCost(per_pair=4 * sizes.num_heads * sizes.head_dim, per_token=sizes.hidden_size * sizes.num_heads)


class DifferentialV2Scores(ScoreRule):
    """Module of `DifferentialV2Rule`: the factor of a head and token is sigmoid(x W_lambda)."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.lambda_proj = nn.Linear(hidden_size, num_heads, bias=False)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        source: Tensor,
        memory: Tensor | None,
        spare: int,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend and subtract neighbours; see `ScoreRule.forward`."""
        factor_logits = self.lambda_proj(source).transpose(1, 2)
        return differential_attention_v2(query, key, value, factor_logits, **options), None
