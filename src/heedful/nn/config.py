"""`AttentionConfig`: everything about one attention layer in one frozen value.

Each mechanism's own section lives in its own file; this file puts them together and refuses what contradicts itself.
The `repr` of a configuration rebuilds it, and `heedful.schema` turns it into plain mappings and back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from heedful.nn.annealed_query import AnnealedQuery
from heedful.nn.boosting import Boosting
from heedful.nn.differential import DifferentialRule, DifferentialV2Rule
from heedful.nn.head_output import BlendedHeadOutput, HeadOutput
from heedful.nn.multi_token import MultiTokenRule, TalkingHeadsRule
from heedful.nn.partial_identity_query import PartialIdentityQuery
from heedful.nn.queries import IdentityQuery, LinearQuery, NonlinearQuery
from heedful.nn.rotary import Rotary
from heedful.nn.score_rule import HeadLayout, LayerSizes
from heedful.nn.standard import StandardRule
from heedful.nn.twicing import TwicingRule
from heedful.ops.backends import Choice, Situation, choose_backend

QueryConfig = LinearQuery | IdentityQuery | PartialIdentityQuery | NonlinearQuery | AnnealedQuery
RuleConfig = StandardRule | TwicingRule | DifferentialRule | DifferentialV2Rule | TalkingHeadsRule | MultiTokenRule


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """One attention layer: query map -> rounds of (project, score rule, read out) -> head output -> output projection.

    Attributes:
        hidden_size: width of the layer's input and output.
        num_heads: heads H of the corresponding standard layer.
        num_kv_heads: key/value heads, dividing num_heads; None for num_heads.
        head_dim: width of a head; None for hidden_size / num_heads.
        query: the query map.
        rule: the score rule.
        boosting: further rounds; None for one round.
        head_output: norm, depth scale and gate of the heads; None for none.
        rotary: rotary positions; None for none.
        qk_norm: RMSNorm over each query and key head, with one learned gain vector each, before the rotation. It also
            removes the query map's gain.
        bias: biases of the query, key, value and output projections and of a nonlinear query.
        output_bias: bias of the output projection alone; None for the same as `bias`.
        dropout: probability of dropping an attention weight in training.
        window: sliding window in tokens, the token itself included; None for none.
        is_causal: hide later keys.
        scale: factor on the scores; None for 1/sqrt(head_dim), whatever the query map.
        norm_eps: epsilon of the query-key and head norms.
        layer_index: position in a model, from 0; None for a layer that stands alone. Depth scales and the choice of the
            layers with convolutions depend on it.
        backend: "auto" or a backend of `heedful.ops`.

    Raises:
        ValueError: sizes that do not divide, or sections that contradict each other, with the reason.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    query: QueryConfig = field(default_factory=LinearQuery)
    rule: RuleConfig = field(default_factory=StandardRule)
    boosting: Boosting | None = None
    head_output: HeadOutput | BlendedHeadOutput | None = None
    rotary: Rotary | None = None
    qk_norm: bool = False
    bias: bool = False
    output_bias: bool | None = None
    dropout: float = 0.0
    window: int | None = None
    is_causal: bool = True
    scale: float | None = None
    norm_eps: float = 1e-5
    layer_index: int | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "window"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads must divide hidden_size, got {self.num_heads} and {self.hidden_size}; change one or "
                f"give head_dim."
            )
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads, got {self.num_kv_heads} and {self.num_heads}.")
        if not 0.0 <= self.norm_eps < float("inf"):
            raise ValueError(f"norm_eps must be at least 0 and finite, got {self.norm_eps}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")
        if self.rotary is not None and self.sizes.head_dim % 2:
            raise ValueError(
                f"rotary positions turn pairs of features: head_dim must be even, got {self.sizes.head_dim}."
            )
        self.query.check(self.hidden_size, self.query_width)
        if self.rounds > 1 and self.heads_width != self.hidden_size:
            raise ValueError(
                f"boosting subtracts the heads from the layer's input, so num_heads * head_dim must be hidden_size; "
                f"got "
                f"{self.heads_width} and {self.hidden_size}."
            )
        self.choose_backend(Situation(device=None), training=True)

    @property
    def sizes(self) -> LayerSizes:
        """The sizes with all defaults resolved."""
        return LayerSizes(
            self.hidden_size,
            self.num_heads,
            self.num_kv_heads or self.num_heads,
            self.head_dim or self.hidden_size // self.num_heads,
            self.layer_index,
        )

    @property
    def heads(self) -> HeadLayout:
        """The heads that the score rule reads and writes."""
        return self.rule.layout(self.sizes)

    @property
    def rounds(self) -> int:
        """The number of attention rounds."""
        return 1 if self.boosting is None else self.boosting.rounds

    @property
    def query_width(self) -> int:
        """The width of all query heads together."""
        return self.heads.query_heads * self.sizes.head_dim

    @property
    def heads_width(self) -> int:
        """The width of all output heads together, which the output projection reads."""
        return self.heads.output_heads * self.heads.value_dim

    def for_layer(self, layer_index: int) -> AttentionConfig:
        """Return this configuration at a place in a model."""
        return replace(self, layer_index=layer_index)

    def choose_backend(self, situation: Situation | None = None, *, training: bool = False) -> Choice:
        """Return the backend that a call takes and why; ValueError where the request cannot be obeyed."""
        situation = Situation() if situation is None else situation
        situation = situation._replace(masked=situation.masked or self.window is not None)
        candidates = self.rule.backends(self.sizes, situation, dropout_p=self.dropout if training else 0.0)
        return choose_backend(self.rule.kind, self.backend, candidates)
