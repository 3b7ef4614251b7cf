"""Rotary position embedding, with the usual ways of stretching it to longer contexts.

Pair k of a head's features is turned by the angle position * f_k, f_k = theta^(-2k/d). Scaling forms change f_k:

* linear: f_k / factor;
* ntk: theta grows to theta * factor^(d/(d-2)), so that high frequencies stay (fixed, not dynamic);
* yarn (arXiv 2309.00071): interpolation where a pair turns less than `beta_slow` times over the original context,
  none where it turns more than `beta_fast` times, a ramp between; cos and sin are multiplied by 0.1 ln(factor) + 1;
* llama3: the same idea with bounds given as wavelengths, context / low_frequency_factor and context /
  high_frequency_factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from heedful.schema import check_choices

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be above 0, got {number}.")


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Divide all frequencies by `factor`."""

    factor: float
    kind: Literal["linear"] = "linear"

    def __post_init__(self) -> None:
        _check_positive(factor=self.factor)

    def frequencies(self, theta: float, size: int, device: torch.device | None = None) -> Tensor:
        """Return f_k, (size / 2,), float64, on `device`."""
        return base_frequencies(theta, size, device) / self.factor

    amplitude = 1.0


@dataclass(frozen=True, kw_only=True)
class NtkScaling:
    """Raise theta so that the lowest frequency is divided by `factor`."""

    factor: float
    kind: Literal["ntk"] = "ntk"

    def __post_init__(self) -> None:
        _check_positive(factor=self.factor)

    def frequencies(self, theta: float, size: int, device: torch.device | None = None) -> Tensor:
        """Return f_k, (size / 2,), float64, on `device`."""
        return base_frequencies(theta * self.factor ** (size / max(size - 2, 1)), size, device)

    amplitude = 1.0


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """Interpolate slow pairs only, and sharpen attention by a factor on cos and sin."""

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    kind: Literal["yarn"] = "yarn"

    def __post_init__(self) -> None:
        _check_positive(factor=self.factor, original_max_positions=self.original_max_positions)
        if not self.beta_fast >= self.beta_slow > 0:
            raise ValueError(f"beta_fast must be at least beta_slow > 0, got {self.beta_fast} and {self.beta_slow}.")

    def frequencies(self, theta: float, size: int, device: torch.device | None = None) -> Tensor:
        """Return f_k, (size / 2,), float64, on `device`."""

        def pair_turning(times: float) -> float:
            return size * math.log(self.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(pair_turning(self.beta_fast)), 0)
        high = min(math.ceil(pair_turning(self.beta_slow)), size - 1)
        ramp = (torch.arange(size // 2, dtype=torch.float64, device=device) - low) / max(high - low, 1e-3)
        interpolated = ramp.clamp(0, 1)
        base = base_frequencies(theta, size, device)
        return base / self.factor * interpolated + base * (1 - interpolated)

    @property
    def amplitude(self) -> float:
        """The factor on cos and sin."""
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Interpolate pairs whose wavelength exceeds the original context, with a smooth passage."""

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int = 8192
    kind: Literal["llama3"] = "llama3"

    def __post_init__(self) -> None:
        _check_positive(factor=self.factor, original_max_positions=self.original_max_positions)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        if not high > low > 0:
            raise ValueError(f"high_frequency_factor must be above low_frequency_factor > 0, got {high} and {low}.")

    def frequencies(self, theta: float, size: int, device: torch.device | None = None) -> Tensor:
        """Return f_k, (size / 2,), float64, on `device`."""
        base = base_frequencies(theta, size, device)
        turns = self.original_max_positions * base / (2 * math.pi)  # over the original context
        span = self.high_frequency_factor - self.low_frequency_factor
        kept = ((turns - self.low_frequency_factor) / span).clamp(0, 1)
        return base / self.factor * (1 - kept) + base * kept

    amplitude = 1.0


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions of a layer.

    Attributes:
        theta: base of the frequencies.
        layout: "half" turns features (k, k + d/2) as Llama's Hugging Face weights do; "interleaved" turns (2k, 2k + 1)
            as the original Llama and the multi-token paper's code do.
        scaling: None or one of the forms above.
    """

    theta: float = 10000.0
    layout: Literal["half", "interleaved"] = "half"
    scaling: LinearScaling | NtkScaling | YarnScaling | Llama3Scaling | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        _check_positive(theta=self.theta)


def base_frequencies(theta: float, size: int, device: torch.device | None = None) -> Tensor:
    """Return theta^(-2k/size) for k = 0 .. size/2 - 1, in float64, on `device`."""
    return theta ** (-torch.arange(0, size, 2, dtype=torch.float64, device=device) / size)


class RotaryEmbedding(nn.Module):
    """Turns the heads' features by their positions; no parameters, nothing stored."""

    def __init__(self, config: Rotary, head_dim: int) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions turn pairs of features: head_dim must be even, got {head_dim}.")
        self.config, self.head_dim = config, head_dim

    def tables(self, positions: Int[Tensor, "#b n"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cos and sin, (B or 1, 1, N, head_dim / 2); angles are computed in float64."""
        theta, scaling = self.config.theta, self.config.scaling
        make = base_frequencies if scaling is None else scaling.frequencies
        frequencies = make(theta, self.head_dim, positions.device)  # made there: a copy would wait for the device
        angles = positions[:, None, :, None].double() * frequencies
        amplitude = 1.0 if scaling is None else scaling.amplitude
        return (angles.cos() * amplitude).to(dtype), (angles.sin() * amplitude).to(dtype)

    def forward(
        self, query: Float[Tensor, "b h n d"], key: Float[Tensor, "b g n d"], positions: Int[Tensor, "#b n"]
    ) -> tuple[Tensor, Tensor]:
        """Return query and key turned to their positions; computed in float32 (float64 for float64)."""
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        cos, sin = self.tables(positions, wide)
        return self._turn(query, cos, sin), self._turn(key, cos, sin)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        wide = x.to(cos.dtype)
        if self.config.layout == "interleaved":
            a, b = wide[..., 0::2], wide[..., 1::2]
            return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)
        a, b = wide.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
