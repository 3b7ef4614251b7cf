"""The small exact reductions: what they are called, where they apply, and applying several in the right order.

They are there for ordinary checkpoints, whose norms keep W_Q in place. Most make entries 0 or 1 without changing any
shape: the model stays one of the same kind, and only a storage and kernels that leave such entries out gain from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from heedful.convert.queries.architecture import (
    why_key_bias_matters,
    why_no_query_key_gauge,
    why_reads_are_not_linear,
    why_values_are_not_free,
)
from heedful.convert.queries.gauges import make_query_blocks_identity, make_value_blocks_identity
from heedful.convert.queries.norm_folding import becomes_rms, fold_norms, why_not_fold
from heedful.convert.queries.report import ReductionAudit
from heedful.convert.queries.rotations import (
    drop_identity_queries,
    rotate,
    rotated_layers,
    why_not_rotate,
    zeros_below_diagonal,
)
from heedful.convert.queries.weights import DecoderWeights
from heedful.models import DecoderConfig
from heedful.nn import AttentionConfig
from heedful.schema import did_you_mean

Reduction = Literal[
    "fold-norms", "rotation", "query-key-gauge", "value-output-gauge", "drop-key-bias", "fold-value-bias"
]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)  # also the order in which they are applied

SKIPPING_STORAGE = "saves memory only in a storage that leaves out entries known to be 0 or 1"


@dataclass
class ReductionState:
    """What reductions learn from each other: the triangular layers, and the worst condition number of a gauge."""

    triangular: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    worst_condition: float = 1.0


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names in the order of application.

    Raises:
        ValueError: an unknown name, with the nearest known one.
    """
    for name in names:
        if name not in REDUCTIONS:
            raise ValueError(f"there is no reduction {name!r}.{did_you_mean(name, REDUCTIONS)}")
    return tuple(name for name in REDUCTIONS if name in names)


def audit_reduction(name: str, config: DecoderConfig) -> ReductionAudit:
    """Say where a reduction applies and how many entries it makes trivial, from the configuration alone."""
    stored = config.layers[: 1 if config.share_layers else None]
    if name in ("fold-norms", "rotation"):
        refusal = why_not_fold(config) if name == "fold-norms" else why_not_rotate(config)
        if refusal is not None:
            return _audit(name, (), 0, f"does not apply: {refusal}")
        if name == "rotation":
            chosen = rotated_layers(config, None)
            entries = sum(zeros_below_diagonal(config.hidden_size, stored[i].query_width) for i in chosen)
            return _audit(name, tuple(chosen), entries, _ROTATION)
        foldable = tuple(i for i, one in enumerate(stored) if why_reads_are_not_linear(one) is None)
        norms = len(foldable) + len(stored) + (0 if config.tie_embeddings else 1)
        per_norm = 2 if config.norm == "layer" and config.bias else 1
        return _audit(name, foldable, norms * per_norm * config.hidden_size, _fold_words(config))
    refusals = [_refusal(name, one) for one in stored]
    applies = tuple(index for index, reason in enumerate(refusals) if reason is None)
    if not applies:
        return _audit(name, (), 0, f"does not apply: {refusals[0]}")
    return _audit(name, applies, sum(_entries(name, stored[index]) for index in applies), _WORDS[name])


def apply_reductions(
    weights: DecoderWeights, names: Sequence[str], *, layer: int | None, largest_condition: float
) -> tuple[tuple[ReductionAudit, ...], ReductionState]:
    """Apply reductions in place and report each.

    Args:
        names: of `REDUCTIONS`; "rotation" brings "fold-norms" along.
        layer: the layer to make triangular where skips leave one.
        largest_condition: blocks above it are left alone by the gauges.

    Raises:
        ValueError: an unknown name, or a reduction that applies nowhere in this model, with the reason.
    """
    names = check_names(names)
    if "rotation" in names and "fold-norms" not in names and weights.config.norm != "none":
        names = ("fold-norms", *names)
    state, reports = ReductionState(), []
    for name in names:
        planned = audit_reduction(name, weights.final_config())
        if not planned.layers and planned.entries == 0:
            raise ValueError(f"the reduction {name!r} {planned.reason}.")
        layers, entries = _apply(name, weights, planned, state, layer, largest_condition)
        reports.append(replace(planned, layers=layers, entries=entries))
    # Only now, so that one of the two does not hide from the other that there are biases.
    weights.drop_zero_biases = "drop-key-bias" in names or "fold-value-bias" in names
    if state.triangular and "query-key-gauge" in names:
        state.removed = drop_identity_queries(weights, state.triangular)
    return tuple(reports), state


