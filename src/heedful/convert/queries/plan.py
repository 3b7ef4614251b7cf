"""Which W_Q can go, and the basis of every hidden state in which they do.

Where the attention of layer l reads a state in the basis T = W_Q, t = b_Q, the query is the state itself. A class of
tied states has one T, so one layer of a class is chosen; another layer of the class follows only if its W_Q differs
from the chosen one by a gauge of its heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from heedful.convert.queries.architecture import (
    stream_classes,
    why_no_query_key_gauge,
    why_norms_forbid,
    why_reads_are_not_linear,
)
from heedful.convert.queries.conditioning import condition_number
from heedful.convert.queries.frames import Frame, apply_frames
from heedful.convert.queries.gauges import (
    apply_query_key_gauge,
    blocks_between,
    commutes_with_rotation,
    condition_heads,
)
from heedful.convert.queries.weights import Affine, DecoderWeights, LayerWeights
from heedful.nn import IdentityQuery, LinearQuery, PartialIdentityQuery

SAME_UP_TO_BLOCKS = 1e-9  # relative; float32 checkpoints of truly shared matrices agree exactly

TIED_HEAD = (
    "exact only with a new d x d matrix before the tied head, as large as the W_Q that goes (0 saved), or with an "
    "untied head (V d new entries)"
)


@dataclass
class EliminationPlan:
    """What `eliminate` will do.

    Attributes:
        frames: of the states 0 .. 2L.
        conditions: cond(T) of the layers whose W_Q goes; infinity where T is singular.
        kept: why the other layers keep theirs.
        untie: the head must be untied first.
        tied_head: the layers that only the tied head holds back.
        departures: for layers held back by the basis of another: how far W_Q is from it, up to gauges, relative.
        divisor: c of T = W_Q / c.
    """

    frames: list[Frame]
    conditions: dict[int, float] = field(default_factory=dict)
    kept: dict[int, str] = field(default_factory=dict)
    untie: bool = False
    tied_head: list[int] = field(default_factory=list)
    departures: dict[int, float] = field(default_factory=dict)
    divisor: float = 1.0


def plan_elimination(
    weights: DecoderWeights,
    *,
    layer: int | None = None,
    condition: bool = True,
    untie_head: bool = False,
    divisor: float = 1.0,
) -> EliminationPlan:
    """Choose the layers and the bases; heads of chosen layers are conditioned in place where that is exact.

    Args:
        weights: changed by gauges only, which keep the logits.
        layer: the only layer to treat; None for as many as possible, the best conditioned one of each class.
        condition: make heads orthonormal first where that lowers the condition number.
        untie_head: allow a head of its own where a tied one stands in the way.
        divisor: T = W_Q / divisor.
    """
    config, count = weights.config, len(weights.layers)
    if layer is not None and not 0 <= layer < count:
        raise ValueError(f"layer must be one of the {count} stored blocks, 0 to {count - 1}; got {layer}.")
    if not divisor > 0:
        raise ValueError(f"the divisor of W_Q must be above 0, got {divisor}.")
    classes = stream_classes(config)
    plan = EliminationPlan(frames=[Frame()] * len(classes), divisor=divisor)
    blockers: dict[int, int] = {}
    for index, one in enumerate(weights.layers):
        reason = why_reads_are_not_linear(one.config)
        if reason is not None:
            plan.kept[index] = reason
            blockers.setdefault(classes[2 * index], index)
    norms = why_norms_forbid(config)
    if norms is not None:
        plan.kept = {index: plan.kept.get(index, norms) for index in range(count)}
        return plan
    one_basis = weights.head is None and classes[0] == classes[-1]
    plan.untie = one_basis and untie_head
    for number in sorted(set(classes)):
        members = [index for index in range(count) if classes[2 * index] == number and index not in plan.kept]
        if number in blockers:
            reason = f"skips tie its basis to that of layer {blockers[number]}, which reads the stream as it stands"
            plan.kept.update(dict.fromkeys(members, reason))
        elif members:
            _plan_class(weights, plan, members, layer=layer, condition=condition, untie_head=untie_head)
    if one_basis and not untie_head:
        plan.tied_head = sorted(plan.conditions)
        plan.kept.update(dict.fromkeys(plan.tied_head, TIED_HEAD))
        plan.frames, plan.conditions = [Frame()] * len(classes), {}
    elif weights.head is None and not plan.untie and plan.frames[0].matrix is not None:
        back = torch.linalg.inv(plan.frames[0].matrix).T
        for state, number in enumerate(classes):
            if number == classes[-1]:
                plan.frames[state] = replace(plan.frames[state], matrix=back)
    plan.untie = plan.untie and bool(plan.conditions)
    return plan


def eliminate(weights: DecoderWeights, plan: EliminationPlan) -> None:
    """Carry a plan out, in place."""
    if plan.untie:
        weights.untie_head()
    size = weights.config.hidden_size
    for index in plan.conditions:
        layer = weights.layers[index]
        assert layer.query is not None
        query, width = layer.config.query, layer.query.weight.shape[1]
        assert isinstance(query, LinearQuery)
        rest = Affine(layer.query.weight[:, size:] / plan.divisor, layer.query.bias[size:] / plan.divisor)
        layer.query = rest if width > size else None
        # A query norm would undo a factor on the scores, so there the factor goes before the norm.
        gain = query.gain * plan.divisor if layer.config.qk_norm else query.gain
        scale = layer.config.sizes.head_dim**-0.5 if layer.config.scale is None else layer.config.scale
        layer.config = replace(
            layer.config,
            query=PartialIdentityQuery(gain=gain)
            if width > size
            else IdentityQuery(gain=gain, anchor_fit="exact" if width == size else "slice"),
            scale=scale if layer.config.qk_norm else scale * plan.divisor,
        )
    apply_frames(weights, plan.frames)


def query_frame(layer: LayerWeights, divisor: float = 1.0) -> Frame:
    """Return the basis in which the query is the stream: W_Q, completed or cut to a square matrix, and b_Q."""
    assert layer.query is not None
    weight, bias = layer.query.weight, layer.query.bias
    size, width = weight.shape
    if width < size:
        basis, triangle = torch.linalg.qr(weight, mode="complete")
        # The middle of W_Q's singular values, so that the completion adds nothing to the condition number.
        middle = torch.linalg.svdvals(triangle).median()
        weight = torch.cat([weight, middle * basis[:, width:]], dim=1)
        bias = torch.cat([bias, bias.new_zeros(size - width)])
    matrix, shift = weight[:, :size] / divisor, bias[:size] / divisor
    return Frame(matrix, shift if bool(shift.any()) else None)


def _plan_class(
    weights: DecoderWeights,
    plan: EliminationPlan,
    members: list[int],
    *,
    layer: int | None,
    condition: bool,
    untie_head: bool,
) -> None:
    """Choose for the layers of one class."""
    config, classes = weights.config, stream_classes(weights.config)
    if layer is not None and layer not in members:
        plan.kept.update(dict.fromkeys(members, f"only layer {layer} was asked for"))
        return
    for index in members if layer is None else [layer]:
        if condition and why_no_query_key_gauge(weights.layers[index].config) is None:
            _condition_if_better(weights.layers[index])
    matrices = {index: _matrix(query_frame(weights.layers[index])) for index in members}
    conditions = {index: condition_number(matrix) for index, matrix in matrices.items()}
    base = min(members, key=lambda index: conditions[index]) if layer is None else layer
    base_frame = query_frame(weights.layers[base], plan.divisor)
    if base == 0 and base_frame.shift is not None and weights.head is None and not plan.untie:
        one_basis = classes[0] == classes[-1]
        if weights.positions is None and not one_basis:
            if not untie_head:
                plan.kept[base] = (
                    "its bias b_Q would have to move onto the token embedding, which the tied head reads as well, and "
                    "there are no learned positions to carry it; untie the head"
                )
                return
            plan.untie = True
    chosen = (
        [base]
        if layer is not None or conditions[base] == float("inf")
        else [base, *_follow(weights, plan, members, base)]
    )
    for index in members:
        if index not in chosen and index not in plan.kept:
            plan.kept[index] = f"only layer {layer} was asked for"
    for state, number in enumerate(classes):
        if number == classes[2 * base]:
            plan.frames[state] = Frame(base_frame.matrix)
    for index in chosen:
        frame = Frame(base_frame.matrix, query_frame(weights.layers[index], plan.divisor).shift)
        states = range(0, len(classes), 2) if config.share_layers else (2 * index,)
        for state in states:
            plan.frames[state] = frame
        plan.conditions[index] = conditions[base]


def _follow(weights: DecoderWeights, plan: EliminationPlan, members: list[int], base: int) -> list[int]:
    """Return the other layers whose W_Q is the base's up to a gauge of the heads, and apply that gauge."""
    following = []
    chosen = weights.layers[base]
    for index in members:
        layer = weights.layers[index]
        if index == base:
            continue
        assert layer.query is not None
        assert chosen.query is not None
        same_heads = layer.config.heads == chosen.config.heads and layer.head_dim == chosen.head_dim
        if not same_heads or layer.query.weight.shape[1] > layer.query.weight.shape[0]:
            plan.kept[index] = f"skips tie its basis to that of layer {base}, whose heads have other sizes"
            continue
        blocks, departure = blocks_between(chosen.query.weight, layer.query.weight, layer)
        plan.departures[index] = departure
        if departure > SAME_UP_TO_BLOCKS:
            plan.kept[index] = (
                f"skips tie the bases of all layers to that of layer {base}, and the inverse of its W_Q times this "
                f"layer's is not block diagonal by heads (relative departure {departure:.2g})"
            )
            continue
        if not all(_is_free(layer, block) for block in blocks):
            plan.kept[index] = (
                f"its W_Q is that of layer {base} up to a change inside its heads, but "
                f"{why_no_query_key_gauge(layer.config)}"
            )
            continue
        for group, block in enumerate(blocks):
            if not _is_identity(block):
                apply_query_key_gauge(layer, group, torch.linalg.inv(block))
        following.append(index)
    return following


def _is_free(layer: LayerWeights, block: Tensor) -> bool:
    """Whether M = block may be moved from the queries to the keys of a group."""
    if _is_identity(block) or why_no_query_key_gauge(layer.config) is None:
        return True
    config = layer.config
    if config.rotary is None or config.qk_norm or why_no_query_key_gauge(replace(config, rotary=None)) is not None:
        return False
    return commutes_with_rotation(block, config.rotary.layout)


def _is_identity(block: Tensor) -> bool:
    return bool(torch.allclose(block, torch.eye(block.shape[0], dtype=block.dtype), rtol=0.0, atol=SAME_UP_TO_BLOCKS))


def _condition_if_better(layer: LayerWeights) -> None:
    assert layer.query is not None
    assert layer.key is not None
    query, key = layer.query.clone(), layer.key.clone()
    before = condition_number(_matrix(query_frame(layer)))
    if not condition_heads(layer) or condition_number(_matrix(query_frame(layer))) >= before:
        layer.query, layer.key = query, key


def _matrix(frame: Frame) -> Tensor:
    assert frame.matrix is not None
    return frame.matrix
