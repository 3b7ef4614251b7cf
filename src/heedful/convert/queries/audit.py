"""`audit`: what `convert_queries` could do to a decoder, what not, and why."""

from __future__ import annotations

import math

import torch

from heedful.convert.queries.architecture import describe, why_norms_forbid, why_reads_are_not_linear
from heedful.convert.queries.conditioning import LIMITS, type_name
from heedful.convert.queries.conversions import parameters_of
from heedful.convert.queries.plan import EliminationPlan, eliminate, plan_elimination
from heedful.convert.queries.reductions import REDUCTIONS, audit_reduction
from heedful.convert.queries.report import LayerAudit, QueryAudit, Verdict
from heedful.convert.queries.weights import DecoderWeights
from heedful.models import DecoderLM
from heedful.models.counting import count_parameters

APPROXIMATE = (
    "; only with changed logits: W_Q := I and further training, or an annealed or additive nonlinear query, which "
    "start exactly"
)


@torch.no_grad()
def audit(model: DecoderLM) -> QueryAudit:
    """Return the verdict for each layer of a decoder, with reasons; the model is not changed.

    The defaults of `convert_queries` are assumed: all layers, heads conditioned where possible, the head as it is.
    """
    config = model.config
    before = after = parameters_of(model)
    plan = EliminationPlan(frames=[])
    stored = config.layers[: len(model.blocks)]
    if why_norms_forbid(config) is None:
        weights = DecoderWeights.of(model)
        plan = plan_elimination(weights)
        if plan.conditions and all(math.isfinite(number) for number in plan.conditions.values()):
            eliminate(weights, plan)
            after = count_parameters(weights.final_config()).total
    layers = tuple(_audit_layer(model, plan, index) for index in range(len(stored)))
    warnings = _warnings(model, plan, before - after)
    return QueryAudit(
        traits=describe(config),
        layers=layers,
        summary=_summary(layers, before, after, plan),
        parameters_before=before,
        parameters_after=after,
        warnings=tuple(warnings),
        reductions=tuple(audit_reduction(name, config) for name in REDUCTIONS),
    )


def _audit_layer(model: DecoderLM, plan: EliminationPlan, index: int) -> LayerAudit:
    config = model.config
    layer = config.layers[index]
    own = why_reads_are_not_linear(layer)
    if own is not None:
        return LayerAudit(layer=index, verdict="no", reason=own)
    if index in plan.conditions:
        number = plan.conditions[index]
        if not math.isfinite(number):
            return LayerAudit(layer=index, verdict="no", reason="its W_Q is singular", condition_number=number)
        return LayerAudit(layer=index, verdict="exact", reason=_exact_words(model, index), condition_number=number)
    reason = plan.kept.get(index) or why_norms_forbid(config) or ""
    fits = layer.query_width <= layer.hidden_size
    verdict: Verdict = "approximate" if fits else "no"
    return LayerAudit(layer=index, verdict=verdict, reason=reason + (APPROXIMATE if fits else ""))


def _exact_words(model: DecoderLM, index: int) -> str:
    config, layer = model.config, model.config.layers[index]
    width, size = layer.query_width, layer.hidden_size
    if config.share_layers:
        how = "no norm, and all layers share one W_Q, which becomes the basis of the stream"
    elif config.attention_skip and config.feed_forward_skip:
        how = "no norm, both skips: one basis for the whole stream, taken from this layer's W_Q"
    elif config.attention_skip or config.feed_forward_skip:
        where = "attention" if config.attention_skip else "MLP"
        how = f"no norm, a skip around the {where} only: the other hand-over of each block has a basis of its own"
    else:
        how = "no norm and no skips: every hand-over has a basis of its own"
    if layer.rotary is not None:
        how += "; rotary positions come after the projection and do not matter"
    if layer.qk_norm:
        how += "; so does the query norm"
    if width < size:
        how += f"; the query is the first {width} of {size} coordinates"
    elif width > size:
        how += f"; {size} of {width} columns become the identity, the others stay"
    return how


def _warnings(model: DecoderLM, plan: EliminationPlan, saved: int) -> list[str]:
    config, warnings = model.config, []
    size, stored = config.hidden_size, len(model.blocks)
    if plan.conditions and saved <= 0:
        warnings.append(f"pointless for size: the net saving is {saved:,} parameters")
    if plan.tied_head:
        untying = size * size - config.vocab_size * size
        warnings.append(
            "net saving 0: the tied head needs a d x d matrix of its own, as large as the W_Q that goes; untying the "
            f"head instead would change the size by {-untying:+,} parameters"
        )
    both = config.attention_skip and config.feed_forward_skip and config.norm == "none"
    if both and not config.share_layers and stored > 1:
        off = [number for number in plan.departures.values() if number > 1e-9]
        if off:
            warnings.append(
                f"impossible for all layers at once: (W_Q of the chosen layer)^-1 W_Q is not block diagonal by heads "
                f"in {len(off)} of {stored} layers (relative departure {min(off):.2g} to {max(off):.2g}); one new "
                "d x d matrix per skip could replace them, which saves no more"
            )
    worst = max(plan.conditions.values(), default=1.0)
    for dtype in (torch.bfloat16, torch.float32):
        limits = LIMITS[dtype]
        if limits.refuse < worst < float("inf"):
            warnings.append(f"condition number {worst:.3g}: will be refused for {type_name(dtype)} storage")
        elif limits.warn < worst <= limits.refuse:
            warnings.append(f"condition number {worst:.3g}: {type_name(dtype)} storage loses accuracy")
    if config.dropout or config.attention_output_dropout:
        warnings.append("dropout on the stream does not follow a change of basis: convert for inference")
    return warnings


def _summary(layers: tuple[LayerAudit, ...], before: int, after: int, plan: EliminationPlan) -> str:
    exact = [layer for layer in layers if layer.verdict == "exact"]
    if exact:
        share = (before - after) / before
        return (
            f"{len(exact)} of {len(layers)} query matrices can be removed exactly: {before - after:,} parameters net "
            f"({share:.2%})."
        )
    if plan.tied_head:
        return "A query matrix could be moved into the stream's basis, but the tied head then needs as large a matrix."
    return "No query matrix can be removed without changing the logits."
