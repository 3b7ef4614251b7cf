"""The nonlinear query where training begins: how large each of its terms is, and where its factor 1/2 may stand."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, gelu, rms_norm

from heedful.nn import Attention, NonlinearQuery
from heedful.nn.queries import NonlinearQueryMap
from heedful.papers.claim import Finding
from heedful.papers.random_models import random_layer

WIDTH, HEAD_DIM, TOKENS = 768, 64, 512
DEVIATION = 0.02  # of W_1 and W_2 at the start, as published
LINEAR_DEVIATION = DEVIATION * WIDTH**0.5  # of x W_Q for a normalised x


@torch.no_grad()
def half_placement() -> Finding:
    """Compare a half in the query with a half in the attention scale, without and with a norm on the query."""
    differences = {with_norm: _halves_differ(with_norm) for with_norm in (False, True)}
    plain, normed = differences[False], differences[True]
    return Finding(
        verdict="holds in part" if plain == 0 and normed > 0.01 else "does not hold",
        figure=f"without a norm the same to the last bit; with one off by {100 * normed:.0f} %"
        if plain == 0
        else f"relative difference {plain:.1e}",
        reason="A power of two passes through every product exactly. A norm on the queries removes a half inside "
        "the query and not one in the scale, so with query-key norm the two are different models.",
        numbers={"relative difference": plain, "relative difference with a query-key norm": normed},
    )


@torch.no_grad()
def anchor_at_the_start() -> Finding:
    """Draw the query map of the paper's width as the paper does, and measure its terms on normalised inputs."""
    query, x = published_start()
    before_norm = query.up_proj(gelu(query.down_proj(query.input_norm(x))))
    correction, whole = query.correction(x), query(x)
    size = float(correction.std() / x.std())
    likeness = float(cosine_similarity(x, correction, dim=-1).mean())
    to_anchor = float(cosine_similarity(x, whole, dim=-1).mean())
    return Finding(
        verdict="holds in part" if size > 0.5 else "holds",
        figure=f"f is {size:.2f} times as large as x from the first step, cosine {abs(likeness):.2f}",
        reason="The identity is one of two equally large terms: the norm at the end of f makes its deviation "
        f"{float(correction.std()):.3f} whatever the weights, {float(before_norm.std()):.3f} before it. Training "
        f"starts from a query with cosine {to_anchor:.2f} to the identity query, not from the identity query.",
        numbers={
            "deviation of f before its norm": float(before_norm.std()),
            "deviation of f": float(correction.std()),
            "cosine of x and f": likeness,
            "deviation of the query": float(whole.std()),
            "cosine of x and the query": to_anchor,
            "deviation of a linear query": LINEAR_DEVIATION,
        },
    )


def published_start() -> tuple[NonlinearQueryMap, Tensor]:
    """Return the query map as it starts at width 768, and 512 inputs of unit mean square, in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        query = NonlinearQueryMap(NonlinearQuery(), WIDTH, WIDTH, HEAD_DIM, bias=False).double()
    for projection in (query.down_proj, query.up_proj):
        drawn = torch.randn(projection.weight.shape, generator=generator, dtype=torch.float64)
        projection.weight.copy_(DEVIATION * drawn)
    x = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    return query, rms_norm(x, (WIDTH,))


def _halves_differ(with_norm: bool) -> float:
    """Return the largest difference between the two placements, relative to the largest output."""
    fields = {"hidden_size": 64, "num_heads": 4, "qk_norm": with_norm, "backend": "reference"}
    in_query = random_layer("nonlinear-query", seed=4, **fields)
    config = replace(in_query.config, query=NonlinearQuery(gain=1.0), scale=0.5 / 16**0.5)
    with torch.random.fork_rng(devices=[]):
        in_scale = Attention(config).double().eval()
    in_scale.load_state_dict(in_query.state_dict())
    x = torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = in_query(x)[0]
    return float((in_scale(x)[0] - expected).abs().max() / expected.abs().max())
