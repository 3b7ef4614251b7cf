"""The standard score rule: one softmax average per head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from heedful.nn.score_rule import LayerSizes, MapCost, PlainLayout, ScoreRule
from heedful.ops.backends import Situation
from heedful.ops.standard import standard_attention, standard_backends


@dataclass(frozen=True, kw_only=True)
class StandardRule(PlainLayout):
    """softmax(mask(scale Q K^T)) V, as `heedful.ops.standard_attention`."""

    kind: Literal["standard"] = "standard"

    def build(self, sizes: LayerSizes) -> ScoreRule:
        """Return the module."""
        return StandardScores()

    def backends(self, sizes: LayerSizes, situation: Situation, *, dropout_p: float) -> Mapping[str, str | None]:
        """Return the operation's backends."""
        return standard_backends(dropout_p=dropout_p)

    def cost(self, sizes: LayerSizes) -> MapCost:
        """One product for the scores, one for the values."""
        return MapCost(per_pair=2 * sizes.num_heads * sizes.head_dim, per_token=0)


class StandardScores(ScoreRule):
    """Module of `StandardRule`; it has no parameters and no memory."""

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
        """Attend; see `ScoreRule.forward`."""
        return standard_attention(query, key, value, **options), None
