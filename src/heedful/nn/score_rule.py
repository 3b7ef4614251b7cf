"""What every score rule is: the seam between a layer and its mechanism.

A score rule turns projected queries, keys and values into head outputs. It owns its parameters, its full computation
and its step-by-step computation with the memory that this needs. `Attention` never asks which rule it holds; a new
mechanism is a new pair of classes like those in `standard.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor, nn

from heedful.ops.backends import Situation
from heedful.ops.masks import AttentionMask

if TYPE_CHECKING:
    from jaxtyping import Float


class HeadLayout(NamedTuple):
    """How many heads of which width a score rule reads and writes, for a layer of `num_heads` standard heads."""

    query_heads: int
    key_heads: int
    value_heads: int
    value_dim: int
    output_heads: int


class LayerSizes(NamedTuple):
    """The sizes of the layer that a rule is built for; `layer_index` is None for a layer that stands alone."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layer_index: int | None


class MapCost(NamedTuple):
    """Multiply-adds of a score rule: for each (query, key) pair that is computed, and for each token besides."""

    per_pair: int
    per_token: int


class ScoreRule(nn.Module):
    """Base of the score rules' modules."""

    def forward(
        self,
        query: Float[Tensor, "b hq n d"],
        key: Float[Tensor, "b hk m d"],
        value: Float[Tensor, "b hv m dv"],
        *,
        source: Float[Tensor, "b n hidden"],
        memory: Tensor | None,
        spare: int,
        mask: AttentionMask,
        is_causal: bool,
        scale: float | None,
        dropout_p: float,
        backend: str,
    ) -> tuple[Float[Tensor, "b ho n dv"], Tensor | None]:
        """Return the head outputs of the N new positions and the memory for the next call.

        Args:
            query: rotated queries of the N new positions.
            key, value: of all M positions, cached ones first.
            source: what the queries were projected from.
            memory: what the last call returned; None at the start, and always None when nothing is cached.
            spare: by how many tokens the caller may go back before the next call; it then drops the last entries of the
                memory's third dimension.
            mask, is_causal, scale, dropout_p, backend: as in `heedful.ops`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")


class ScoreRuleConfig(Protocol):
    """What the frozen dataclass of a score rule offers."""

    @property
    def kind(self) -> str:
        """The rule's name in configuration files."""
        ...

    def layout(self, sizes: LayerSizes) -> HeadLayout:
        """Return the heads that the rule reads and writes; ValueError where the sizes do not allow it."""
        ...

    def build(self, sizes: LayerSizes) -> ScoreRule:
        """Return a new module."""
        ...

    def backends(self, sizes: LayerSizes, situation: Situation, *, dropout_p: float) -> Mapping[str, str | None]:
        """Return the backends of this rule in this layer, as `heedful.ops.backends` describes them."""
        ...

    def cost(self, sizes: LayerSizes) -> MapCost:
        """Return the multiply-adds of the rule (scores, changes of the map, reading the values)."""
        ...

    def memory_values_per_token(self, sizes: LayerSizes) -> int:
        """Return how many numbers per position the rule caches besides keys and values."""
        ...

    def memory_values(self, sizes: LayerSizes) -> int:
        """Return how many numbers the rule caches whatever the length."""
        ...


class PlainLayout:
    """The layout of every rule that reads and writes the standard heads."""

    def layout(self, sizes: LayerSizes) -> HeadLayout:
        """Return the standard heads."""
        return HeadLayout(sizes.num_heads, sizes.num_kv_heads, sizes.num_kv_heads, sizes.head_dim, sizes.num_heads)

    def memory_values_per_token(self, sizes: LayerSizes) -> int:
        """Keep nothing besides keys and values."""
        return 0

    def memory_values(self, sizes: LayerSizes) -> int:
        """Keep nothing besides keys and values."""
        return 0
