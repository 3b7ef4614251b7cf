"""Tolerances derived from float64, not chosen.

Rounding errors of one computation scale with the precision: what float32 loses against float64 tells how much float64
loses itself. A second way to compute the same thing may order its sums differently, hence the factor.
"""

import torch

ORDER = 16  # two orders of summation, each up to a few times the error of the measured one


def precision_loss(function, *tensors):
    """Largest difference between function in float32 and in float64, at least one rounding of the largest result."""
    exact = function(*(t.double() if t.is_floating_point() else t for t in tensors))
    rough = function(*(t.float() if t.is_floating_point() else t for t in tensors))
    smallest = torch.finfo(torch.float32).eps * float(exact.detach().abs().max())
    return max(float((exact - rough.double()).detach().abs().max()), smallest)


def bound(function, *tensors):
    """What two float64 computations of `function` may differ by."""
    scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    return ORDER * scale * precision_loss(function, *tensors)


def largest_difference(a, b):
    return float((a.detach() - b.detach()).abs().max()) if a.numel() else 0.0


def relative_rounding(dtype=torch.float64):
    """The bound for values computed twice by short, well-conditioned sums, relative to their size."""
    return 1024 * torch.finfo(dtype).eps


def assert_close(a, b, message=""):
    """Equal to float64 rounding of well-conditioned attention: |a - b| <= 1024 eps max(1, |b|)."""
    assert a.shape == b.shape, (tuple(a.shape), tuple(b.shape))
    size = max(1.0, float(b.detach().abs().max()) if b.numel() else 0.0)
    assert largest_difference(a, b) <= relative_rounding(a.dtype) * size, (largest_difference(a, b), message)
