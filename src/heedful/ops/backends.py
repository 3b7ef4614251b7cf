"""Which implementation runs: explicit requests are obeyed or refused, `auto` says what it took and why.

Each operation states, for a given call, which backends it has: a mapping from backend to None (can run it) or to the
reason why it cannot, in the order of preference. `choose_backend` is the only place that decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from heedful.schema import did_you_mean

BACKENDS = ("reference", "sdpa", "blockwise", "triton")


class Choice(NamedTuple):
    """The backend of a call and why it was taken."""

    backend: str
    reason: str


class Situation(NamedTuple):
    """What besides the mechanism decides which backend can run a call and is the fastest.

    `device` is the device's type, or None while it is not known: a layer is configured before it is moved.
    """

    device: str | None = "cpu"
    dtype: torch.dtype = torch.float32
    queries: int = 2048
    keys: int = 2048
    batch: int = 1
    masked: bool = False  # whether there is a window, padding or documents


class Candidates(dict[str, str | None]):
    """Backends, best first, with None or the reason why a call cannot use them, and the reason of their order."""

    def __init__(self, refusals: Mapping[str, str | None], reason: str | None = None) -> None:
        super().__init__(refusals)
        self.reason = reason


def choose_backend(mechanism: str, request: str, candidates: Mapping[str, str | None]) -> Choice:
    """Return the backend for a call.

    Args:
        mechanism: the mechanism's name, for messages.
        request: "auto" or one of `BACKENDS`.
        candidates: for each backend that the mechanism has, best first, None or the reason why this call cannot use it.

    Raises:
        ValueError: an unknown backend, or an explicit request that cannot be obeyed.
    """
    if request == "auto":
        refused = []
        for backend, refusal in candidates.items():
            if refusal is None:
                preferred = getattr(candidates, "reason", None)
                if preferred is None or refused:
                    preferred = "; ".join(refused) or f"the fastest exact backend of {mechanism} attention"
                return Choice(backend, preferred)
            refused.append(f"{backend} cannot be used: {refusal}")
        raise ValueError(f"no backend of {mechanism} attention can run this call: {'; '.join(refused)}.")
    if request not in BACKENDS:
        raise ValueError(f"unknown backend {request!r}.{did_you_mean(request, ('auto', *BACKENDS))}")
    if request not in candidates:
        raise ValueError(
            f"{mechanism} attention has no {request} backend; it has {', '.join(candidates)}. Use one of these or "
            f"'auto'."
        )
    refusal = candidates[request]
    if refusal is not None:
        raise ValueError(f"the {request} backend cannot run this call of {mechanism} attention: {refusal}. Use 'auto'.")
    return Choice(request, "requested")
