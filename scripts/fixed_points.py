"""Retrieval in the plane, computed for docs/pictures.md: fixed points of the iterated update, and a trained
`BoostedRetrieval` from round to round. Seeded, seconds on a CPU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from heedful.nn import BoostedRetrieval
from heedful.study.fixed_point_plots import fixed_point_picture, rounds_picture

SEED, PATTERNS = 5, 5
BETAS = (0.8, 3.0, 12.0)
NOISE, ROUNDS, KEY_WIDTH = 0.35, 3, 1
STEPS, BATCH, LEARNING_RATE, HELD_OUT = 800, 256, 0.01, 10_000


def patterns_on_the_circle() -> Tensor:
    """Return the patterns (K, 2): on the unit circle, evenly spaced and then shifted at random by up to a third."""
    generator = torch.Generator().manual_seed(SEED)
    shift = (torch.rand(PATTERNS, generator=generator, dtype=torch.float64) - 0.5) * 2 / 3
    angles = 2 * math.pi * (torch.arange(PATTERNS) + shift) / PATTERNS
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def update(points: Tensor, patterns: Tensor, beta: float) -> Tensor:
    """Return T(x) = P^T softmax(beta P x) for points (B, d) and patterns (K, d)."""
    return (beta * points @ patterns.T).softmax(-1) @ patterns


def fixed_points(patterns: Tensor, beta: float, steps: int = 5000) -> Tensor:
    """Return where the iterated update ends from a grid of starts: the fixed points that attract.

    Raises:
        ValueError: some start is not at a fixed point after `steps`.
    """
    line = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    for _ in range(steps):
        points = update(points, patterns, beta)
    moved = float((update(points, patterns, beta) - points).norm(dim=-1).max())
    if moved > 1e-12:
        raise ValueError(f"after {steps} steps a point still moves by {moved:.1e} at beta = {beta}; take more steps.")
    found: list[Tensor] = []
    for point in points:
        if all(float((point - other).norm()) > 1e-6 for other in found):
            found.append(point)
    return torch.stack(found)


def unique_below(patterns: Tensor) -> float:
    """Return 4 / max |p_i - p_j|^2: below this beta the update is a contraction and has exactly one fixed point.

    Its Jacobian is beta times a covariance of points among the patterns, and a variance is at most a quarter of the
    squared range (Popoviciu).
    """
    return 4 / float(torch.cdist(patterns, patterns).max()) ** 2


def trajectories(patterns: Tensor, beta: float, starts: int = 16, steps: int = 60) -> list[list[list[float]]]:
    """Return the paths from starts on a circle around all patterns and on one inside."""
    angles = 2 * math.pi * (torch.arange(starts, dtype=torch.float64) + 0.25) / starts
    circle = torch.stack([angles.cos(), angles.sin()], dim=-1)
    points = torch.cat([1.45 * circle, 0.25 * circle[::2]])
    path = [points]
    for _ in range(steps):
        path.append(update(path[-1], patterns, beta))
    return [_until_it_rests([[round(v, 4) for v in point] for point in one]) for one in torch.stack(path, 1).tolist()]


def _until_it_rests(path: list[list[float]], near: float = 1e-3) -> list[list[float]]:
    """Return the path up to where all further points are as good as its last one."""
    moving = [index for index, point in enumerate(path) if math.dist(point, path[-1]) > near]
    return path[: moving[-1] + 2] if moving else path[:1]


def fixed_point_figure() -> str:
    """Return the picture of the iterated update at each beta."""
    patterns, panels = patterns_on_the_circle(), []
    for beta in BETAS:
        fixed = fixed_points(patterns, beta)
        number = "one fixed point" if len(fixed) == 1 else f"{len(fixed)} attracting fixed points"
        panels.append(
            {"title": f"β = {beta:g}: {number}", "paths": trajectories(patterns, beta), "fixed": fixed.tolist()}
        )
    return fixed_point_picture("Fixed points of iterated retrieval", patterns.tolist(), panels)


def draw(patterns: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noisy queries (count, 2) and the patterns they were made from."""
    chosen = patterns[torch.randint(len(patterns), (count,), generator=generator)]
    return chosen + NOISE * torch.randn(chosen.shape, generator=generator, dtype=chosen.dtype), chosen


def trained_retrieval(patterns: Tensor) -> BoostedRetrieval:
    """Return a retrieval trained to give back the pattern of a noisy query, in squared distance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = BoostedRetrieval(2, rounds=ROUNDS, key_width=KEY_WIDTH, gate="network").double()
    generator = torch.Generator().manual_seed(SEED + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        queries, targets = draw(patterns, BATCH, generator)
        loss = (model(queries, patterns).output - targets).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def estimates(model: BoostedRetrieval, queries: Tensor, patterns: Tensor) -> list[Tensor]:
    """Return F_0, ..., F_{M-1}: round m + 1 is asked with x - F_m, which tells F_m."""
    asked: list[Tensor] = []
    handles = [
        one.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0])) for one in list(model.rounds)[1:]
    ]
    output = model(queries, patterns).output
    for handle in handles:
        handle.remove()
    return [*(queries - source for source in asked), output]


def best_estimate(queries: Tensor, patterns: Tensor) -> Tensor:
    """Return the mean of the pattern given the query, which no estimate beats in squared distance: softmax retrieval
    with beta = 1 / noise^2, for patterns of equal length.
    """
    return update(queries, patterns, 1 / NOISE**2)


def rounds_figure() -> str:
    """Return the picture of a trained retrieval from round to round."""
    patterns = patterns_on_the_circle()
    model = trained_retrieval(patterns)
    generator = torch.Generator().manual_seed(SEED + 2)
    queries, targets = draw(patterns, HELD_OUT, generator)

    def mean_square(found: Tensor) -> float:
        return float((found - targets).square().sum(-1).mean())

    found = estimates(model, queries, patterns)
    distances: dict[str, Any] = {
        "rounds": [mean_square(one) for one in found],
        "best": mean_square(best_estimate(queries, patterns)),
    }
    shown = [int((targets == pattern).all(-1).nonzero()[index, 0]) for pattern in patterns for index in range(2)]
    paths = torch.stack([queries[shown], *(one[shown] for one in found)], dim=1).tolist()
    return rounds_picture("Boosted retrieval from round to round", patterns.tolist(), paths, distances)
