"""`--train.steps 50`: values of a recipe changed on the command line, by their dotted names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heedful.study.recipe_file import parse_overrides


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the arguments without dotted options, and the dotted options' values by name.

    `--a.b value` and `--a.b=value` are dotted options; a value is read as TOML where it is valid TOML, else as text.
    Keys at the top of a recipe, such as `seeds`, are written `--recipe.seeds`.

    Raises:
        ValueError: a dotted option without a value.
    """
    plain: list[str] = []
    assignments: list[str] = []
    waiting: str | None = None
    for argument in arguments:
        if waiting is not None:
            assignments.append(f"{waiting}={argument}")
            waiting = None
        elif argument.startswith("--") and "." in argument.partition("=")[0]:
            name, equals, value = argument[2:].removeprefix("recipe.").partition("=")
            if equals:
                assignments.append(f"{name}={value}")
            else:
                waiting = name
        else:
            plain.append(argument)
    if waiting is not None:
        raise ValueError(f"--{waiting} needs a value, as in --{waiting} 50.")
    return plain, parse_overrides(assignments)


def refuse_overrides(overrides: dict[str, Any], command: str) -> None:
    """Refuse dotted options where there is no recipe to change."""
    if overrides:
        raise ValueError(f"heedful {command} reads no recipe, so --{next(iter(overrides))} has nothing to change.")
