"""What is supported, declared once: mechanism x feature x backend.

The battery of invariant tests runs over exactly this table, and the documentation's support table is printed from it,
so that no claim is untested. A cell that is not supported names the reason and is tested to be refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from heedful.nn.presets import PRESETS, attention_config
from heedful.ops.backends import Situation

SUMS = (
    "boosted+nonlinear-query",
    "boosted+twicing",
    "boosted+differential",
    "nonlinear-query+multi-token",
    "boosted+nonlinear-query+multi-token",
)
"""The sums of presets that the battery covers besides every single preset."""

FEATURES: Mapping[str, str] = {
    "reference": "outputs and gradients equal those of the reference",
    "first-derivative": "gradients equal numerical differentiation",
    "second-derivative": "second gradients equal numerical differentiation",
    "causal": "a later token changes nothing before it, not even in the last bit",
    "bidirectional": "without causality every token sees every other",
    "decode": "token by token and in pieces equals the full pass",
    "grouped-heads": "fewer key/value heads equal repeated ones",
    "window": "a window as long as the text changes nothing, a shorter one limits the reach exactly",
    "left-padding": "padded on the left equals unpadded",
    "right-padding": "padded on the right equals unpadded",
    "packed-documents": "documents packed in one row equal separate ones",
    "rotary": "shifting all positions changes nothing",
    "dropout": "random in training, reproducible by seed, absent in evaluation",
    "bfloat16": "rounds about as an independent bfloat16 computation does",
    "compile": "torch.compile with fullgraph=True equals eager, forward and backward",
    "clean-memory": "uninitialised memory never shows",
    "state-dict": "saving and loading weights and configuration is lossless",
    "identity-start": "starts exactly as standard attention with the same projections",
}

_FUSED = "SDPA's CPU kernel has no second derivative"
_NO_IDENTITY = "changes the function from the start, as published"

_UNSUPPORTED: Mapping[tuple[str, str], str] = {
    ("sdpa", "second-derivative"): _FUSED,
    ("blockwise", "second-derivative"): "its hand-written backward pass has no derivative; the reference has",
    ("identity-query", "identity-start"): _NO_IDENTITY,
    ("nonlinear-query", "identity-start"): _NO_IDENTITY,
    ("nonlinear-query-linear-control", "identity-start"): _NO_IDENTITY,
    ("boosted", "identity-start"): "its gates start at 1/2; a very negative gate_start comes close",
    ("boosted-input-kv", "identity-start"): "its gates start at 1/2; a very negative gate_start comes close",
    ("twicing", "identity-start"): "has no parameters to start from",
    ("differential", "identity-start"): _NO_IDENTITY,
    ("differential-v2", "identity-start"): _NO_IDENTITY,
    ("multi-token-v1", "identity-start"): "its head norm and depth scale change the function; without them it does",
    ("multi-token", "identity-start"): "its head norm and gate change the function; without them it does",
}
"""(mechanism or backend, feature) -> why not. A sum lacks what one of its parts lacks."""

_UNSUPPORTED_BY_BACKEND: Mapping[tuple[str, str, str], str] = {
    ("twicing", "sdpa", "dropout"): "both passes must use the same dropped map",
}


class Cell(NamedTuple):
    """One claim: `reason` is None where the mechanism has the feature on the backend, else why not."""

    mechanism: str
    backend: str
    feature: str
    reason: str | None


def mechanisms() -> tuple[str, ...]:
    """Return all presets, then the sums."""
    return (*PRESETS, *SUMS)


def backends_of(mechanism: str) -> tuple[str, ...]:
    """Return the backends which can run a mechanism's layers at all."""
    config = attention_config(mechanism, hidden_size=32, num_heads=4)
    candidates = config.rule.backends(config.sizes, Situation(), dropout_p=0.0)
    return tuple(sorted(backend for backend, refusal in candidates.items() if refusal is None))


def cells() -> Iterator[Cell]:
    """Return every claim."""
    for mechanism in mechanisms():
        for backend in backends_of(mechanism):
            for feature in FEATURES:
                yield Cell(mechanism, backend, feature, _why_not(mechanism, backend, feature))


def _why_not(mechanism: str, backend: str, feature: str) -> str | None:
    for part in mechanism.split("+"):
        reason = _UNSUPPORTED.get((part, feature)) or _UNSUPPORTED_BY_BACKEND.get((part, backend, feature))
        if reason is not None:
            return reason
    return _UNSUPPORTED.get((backend, feature))


def support_table(*, details: bool = True) -> str:
    """Return the table in Markdown, with the reasons of what is missing below it and, with `details`, what
    each column claims.
    """
    rows: dict[tuple[str, str], dict[str, str | None]] = {}
    for cell in cells():
        rows.setdefault((cell.mechanism, cell.backend), {})[cell.feature] = cell.reason
    notes = list(dict.fromkeys(reason for row in rows.values() for reason in row.values() if reason is not None))
    lines = [
        "| mechanism | backend | " + " | ".join(FEATURES) + " |",
        "|---|---|" + ":-:|" * len(FEATURES),
    ]
    for (mechanism, backend), row in rows.items():
        marks = ["✓" if reason is None else f"–{_superscript(notes.index(reason) + 1)}" for reason in row.values()]
        lines.append(f"| {mechanism} | {backend} | " + " | ".join(marks) + " |")
    lines.append("")
    lines += [f"{_superscript(number)} {reason}.  " for number, reason in enumerate(notes, start=1)]
    if details:
        lines += ["", "What each column claims, and the tests check:", ""]
        lines += [f"- **{feature}**: {claim}." for feature, claim in FEATURES.items()]
    return "\n".join(lines) + "\n"


def _superscript(number: int) -> str:
    return "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(number))
