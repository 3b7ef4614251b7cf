"""Reading recipes from TOML (or from the `recipe.json` of an earlier comparison), with overrides by dotted key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from heedful.schema import did_you_mean, from_mapping, to_mapping
from heedful.study.recipe import FindTheBlockTask, Recipe

# Set by the comparison itself, for each run: in [train] they would be silently without effect.
SET_PER_RUN = {
    ("seed",): "the recipe's `seeds`",
    ("optimizer", "learning_rate"): "`learning_rates` of the arms or of the recipe",
}


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read the recipe at `path`.

    Args:
        path: a .toml file, or the recipe.json of an earlier comparison.
        overrides: values by dotted key, such as `{"train.steps": 50, "arms.boosted.learning_rates": [1e-3]}`; items
            of a list are named by their `name` or their index. They are checked like the file itself.

    Raises:
        ValueError: the file is missing or no TOML, or a key or value is wrong; the message names the file and the key.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no recipe file {str(path)!r}.")
    try:
        text = path.read_text(encoding="utf-8")
        mapping = json.loads(text)["recipe"] if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, KeyError, TypeError) as error:  # of TOML, JSON or UTF-8, or JSON of something else
        raise ValueError(f"{path}: no readable recipe: {error}.") from error
    for key, value in (overrides or {}).items():
        _override(mapping, key.split("."), value, key)
    return recipe_from_mapping(mapping, where=f"{path}: recipe")


def recipe_from_mapping(mapping: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Build a `Recipe` from a plain mapping; `where` is the place to name in errors."""
    mapping = dict(mapping)
    if isinstance(mapping.get("task"), str):
        mapping["task"] = {"kind": mapping["task"]}
    train = mapping.get("train")
    for keys, source in SET_PER_RUN.items():
        if _get(train, keys) is not None:
            raise ValueError(f"{where}.train.{'.'.join(keys)}: not allowed here, it comes from {source}.")
    if _get(mapping, ("task", "kind")) == "find-the-block":
        if "data" in mapping:
            raise ValueError(f"{where}.data: find-the-block makes its own samples and reads no corpus.")
        if isinstance(train, Mapping):
            task = from_mapping(FindTheBlockTask, mapping["task"], f"{where}.task")
            mapping["train"] = {"context_length": task.context_length, **train}
    return from_mapping(Recipe, mapping, where)


def recipe_mapping(recipe: Recipe) -> dict[str, Any]:
    """Return the plain form of `recipe`, every default spelled out, which `recipe_from_mapping` reads back."""
    mapping = to_mapping(recipe)
    for keys in SET_PER_RUN:
        parent = _get(mapping["train"], keys[:-1])
        parent.pop(keys[-1])
    if recipe.task.kind == "find-the-block":
        mapping.pop("data")
    return mapping


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` strings as from a command line: the value is TOML, or a plain string where it is none.

    Raises:
        ValueError: an assignment without `=`.
    """
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"expected an override of the form key=value, got {assignment!r}.")
        try:
            overrides[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[key.strip()] = value.strip()
    return overrides


def _get(mapping: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if not isinstance(mapping, Mapping):
            return None
        mapping = mapping.get(key)
    return mapping


def _override(node: Any, keys: list[str], value: Any, full: str) -> None:
    head, rest = keys[0], keys[1:]
    if isinstance(node, list):
        index = _list_index(node, head, full)
        if rest:
            _override(node[index], rest, value, full)
        else:
            node[index] = value
    elif not isinstance(node, dict):
        raise ValueError(f"override {full!r}: {head!r} would lie inside {node!r}, which is no table.")
    elif rest:
        _override(node.setdefault(head, {}), rest, value, full)
    else:
        node[head] = value


def _list_index(items: list[Any], key: str, full: str) -> int:
    names = [str(item["name"]) if isinstance(item, dict) and "name" in item else str(i) for i, item in enumerate(items)]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise ValueError(f"override {full!r}: no item {key!r}.{did_you_mean(key, names)}")
