"""How large attention scores are, for some queries only: what a log can hold, without an attention map.

Legend: N queries, M keys, R sampled queries; the queries are the last N of the M positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heedful.ops.masks import AttentionMask
from heedful.ops.shapes import scaled_scores


@torch.no_grad()
def score_sizes(
    query: Tensor, key: Tensor, *, mask: AttentionMask, is_causal: bool, scale: float | None, rows: int
) -> dict[str, float]:
    """Return "score_max" and "score_std" of the scores scale q . k of `rows` evenly spread queries.

    They are the largest score and the standard deviation over all pairs of these queries, in all heads and rows of the
    batch, with the keys that each may see: exact for these queries, which the last one is always among. The scores are
    those of the projected and rotated queries and keys, before any convolution, mixing or softmax. Softmax saturates,
    and training becomes unstable, when they grow.

    Args:
        query: (B, H, N, d).
        key: (B, G, M, d) with G dividing H.
        mask, is_causal, scale: as in `heedful.ops`.
        rows: R; fewer where there are fewer queries. Memory is O(B H R M).

    Returns:
        Nothing where no sampled query sees a key.
    """
    queries, keys = query.shape[2], key.shape[2]
    count = min(rows, queries)
    sampled = torch.arange(1, count + 1, device=query.device) * queries // count - 1
    visible = _visible(mask, sampled + keys - queries, keys, is_causal=is_causal)
    scores = scaled_scores(query[:, :, sampled], key, scale)
    seen = scores[visible.expand_as(scores)]
    if not seen.numel():
        return {}
    return {"score_max": float(seen.max()), "score_std": float(seen.std(correction=0))}


def _visible(mask: AttentionMask, positions: Tensor, keys: int, *, is_causal: bool) -> Tensor:
    """Return the rows of `mask.visible` at these key positions, (batch or 1, 1, R, M), without the others."""
    i, j = positions[:, None], torch.arange(keys, device=positions.device)[None, :]
    pairs = torch.ones(len(positions), keys, dtype=torch.bool, device=positions.device)
    if is_causal:
        pairs = pairs & (j <= i)
    if mask.window is not None:
        pairs = pairs & ((i - j).abs() < mask.window)
    pairs = pairs[None, None]
    if mask.key_padding is not None:
        pairs = pairs & (mask.key_padding[:, None, positions, None] & mask.key_padding[:, None, None, :])
    segments = mask.segments()
    if segments is not None:
        pairs = pairs & (segments[:, None, positions, None] == segments[:, None, None, :])
    return pairs
