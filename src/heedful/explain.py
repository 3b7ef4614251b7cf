"""`explain`: which backend a layer takes, and why."""

from __future__ import annotations

from dataclasses import replace

from heedful.nn.config import AttentionConfig
from heedful.nn.presets import attention_config
from heedful.ops.backends import Choice


def explain(config: AttentionConfig | str, *, training: bool = False, backend: str | None = None) -> Choice:
    """Return the backend that a layer runs on and the reason.

    Args:
        config: a layer's configuration, or preset names (sizes then do not matter).
        training: whether attention dropout is active.
        backend: ask for this backend instead of the configuration's own.

    Returns:
        `Choice(backend, reason)`.

    Raises:
        ValueError: an unknown preset or backend, or a backend that cannot run this layer, with the reason.

    Examples:
        >>> from heedful import explain
        >>> explain("multi-token").backend
        'reference'
    """
    if isinstance(config, str):
        config = attention_config(config, hidden_size=64, num_heads=4)
    if backend is None:
        return config.choose_backend(training=training)
    return replace(config, backend=backend).choose_backend(training=training)
