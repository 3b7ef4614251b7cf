"""`convert_queries`: take W_Q out of a decoder, or change nothing and say why."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from heedful.convert.queries.architecture import why_reads_are_not_linear
from heedful.convert.queries.conditioning import check_condition, limits_of
from heedful.convert.queries.plan import eliminate, plan_elimination
from heedful.convert.queries.reductions import apply_reductions, check_names
from heedful.convert.queries.report import QueryConversionReport
from heedful.convert.queries.verification import approximation_error, check_tokens, verify
from heedful.convert.queries.weights import DecoderWeights
from heedful.models import DecoderLM
from heedful.nn import IdentityQuery

NOT_LOSSLESS = (
    "this is not lossless: W_Q := I changes the logits, as measured here on the given tokens; train the model further, "
    "or start from an annealed or additive nonlinear query (heedful.nn.AnnealedQuery, "
    "NonlinearQuery(anchor='linear', output_gain_start=0.0)), which begin exactly where the trained model is"
)


def convert_queries(
    model: DecoderLM,
    *,
    reductions: Sequence[str] = (),
    eliminate_queries: bool = True,
    layer: int | None = None,
    max_condition: float | None = None,
    condition_heads: bool = True,
    untie_head: bool = False,
    divisor: float = 1.0,
    approximate: Literal["identity"] | None = None,
    tokens: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[DecoderLM, QueryConversionReport]:
    """Return a decoder with the same logits and fewer query weights.

    All algebra runs in float64 on the CPU. Logits on random tokens, and on `tokens`, are compared before anything is
    returned. The original model is not changed. The result is meant for inference: dropout on the stream and an
    optimiser's state do not follow a change of basis.

    Args:
        model: a decoder; see `audit` for what can be removed from it.
        reductions: small exact reductions to apply besides, names of `heedful.convert.queries.REDUCTIONS`.
        eliminate_queries: remove W_Q wherever that is exact; False applies the reductions alone.
        layer: the only layer to treat; None for all that can be, and for the best conditioned of tied ones.
        max_condition: the largest condition number allowed, None for the limit of the storage type.
        condition_heads: first make the query heads orthonormal by an exact change of queries and keys, where neither
            rotary positions nor query-key norms stand against it and the condition number falls.
        untie_head: give a model with a tied head one of its own (V d new entries) where the elimination needs it.
        divisor: c of T = W_Q / c; the scores are multiplied by c, or, before a norm of the queries, the queries.
        approximate: "identity" overwrites W_Q with the identity without any compensation: not lossless.
        tokens: (B, T) int64 real tokens to verify on; needed with `approximate`.
        dtype: of the result; None for the model's own, and float32 where that has fewer bits.

    Returns:
        the new decoder on the CPU in evaluation mode, and the report.

    Raises:
        ValueError: nothing can be removed exactly (with the reason for each layer), a reduction that does not apply, a
            condition number above the limit, or logits that do not agree.
    """
    names = check_names(reductions)
    stored = _storage_type(model, dtype)
    tokens = None if tokens is None else check_tokens(model, tokens)
    if approximate is not None:
        return _approximate(model, approximate, layer=layer, tokens=tokens, names=names, dtype=stored)
    weights = DecoderWeights.of(model)
    warnings: list[str] = []
    conditions: dict[int, float] = {}
    kept: dict[int, str] = {}
    untied = False
    if eliminate_queries:
        plan = plan_elimination(weights, layer=layer, condition=condition_heads, untie_head=untie_head, divisor=divisor)
        kept = plan.kept
        if not plan.conditions and not names:
            raise ValueError(refusal(kept))
        for index, number in plan.conditions.items():
            warning = check_condition(number, stored, max_condition, f"the W_Q of layer {index}")
            warnings += [] if warning is None else [warning]
        conditions, untied = plan.conditions, plan.untie
        eliminate(weights, plan)
    elif not names:
        raise ValueError("nothing to do: eliminate_queries is False and no reduction is named.")
    limits = limits_of(stored, max_condition)
    reports, state = apply_reductions(weights, names, layer=layer, largest_condition=limits.refuse)
    if state.worst_condition > limits.warn:
        warnings.append(f"a head's block that became the identity has condition number {state.worst_condition:.3g}")
    converted = weights.model()
    verification = verify(model, converted, stored, tokens)
    removed = tuple(sorted({*conditions, *state.removed}))
    before, after = parameters_of(model), parameters_of(converted)
    if removed and before - after <= 0:
        warnings.append(
            f"the net saving is {before - after:,} parameters: what the conversion adds outweighs the W_Q it removes"
        )
    return converted.to(stored), QueryConversionReport(
        lossless=True,
        removed=removed,
        kept={str(index): reason for index, reason in sorted(kept.items()) if index not in removed},
        condition_numbers={str(index): number for index, number in sorted(conditions.items())},
        head_untied=untied,
        parameters_before=before,
        parameters_after=after,
        reductions=reports,
        verification=verification,
        approximation=None,
        warnings=tuple(warnings),
    )


def refusal(kept: dict[int, str]) -> str:
    """Return one sentence with the reasons, layers with the same reason together."""
    by_reason: dict[str, list[int]] = {}
    for index, reason in sorted(kept.items()):
        by_reason.setdefault(reason, []).append(index)
    parts = [f"layer{'s' * (len(layers) > 1)} {_ranges(layers)}: {reason}" for reason, layers in by_reason.items()]
    return (
        "no W_Q of this model can be removed exactly. " + "; ".join(parts) + ". The small exact reductions may still "
        "apply (reductions=...), and approximate='identity' overwrites W_Q at the price of other logits."
    )


def parameters_of(model: DecoderLM) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _approximate(
    model: DecoderLM,
    kind: str,
    *,
    layer: int | None,
    tokens: Tensor | None,
    names: tuple[str, ...],
    dtype: torch.dtype,
) -> tuple[DecoderLM, QueryConversionReport]:
    """Overwrite W_Q with the identity and measure what that does."""
    if kind != "identity":
        raise ValueError(f"approximate must be 'identity' or None, got {kind!r}.")
    if tokens is None:
        raise ValueError("approximate='identity' changes the logits: give tokens of real text to measure by how much.")
    if names:
        raise ValueError("reductions are exact and approximate='identity' is not: convert in two steps.")
    weights = DecoderWeights.of(model)
    if layer is not None and not 0 <= layer < len(weights.layers):
        raise ValueError(f"layer must be one of the stored blocks, 0 to {len(weights.layers) - 1}; got {layer}.")
    kept: dict[int, str] = {}
    changed = []
    for index, one in enumerate(weights.layers):
        reason = why_reads_are_not_linear(one.config)
        if layer is not None and index != layer:
            reason = f"only layer {layer} was asked for"
        elif reason is None and one.config.query_width > one.config.hidden_size:
            reason = "the queries are wider than the stream, which cannot fill them"
        if reason is not None or one.query is None:
            kept[index] = reason or "there is no W_Q"
            continue
        width, size = one.config.query_width, one.config.hidden_size
        scale = one.config.sizes.head_dim**-0.5 if one.config.scale is None else one.config.scale
        query = IdentityQuery(gain=1.0, anchor_fit="exact" if width == size else "slice")
        one.query, one.config = None, replace(one.config, query=query, scale=scale)
        changed.append(index)
    if not changed:
        raise ValueError(refusal(kept))
    converted = weights.model()
    measured = approximation_error(model, converted, tokens, kind=kind, layers=tuple(changed))
    return copy.deepcopy(converted).to(dtype), QueryConversionReport(
        lossless=False,
        removed=tuple(changed),
        kept={str(index): reason for index, reason in sorted(kept.items())},
        condition_numbers={},
        head_untied=False,
        parameters_before=parameters_of(model),
        parameters_after=parameters_of(converted),
        reductions=(),
        verification=None,
        approximation=measured,
        warnings=(NOT_LOSSLESS,),
    )


def _storage_type(model: DecoderLM, dtype: torch.dtype | None) -> torch.dtype:
    own = next(model.parameters()).dtype
    wanted = (own if own in (torch.float32, torch.float64) else torch.float32) if dtype is None else dtype
    limits_of(wanted)
    return wanted


def _ranges(numbers: list[int]) -> str:
    """Return "0-3, 5" for [0, 1, 2, 3, 5]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
