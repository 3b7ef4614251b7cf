"""Changes of basis inside a head, which no norm and no skip sees.

Query-key gauge: W_Q^i <- W_Q^i M_g and W_K^g <- W_K^g M_g^-T keep every score (no rotary positions, no norm of queries
and keys). Value-output gauge: W_V^g <- W_V^g M_g and W_O^i <- M_g^-1 W_O^i keep every output. One free d_h x d_h matrix
each per key/value head g; all query heads i of g share it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heedful.convert.queries.conditioning import condition_number
from heedful.convert.queries.weights import LayerWeights


def apply_query_key_gauge(layer: LayerWeights, group: int, matrix: Tensor) -> None:
    """Apply M to the query heads of a group and M^-T to its key head, in place."""
    assert layer.query is not None
    assert layer.key is not None
    shared = layer.query_heads_per_group
    for head in range(group * shared, (group + 1) * shared):
        columns = layer.columns(head)
        layer.query.weight[:, columns] = layer.query.weight[:, columns] @ matrix
        layer.query.bias[columns] = layer.query.bias[columns] @ matrix
    columns, inverse_transposed = layer.columns(group), torch.linalg.inv(matrix).T
    layer.key.weight[:, columns] = layer.key.weight[:, columns] @ inverse_transposed
    layer.key.bias[columns] = layer.key.bias[columns] @ inverse_transposed


def condition_heads(layer: LayerWeights) -> bool:
    """Make the query heads of each group orthonormal, stacked over the group; return False where they are degenerate.

    With one query head per group, W_Q^i becomes an orthonormal basis of its column space. What then remains of
    cond(W_Q) comes from the angles between heads.
    """
    assert layer.query is not None
    shared = layer.query_heads_per_group
    triangles = []
    for group in range(layer.config.heads.key_heads):
        heads = range(group * shared, (group + 1) * shared)
        stacked = torch.cat([layer.query.weight[:, layer.columns(head)] for head in heads])
        triangle = torch.linalg.qr(stacked).R
        if triangle.shape[0] < layer.head_dim or condition_number(triangle) == float("inf"):
            return False
        triangles.append(triangle)
    for group, triangle in enumerate(triangles):
        apply_query_key_gauge(layer, group, torch.linalg.inv(triangle))
    return True


def make_query_blocks_identity(layer: LayerWeights, *, on_diagonal: bool, largest: float) -> tuple[int, float]:
    """Turn one d_h x d_h block of W_Q per key head into the identity.

    Args:
        on_diagonal: take the diagonal block of the group's first head, which keeps a triangular W_Q triangular; else
            take the best conditioned of the blocks on offer.
        largest: condition number above which a group is left alone.

    Returns:
        the number of groups changed and the largest condition number used.
    """
    assert layer.query is not None
    changed, worst = 0, 1.0
    for group in range(layer.config.heads.key_heads):
        head = group * layer.query_heads_per_group
        columns = layer.columns(head)
        start, block = _choose_block(layer.query.weight[:, columns], columns.start if on_diagonal else None)
        condition = float("inf") if block is None else condition_number(block)
        if block is None or condition > largest:
            continue
        apply_query_key_gauge(layer, group, torch.linalg.inv(block))
        layer.query.weight[start : start + layer.head_dim, columns] = torch.eye(layer.head_dim, dtype=block.dtype)
        changed, worst = changed + 1, max(worst, condition)
    return changed, worst


def make_value_blocks_identity(layer: LayerWeights, *, largest: float) -> tuple[int, float]:
    """Turn one d_h x d_h block of W_V per value head into the identity; returns as `make_query_blocks_identity`."""
    assert layer.value is not None
    changed, worst = 0, 1.0
    for group in range(layer.config.heads.value_heads):
        columns = layer.columns(group)
        start, block = _choose_block(layer.value.weight[:, columns], None)
        condition = float("inf") if block is None else condition_number(block)
        if block is None or condition > largest:
            continue
        layer.value.weight[:, columns] = layer.value.weight[:, columns] @ torch.linalg.inv(block)
        layer.value.bias[columns] = layer.value.bias[columns] @ torch.linalg.inv(block)
        layer.value.weight[start : start + layer.head_dim, columns] = torch.eye(layer.head_dim, dtype=block.dtype)
        shared = layer.query_heads_per_group
        for head in range(group * shared, (group + 1) * shared):
            rows = layer.columns(head)
            layer.output.weight[rows] = block @ layer.output.weight[rows]
        changed, worst = changed + 1, max(worst, condition)
    return changed, worst


def blocks_between(base: Tensor, other: Tensor, layer: LayerWeights) -> tuple[list[Tensor], float]:
    """Return B_g per key head with other = base B as well as blocks allow, and how far that is off, relative to other.

    B is block diagonal with one block per query head, equal within a group: exactly what a query-key gauge can undo.
    """
    full = torch.linalg.lstsq(base, other).solution
    shared = layer.query_heads_per_group
    blocks, rebuilt = [], torch.empty_like(other)
    for group in range(layer.config.heads.key_heads):
        heads = range(group * shared, (group + 1) * shared)
        block = torch.stack([full[layer.columns(head), layer.columns(head)] for head in heads]).mean(0)
        for head in heads:
            rebuilt[:, layer.columns(head)] = base[:, layer.columns(head)] @ block
        blocks.append(block)
    return blocks, float((rebuilt - other).norm() / other.norm())


def commutes_with_rotation(block: Tensor, layout: str, tolerance: float = 1e-10) -> bool:
    """Whether M commutes with the rotations of rotary positions: it acts on each pair as one complex number does."""
    size = block.shape[0]
    first = torch.arange(size // 2) if layout == "half" else torch.arange(0, size, 2)
    second = first + (size // 2 if layout == "half" else 1)
    generator = torch.zeros_like(block)
    speeds = torch.arange(1, size // 2 + 1, dtype=block.dtype)  # all different, as the frequencies are
    generator[first, second], generator[second, first] = speeds, -speeds
    return float((block @ generator - generator @ block).norm()) <= tolerance * float(generator.norm() * block.norm())


def _choose_block(columns: Tensor, start: int | None) -> tuple[int, Tensor | None]:
    """Return the first row of a square block of these columns, and a copy of the block."""
    rows, width = columns.shape
    starts = [start] if start is not None else list(range(0, rows - width + 1, width))
    options = [(first, columns[first : first + width].clone()) for first in starts if first + width <= rows]
    if not options:
        return 0, None
    return min(options, key=lambda option: condition_number(option[1]))
