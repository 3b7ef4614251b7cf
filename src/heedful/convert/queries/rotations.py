"""Rotating the stream so that query matrices become triangular; what is left of the elimination under norms.

RMSNorm without gains commutes with every rotation O: n(s O) = n(s) O. With W_Q = O R, the rotated stream is read by the
triangular R. Each class of tied states has one rotation, so a decoder with skips gets one triangular W_Q. A tied head
without norms takes part: D = E^T, rotated on both sides, stays tied. Behind a final norm it does not, since rotations
do not commute with the gains.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from heedful.convert.queries.architecture import stream_classes, why_reads_are_not_linear
from heedful.convert.queries.frames import Frame, apply_frames
from heedful.convert.queries.norm_folding import becomes_rms, why_not_fold
from heedful.convert.queries.weights import DecoderWeights
from heedful.models import DecoderConfig
from heedful.nn import IdentityQuery, LinearQuery


def why_not_rotate(config: DecoderConfig) -> str | None:
    """Return why no rotation of the stream makes a W_Q of this decoder triangular, or None."""
    reason = None if config.norm == "none" else why_not_fold(config)
    if reason is not None:
        return reason
    if config.norm == "layer" and not becomes_rms(config):
        return "LayerNorm stays LayerNorm here (tied head, or reads that are not linear), which rotations do not pass"
    if not rotated_layers(config, None):
        return "every state is tied to one that must stay: the tied head, or a layer that reads the stream as it stands"
    return None


def rotated_layers(config: DecoderConfig, layer: int | None) -> list[int]:
    """Return the layers whose W_Q can be made triangular: one per class of states, `layer` where there is a choice."""
    classes = stream_classes(config)
    stored = config.layers[: 1 if config.share_layers else None]
    fixed = {classes[2 * i] for i, one in enumerate(stored) if why_reads_are_not_linear(one) is not None}
    if config.tie_embeddings and (config.norm != "none" or {classes[0], classes[-1]} & fixed):
        fixed |= {classes[0], classes[-1]}
    chosen: dict[int, int] = {}
    for index in range(len(stored)):
        number = classes[2 * index]
        if number not in fixed and (number not in chosen or index == layer):
            chosen[number] = index
    return sorted(chosen.values())


def zeros_below_diagonal(rows: int, columns: int) -> int:
    """Return how many entries of an upper triangular (rows, columns) matrix are 0."""
    return sum(max(rows - 1 - column, 0) for column in range(columns))


def rotate(weights: DecoderWeights, layer: int | None = None) -> tuple[int, ...]:
    """Rotate the stream of a folded RMSNorm decoder, in place; return the layers with a triangular W_Q."""
    config = replace(weights.config, tie_embeddings=weights.head is None)
    config = (
        replace(config, attention=tuple(one.config for one in weights.layers)) if not config.share_layers else config
    )
    classes = stream_classes(config)
    frames = [Frame()] * len(classes)
    chosen = rotated_layers(config, layer)
    follows_head = config.tie_embeddings and config.norm == "none"
    for index in chosen:
        query = weights.layers[index].query
        assert query is not None
        rotation = Frame(torch.linalg.qr(query.weight, mode="complete").Q)
        for state, number in enumerate(classes):
            if number == classes[2 * index] or (
                follows_head and number == classes[-1] and classes[2 * index] == classes[0]
            ):
                frames[state] = rotation
    apply_frames(weights, frames)
    for index in chosen:  # what is left below the diagonal is rounding
        query = weights.layers[index].query
        assert query is not None
        query.weight = query.weight.triu()
    return tuple(chosen)


def drop_identity_queries(
    weights: DecoderWeights, layers: tuple[int, ...], tolerance: float = 1e-10
) -> tuple[int, ...]:
    """Remove those W_Q that became the identity, which happens where the query heads read orthogonal subspaces."""
    dropped = []
    for index in layers:
        layer = weights.layers[index]
        query, old = layer.query, layer.config.query
        if query is None or not isinstance(old, LinearQuery):
            continue
        size, width = query.weight.shape
        if width > size or bool(query.bias.any()):
            continue
        off = query.weight - torch.eye(size, width, dtype=query.weight.dtype)
        if float(off.abs().max()) > tolerance:
            continue
        scale = layer.config.sizes.head_dim**-0.5 if layer.config.scale is None else layer.config.scale
        identity = IdentityQuery(gain=old.gain, anchor_fit="exact" if width == size else "slice")
        layer.query, layer.config = None, replace(layer.config, query=identity, scale=scale)
        dropped.append(index)
    return tuple(dropped)
