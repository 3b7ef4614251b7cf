"""Checks of where attention outputs can lie: in the hull of the values, in their row space, or outside of both.

These are the three forms that the boosted paper's proposition 3 has had, from its first version to its last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heedful.nn import Attention, attention_config
from heedful.ops import twicing_attention
from heedful.papers.claim import Finding
from heedful.papers.hull import hull_distance

HEAD_DIM = 16


def twicing_hull() -> Finding:
    """Look for negative weights in 2A - A^2: a cycle of three tokens, then random causal maps."""
    cycle = torch.full((3, 3), -50.0, dtype=torch.float64)
    for row in range(3):
        cycle[row, (row + 1) % 3] = 50.0
    corners = torch.eye(3, dtype=torch.float64)
    outputs = twicing_attention(cycle[None, None], corners[None, None], corners[None, None],
                                is_causal=False, scale=1.0)[0, 0]  # fmt: skip
    away = hull_distance(outputs[0], corners)

    generator = torch.Generator().manual_seed(0)
    length, maps = 32, 200
    query, key = torch.randn(2, 1, maps, length, HEAD_DIM, generator=generator, dtype=torch.float64)
    value = torch.randn(1, maps, length, 1, generator=generator, dtype=torch.float64)
    weights = twicing_attention(query, key, torch.eye(length, dtype=torch.float64).expand(1, maps, length, length))[0]
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    negative = float((weights[:, visible] < -1e-12).double().mean())
    answer = twicing_attention(query, key, value)[0, ..., 0]
    highest, lowest = value[0, ..., 0].cummax(-1).values, value[0, ..., 0].cummin(-1).values
    outside = float(((answer > highest + 1e-12) | (answer < lowest - 1e-12)).double().mean())
    inside = away < 1e-9 and negative == 0.0
    return Finding(
        verdict="holds" if inside else "does not hold",
        figure=f"cycle of three: weights {', '.join(f'{number:.0f}' for number in outputs[0])}",
        reason=(
            f"The weights sum to one but may be negative: {100 * negative:.0f} % of them are in random causal maps, "
            f"and {100 * outside:.0f} % of one-dimensional outputs leave the range of the values that they see."
        ),
        numbers={"distance from the hull": away, "negative weights": negative, "outputs outside the range": outside},
    )


def row_space() -> Finding:
    """Measure how much of the outputs lies outside the row space of the visible values of the first round."""
    length, numbers = 2 * HEAD_DIM, {}
    shares = {name: _outside_row_space(name, length) for name in ("twicing", "boosted")}
    for name, share in shares.items():
        numbers[f"{name}, fewer values than dimensions"] = float(share[: HEAD_DIM - 1].max())
        numbers[f"{name}, as many or more"] = float(share[HEAD_DIM - 1 :].max())
    twicing, few, many = (
        numbers["twicing, fewer values than dimensions"],
        float(shares["boosted"][: HEAD_DIM - 1].min()),
        numbers["boosted, as many or more"],
    )
    numbers["boosted, fewer values than dimensions, least"] = few
    generic = twicing < 1e-9 and few > 1e-3
    return Finding(
        verdict="does not hold" if not generic else "holds" if many > 1e-9 else "holds in part",
        figure=f"boosted outside it: {few:.2f} or more below {HEAD_DIM} visible values, {many:.0e} from there",
        reason=(
            f"True while fewer than d_h values are visible, and empty from then on: {HEAD_DIM} independent values span "
            "the whole head. With d_h = 64 and blocks of 256 that is three quarters of all positions."
        ),
        numbers=numbers,
    )


@torch.no_grad()
def _outside_row_space(preset: str, length: int) -> Tensor:
    """Return, by position, the share of an output's norm outside the span of the first round's visible values."""
    torch.manual_seed(5)
    layer = Attention(attention_config(preset, hidden_size=HEAD_DIM, num_heads=1)).double().eval()
    torch.nn.init.eye_(layer.o_proj.weight)
    x = torch.randn(1, length, HEAD_DIM, dtype=torch.float64)
    values, outputs = x[0] @ layer.state_dict()["rounds.0.v_proj.weight"].T, layer(x)[0][0]
    shares = []
    for position in range(length):
        basis = torch.linalg.svd(values[: position + 1], full_matrices=False)[2]
        rest = outputs[position] - outputs[position] @ basis.T @ basis
        shares.append(rest.norm() / outputs[position].norm())
    return torch.stack(shares)


def hull_escape() -> Finding:
    """Move points of the hull by 1e-3 in random directions, as many values and dimensions as in the paper."""
    generator = torch.Generator().manual_seed(0)
    width, pairs, size = 64, 120, 1e-3
    distances = []
    for index in range(pairs):
        position = 10 + index % 54  # the paper looks at positions 10 to 63
        values = torch.randn(position + 1, width, generator=generator, dtype=torch.float64)
        weights = torch.randn(position + 1, generator=generator, dtype=torch.float64).softmax(-1)
        noise = torch.randn(width, generator=generator, dtype=torch.float64)
        distances.append(hull_distance(weights @ values + size * noise / noise.norm(), values))
    outside = sum(distance > 1e-3 * size for distance in distances) / pairs
    return Finding(
        verdict="holds in part" if outside == 1.0 else "holds",
        figure=f"{100 * outside:.0f} % of random moves by {size:g} are outside, {min(distances):.0e} at least",
        reason=(
            "That the outputs lie outside is true and says nothing: up to 64 values in 64 dimensions span at most 63, "
            "so their hull has no inside and whatever is added to a point of it leaves it."
        ),
        numbers={"share outside": outside, "smallest distance": min(distances), "largest distance": max(distances)},
    )
