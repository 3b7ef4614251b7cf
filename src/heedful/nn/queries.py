"""Query maps: how queries come from the layer's input. Linear, identity, or nonlinear (arXiv 2603.13381).

All maps act on the last dimension, (B, N, hidden_size) -> (B, N, width) with width = query heads x head_dim, and head i
takes slice i. The factor `gain` multiplies the finished query; the papers' 1/2 is such a gain and never hides in the
attention scale. (A norm on the queries after this map removes any gain.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heedful.nn.norms import SpanNorm
from heedful.schema import check_choices

AnchorFit = Literal["exact", "slice", "tile"]


@dataclass(frozen=True, kw_only=True)
class LinearQuery:
    """Q = gain (x W_Q), or gain (x + x W_Q) with anchor "identity".

    Attributes:
        anchor: "none", or "identity" to add the input itself.
        gain: factor on the query.
        anchor_fit: as in `IdentityQuery`; used with anchor "identity" only.
    """

    kind: Literal["linear"] = "linear"
    anchor: Literal["none", "identity"] = "none"
    gain: float = 1.0
    anchor_fit: AnchorFit = "exact"

    def __post_init__(self) -> None:
        check_choices(self)

    def check(self, hidden_size: int, width: int) -> None:
        """Refuse widths that the anchor does not fit."""
        if self.anchor == "identity":
            check_anchor(hidden_size, width, self.anchor_fit)

    def build(self, hidden_size: int, width: int, head_dim: int, *, bias: bool) -> QueryMap:
        """Return the module."""
        return LinearQueryMap(self, hidden_size, width, bias=bias)

    def multiply_adds(self, hidden_size: int, width: int) -> int:
        """Return multiply-adds per token."""
        return hidden_size * width


@dataclass(frozen=True, kw_only=True)
class IdentityQuery:
    """Q = gain x: no parameters.

    Attributes:
        gain: factor on the query; 1/2 in the published models that are trained with it.
        anchor_fit: what to do where query heads x head_dim differs from hidden_size: "exact" refuses, "slice" takes the
            first entries of a larger input, "tile" repeats a smaller input (entry i is x[i mod hidden_size]).
    """

    kind: Literal["identity"] = "identity"
    gain: float = 0.5
    anchor_fit: AnchorFit = "exact"

    def __post_init__(self) -> None:
        check_choices(self)

    def check(self, hidden_size: int, width: int) -> None:
        """Refuse widths that the anchor does not fit."""
        check_anchor(hidden_size, width, self.anchor_fit)

    def build(self, hidden_size: int, width: int, head_dim: int, *, bias: bool) -> QueryMap:
        """Return the module."""
        return IdentityQueryMap(self, width)

    def multiply_adds(self, hidden_size: int, width: int) -> int:
        """Return multiply-adds per token."""
        return 0


@dataclass(frozen=True, kw_only=True)
class NonlinearQuery:
    """Q = gain (anchor(x) + f(x)),  f(x) = norm_out(activation(norm_in(x) W_1) W_2).

    Attributes:
        bottleneck: r, the width between W_1 and W_2; None takes r = d w / (d + w) for input width d and query width w,
            rounded, with which f has as many weights as W_Q (d/2 where w = d).
        activation: "gelu" (exact), "silu", "relu", "relu-squared", or "none" for the control, which keeps everything
            else.
        input_norm: "rms", "layer" or "none", over all of x, with a learned gain.
        output_norm: "layer", "rms" or "none", with a learned gain of the query's width.
        output_norm_scope: "full" normalises over the whole query, "head" over each head's slice.
        anchor: "identity" (x), "linear" (x W_Q) or "none".
        gain: factor on the sum; the published 1/2.
        anchor_fit: as in `IdentityQuery`; used with anchor "identity" only.
        output_gain_start: initial gain of the output norm; 0 makes f = 0 at the start, so that with anchor "linear" and
            gain 1 a model begins as the one whose W_Q it took over. The gain itself then learns first.
    """

    kind: Literal["nonlinear"] = "nonlinear"
    bottleneck: int | None = None
    activation: Literal["gelu", "silu", "relu", "relu-squared", "none"] = "gelu"
    input_norm: Literal["rms", "layer", "none"] = "rms"
    output_norm: Literal["layer", "rms", "none"] = "layer"
    output_norm_scope: Literal["full", "head"] = "full"
    anchor: Literal["identity", "linear", "none"] = "identity"
    gain: float = 0.5
    anchor_fit: AnchorFit = "exact"
    output_gain_start: float = 1.0

    def __post_init__(self) -> None:
        check_choices(self)
        if self.bottleneck is not None and self.bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1 or None, got {self.bottleneck}.")
        if self.output_norm == "none" and self.output_gain_start != 1.0:
            raise ValueError(
                f"output_gain_start = {self.output_gain_start} is the gain of the output norm, but output_norm is "
                f"'none'; choose a norm."
            )

    def bottleneck_size(self, hidden_size: int, width: int) -> int:
        """Return r for these sizes."""
        return self.bottleneck or max(1, round(hidden_size * width / (hidden_size + width)))

    def check(self, hidden_size: int, width: int) -> None:
        """Refuse widths that the anchor does not fit."""
        if self.anchor == "identity":
            check_anchor(hidden_size, width, self.anchor_fit)

    def build(self, hidden_size: int, width: int, head_dim: int, *, bias: bool) -> QueryMap:
        """Return the module."""
        return NonlinearQueryMap(self, hidden_size, width, head_dim, bias=bias)

    def multiply_adds(self, hidden_size: int, width: int) -> int:
        """Return multiply-adds per token."""
        anchor = hidden_size * width if self.anchor == "linear" else 0
        return anchor + self.bottleneck_size(hidden_size, width) * (hidden_size + width)


def check_anchor(hidden_size: int, width: int, fit: AnchorFit) -> None:
    """Refuse an identity anchor between different widths, unless the user chose a rule that does something.

    Raises:
        ValueError: the widths differ under "exact", or the rule does not apply to them.
    """
    if fit == "exact" and width != hidden_size:
        raise ValueError(
            f"the identity needs query heads * head_dim = hidden_size, got {width} and {hidden_size}; choose "
            f"anchor_fit={'slice' if width < hidden_size else 'tile'!r}, or anchor 'linear' or 'none'."
        )
    if (fit == "slice" and width > hidden_size) or (fit == "tile" and width < hidden_size):
        other = "tile" if fit == "slice" else "slice"
        raise ValueError(
            f"anchor_fit={fit!r} does not fit query width {width} and hidden_size {hidden_size}; use {other!r}."
        )


class QueryMap(nn.Module):
    """Base of the query maps' modules: (B, N, hidden_size) -> (B, N, width)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the queries of all heads, concatenated."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")


