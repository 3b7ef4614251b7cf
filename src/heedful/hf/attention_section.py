"""The `attention` entry of a model's configuration: which mechanism each layer has.

It is one of

* preset names, `"boosted+multi-token"`;
* a table: `preset` (default "standard") and any field of `AttentionConfig` but the sizes that stand outside,
  `{"preset": "multi-token", "head_output": None}`;
* a list of these with one entry per layer.

What it does not say comes from the fields outside (`attention_bias`, `rope_parameters`, ...).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heedful.nn.config import AttentionConfig
from heedful.nn.presets import PRESETS, attention_config
from heedful.schema import from_mapping, to_mapping

Section = str | dict[str, Any]

OUTSIDE = ("hidden_size", "num_heads", "layer_index", "backend")
"""Fields of a layer that the section must not set: they belong to the model, or to `attn_implementation`."""


def resolve_section(section: Section, outside: Mapping[str, Any], place: str) -> AttentionConfig:
    """Return the layer that a section describes, with the fields `outside` it as defaults.

    Raises:
        ValueError: unknown presets or fields, wrong types, contradictions; the message names the place.
    """
    table = {"preset": section} if isinstance(section, str) else section
    if not isinstance(table, Mapping):
        raise ValueError(f"{place}: expected preset names or a table, got {section!r}.")
    fields = dict(table)
    preset = fields.pop("preset", "standard")
    if not isinstance(preset, str):
        raise ValueError(f"{place}.preset: expected preset names such as 'boosted+multi-token', got {preset!r}.")
    for name in OUTSIDE:
        if name in fields:
            raise ValueError(f"{place}: {name!r} is a field of the model, not of the attention section.")
    try:
        base = attention_config(preset, **outside)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return from_mapping(AttentionConfig, {**to_mapping(base), **fields}, place) if fields else base


def describe_section(layer: AttentionConfig, outside: Mapping[str, Any]) -> Section:
    """Return the shortest section that `resolve_section` reads back to `layer`: a preset's name, or a table."""
    layer = from_mapping(AttentionConfig, {**to_mapping(layer), "layer_index": None, "backend": "auto"})
    candidates = []
    for preset in PRESETS:
        try:
            base = to_mapping(attention_config(preset, **outside))
        except ValueError:  # a preset that does not fit these sizes
            continue
        changed = {name: value for name, value in to_mapping(layer).items() if value != base[name]}
        changed = {name: value for name, value in changed.items() if name not in OUTSIDE}
        candidates.append((len(changed), preset, changed))
    count, preset, changed = min(candidates, key=lambda candidate: candidate[0])
    return preset if count == 0 else {"preset": preset, **changed}


def per_layer(section: Section | Sequence[Section], num_layers: int) -> list[Section]:
    """Return the section of each layer.

    Raises:
        ValueError: a list of another length.
    """
    if isinstance(section, str | Mapping):
        return [section] * num_layers  # type: ignore[list-item]  # a plain table is a dict
    if len(section) != num_layers:
        raise ValueError(f"attention: a list must have one entry per layer: expected {num_layers}, got {len(section)}.")
    return list(section)
