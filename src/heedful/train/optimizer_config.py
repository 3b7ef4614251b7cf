"""How weights move: the optimiser, what each group of parameters gets of it, and the learning rate over the steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from heedful.train.checking import require, require_one_of

OptimizerKind = Literal["adamw", "muon"]
DecayRule = Literal["matrices", "all"]
KernelDecay = Literal["none", "identity"]
ScheduleKind = Literal["cosine", "linear", "constant", "wsd"]


@dataclass(frozen=True, kw_only=True)
class ParameterRule:
    """What some parameters get instead of the optimiser's own values; of several rules that match, the last counts.

    Attributes:
        parameters: a pattern for names, with `*` and `?`, such as `"*.kq_pre"`; it must match one at least.
        learning_rate_factor: multiplies the learning rate, 0 or more.
        weight_decay: replaces the coefficient of weight decay, also where there was none; None leaves it as it is.
    """

    parameters: str
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        require(self.parameters != "", "parameters", "a pattern for parameter names", "an empty text")
        factor, decay = self.learning_rate_factor, self.weight_decay
        require(factor >= 0 and math.isfinite(factor), "learning_rate_factor", "0 or more", factor)
        require(decay is None or decay >= 0, "weight_decay", "0 or more", decay)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay, or Muon for the hidden matrices and AdamW for the rest.

    Attributes:
        kind: "adamw", or "muon": orthogonalised momentum for the two-dimensional weights inside the blocks.
        learning_rate: the peak of the schedule, for both methods: Muon's step is scaled to the size of AdamW's.
        betas: AdamW's decay rates of the running mean and mean square of the gradient, each in [0, 1).
        eps: added to AdamW's denominator.
        momentum: Muon's, in [0, 1), with Nesterov's look ahead.
        weight_decay: the coefficient c of p <- p - rate c p, for both methods; the schedule scales it together with
            the learning rate.
        decay: "matrices" decays every parameter of two or more dimensions except those the model names in
            `parameters_without_decay()`; "all" decays everything, as the published boosted runs do.
        kernel_decay: what happens to the parameters that the model names (kernels and head mixing): "none" leaves them
            to `decay`; "identity" pulls them to their identity instead, p <- p - rate c (p - identity).
        rules: exceptions for parameters by name.
        gradient_clip: largest global gradient norm; 0 switches clipping off (the norm is still measured).
        ema_decay: keep an exponential moving average of the weights, which is what is evaluated and exported; 0 is off.
    """

    kind: OptimizerKind = "adamw"
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.1
    decay: DecayRule = "matrices"
    kernel_decay: KernelDecay = "none"
    rules: tuple[ParameterRule, ...] = ()
    gradient_clip: float = 1.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require_one_of(OptimizerKind, "kind", self.kind)
        require(rate > 0 and math.isfinite(rate), "learning_rate", "above 0", rate)
        betas_hold = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(betas_hold, "betas", "two numbers in [0, 1)", self.betas)
        require(self.eps > 0, "eps", "above 0", self.eps)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        require_one_of(DecayRule, "decay", self.decay)
        require_one_of(KernelDecay, "kernel_decay", self.kernel_decay)
        require(self.gradient_clip >= 0, "gradient_clip", "0 (no clipping) or more", self.gradient_clip)
        require(0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)", self.ema_decay)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up to the peak learning rate, then a decay to `final_ratio` of it.

    Attributes:
        kind: how the rate falls after the warm-up; "constant" stays at the peak and ignores `final_ratio`, "wsd"
            (warm-up, stable, decay) stays there too and falls linearly over the last `decay_fraction` of the steps.
            `heedful.train.learning_rate` has the formulas.
        warmup_steps: steps before the peak is reached; 0 starts at the peak.
        final_ratio: learning rate at the end of the run as a fraction of the peak, in [0, 1]; 0 with "linear" is
            linear to zero.
        decay_fraction: the part of all steps over which "wsd" falls, in (0, 1]; never into the warm-up.
    """

    kind: ScheduleKind = "cosine"
    warmup_steps: int = 100
    final_ratio: float = 0.1
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        require_one_of(ScheduleKind, "kind", self.kind)
        require(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        require(0 <= self.final_ratio <= 1, "final_ratio", "between 0 and 1", self.final_ratio)
        require(0 < self.decay_fraction <= 1, "decay_fraction", "above 0 and at most 1", self.decay_fraction)