def _apply(
    name: str,
    weights: DecoderWeights,
    planned: ReductionAudit,
    state: ReductionState,
    layer: int | None,
    largest: float,
) -> tuple[tuple[int, ...], int]:
    if name == "fold-norms":
        return fold_norms(weights)
    if name == "rotation":
        state.triangular = rotate(weights, layer)
        return state.triangular, planned.entries
    if name in ("query-key-gauge", "value-output-gauge"):
        entries, changed_layers = 0, []
        for index in planned.layers:
            one = weights.layers[index]
            on_diagonal = index in state.triangular
            changed, worst = (
                make_query_blocks_identity(one, on_diagonal=on_diagonal, largest=largest)
                if name == "query-key-gauge"
                else make_value_blocks_identity(one, largest=largest)
            )
            size = one.head_dim
            # Below the diagonal a triangular W_Q was 0 already.
            per_group = size * (size + 1) // 2 if on_diagonal and name == "query-key-gauge" else size * size
            entries += changed * per_group
            changed_layers += [index] if changed else []
            state.worst_condition = max(state.worst_condition, worst)
        return tuple(changed_layers), entries
    entries = 0
    for index in planned.layers:
        one = weights.layers[index]
        part = one.key if name == "drop-key-bias" else one.value
        assert part is not None
        entries += int(part.bias.count_nonzero())
        if name == "fold-value-bias":
            heads = range(one.config.heads.output_heads)
            shared = one.query_heads_per_group
            averaged = [part.bias[one.columns(head // shared)] @ one.output.weight[one.columns(head)] for head in heads]
            for moved in averaged:
                one.output.bias = one.output.bias + moved
        part.bias = part.bias.new_zeros(part.bias.shape)
    return planned.layers, entries


def _refusal(name: str, layer: AttentionConfig) -> str | None:
    if name == "query-key-gauge":
        if layer.query_width and layer.sizes.head_dim > layer.hidden_size:
            return "the heads are wider than the stream"
        return why_no_query_key_gauge(layer)
    if name == "value-output-gauge":
        if layer.heads.value_dim > layer.hidden_size:
            return "the heads are wider than the stream"
        return why_values_are_not_free(layer)
    if not layer.bias:
        return "the projections have no biases"
    return why_key_bias_matters(layer) if name == "drop-key-bias" else why_values_are_not_free(layer)


def _entries(name: str, layer: AttentionConfig) -> int:
    groups, size = layer.heads.key_heads, layer.sizes.head_dim
    return groups * size * size if name.endswith("gauge") else groups * size


def _audit(name: str, layers: tuple[int, ...], entries: int, reason: str) -> ReductionAudit:
    return ReductionAudit(name=name, layers=layers, entries=entries, reason=reason)


def _fold_words(config: DecoderConfig) -> str:
    if becomes_rms(config):
        return "gains and shifts move into the next maps, writes are centred, and LayerNorm becomes RMSNorm"
    if config.tie_embeddings:
        return "gains and shifts of the blocks' norms move into the next maps; the final norm stays, the head is tied"
    return "gains and shifts of the norms move into the next maps"


_ROTATION = f"a rotation of the stream makes W_Q triangular in these layers; {SKIPPING_STORAGE}"
_WORDS = {
    "query-key-gauge": f"one head-sized block of W_Q per key head becomes the identity; {SKIPPING_STORAGE}",
    "value-output-gauge": f"one head-sized block of W_V per value head becomes the identity; {SKIPPING_STORAGE}",
    "drop-key-bias": "the bias of the keys adds a constant to each row of scores, which the softmax ignores",
    "fold-value-bias": "weights of a row sum to 1, so the bias of the values passes through W_O into its bias",
}
