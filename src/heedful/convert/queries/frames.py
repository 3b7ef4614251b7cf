"""The frame calculus: a network that carries s T + t instead of each hidden state s, and computes the same logits.

| weight                                       | becomes                                                  |
|----------------------------------------------|----------------------------------------------------------|
| W, b read s                                  | W' = T^-1 W,  b' = b - t W'                              |
| W, b write s, and a skip adds the state p    | W' = W T,  b' = b T + t - t_p  (T_p = T; t_p = 0: no skip) |
| embedding                                    | E' = E T;  t goes onto the positions, or else onto E     |
| head                                         | D' = T^-1 D, bias - t D';  tied: T of the end is T_0^-T  |

Translations are free on both sides of a skip; only the matrices are tied. With a norm between state and reader, T must
be a rotation, t = 0 and the norm's gain 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heedful.convert.queries.weights import Affine, DecoderWeights


@dataclass(frozen=True)
class Frame:
    """The basis of a hidden state: it carries s T + t. None stands for T = I or t = 0."""

    matrix: Tensor | None = None
    shift: Tensor | None = None

    def read(self, part: Affine) -> None:
        """Change a map that reads the state."""
        if self.matrix is not None:
            part.weight = torch.linalg.solve(self.matrix, part.weight)
        if self.shift is not None:
            part.bias = part.bias - self.shift @ part.weight

    def write(self, part: Affine, skip_from: Frame | None = None) -> None:
        """Change a map that writes the state, to which a skip may add another state."""
        if self.matrix is not None:
            part.weight, part.bias = part.weight @ self.matrix, part.bias @ self.matrix
        if self.shift is not None:
            part.bias = part.bias + self.shift
        if skip_from is not None and skip_from.shift is not None:
            part.bias = part.bias - skip_from.shift


def apply_frames(weights: DecoderWeights, frames: list[Frame]) -> None:
    """Write all weights in new bases, in place.

    Args:
        frames: one per state 0 .. 2L; with shared layers all even states have one frame, and all odd ones.

    Raises:
        ValueError: a translation of the first state without positions, or of the last one, under a tied head.
    """
    config, first, last = weights.config, frames[0], frames[-1]
    if first.matrix is not None:
        weights.tokens = weights.tokens @ first.matrix
        weights.positions = None if weights.positions is None else weights.positions @ first.matrix
    if first.shift is not None:
        if weights.positions is not None:
            weights.positions = weights.positions + first.shift
        elif weights.head is not None:
            weights.tokens = weights.tokens + first.shift
        else:  # logits of every token would move by their product with the shift
            raise ValueError("a tied token embedding cannot carry a translation; untie the head.")
    for index, layer in enumerate(weights.layers):
        before, between, after = frames[2 * index : 2 * index + 3]
        for part in layer.stream_reads:
            before.read(part)
        between.write(layer.output, before if config.attention_skip else None)
        for part in layer.inner:
            between.read(part)
        after.write(layer.down, between if config.feed_forward_skip else None)
    if weights.head is None:
        if last.shift is not None:
            raise ValueError("a tied head cannot undo a translation of the last state; untie it.")
        return
    head = Affine(weights.head, weights.head_bias)
    last.read(head)
    weights.head, weights.head_bias = head.weight, head.bias
