"""From an arm of a recipe to the model it trains, built and counted before anything runs."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from heedful.models import DecoderConfig, decoder_config
from heedful.nn import AttentionConfig
from heedful.schema import from_mapping
from heedful.study.recipe import Arm, Recipe


def arm_config(recipe: Recipe, arm: Arm, *, vocab_size: int, max_positions: int) -> DecoderConfig:
    """Build the decoder of `arm` as given, before any resizing.

    Fields come from [model], the arm's own `model` table and its attention table; later ones win.

    Args:
        vocab_size: of the tokenizer or the task.
        max_positions: taken where the recipe gives none.

    Raises:
        ValueError: a field no decoder has, or values that do not fit together; the message names the arm.
    """
    fields: dict[str, Any] = {"max_positions": max_positions, **recipe.model, **arm.model}
    preset: Any = arm.attention
    if isinstance(arm.attention, dict):
        fields |= arm.attention
        preset = fields.pop("preset", "standard")
    try:
        return decoder_config(preset, vocab_size=vocab_size, **typed_fields(fields))
    except ValueError as error:
        raise ValueError(f"arm {arm.name!r}: {error}") from error


def attention_label(arm: Arm) -> str:
    """Return what the report calls the attention of `arm`: its preset, with the fields that were changed."""
    if isinstance(arm.attention, str):
        return arm.attention
    fields = dict(arm.attention)
    preset = fields.pop("preset", "standard")
    if isinstance(preset, dict):
        preset = "by layer: " + ", ".join(f"{layer} {names}" for layer, names in preset.items())
    parts = [_label(key, value) for key, value in fields.items()]
    return f"{preset} with {', '.join(parts)}" if preset != "standard" else ", ".join(parts) or "standard"


def _label(key: str, value: Any) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{name} {item}" for name, item in value.items() if name != "kind")
        kind = str(value.get("kind", key))
        return f"{kind} ({inside})" if inside else kind
    return f"{key} {value}"


def typed_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turn tables and lists of `fields` into the dataclasses and tuples of DecoderConfig and AttentionConfig.

    Unknown names are passed on: `decoder_config` refuses them with a better message.
    """
    hints = typing.get_type_hints(AttentionConfig) | typing.get_type_hints(DecoderConfig)
    known = {name: value for name, value in fields.items() if name in hints}
    converter = dataclasses.make_dataclass("model", [(name, hints[name]) for name in known], kw_only=True)
    converted = from_mapping(converter, known, "model")
    return {name: getattr(converted, name) if name in known else value for name, value in fields.items()}
