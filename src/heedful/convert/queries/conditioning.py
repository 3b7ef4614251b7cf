"""How much rounding a change of basis amplifies: condition numbers, and what each storage type bears.

Weights that are stored in a new basis T are rounded there, and undoing T amplifies the rounding by up to cond(T). With
8 significant bits (bfloat16) little room is left; float32 has room for what trained or random matrices usually show.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Limits(NamedTuple):
    """Condition numbers for a storage type: a warning above the first, refusal above the second."""

    warn: float
    refuse: float


LIMITS = {
    torch.float64: Limits(1e8, 1e11),
    torch.float32: Limits(1e4, 1e6),
    torch.float16: Limits(1e2, 1e3),
    torch.bfloat16: Limits(1e1, 1e2),
}


def type_name(dtype: torch.dtype) -> str:
    """Return "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def limits_of(dtype: torch.dtype, max_condition: float | None = None) -> Limits:
    """Return the limits of a storage type, or those with the caller's own upper limit.

    Raises:
        ValueError: a type that weights cannot be stored in, or an upper limit below 1.
    """
    if dtype not in LIMITS:
        names = ", ".join(type_name(known) for known in LIMITS)
        raise ValueError(f"converted weights can be stored as {names}; got {dtype}.")
    if max_condition is None:
        return LIMITS[dtype]
    if not max_condition >= 1:
        raise ValueError(f"max_condition must be at least 1, the condition number of a rotation; got {max_condition}.")
    return Limits(min(LIMITS[dtype].warn, max_condition), max_condition)


def condition_number(matrix: Tensor) -> float:
    """Return the largest over the smallest singular value; infinity for a singular matrix."""
    values = torch.linalg.svdvals(matrix)
    smallest, largest = float(values.min()), float(values.max())
    # Below this the smallest value is rounding of the others.
    if smallest <= largest * max(matrix.shape) * torch.finfo(matrix.dtype).eps:
        return float("inf")
    return largest / smallest


def check_condition(condition: float, dtype: torch.dtype, max_condition: float | None, what: str) -> str | None:
    """Return a warning, or None where there is nothing to warn of.

    Raises:
        ValueError: the condition number is above the limit of this storage type, with what can be done.
    """
    limits = limits_of(dtype, max_condition)
    if condition > limits.refuse:
        advice = (
            "the matrix is singular: this W_Q cannot be inverted"
            if condition == float("inf")
            else "store more bits, let the heads be conditioned first (condition_heads), take another layer, or raise "
            "max_condition and judge the reported errors"
        )
        raise ValueError(
            f"{what} has condition number {condition:.3g}, above the limit {limits.refuse:.3g} for "
            f"{type_name(dtype)}: {advice}."
        )
    if condition > limits.warn:
        return (
            f"{what} has condition number {condition:.3g}: rounding to {type_name(dtype)} is amplified by up to that "
            "factor; check the reported errors."
        )
    return None
