"""What is supported, declared once: mechanism x feature x backend.

The battery of invariant tests runs over exactly this table, and the documentation's support table is printed from it,
so that no claim is untested. A cell that is not supported names the reason and is tested to be refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from heedful.nn.config import AttentionConfig
from heedful.nn.multi_token import MultiTokenRule
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

PARTS = ("kq_pre", "kq_post", "head_pre", "head_post")
PART_COMBINATIONS = tuple(
    "multi-token[" + " ".join(name for name, there in zip(PARTS, flags, strict=True) if there) + "]"
    for flags in itertools.product((True, False), repeat=4)
    if any(flags)
)
"""Every combination of the four parts of multi-token attention; two heads are mixed before the softmax, all after."""

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
    ("boosted", "identity-start"): "its gates start at 1/2; with Boosting(gate='scaled-vector') it does",
    ("boosted-input-kv", "identity-start"): "its gates start at 1/2; with Boosting(gate='scaled-vector') it does",
    ("twicing", "identity-start"): "has no parameters to start from",
    ("differential", "identity-start"): _NO_IDENTITY,
    ("differential-v2", "identity-start"): _NO_IDENTITY,
    (
        "multi-token-v1",
        "identity-start",
    ): "its head norm and depth scale change the function; without them, or with BlendedHeadOutput, it does",
    (
        "multi-token",
        "identity-start",
    ): "its head norm and gate change the function; without them, or with BlendedHeadOutput, it does",
}
"""(mechanism or backend, feature) -> why not. A sum lacks what one of its parts lacks."""

_UNSUPPORTED_BY_BACKEND: Mapping[tuple[str, str, str], str] = {
    ("twicing", "sdpa", "dropout"): "both passes must use the same dropped map",
    ("multi-token[head_post]", "sdpa", "dropout"): "dropout acts on the mixed weights",
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


def layer_config(name: str, **fields: Any) -> AttentionConfig:
    """Return the layer of a preset, a sum, or a combination of parts."""
    if name not in PART_COMBINATIONS:
        return attention_config(name, **fields)
    parts = name.removeprefix("multi-token[").removesuffix("]").split()
    rule = MultiTokenRule(
        pre_convolution="kq_pre" in parts,
        post_convolution="kq_post" in parts,
        pre_mixing=2 if "head_pre" in parts else None,
        post_mixing="all" if "head_post" in parts else None,
    )
    return attention_config(rule=rule, **fields)


def backends_of(name: str) -> tuple[str, ...]:
    """Return the backends which can run the layers of a preset, a sum or a combination of parts on any device.

    Triton is none of them, also where its interpreter makes it run.
    """
    config = layer_config(name, hidden_size=32, num_heads=4)
    candidates = config.rule.backends(config.sizes, Situation(), dropout_p=0.0)
    return tuple(sorted(name for name, refusal in candidates.items() if refusal is None and name != "triton"))


def cells(names: tuple[str, ...] | None = None) -> Iterator[Cell]:
    """Return every claim, or those about some presets, sums and combinations of parts."""
    for mechanism in (*mechanisms(), *PART_COMBINATIONS) if names is None else names:
        for backend in backends_of(mechanism):
            for feature in FEATURES:
                yield Cell(mechanism, backend, feature, _why_not(mechanism, backend, feature))


def _why_not(mechanism: str, backend: str, feature: str) -> str | None:
    for part in mechanism.split("+"):
        reason = _UNSUPPORTED.get((part, feature)) or _UNSUPPORTED_BY_BACKEND.get((part, backend, feature))
        if reason is not None:
            return reason
    return _UNSUPPORTED.get((backend, feature))


def support_table(names: tuple[str, ...] | None = None, *, details: bool = True) -> str:
    """Return the table of presets and sums, or of `names`, in Markdown.

    The reasons of what is missing stand below it and, with `details`, what each column claims.
    """
    rows: dict[tuple[str, str], dict[str, str | None]] = {}
    for cell in cells(mechanisms() if names is None else names):
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
