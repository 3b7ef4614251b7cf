"""The multi-token score rule and its special case talking heads: parameters, identity start, memory of past queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heedful.nn.score_rule import HeadLayout, LayerSizes, MapCost, PlainLayout, ScoreRule
from heedful.ops.backends import Situation
from heedful.ops.multi_token import CallSizes, PartSizes, multi_token_backends, multi_token_decode
from heedful.schema import check_choices


@dataclass(frozen=True, kw_only=True)
class MultiTokenRule(PlainLayout):
    """Key-query convolutions and head mixing of the attention map, as `heedful.ops.multi_token_attention`.

    Attributes:
        pre_convolution, post_convolution: a kernel per head before / after the softmax.
        query_kernel_size, key_kernel_size: c_q and c_k.
        pre_mixing, post_mixing: the number of consecutive heads c_h that are mixed before / after the softmax; "all"
            for one group of all heads, None for no mixing.
        key_query_mask: "double" or "exact", see the operation.
        convolution_every, convolution_offset: layer l carries the convolutions when l mod every = offset; a layer that
            stands alone (no layer index) carries them. Mixing is in every layer.
    """

    kind: Literal["multi-token"] = "multi-token"
    pre_convolution: bool = True
    post_convolution: bool = True
    query_kernel_size: int = 6
    key_kernel_size: int = 11
    pre_mixing: int | Literal["all"] | None = "all"
    post_mixing: int | Literal["all"] | None = "all"
    key_query_mask: Literal["double", "exact"] = "double"
    convolution_every: int = 4
    convolution_offset: int = 2

    def __post_init__(self) -> None:
        check_choices(self)
        if self.query_kernel_size < 1 or self.key_kernel_size < 1:
            raise ValueError(f"kernel sizes must be at least 1, got {self.query_kernel_size} x {self.key_kernel_size}.")
        if self.convolution_every < 1 or not 0 <= self.convolution_offset < self.convolution_every:
            raise ValueError(
                f"convolution_offset must lie in [0, convolution_every), got {self.convolution_offset} and "
                f"{self.convolution_every}; use every=1, offset=0 for all layers."
            )

    def layout(self, sizes: LayerSizes) -> HeadLayout:
        """Return the standard heads; the mixing groups must divide them."""
        self.group_size(self.pre_mixing, sizes.num_heads)
        self.group_size(self.post_mixing, sizes.num_heads)
        return super().layout(sizes)

    def convolves(self, layer_index: int | None) -> bool:
        """Return whether this layer carries the convolutions."""
        return layer_index is None or layer_index % self.convolution_every == self.convolution_offset

    def group_size(self, mixing: int | Literal["all"] | None, num_heads: int) -> int | None:
        """Return c_h of a mixing in a layer of `num_heads` heads; ValueError where it does not divide them."""
        size = num_heads if mixing == "all" else mixing
        if size is not None and (size < 1 or num_heads % size):
            raise ValueError(
                f"head mixing in groups of {size} needs a number of heads divisible by it, got {num_heads} heads."
            )
        return size

    def halo(self, layer_index: int | None) -> int:
        """Return how many past queries a new row needs: c_q - 1 for each convolution in use."""
        convolutions = int(self.pre_convolution) + int(self.post_convolution)
        return convolutions * (self.query_kernel_size - 1) if self.convolves(layer_index) else 0

    def build(self, sizes: LayerSizes) -> ScoreRule:
        """Return the module."""
        return MultiTokenScores(self, sizes)

    def backends(self, sizes: LayerSizes, situation: Situation, *, dropout_p: float) -> Mapping[str, str | None]:
        """Return the operation's backends."""
        kernel = (self.query_kernel_size, self.key_kernel_size) if self.convolves(sizes.layer_index) else None
        parts = PartSizes(
            kq_pre=kernel if self.pre_convolution else None,
            kq_post=kernel if self.post_convolution else None,
            head_pre=self.group_size(self.pre_mixing, sizes.num_heads),
            head_post=self.group_size(self.post_mixing, sizes.num_heads),
        )
        call = CallSizes(sizes.num_heads, sizes.num_kv_heads, sizes.head_dim, dropout_p)
        rows = min(situation.queries + self.halo(sizes.layer_index), situation.keys)  # past queries are read again
        return multi_token_backends(parts, call, situation._replace(queries=rows))

    def cost(self, sizes: LayerSizes) -> MapCost:
        """As standard, plus c_q c_k per convolution and c_h per mixing, for each head and pair."""
        extra = self.group_size(self.pre_mixing, sizes.num_heads) or 0
        extra += self.group_size(self.post_mixing, sizes.num_heads) or 0
        if self.convolves(sizes.layer_index):
            convolutions = int(self.pre_convolution) + int(self.post_convolution)
            extra += convolutions * self.query_kernel_size * self.key_kernel_size
        return MapCost(per_pair=sizes.num_heads * (2 * sizes.head_dim + extra), per_token=0)

    def memory_values(self, sizes: LayerSizes) -> int:
        """Keep the last rotated queries of all heads."""
        return self.halo(sizes.layer_index) * sizes.num_heads * sizes.head_dim


