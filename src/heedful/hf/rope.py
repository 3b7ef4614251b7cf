"""Rotary positions in transformers' words (`rope_parameters`) and in ours (`Rotary`).

| transformers `rope_type` | here                                                                                |
|--------------------------|-------------------------------------------------------------------------------------|
| default                  | no scaling                                                                          |
| linear                   | `LinearScaling`                                                                     |
| llama3                   | `Llama3Scaling`                                                                     |
| yarn                     | `YarnScaling`, with the published 0.1 ln(factor) + 1 on cos and sin, rounded bounds |

Other types change with the length of the text (dynamic, longrope) or turn a part of the features only (proportional,
partial_rotary_factor): they are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from heedful.nn.rotary import LinearScaling, Llama3Scaling, Rotary, YarnScaling

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def rotary_of(parameters: Mapping[str, Any] | None, max_positions: int, place: str = "rope_parameters") -> Rotary:
    """Return the rotary positions that transformers' `rope_parameters` describe.

    Args:
        parameters: the mapping; None for theta = 10000 without scaling.
        max_positions: the original context where a scaling form needs it and the mapping does not say.
        place: what to call the mapping in errors.

    Raises:
        ValueError: a type or a setting that is not among those above.
    """
    given = dict(parameters or {})
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    theta = float(given.pop("rope_theta", None) or 10000.0)
    if kind not in ROPE_TYPES:
        raise ValueError(f"{place}: rope_type must be one of {', '.join(ROPE_TYPES)}, got {kind!r}.")
    if given.pop("partial_rotary_factor", None) not in (None, 1, 1.0):
        raise ValueError(f"{place}: partial_rotary_factor must be 1: all features of a head are turned.")
    context = given.pop("original_max_position_embeddings", None) or max_positions
    if kind == "default":
        scaling = None
    elif kind == "linear":
        scaling = LinearScaling(factor=_number(given, "factor", place))
    elif kind == "llama3":
        scaling = Llama3Scaling(
            factor=_number(given, "factor", place),
            low_frequency_factor=_number(given, "low_freq_factor", place),
            high_frequency_factor=_number(given, "high_freq_factor", place),
            original_max_positions=int(context),
        )
    else:
        scaling = YarnScaling(
            factor=_number(given, "factor", place),
            original_max_positions=int(context),
            beta_fast=float(given.pop("beta_fast", None) or 32.0),
            beta_slow=float(given.pop("beta_slow", None) or 1.0),
        )
        _refuse_other_yarn(given, scaling, place)
    unknown = sorted(name for name, value in given.items() if value is not None)
    if unknown:
        raise ValueError(f"{place}: unknown settings {', '.join(unknown)} for rope_type {kind!r}.")
    return Rotary(theta=theta, scaling=scaling)


def rope_parameters_of(rotary: Rotary) -> dict[str, Any] | None:
    """Return `rope_parameters` for these positions, or None where transformers has no words for them."""
    if rotary.layout != "half":
        return None
    scaling, parameters = rotary.scaling, {"rope_type": "default", "rope_theta": rotary.theta}
    if scaling is None:
        return parameters
    if isinstance(scaling, LinearScaling):
        return {**parameters, "rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            **parameters,
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    if isinstance(scaling, YarnScaling):
        return {
            **parameters,
            "rope_type": "yarn",
            "factor": scaling.factor,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return None


def _number(given: dict[str, Any], name: str, place: str) -> float:
    value = given.pop(name, None)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{place}: {name} must be a number, got {value!r}.")
    return float(value)


def _refuse_other_yarn(given: dict[str, Any], scaling: YarnScaling, place: str) -> None:
    """Accept the settings that say what we do anyway, and refuse those that ask for something else."""
    amplitude = given.pop("attention_factor", None)
    if amplitude is not None and not math.isclose(float(amplitude), scaling.amplitude, rel_tol=1e-6):
        raise ValueError(
            f"{place}: attention_factor must be 0.1 ln(factor) + 1 = {scaling.amplitude:.6g}, got {amplitude!r}."
        )
    for name in ("mscale", "mscale_all_dim"):
        if given.pop(name, None) not in (None, 0, 0.0):
            raise ValueError(f"{place}: {name} is not supported; leave it out.")
    if given.pop("truncate", True) is not True:
        raise ValueError(f"{place}: truncate must be true: the bounds of the ramp are rounded.")
