"""The checks that every configuration here is made of: a wrong value is one sentence with its name and what was
expected.
"""

from __future__ import annotations

from typing import Any, get_args


def require(holds: bool, name: str, expected: str, value: Any) -> None:
    """Raise ValueError unless `holds`."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value}.")


def require_one_of(literal: Any, name: str, value: Any) -> None:
    """Raise ValueError unless `value` is one of a `Literal`'s."""
    choices = get_args(literal)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
