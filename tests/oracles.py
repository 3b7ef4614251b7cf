"""Attention entry by entry: Python loops over the equations, independent of everything in the package but numpy.

Slow on purpose. `sees` decides what a query may see from the definition; the rest are sums with explicit indices.
"""

import math

import numpy as np


class Scene:
    """Who sees whom in one batch row: window, padding (True = real), documents as runs of equal ids."""

    def __init__(self, keys, *, is_causal=True, window=None, real=None, documents=None):
        self.is_causal, self.window = is_causal, window
        self.real = [True] * keys if real is None else [bool(r) for r in real]
        ids = [0] * keys if documents is None else [int(d) for d in documents]
        self.run = []
        for position, document in enumerate(ids):
            if position == 0:
                self.run.append(0)
            else:
                self.run.append(self.run[-1] + (document != ids[position - 1]))

    def sees(self, i, j):
        if self.is_causal and j > i:
            return False
        if self.window is not None and abs(i - j) >= self.window:
            return False
        return self.real[i] and self.real[j] and self.run[i] == self.run[j]

    def row_counts(self, i, r):
        """Whether a convolution at row i may read row r."""
        return self.run[i] == self.run[r] and self.real[r]


def softmax_rows(logits, scene, first):
    rows, keys = logits.shape
    weights = np.zeros_like(logits)
    for n in range(rows):
        seen = [j for j in range(keys) if scene.sees(first + n, j)]
        if seen:
            top = max(logits[n, j] for j in seen)
            total = sum(math.exp(logits[n, j] - top) for j in seen)
            for j in seen:
                weights[n, j] = math.exp(logits[n, j] - top) / total
    return weights


def convolve(x, theta, scene, first, condition):
    """y[i, j] = sum over taps; `condition(i, r, c)` says which entries of x count."""
    rows, keys = x.shape
    row_taps, key_taps = theta.shape
    y = np.zeros_like(x)
    for n in range(rows):
        for j in range(keys):
            for a in range(row_taps):
                for b in range(key_taps):
                    m, c = n - (row_taps - 1) + a, j - (key_taps - 1) // 2 + b
                    if m < 0 or not 0 <= c < keys:
                        continue
                    i, r = first + n, first + m
                    if scene.row_counts(i, r) and condition(i, r, c):
                        y[n, j] += theta[a, b] * x[m, c]
    return y


def hide(x, scene, first):
    y = x.copy()
    for n in range(x.shape[0]):
        for j in range(x.shape[1]):
            if not scene.sees(first + n, j):
                y[n, j] = 0.0
    return y


def mix(maps, mixing):
    groups, size, _ = mixing.shape
    return [
        sum(mixing[h // size, h % size, g] * maps[(h // size) * size + g] for g in range(size))
        for h in range(groups * size)
    ]


def multi_token(
    query, key, value, scene, *, kq_pre=None, kq_post=None, head_pre=None, head_post=None, exact=False, scale=None
):
    """One batch row: query (H, N, d), key (G, M, d), value (G, M, d_v) -> output (H, N, d_v) and the final maps."""
    heads, rows, width = query.shape
    share = heads // key.shape[0]
    first = key.shape[1] - rows
    scale = 1 / math.sqrt(width) if scale is None else scale
    maps = [scale * query[h] @ key[h // share].T for h in range(heads)]
    if kq_pre is not None:
        condition = (lambda i, r, c: scene.sees(i, c)) if exact else (lambda i, r, c: scene.sees(r, c))
        maps = [convolve(x, kq_pre[h], scene, first, condition) for h, x in enumerate(maps)]
    if head_pre is not None:
        maps = mix(maps, head_pre)
    maps = [softmax_rows(x, scene, first) for x in maps]
    if kq_post is not None:
        maps = [convolve(x, kq_post[h], scene, first, lambda i, r, c: True) for h, x in enumerate(maps)]
        maps = [hide(x, scene, first) for x in maps]
    if head_post is not None:
        maps = mix(maps, head_post)
    return np.stack([x @ value[h // share] for h, x in enumerate(maps)]), np.stack(maps)


def standard(query, key, value, scene, scale=None):
    return multi_token(query, key, value, scene, scale=scale)


def twicing(query, key, value, scene):
    """(2A - A A) V with A squared: the definition, N = M."""
    _, maps = standard(query, key, value, scene)
    share = query.shape[0] // key.shape[0]
    return np.stack([(2 * a - a @ a) @ value[h // share] for h, a in enumerate(maps)])


def differential(query, key, value, scene, factors):
    """Version 1: query (2H, N, d), key (2G, M, d), value (G, M, d_v)."""
    heads, groups = query.shape[0] // 2, key.shape[0] // 2
    outputs = []
    for h in range(heads):
        g = h * groups // heads
        maps = [standard(query[2 * h + s][None], key[2 * g + s][None], value[:1], scene)[1][0] for s in (0, 1)]
        outputs.append((maps[0] - factors[h] * maps[1]) @ value[g])
    return np.stack(outputs)
