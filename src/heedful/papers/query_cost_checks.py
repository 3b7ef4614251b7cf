"""What the nonlinear-query papers say about sizes: counted by heedful, and by formulas written out here.

A block without biases has d^2 weights in W_Q, 3 d^2 in W_K, W_V and W_O, 2 m d in the feed-forward layer of width m and
2 d gains. The nonlinear query has d r + r d weights, r = d/2, and 2 d gains of its own two norms.
"""

from __future__ import annotations

from typing import NamedTuple

from heedful.models import DecoderConfig, decoder_config
from heedful.models.counting import count_parameters, multiply_adds_per_token
from heedful.papers.claim import Finding

LAYERS, VOCABULARY, CONTEXT = 12, 50_304, 1024


class Row(NamedTuple):
    """A model of GPT-3 small's shape, with the published or derived number of parameters without embeddings."""

    names: str
    width: int
    feed_forward: int
    parameters: int


ROWS = {
    "linear": Row("standard", 768, 3072, 84_953_856),
    "identity": Row("identity-query", 768, 3072, 77_875_968),
    "nonlinear": Row("nonlinear-query", 768, 3072, 84_972_288),
    "control": Row("nonlinear-query-linear-control", 768, 3072, 84_972_288),
    "linear, feed-forward 4.75 d": Row("standard", 768, 3648, 95_570_688),
    "linear, feed-forward 4.5 d": Row("standard", 768, 3456, 92_031_744),
    "linear, feed-forward 5 d": Row("standard", 768, 3840, 99_109_632),
    "linear, d = 816": Row("standard", 816, 3264, 95_903_664),
    "linear, d = 744": Row("standard", 744, 2976, 79_727_784),
    "identity, feed-forward 4.5 d": Row("identity-query", 768, 3456, 84_953_856),
    "linear, feed-forward 3.5 d": Row("standard", 768, 2688, 77_875_968),
}


def nonlinear_query_cost() -> Finding:
    """Count every row, and what a nonlinear query costs beyond the linear one."""
    counted = {name: count_parameters(_config(row)).without_embeddings for name, row in ROWS.items()}
    agree = [name for name, row in ROWS.items() if counted[name] == row.parameters == by_formula(row)]
    linear, nonlinear, wide = (counted[name] for name in ("linear", "nonlinear", "linear, feed-forward 4.75 d"))
    more_per_layer = (nonlinear - linear) / LAYERS
    operations = {name: multiply_adds_per_token(_config(ROWS[name]), CONTEXT) for name in ("linear", "nonlinear")}
    more_operations = operations["nonlinear"] - operations["linear"]
    without_query = 1 - counted["identity"] / linear
    holds = len(agree) == len(ROWS) and more_per_layer == 2 * 768 and more_operations == 0
    return Finding(
        verdict="holds" if holds else "does not hold",
        figure=f"+{more_per_layer:,.0f} parameters a layer (+{100 * (nonlinear / linear - 1):.3f} %), "
        f"{more_operations or 'no'} further multiply-adds",
        reason=f"{len(agree)} of {len(ROWS)} models are counted as published or derived. The {more_per_layer:,.0f} "
        "are the gains of two norms; these norms and the activation cost no multiply-adds of matrix products, but "
        f"time. Without W_Q {100 * without_query:.1f} % of the parameters go; the wider control has "
        f"{100 * (wide / linear - 1):.1f} % more.",
        numbers={
            "rows that agree": float(len(agree)),
            "parameters, linear": float(linear),
            "parameters, nonlinear": float(nonlinear),
            "parameters, identity": float(counted["identity"]),
            "parameters, feed-forward 4.75 d": float(wide),
            "further parameters a layer": more_per_layer,
            "further multiply-adds a token": float(more_operations),
            "share of W_Q in the linear model": without_query,
        },
    )


def by_formula(row: Row) -> int:
    """Count a row by the formulas above."""
    d, bottleneck = row.width, row.width // 2
    query = {"standard": d * d, "identity-query": 0}.get(row.names, 2 * d * bottleneck + 2 * d)
    block = query + 3 * d * d + 2 * row.feed_forward * d + 2 * d
    return LAYERS * block + d


def _config(row: Row) -> DecoderConfig:
    return decoder_config(
        row.names,
        vocab_size=VOCABULARY,
        num_layers=LAYERS,
        max_positions=CONTEXT,
        hidden_size=row.width,
        num_heads=12,
        intermediate_size=row.feed_forward,
    )
