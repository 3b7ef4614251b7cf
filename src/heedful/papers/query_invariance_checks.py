"""The lemma of the nonlinear-query papers: attention does not see in which basis its input is written.

    X -> X T,   W_Q, W_K, W_V -> T^-1 W_Q, T^-1 W_K, T^-1 W_V

leaves queries, keys and values as they are, and with them everything that follows: mask, rotation, query-key norm,
softmax. With T = W_Q the query projection is the identity; with T = W_K or W_V it is that of keys or values.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from heedful.convert.queries.verification import relative_error
from heedful.nn import Attention, IdentityQuery, Rotary
from heedful.ops.masks import NO_MASK, AttentionMask
from heedful.papers.claim import Finding
from heedful.papers.random_models import random_layer

SIZE, ROWS, LENGTH = 48, 2, 24
PROJECTIONS = ("query.q_proj", "k_proj", "v_proj")
EXACT = 1e-10
"""Far above rounding in float64 (about 1e-16 times the condition number of T), far below any mistake."""

DOCUMENTS = torch.tensor([[0] * 9 + [1] * 15, [0] * 20 + [1] * 4])
REAL = torch.tensor([[True] * 24, [False] * 6 + [True] * 18])
CASES: dict[str, tuple[dict, AttentionMask]] = {
    "causal": ({}, NO_MASK),
    "not causal": ({"is_causal": False}, NO_MASK),
    "sliding window": ({"window": 5}, NO_MASK),
    "packed documents": ({}, AttentionMask(document_ids=DOCUMENTS)),
    "padding": ({}, AttentionMask(key_padding=REAL)),
    "shared keys, rotary positions, query-key norm": (
        {"num_kv_heads": 2, "rotary": Rotary(), "qk_norm": True},
        NO_MASK,
    ),
    "multi-token": ({"names": "multi-token"}, NO_MASK),
    "differential": ({"names": "differential"}, NO_MASK),
}


@torch.no_grad()
def query_invariance() -> Finding:
    """Compare layers before and after the change of basis, and an identity query after that by T = W_Q."""
    basis = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.randn(ROWS, LENGTH, SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    differences, conditions = [], [float(torch.linalg.cond(basis))]
    for fields, mask in CASES.values():
        layer = random_layer(**{"seed": 3, "hidden_size": SIZE, "num_heads": 4, **fields})
        expected = layer(x, mask)[0]
        differences.append(relative_error(in_basis(layer, basis)(x @ basis, mask)[0], expected))
        own = query_weight(layer)
        conditions.append(float(torch.linalg.cond(own)))
        differences.append(relative_error(identity_query(in_basis(layer, own))(x @ own, mask)[0], expected))
    worst = max(differences)
    layer = random_layer(seed=3, hidden_size=SIZE, num_heads=4)
    departures = [departure_from_identity(layer, name) for name in PROJECTIONS]
    norm = torch.nn.functional.rms_norm
    behind_norm = relative_error(in_basis(layer, basis)(norm(x @ basis, (SIZE,)))[0], layer(norm(x, (SIZE,)))[0])
    numbers = {
        "largest relative difference": worst,
        "largest condition number of T": max(conditions),
        "largest entry of T^-1 W - I for T = W_Q, W_K, W_V": max(departures),
        "relative difference with an RMSNorm in front": behind_norm,
    }
    holds = max(worst, *departures) < EXACT < behind_norm
    return Finding(
        verdict="holds" if holds else "does not hold",
        figure=f"largest relative difference {'below' if worst < EXACT else 'not below'} {EXACT:.0e}",
        reason=f"{len(CASES)} layers in a random basis and in that of their own W_Q, masks of every kind among them: "
        "the outputs stay. The lemma is about the layer alone: with an RMSNorm between the change of basis and the "
        f"layer the outputs are off by {100 * behind_norm:.0f} %.",
        numbers=numbers,
    )


def in_basis(layer: Attention, basis: Tensor) -> Attention:
    """Return the layer that reads x T where `layer` reads x."""
    changed = copy.deepcopy(layer)
    for name in PROJECTIONS:
        weight = changed.get_parameter(f"rounds.0.{name}.weight")
        weight.copy_(torch.linalg.solve(basis, weight.T).T)  # torch keeps W transposed
    return changed


def query_weight(layer: Attention) -> Tensor:
    """Return the first square of W_Q, from input to output."""
    return layer.get_parameter(f"rounds.0.{PROJECTIONS[0]}.weight").T[:, :SIZE]


def departure_from_identity(layer: Attention, name: str) -> float:
    """Return the largest entry by which a projection differs from the identity in its own basis."""
    changed = in_basis(layer, layer.get_parameter(f"rounds.0.{name}.weight").T)
    return float((changed.get_parameter(f"rounds.0.{name}.weight") - torch.eye(SIZE)).abs().max())


def identity_query(layer: Attention) -> Attention:
    """Return the same layer without W_Q: its input is the query."""
    with torch.random.fork_rng(devices=[]):
        without = Attention(replace(layer.config, query=IdentityQuery(gain=1.0))).double().eval()
    state = {name: tensor for name, tensor in layer.state_dict().items() if "q_proj" not in name}
    without.load_state_dict(state)
    return without