@dataclass(frozen=True, kw_only=True)
class TalkingHeadsRule(PlainLayout):
    """Dense mixing of all heads before and after the softmax, as `heedful.ops.talking_heads_attention`."""

    kind: Literal["talking-heads"] = "talking-heads"

    def _as_multi_token(self) -> MultiTokenRule:
        return MultiTokenRule(pre_convolution=False, post_convolution=False)

    def build(self, sizes: LayerSizes) -> ScoreRule:
        """Return the multi-token module with mixing alone."""
        return self._as_multi_token().build(sizes)

    def backends(self, sizes: LayerSizes, situation: Situation, *, dropout_p: float) -> Mapping[str, str | None]:
        """Return the operation's backends."""
        return self._as_multi_token().backends(sizes, situation, dropout_p=dropout_p)

    def cost(self, sizes: LayerSizes) -> MapCost:
        """As standard, plus two mixings of all heads."""
        return self._as_multi_token().cost(sizes)


class MultiTokenScores(ScoreRule):
    """Module of `MultiTokenRule`; every part starts as the identity, so that the layer starts as standard attention.

    Parameters (None where absent): kq_pre, kq_post (H, c_q, c_k); head_pre, head_post (H/c_h, c_h, c_h), [group, out,
    in]. They are not decayed by default: decay would pull kernels to zero, not to the identity. Its memory while
    decoding is the last `halo` rotated queries.
    """

    def __init__(self, rule: MultiTokenRule, sizes: LayerSizes) -> None:
        super().__init__()
        self.halo = rule.halo(sizes.layer_index)
        self.key_query_mask: Literal["double", "exact"] = rule.key_query_mask
        heads, convolves = sizes.num_heads, rule.convolves(sizes.layer_index)
        kernel = (heads, rule.query_kernel_size, rule.key_kernel_size)
        for name, present in (("kq_pre", rule.pre_convolution), ("kq_post", rule.post_convolution)):
            self.register_parameter(name, nn.Parameter(torch.empty(kernel)) if present and convolves else None)
        groups = (rule.group_size(rule.pre_mixing, heads), rule.group_size(rule.post_mixing, heads))
        for name, size in zip(("head_pre", "head_post"), groups, strict=True):
            shape = None if size is None else (heads // size, size, size)
            self.register_parameter(name, None if shape is None else nn.Parameter(torch.empty(shape)))
        self.set_initial_values()

    kq_pre: nn.Parameter | None
    kq_post: nn.Parameter | None
    head_pre: nn.Parameter | None
    head_post: nn.Parameter | None

    @torch.no_grad()
    def set_initial_values(self) -> None:
        """Make every part the identity."""
        identities = self.identity_values()
        for name, parameter in self.named_parameters(recurse=False):
            parameter.copy_(identities[name])

    def identity_values(self) -> dict[str, Tensor]:
        """Return new tensors with what each parameter is as the identity, by name, whole also where it is sharded."""
        values = {}
        for name, parameter in self.named_parameters(recurse=False):
            value = torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)
            if name.startswith("kq"):
                value[:, -1, (value.shape[-1] - 1) // 2] = 1.0
            else:
                value.diagonal(dim1=-2, dim2=-1).fill_(1.0)
            values[name] = value
        return values

    def parameters_without_decay(self) -> list[str]:
        """Return the names of the parameters which weight decay to zero must leave alone."""
        return [name for name, _ in self.named_parameters(recurse=False)]

    def observe(self, *inputs: Tensor) -> dict[str, Any]:
        """Return the kernels and mixing matrices as nested lists, in the shapes of the parameters."""
        return {name: parameter.tolist() for name, parameter in self.named_parameters(recurse=False)}

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
        """Attend; the memory is the last queries, which the convolutions read again."""
        output, kept = multi_token_decode(
            query,
            memory,
            key,
            value,
            kq_pre=self.kq_pre,
            kq_post=self.kq_post,
            head_pre=self.head_pre,
            head_post=self.head_post,
            key_query_mask=self.key_query_mask,
            keep=spare,
            **options,
        )
        return output, kept if self.halo else None