class LinearQueryMap(QueryMap):
    """Module of `LinearQuery`."""

    def __init__(self, config: LinearQuery, hidden_size: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.adds_input = config.anchor == "identity"
        self.gain = config.gain
        self.q_proj = nn.Linear(hidden_size, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return gain (x W_Q [+ x])."""
        query = self.q_proj(x)
        if self.adds_input:
            query = query + fit_anchor(x, query.shape[-1])
        return query if self.gain == 1.0 else self.gain * query


class IdentityQueryMap(QueryMap):
    """Module of `IdentityQuery`."""

    def __init__(self, config: IdentityQuery, width: int) -> None:
        super().__init__()
        self.gain, self.width = config.gain, width

    def forward(self, x: Tensor) -> Tensor:
        """Return gain x."""
        query = fit_anchor(x, self.width)
        return query if self.gain == 1.0 else self.gain * query


class NonlinearQueryMap(QueryMap):
    """Module of `NonlinearQuery`."""

    def __init__(self, config: NonlinearQuery, hidden_size: int, width: int, head_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.anchor, self.gain, self.width = config.anchor, config.gain, width
        inner = config.bottleneck_size(hidden_size, width)
        self.input_norm = _norm(config.input_norm, hidden_size, hidden_size, bias=bias)
        self.down_proj = nn.Linear(hidden_size, inner, bias=bias)
        self.activation = config.activation
        self.up_proj = nn.Linear(inner, width, bias=bias)
        span = head_dim if config.output_norm_scope == "head" else width
        self.output_norm = _norm(config.output_norm, width, span, bias=bias, gain_start=config.output_gain_start)
        self.q_proj = nn.Linear(hidden_size, width, bias=bias) if config.anchor == "linear" else None

    def correction(self, x: Tensor) -> Tensor:
        """Return f(x), (B, N, width)."""
        return self.output_norm(self.up_proj(_activate(self.down_proj(self.input_norm(x)), self.activation)))

    def anchor_query(self, x: Tensor) -> Tensor | None:
        """Return anchor(x), (B, N, width), or None without an anchor."""
        if self.q_proj is not None:
            return self.q_proj(x)
        return fit_anchor(x, self.width) if self.anchor == "identity" else None

    def forward(self, x: Tensor) -> Tensor:
        """Return gain (anchor(x) + f(x))."""
        query, anchor = self.correction(x), self.anchor_query(x)
        if anchor is not None:
            query = query + anchor
        return query if self.gain == 1.0 else self.gain * query

    def observe(self, x: Tensor) -> dict[str, Any]:
        """Return how large f(x) is beside the anchor: the ratio of their norms over all tokens of x."""
        anchor = self.anchor_query(x)
        return {} if anchor is None else {"nonlinear_ratio": float(self.correction(x).norm() / anchor.norm())}


def fit_anchor(x: Tensor, width: int) -> Tensor:
    """Return x cut or tiled to `width` entries; `check_anchor` has made sure that this was asked for."""
    if x.shape[-1] < width:
        return x[..., torch.arange(width, device=x.device) % x.shape[-1]]
    return x[..., :width]


def _norm(
    kind: Literal["rms", "layer", "none"], width: int, span: int, *, bias: bool, gain_start: float = 1.0
) -> nn.Module:
    return nn.Identity() if kind == "none" else SpanNorm(kind, width, span, bias=bias, gain_start=gain_start)


def _activate(x: Tensor, name: str) -> Tensor:
    if name == "none":
        return x
    if name == "relu-squared":
        return torch.relu(x).square()
    return getattr(nn.functional, name)(x)
