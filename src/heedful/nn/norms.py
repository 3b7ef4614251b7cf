"""LayerNorm and RMSNorm that compute in float32 whatever comes in, over a whole vector or over equal spans of it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from heedful.ops.shapes import compute_dtype


class SpanNorm(nn.Module):
    """LayerNorm or RMSNorm over consecutive spans of the last dimension, with gains (and biases) of the full width.

    Everything is computed in float32 (float64 for float64), also under autocast; the result has the input's type.
    """

    def __init__(
        self,
        kind: Literal["rms", "layer"],
        width: int,
        span: int,
        *,
        bias: bool,
        eps: float = 1e-5,
        gain_start: float = 1.0,
    ) -> None:
        super().__init__()
        self.kind, self.span, self.eps, self.gain_start = kind, span, eps, gain_start
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if bias and kind == "layer" else None
        self.set_initial_values()

    @torch.no_grad()
    def set_initial_values(self) -> None:
        """Set the gains to their start and the biases to 0."""
        self.weight.fill_(self.gain_start)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each span and apply the gains."""
        wide = compute_dtype(x.dtype)
        spans = x.to(wide).unflatten(-1, (-1, self.span))
        function = nn.functional.rms_norm if self.kind == "rms" else nn.functional.layer_norm
        normed = function(spans, (self.span,), eps=self.eps).flatten(-2) * self.weight.to(wide)
        return (normed if self.bias is None else normed + self.bias.to(wide)).to(x.dtype)


class RMSNorm(SpanNorm):
    """x / sqrt(mean(x^2) + eps) * gain over the last dimension."""

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__("rms", width, width, bias=False, eps=eps)
