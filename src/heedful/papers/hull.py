"""How far a vector is from the convex hull of others."""

from __future__ import annotations

import torch
from torch import Tensor


def hull_distance(point: Tensor, vertices: Tensor) -> float:
    """Return the distance of a point (d,) from the convex hull of vertices (n, d).

    Nonnegative least squares, with the sum of the weights as one more equation of large weight; the weights are then
    divided by their sum, so the distance is that to a point of the hull.
    """
    import numpy as np
    from scipy.optimize import nnls

    rows, target = vertices.double().numpy(), point.double().numpy()
    heavy = 1e3 * max(1.0, float(np.abs(rows).max()))
    weights, _ = nnls(np.vstack([rows.T, np.full((1, len(rows)), heavy)]), np.append(target, heavy))
    nearest = torch.from_numpy(weights / weights.sum()) @ vertices.double()
    return float((point.double() - nearest).norm())
