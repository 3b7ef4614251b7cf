"""What audits and conversions say: plain frozen dataclasses, which `heedful.schema.to_mapping` turns into JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["exact", "approximate", "no"]


@dataclass(frozen=True, kw_only=True)
class LayerAudit:
    """One stored block.

    Attributes:
        layer: its index.
        verdict: "exact" (W_Q can go and the logits stay), "approximate" (only with changed logits, so it needs
            training afterwards), "no" (there is no W_Q to remove, or nothing that could replace it).
        reason: why, in words.
        condition_number: of the change of basis; None where none was considered.
    """

    layer: int
    verdict: Verdict
    reason: str
    condition_number: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReductionAudit:
    """A small exact reduction.

    Attributes:
        name: as `convert_queries` takes it.
        layers: the stored blocks that it applies to.
        entries: how many entries become 0 or 1, or move elsewhere. As long as the shapes stay, they save memory only in
            a storage that leaves such entries out; what the model itself loses shows in its parameter count.
        reason: what it does, or why it does not apply.
    """

    name: str
    layers: tuple[int, ...]
    entries: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class QueryAudit:
    """Which query matrices of a decoder can be removed, and why the others cannot.

    Attributes:
        traits: the properties that decide, as words.
        layers: the verdicts.
        summary: one sentence for the whole model.
        parameters_before, parameters_after: of the model, and of what `convert_queries` would make of it by default.
        warnings: savings of 0, large condition numbers and the like.
        reductions: the small exact reductions.
    """

    traits: dict[str, str]
    layers: tuple[LayerAudit, ...]
    summary: str
    parameters_before: int
    parameters_after: int
    warnings: tuple[str, ...]
    reductions: tuple[ReductionAudit, ...]

    @property
    def net_saved(self) -> int:
        """Parameters saved, those that the conversion adds subtracted."""
        return self.parameters_before - self.parameters_after

    @property
    def removable(self) -> tuple[int, ...]:
        """The layers whose W_Q goes without any change of the logits."""
        return tuple(layer.layer for layer in self.layers if layer.verdict == "exact")


@dataclass(frozen=True, kw_only=True)
class TypeErrors:
    """Errors of a storage type, relative to the largest float64 logit of the original.

    Attributes:
        dtype: the type.
        converted: of the converted model in this type.
        original: of the original model in this type, for comparison.
    """

    dtype: str
    converted: float
    original: float


@dataclass(frozen=True, kw_only=True)
class Verification:
    """max |logit difference| / max |logit| between the original and the converted model.

    Attributes:
        random_tokens: in float64 on random tokens.
        given_tokens: in float64 on the caller's tokens; None without any.
        stored: in the type that the converted model is returned in.
    """

    random_tokens: float
    given_tokens: float | None
    stored: TypeErrors


@dataclass(frozen=True, kw_only=True)
class Approximation:
    """What an inexact replacement does to the caller's tokens; nothing here is lossless.

    Attributes:
        kind: "identity": W_Q := I.
        layers: the blocks it was done to.
        tokens: how many tokens were scored.
        logit_error: max |logit difference| / max |logit|.
        loss_before, loss_after: mean next-token loss in nats.
    """

    kind: str
    layers: tuple[int, ...]
    tokens: int
    logit_error: float
    loss_before: float
    loss_after: float


@dataclass(frozen=True, kw_only=True)
class QueryConversionReport:
    """What `convert_queries` did.

    Attributes:
        lossless: the logits are those of the original up to rounding; False for every approximation.
        removed: stored blocks without W_Q now.
        kept: reasons for the other blocks.
        condition_numbers: of the changes of basis, by block.
        head_untied: a separate output head was made.
        parameters_before, parameters_after: of the two models.
        reductions: what was reduced besides.
        verification: None for an approximation.
        approximation: None for an exact conversion.
        warnings: what the reader should know before using the result.
    """

    lossless: bool
    removed: tuple[int, ...]
    kept: dict[str, str]
    condition_numbers: dict[str, float]
    head_untied: bool
    parameters_before: int
    parameters_after: int
    reductions: tuple[ReductionAudit, ...]
    verification: Verification | None
    approximation: Approximation | None
    warnings: tuple[str, ...]

    @property
    def net_saved(self) -> int:
        """Parameters saved, those that the conversion added subtracted."""
        return self.parameters_before - self.parameters_after
