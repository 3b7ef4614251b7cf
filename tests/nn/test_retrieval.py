"""Boosted retrieval: erasure by one step, gates, and the rounds as a prefix of each other."""

import pytest
import torch

from heedful.nn import BoostedRetrieval
from tolerance import assert_close, largest_difference


def module(rounds=2, width=6, seed=2, **fields):
    torch.manual_seed(seed)
    return BoostedRetrieval(width, rounds=rounds, **fields).double()


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_one_step_erases_what_no_pattern_can_see():
    """The query enters through W_k P only: parts of it in the null space of P W_k^T W_q change nothing."""
    retrieval, patterns, query = module(rounds=1), draw(3, 6), draw(5, 6)
    first = retrieval.rounds[0]
    seen = (patterns @ first.k_proj.weight.T @ first.q_proj.weight).detach()  # (K, d): what a query is compared with
    _, _, right = torch.linalg.svd(seen)
    unseen = right[3:]
    moved = query + 100 * draw(5, 3) @ unseen
    assert_close(retrieval(moved, patterns).output.detach(), retrieval(query, patterns).output.detach())
    result = retrieval(query, patterns)
    assert_close(result.weights.sum(-1).detach(), torch.ones(5).double())
    assert float(result.weights.detach().min()) >= 0.0


def test_a_second_round_brings_the_erased_part_back():
    retrieval, patterns, query = module(rounds=2), draw(3, 6), draw(5, 6)
    first = retrieval.rounds[0]
    seen = (patterns @ first.k_proj.weight.T @ first.q_proj.weight).detach()
    unseen = torch.linalg.svd(seen)[2][3:]
    moved = query + draw(5, 3) @ unseen
    assert largest_difference(retrieval(moved, patterns).output, retrieval(query, patterns).output) > 1e-3


def test_further_rounds_query_with_the_residual():
    retrieval, patterns, query = module(rounds=2, gate="none"), draw(4, 6), draw(2, 6)
    first, second = retrieval.rounds
    estimate = first(query, patterns)[0]
    assert_close(retrieval(query, patterns).output, estimate + second(query - estimate, patterns)[0])


def test_identity_projections_give_softmax_over_scaled_patterns():
    retrieval, patterns, query = module(rounds=1, beta=5.0), draw(4, 6), draw(2, 6)
    with torch.no_grad():
        for projection in (retrieval.rounds[0].q_proj, retrieval.rounds[0].k_proj, retrieval.rounds[0].v_proj):
            projection.weight.copy_(torch.eye(6))
    weights = torch.softmax(5.0 * query @ patterns.T, -1)
    result = retrieval(query, patterns)
    assert largest_difference(result.output, weights @ patterns) < 1e-6  # log beta is kept in float32's rounding
    assert largest_difference(result.entropy, -(weights * weights.log()).sum(-1)) < 1e-6


@pytest.mark.parametrize("gate", ["network", "scalar", "none"])
def test_closing_the_last_gate_leaves_the_shorter_model(gate):
    long, short = module(rounds=3, gate=gate), module(rounds=2, gate=gate)
    short.load_state_dict({name: long.state_dict()[name] for name in short.state_dict()})
    patterns, query = draw(4, 6), draw(2, 6)
    with torch.no_grad():
        if gate == "network":
            long.gate_networks[1][-1].bias.fill_(-900.0)
        elif gate == "scalar":
            long.gate_logits[1].fill_(-900.0)
        else:
            long.rounds[2].v_proj.weight.zero_()
    assert largest_difference(long(query, patterns).output, short(query, patterns).output) == 0.0


def test_scalar_gates_start_at_the_published_opening():
    assert torch.sigmoid(module(gate="scalar").gate_logits[0].detach()).item() == pytest.approx(0.6225, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"rounds": 0}, "rounds must be at least 1, got 0"), ({"gate": "mlp"}, "gate must be 'network', .* got 'mlp'")],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BoostedRetrieval(4, **fields)
