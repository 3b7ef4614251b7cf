"""`explain`: which backend a layer takes, and why."""

from __future__ import annotations

from dataclasses import replace

import torch

from heedful.nn.config import AttentionConfig
from heedful.nn.presets import attention_config
from heedful.ops.backends import Choice, Situation


def explain(
    config: AttentionConfig | str,
    *,
    training: bool = False,
    backend: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    length: int = 2048,
    context: int | None = None,
    batch: int = 1,
) -> Choice:
    """Return the backend that a layer runs on and the reason.

    Args:
        config: a layer's configuration, or preset names for one of 8 heads of 64.
        training: whether attention dropout is active.
        backend: ask for this backend instead of the configuration's own.
        device, dtype: where the call runs and the type of its tensors.
        length: number of queries of the call.
        context: number of keys, at least `length`; None for as many.
        batch: number of texts.

    Returns:
        `Choice(backend, reason)`.

    Raises:
        ValueError: an unknown preset, device or backend, lengths that cannot be, or a backend that cannot run this
            layer, with the reason.

    Examples:
        >>> from heedful import explain
        >>> explain("multi-token").backend
        'blockwise'
    """
    if isinstance(config, str):
        config = attention_config(config, hidden_size=512, num_heads=8)
    if backend is not None:
        config = replace(config, backend=backend)
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device must be one of torch's, such as 'cpu' or 'cuda', got {device!r}.") from error
    keys = length if context is None else context
    if not 1 <= length <= keys or batch < 1:
        raise ValueError(
            f"length and batch must be at least 1 and context at least length, got length {length}, context {keys} and "
            f"batch {batch}."
        )
    situation = Situation(kind, dtype, length, keys, batch)
    return config.choose_backend(situation, training=training)
