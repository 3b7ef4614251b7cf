"""Folding the gains and shifts of norms into the maps behind them, and LayerNorm into RMSNorm.

    norm(s) = g * n(s) + beta:   W <- diag(g) W,   b <- b + beta W

LayerNorm is RMSNorm of the mean-free part of the stream, with the same epsilon. Where every write into the stream is
centred, W <- W (I - 11^T / d), the stream has no mean, and RMSNorm does the same with less work.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from heedful.convert.queries.architecture import why_reads_are_not_linear
from heedful.convert.queries.weights import Affine, DecoderWeights, NormWeights
from heedful.models import DecoderConfig


def why_not_fold(config: DecoderConfig) -> str | None:
    """Return why no norm of this decoder can be folded, or None."""
    if config.norm == "none":
        return "there are no norms"
    if config.norm_position == "post":
        return "post-norm: the skip carries the normed stream on, gains and all"
    return None


def becomes_rms(config: DecoderConfig) -> bool:
    """Whether folding turns this decoder's LayerNorms into RMSNorms."""
    foldable = all(why_reads_are_not_linear(layer) is None for layer in config.layers)
    return config.norm == "layer" and foldable and not config.tie_embeddings and why_not_fold(config) is None


def fold_norms(weights: DecoderWeights) -> tuple[tuple[int, ...], int]:
    """Fold what can be folded, in place.

    A tied head reads the embedding that the blocks read as well, so the final norm then keeps its gain, and the
    embedding, which is also the head, cannot be centred: LayerNorm stays LayerNorm.

    Returns:
        the blocks whose norms were folded, and how many gains and shifts became 1 and 0.
    """
    config, entries, folded = weights.config, 0, []
    to_rms = config.norm == "layer" and weights.head is not None
    for index, layer in enumerate(weights.layers):
        assert layer.attention_norm is not None
        assert layer.feed_forward_norm is not None
        if why_reads_are_not_linear(layer.config) is None:
            entries += _fold(layer.attention_norm, layer.stream_reads, config)
            folded.append(index)
        else:
            to_rms = False
        entries += _fold(layer.feed_forward_norm, layer.inner, config)
    if weights.head is not None:
        assert weights.final_norm is not None
        head = Affine(weights.head, weights.head_bias)
        entries += _fold(weights.final_norm, [head], config)
        weights.head, weights.head_bias = head.weight, head.bias
    if to_rms:
        _centre(weights)
        weights.config = replace(config, norm="rms")
    return tuple(folded), entries


def _fold(norm: NormWeights, readers: list[Affine], config: DecoderConfig) -> int:
    for part in readers:
        part.bias = part.bias + norm.shift @ part.weight
        part.weight = norm.gain[:, None] * part.weight
    norm.gain, norm.shift = torch.ones_like(norm.gain), torch.zeros_like(norm.shift)
    return norm.gain.numel() * (2 if config.norm == "layer" and config.bias else 1)


def _centre(weights: DecoderWeights) -> None:
    def centred(rows: Tensor) -> Tensor:
        return rows - rows.mean(-1, keepdim=True)

    weights.tokens = centred(weights.tokens)
    weights.positions = None if weights.positions is None else centred(weights.positions)
    for layer in weights.layers:
        for part in (layer.output, layer.down):
            part.weight, part.bias = centred(part.weight), centred(part.bias)
