"""The twicing score rule: attend, then attend to what the first pass missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from heedful.nn.score_rule import LayerSizes, MapCost, PlainLayout, ScoreRule
from heedful.ops.backends import Situation
from heedful.ops.twicing import twicing_backends, twicing_step


@dataclass(frozen=True, kw_only=True)
class TwicingRule(PlainLayout):
    """(2A - A^2) V in two passes, as `heedful.ops.twicing_attention`."""

    kind: Literal["twicing"] = "twicing"

    def build(self, sizes: LayerSizes) -> ScoreRule:
        """Return the module."""
        return TwicingScores()

    def backends(self, sizes: LayerSizes, situation: Situation, *, dropout_p: float) -> Mapping[str, str | None]:
        """Return the operation's backends."""
        return twicing_backends(dropout_p=dropout_p)

    def cost(self, sizes: LayerSizes) -> MapCost:
        """One product for the scores, two for the values (the map need not be computed twice)."""
        return MapCost(per_pair=3 * sizes.num_heads * sizes.head_dim, per_token=0)

    def memory_values_per_token(self, sizes: LayerSizes) -> int:
        """Keep the corrected values, one stream per query head."""
        return sizes.num_heads * sizes.head_dim


class TwicingScores(ScoreRule):
    """Module of `TwicingRule`; its memory is the corrected values of all positions, (B, H, M, d_v)."""

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
        """Attend twice; see `ScoreRule.forward`."""
        return twicing_step(query, key, value, past_corrected=memory, **options)
