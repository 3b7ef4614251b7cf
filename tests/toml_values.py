"""Writing plain values as TOML: the standard library only reads it."""

import json


def as_toml(value):
    """An inline value; TOML has no null, so None is the word "none"."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps("none" if value is None else value)
