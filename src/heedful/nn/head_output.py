"""What happens to each head's output before the output projection: norm, depth scale, gate.

    y_h <- RMSNorm(y_h),   y_h <- (1 - lambda_init) y_h,   y_h <- sigmoid(w . y_h + b) y_h

The norm's gains and the gate are shared by all heads of the layer, as in multi-token attention (arXiv 2504.00927); the
norm with the depth scale is also that of differential attention (arXiv 2410.05258).

A layer that takes over trained weights needs a form which starts as the identity and can become the above:

    y_h <- y_h + s (RMSNorm(y_h) - y_h), s = 0 at the start,   y_h <- 2 sigmoid(w . y_h + b) y_h, w = b = 0 at the start
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heedful.nn.differential import depth_lambda
from heedful.nn.norms import RMSNorm
from heedful.schema import check_choices


@dataclass(frozen=True, kw_only=True)
class HeadOutput:
    """Which steps a layer applies to its heads; all off is the plain layer.

    Attributes:
        norm: RMSNorm over the channels of each head, eps as the layer's, computed in float32.
        depth_scale: multiply by 1 - lambda_init, lambda_init = 0.8 - 0.6 exp(-0.3 l) for layer l counted from 0.
        gate: "scalar" (one gate per token and head), "elementwise" (one per channel), or "none".
    """

    kind: Literal["published"] = "published"
    norm: bool = True
    depth_scale: bool = False
    gate: Literal["none", "scalar", "elementwise"] = "none"

    def __post_init__(self) -> None:
        check_choices(self)
        if self.depth_scale and self.gate != "none":
            raise ValueError("depth_scale and gate are alternatives in the published models; choose one of them.")

    def build(self, width: int, layer_index: int | None, eps: float) -> nn.Module:
        """Return the module for heads of `width` channels."""
        return HeadOutputSteps(self, width, layer_index, eps)


@dataclass(frozen=True, kw_only=True)
class BlendedHeadOutput:
    """Norm and gate of the heads in the form that starts as the identity; for weights that were trained without them.

    Attributes:
        norm: blend in the RMSNorm by a learned share s of the layer.
        gate: "scalar" (one gate per token and head), "elementwise" (one per channel), or "none"; 1 at the start.
    """

    kind: Literal["blended"] = "blended"
    norm: bool = True
    gate: Literal["none", "scalar", "elementwise"] = "scalar"

    def __post_init__(self) -> None:
        check_choices(self)

    def build(self, width: int, layer_index: int | None, eps: float) -> nn.Module:
        """Return the module for heads of `width` channels."""
        return BlendedHeadOutputSteps(self, width, eps)


class HeadOutputSteps(nn.Module):
    """Module of `HeadOutput` for heads of `width` channels: (B, N, heads, width) -> the same shape."""

    def __init__(self, config: HeadOutput, width: int, layer_index: int | None, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=eps) if config.norm else None
        self.scale = 1.0 - depth_lambda(layer_index) if config.depth_scale else 1.0
        self.gate = None
        if config.gate != "none":
            self.gate = nn.Linear(width, 1 if config.gate == "scalar" else width)
            nn.init.zeros_(self.gate.bias)

    def observe(self, heads: Tensor) -> dict[str, Any]:
        """Return the mean gate over tokens, heads and channels."""
        if self.gate is None:
            return {}
        normed = heads if self.norm is None else self.norm(heads)
        return {"head_gate_mean": float(torch.sigmoid(self.gate(normed * self.scale)).mean())}

    def forward(self, heads: Tensor) -> Tensor:
        """Apply the steps in the order norm, depth scale, gate."""
        if self.norm is not None:
            heads = self.norm(heads)
        if self.scale != 1.0:
            heads = heads * self.scale
        if self.gate is not None:
            heads = heads * torch.sigmoid(self.gate(heads))
        return heads


class BlendedHeadOutputSteps(nn.Module):
    """Module of `BlendedHeadOutput` for heads of `width` channels: (B, N, heads, width) -> the same shape."""

    def __init__(self, config: BlendedHeadOutput, width: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=eps) if config.norm else None
        # Of one dimension, since parameters of none cannot be sharded.
        self.share = nn.Parameter(torch.zeros(1)) if config.norm else None
        gates = {"none": None, "scalar": 1, "elementwise": width}[config.gate]
        self.gate = None if gates is None else nn.Linear(width, gates)
        self.set_initial_values()

    @torch.no_grad()
    def set_initial_values(self) -> None:
        """Make both steps the identity."""
        if self.share is not None:
            self.share.zero_()
        if self.gate is not None:
            self.gate.weight.zero_()
            self.gate.bias.zero_()

    def observe(self, heads: Tensor) -> dict[str, Any]:
        """Return the mean gate over tokens, heads and channels, and the share of the norm."""
        found: dict[str, Any] = {} if self.share is None else {"head_norm_share": float(self.share)}
        if self.gate is not None:
            found["head_gate_mean"] = float(2 * torch.sigmoid(self.gate(self._blend(heads))).mean())
        return found

    def forward(self, heads: Tensor) -> Tensor:
        """Apply the steps in the order norm, gate."""
        heads = self._blend(heads)
        return heads if self.gate is None else heads * (2 * torch.sigmoid(self.gate(heads)))

    def _blend(self, heads: Tensor) -> Tensor:
        if self.norm is None or self.share is None:
            return heads
        return heads + self.share.to(heads.dtype) * (self.norm(heads) - heads)
