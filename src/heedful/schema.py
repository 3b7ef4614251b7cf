"""Frozen dataclasses as the single schema: reading them from plain mappings, and writing them back.

Recipes (TOML), checkpoints (JSON) and presets all pass through `from_mapping`. Unknown keys, missing keys and wrong
types are `ValueError`s that name the place, what was expected and what came. Only the standard library is needed, so
that a checkpoint's configuration can be read wherever torch alone is installed.

A field may be a scalar (bool, int, float, str), a `Literal`, a nested dataclass, an optional or a union of these, a
`tuple[X, ...]` or a `dict[str, X]`. A union of several dataclasses is told apart by its `kind` field, a
`Literal` with one value and a default. TOML cannot write None: where a field may be None and no text, "none" says it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the nearest known name, or the list of known names when none is near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(sorted(known))}."


def to_mapping(value: Any) -> Any:
    """Return the plain form (dicts, lists, scalars) of a dataclass that `from_mapping` reads back to an equal
    object.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_mapping(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_mapping(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_mapping(item) for item in value]
    return value


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Build dataclass `cls` from a plain mapping.

    Args:
        cls: a dataclass type.
        mapping: its fields by name, nested dataclasses as nested mappings.
        where: the place to name in errors, such as `recipe.toml: model`.

    Raises:
        ValueError: an unknown or missing key, or a value of the wrong type; the message names the place.
    """
    place = where or cls.__name__
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{place}: expected a table of {cls.__name__} fields, got {mapping!r}.")
    hints = _type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls)) if field.init}
    for key in mapping:
        if key not in fields:
            raise ValueError(f"{place}: unknown key {key!r}.{did_you_mean(str(key), fields)}")
    values = {key: _convert(hints[key], value, f"{place}.{key}") for key, value in mapping.items()}
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and name not in values:
            raise ValueError(f"{place}: key {name!r} is missing and has no default.")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{place}: {error}" if where else str(error)) from error


def check_choices(value: Any) -> None:
    """Refuse a dataclass whose `Literal` fields hold anything else; for `__post_init__`, which no recipe has checked.

    Raises:
        ValueError: with the field, its choices and what came.
    """
    for name, hint in _type_hints(type(value)).items():
        if any(typing.get_origin(option) is Literal for option in (hint, *typing.get_args(hint))):
            _convert(hint, getattr(value, name), name)


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, place: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, place)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            names = ", ".join(repr(argument) for argument in arguments)
            raise ValueError(f"{place}: expected one of {names}, got {value!r}.")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{place}: expected a list, got {value!r}.")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(value))
        if len(arguments) != len(value):
            raise ValueError(f"{place}: expected a list of {len(arguments)} items, got {len(value)}.")
        return tuple(
            _convert(h, item, f"{place}[{i}]") for i, (h, item) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{place}: expected a table, got {value!r}.")
        return {key: _convert(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return (
            value if isinstance(value, typing.cast(type, hint)) else from_mapping(typing.cast(type, hint), value, place)
        )
    return _convert_scalar(hint, value, place)


def _convert_scalar(hint: Any, value: Any, place: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool):
        if type(value) is hint:
            return value
        raise ValueError(f"{place}: expected {hint.__name__}, got {value!r} ({type(value).__name__}).")
    raise TypeError(f"{place}: a field of type {hint!r} cannot be read from a recipe.")


def _convert_union(options: tuple[Any, ...], value: Any, place: str) -> Any:
    if type(None) in options and (value is None or (value == "none" and not any(map(_takes_none_as_text, options)))):
        return None
    options = tuple(option for option in options if option is not type(None))
    classes = [option for option in options if dataclasses.is_dataclass(option)]
    if isinstance(value, tuple(typing.cast(list[type], classes))):
        return value
    if isinstance(value, Mapping) and len(classes) > 1:
        kinds = {_kind(option): option for option in classes}
        kind = value.get("kind")
        if kind is None:  # as written before there were several kinds: the one class that has all of these fields
            fitting = [name for name, option in kinds.items() if value.keys() <= {f.name for f in _fields(option)}]
            kind = fitting[0] if value and len(fitting) == 1 else None
        if kind not in kinds:
            raise ValueError(
                f"{place}.kind: unknown or missing kind {kind!r}.{did_you_mean(str(kind), map(str, kinds))}"
            )
        return from_mapping(typing.cast(type, kinds[kind]), value, place)
    errors = []
    for option in options:
        try:
            return _convert(option, value, place)
        except ValueError as error:
            errors.append(error)
    meant = classes if isinstance(value, Mapping) else [o for o in options if typing.get_origin(o) is tuple]
    if isinstance(value, (Mapping, list)) and len(meant) == 1:  # what could be meant: its own message is the useful one
        raise errors[options.index(meant[0])]
    raise (
        errors[0] if len(errors) == 1 else ValueError("; or ".join(str(error).rstrip(".") for error in errors) + ".")
    )


def _fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _takes_none_as_text(option: Any) -> bool:
    return option is str or "none" in typing.get_args(option)


def _kind(cls: Any) -> Any:
    for field in dataclasses.fields(cls):
        if field.name == "kind":
            return field.default
    raise TypeError(f"{cls.__name__} is one of several possible tables and needs a `kind` field with a default.")
