"""The boosted paper's and twicing's checks: their parts against other ways to compute them, and that they can fail."""

import functools
import math

import pytest
import torch
from torch.autograd import gradcheck

from heedful.nn import BoostedRetrieval, Boosting
from heedful.papers import (
    boosted_boosting_check,
    boosted_layer_checks,
    boosted_retrieval_checks,
    norm_check,
    span_checks,
    twicing_checks,
)
from heedful.papers.boosted_claims import CLAIMS
from heedful.papers.boosted_retrieval_checks import distinct, iterate, step
from heedful.papers.fixed_point import FixedPointRetrieval
from heedful.papers.hull import hull_distance
from heedful.papers.retrieval_task import RetrievalTask, accuracy, train
from tolerance import assert_close, largest_difference

DOUBLE = {"dtype": torch.float64}
SMALL = RetrievalTask(width=6, count=4, **DOUBLE)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def test_queries_are_patterns_with_noise():
    task = RetrievalTask(width=40, count=3, noise=0.25, **DOUBLE)
    patterns, (queries, source) = task.patterns(), task.test_queries(4000)
    assert_close(patterns.norm(dim=-1), torch.ones(3, **DOUBLE))
    rest = queries - patterns[source]
    assert rest.std() == pytest.approx(0.25, rel=4 / math.sqrt(2 * rest.numel()))
    assert sorted(set(source.tolist())) == [0, 1, 2]


def test_bayes_is_the_nearest_pattern():
    """With unit patterns and even chances the likeliest source is the pattern nearest to the query, and the pattern
    nearest to the posterior mean is nearly always the same.
    """
    queries, source = SMALL.test_queries()
    likeliest = 100 * float(torch.cdist(queries, SMALL.patterns()).argmin(-1).eq(source).double().mean())
    assert SMALL.bayes_accuracy() == pytest.approx(likeliest, abs=0.5)


def test_accuracy_counts_by_cosine():
    patterns = torch.eye(3, **DOUBLE)
    outputs = torch.tensor([[5.0, 4.0, 0.0], [0.1, 0.0, 0.2], [0.0, -1.0, -2.0]], **DOUBLE)
    assert accuracy(outputs, torch.tensor([0, 2, 1]), patterns) == pytest.approx(200 / 3)


def test_training_learns_the_target_that_is_asked_for():
    """The best multiple of the query: 1 to give it back, 1 / (1 + d sigma^2) to give the pattern of unit length."""
    for target, start, best in (("query", 0.9, 1.0), ("pattern", 0.5, 1 / (1 + 6 * 0.25))):
        scale = torch.nn.Linear(1, 1, bias=False).double()
        torch.nn.init.constant_(scale.weight, start)
        multiple = functools.partial(multiply, scale)
        train(scale, SMALL, multiple, steps=200, seed=1, target=target)
        assert float(scale.weight.detach()) == pytest.approx(best, abs=0.01), target  # 512 * 6 noisy numbers a step


def multiply(scale, queries, patterns):
    return scale.weight * queries


def test_a_step_is_what_the_retrieval_module_does_with_identity_projections():
    module = BoostedRetrieval(6, rounds=1, beta=3.0).double()
    for projection in (module.rounds[0].q_proj, module.rounds[0].k_proj, module.rounds[0].v_proj):
        torch.nn.init.eye_(projection.weight)
    with torch.no_grad():
        module.rounds[0].log_beta.fill_(math.log(3.0))
    queries, patterns = draw(5, 6), SMALL.patterns()
    beta = float(module.rounds[0].log_beta.detach().exp())
    assert_close(step(queries, patterns, beta), module(queries, patterns).output.detach())


def test_iterating_the_weights_is_iterating_the_points():
    points, patterns = draw(7, 6), SMALL.patterns()
    expected = points
    for _ in range(60):
        expected = step(expected, patterns, 2.0)
    assert_close(iterate(points, patterns, 2.0, steps=59, tolerance=0.0), expected)


def test_below_the_bound_distances_shrink_geometrically():
    """|T(x) - T(y)| <= beta |X_centred|^2 / 2 |x - y|: the bound that `collapse` states."""
    patterns = SMALL.patterns()
    bound = 2 / float(torch.linalg.matrix_norm(patterns - patterns.mean(0), ord=2) ** 2)
    first, second = draw(200, 6, seed=1), draw(200, 6, seed=2)
    for share in (0.3, 0.9):
        before = (first - second).norm(dim=-1)
        after = (step(first, patterns, share * bound) - step(second, patterns, share * bound)).norm(dim=-1)
        assert float((after / before).max()) <= share
    assert len(distinct(iterate(draw(200, 6), patterns, 0.9 * bound))) == 1


def test_queries_of_one_basin_merge_and_those_of_two_do_not():
    patterns = SMALL.patterns()
    near = patterns[[0, 0, 1, 1]] + 0.05 * draw(4, 6, seed=3)
    ends = iterate(near, patterns, 30.0)
    assert largest_difference(ends[0], ends[1]) < 1e-9
    assert largest_difference(ends[2], ends[3]) < 1e-9
    assert float((ends[0] - ends[2]).norm()) > 0.5


def test_fixed_points_are_steps_of_the_retrieval_round():
    torch.manual_seed(0)
    model = FixedPointRetrieval(6, beta=3.0, unrolled=3).double()
    queries, patterns = draw(5, 6), SMALL.patterns()
    expected = queries
    for _ in range(4):
        expected = model.round(expected, patterns)[0]
    assert_close(model(queries, patterns).detach(), expected.detach())


def test_the_implicit_derivative_is_that_of_the_fixed_point():
    torch.manual_seed(0)
    model = FixedPointRetrieval(6, beta=4.0, identity=True, implicit=True, steps=200, tolerance=0.0).double()
    queries = draw(3, 6)
    patterns = SMALL.patterns().requires_grad_()
    assert gradcheck(lambda stored: model(queries, stored), patterns, check_undefined_grad=False)
    implicit = torch.autograd.grad(model(queries, patterns).square().sum(), model.parameters())
    model.implicit, model.unrolled = False, 200
    unrolled = torch.autograd.grad(model(queries, patterns).square().sum(), model.parameters())
    for one, other in zip(implicit, unrolled, strict=True):
        assert largest_difference(one, other) < 1e-9  # 200 steps leave nothing of where they began


def test_hull_distances_of_a_triangle():
    corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]], **DOUBLE)
    for point, distance in (((1.0, 1.0), 0.0), ((2.0, -3.0), 3.0), ((-3.0, -4.0), 5.0), ((4.0, 4.0), math.sqrt(8))):
        found = hull_distance(torch.tensor(point, **DOUBLE), corners)
        assert found == pytest.approx(distance, abs=1e-5), point  # the sum of the weights is met to 1e-6


def test_the_gauge_needs_all_its_factors(monkeypatch):
    assert boosted_layer_checks.gauge().verdict == "does not hold"
    monkeypatch.setattr(
        boosted_layer_checks,
        "_rescaled",
        lambda weights, k: {n: w * k if ".v_proj." in n else w for n, w in weights.items()},
    )
    assert boosted_layer_checks.gauge().verdict == "holds"


def test_one_round_fails_where_the_gate_stays_open(monkeypatch):
    right = boosted_layer_checks._layer
    monkeypatch.setattr(
        boosted_layer_checks, "_layer", lambda boosting: right(boosting and Boosting(rounds=boosting.rounds))
    )
    assert boosted_layer_checks.one_round().verdict == "does not hold"


def test_arithmetic_against_the_formula_of_the_paper_written_out():
    d, context = 256, 256
    standard, boosted = 4 * d * d + 2 * context * d, 2 * (3 * d * d + 2 * context * d) + 2 * d * d + d * d
    finding = boosted_layer_checks.overhead()
    assert finding.numbers["attention"] == boosted / standard
    cost = boosted_layer_checks.equal_compute().numbers
    assert cost["boosted"] == cost["deeper"] == 4 * (boosted + 8 * d * d) + 16384 * d
    twicing = twicing_checks.overhead().numbers
    assert twicing["attention"] == (standard + context * d) / standard
    assert twicing["whole model"] == pytest.approx(1 + 4 * context * d / (4 * (standard + 8 * d * d) + 16384 * d))


def test_a_wrong_count_does_not_hold(monkeypatch):
    monkeypatch.setitem(boosted_layer_checks.PUBLISHED_PARAMETERS, ("standard", 256), 7_419_393)
    assert boosted_layer_checks.parameters().verdict == "does not hold"


def test_a_token_is_hidden_from_the_first_round_only():
    """Changing the hidden token changes the others' outputs of two rounds, and not those of one."""
    x = draw(8, 16)
    other = x.clone()
    other[3] += 1.0
    for rounds, changed in ((1, False), (2, True)):
        one, two = (boosted_layer_checks._blind_to(3, value, rounds=rounds) for value in (x, other))
        assert (largest_difference(one, two) > 1e-4) == changed


def test_twicing_without_its_second_pass_stays_in_the_hull(monkeypatch):
    from heedful.ops import standard_attention

    assert span_checks.twicing_hull().verdict == "does not hold"
    monkeypatch.setattr(span_checks, "twicing_attention", standard_attention)
    finding = span_checks.twicing_hull()
    assert finding.verdict == "holds"
    assert finding.numbers["outputs outside the range"] == 0.0


def test_row_space_fails_where_the_correction_comes_from_the_same_values(monkeypatch):
    right = span_checks._outside_row_space
    assert span_checks.row_space().verdict == "holds in part"
    monkeypatch.setattr(span_checks, "_outside_row_space", lambda preset, length: right("twicing", length))
    assert span_checks.row_space().verdict == "does not hold"


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.3])
def test_the_formula_of_the_norm_is_its_derivative(eps):
    x, gain = draw(7), draw(7, seed=1)
    numeric = torch.stack(
        [
            (norm(x + 1e-6 * unit, gain, eps) - norm(x - 1e-6 * unit, gain, eps)) / 2e-6
            for unit in torch.eye(7, **DOUBLE)
        ],
        dim=1,
    )
    assert largest_difference(norm_check.formula(x, gain, eps), numeric) < 1e-8
    along = (x - x.mean()) / x.std(correction=0)
    inner = norm_check.formula(x, torch.ones(7, **DOUBLE), eps)
    variance = float(x.var(correction=0))
    assert_close(inner @ along, eps / (variance + eps) / math.sqrt(variance + eps) * along)


def norm(x, gain, eps):
    return gain * (x - x.mean()) / (x.var(correction=0) + eps).sqrt()


def test_a_kernel_without_the_second_pass_has_the_bias_of_the_first(monkeypatch):
    from heedful.ops import standard_attention

    assert twicing_checks.kernel().verdict == "holds"
    monkeypatch.setattr(twicing_checks, "twicing_attention", standard_attention)
    finding = twicing_checks.kernel()
    assert finding.verdict == "does not hold"
    assert finding.numbers["order of twicing"] == pytest.approx(2, abs=0.05)


def test_the_integral_of_the_filter_is_a_product():
    """int (1 - u^2)^n du over [0, 1] is the product of 2k / (2k + 1) for k up to n."""
    product = math.prod(2 * k / (2 * k + 1) for k in range(1, 101))
    ratio = twicing_checks.decay().numbers["(2x - x^2)^n over sqrt(pi) / (2 sqrt n), n = 100"]
    assert ratio == pytest.approx(product * 2 * math.sqrt(100 / math.pi), rel=1e-9)


def test_boosting_that_fits_the_residual_holds(monkeypatch):
    """Rounds whose correction is the residual itself: what proposition 2 would need."""

    class Perfect(BoostedRetrieval):
        def forward(self, query, patterns):
            first = self.rounds[0](query, patterns)[0]
            return super().forward(query, patterns)._replace(output=first + 0.5 * (query - first))

    monkeypatch.setattr(boosted_boosting_check, "BoostedRetrieval", Perfect)
    monkeypatch.setattr(boosted_boosting_check, "STEPS", 2)
    monkeypatch.setattr(boosted_boosting_check, "F", Aligned)
    assert boosted_boosting_check.gradient_boosting().verdict == "holds"


class Aligned:
    @staticmethod
    def cosine_similarity(one, other, dim):
        return torch.ones(len(one))


@pytest.mark.parametrize(
    ("by_steps", "verdict"),
    [
        ({150: (45, 54), 500: (52, 57), 1500: (58, 58)}, "holds in part"),
        ({150: (45, 54), 500: (45, 54), 1500: (45, 54)}, "holds"),
        ({150: (54, 54), 500: (57, 57), 1500: (58, 58)}, "does not hold"),
    ],
)
def test_verdicts_on_two_rounds(by_steps, verdict, monkeypatch):
    monkeypatch.setattr(
        boosted_retrieval_checks, "_trained_accuracy", lambda task, rounds, steps, seed: by_steps[steps][rounds - 1]
    )
    assert boosted_retrieval_checks.two_rounds().verdict == verdict


def test_collapse_would_hold_if_queries_merged_at_every_beta(monkeypatch):
    monkeypatch.setattr(
        boosted_retrieval_checks, "iterate", lambda points, patterns, beta: patterns.mean(0).expand_as(points)
    )
    assert boosted_retrieval_checks.collapse().verdict == "holds"


def test_a_step_that_sees_the_whole_query_is_no_erasure(monkeypatch):
    monkeypatch.setattr(
        boosted_retrieval_checks, "step", lambda points, patterns, beta: step(points, patterns, beta) + 0.1 * points
    )
    assert boosted_retrieval_checks.erasure().verdict == "does not hold"


def test_hull_escape_counts_what_lies_inside(monkeypatch):
    monkeypatch.setattr(span_checks, "hull_distance", lambda point, values: 0.0)
    finding = span_checks.hull_escape()
    assert finding.verdict == "holds"
    assert finding.numbers["share outside"] == 0.0


def test_checks_have_names_of_their_own():
    checks = [claim.check for claim in CLAIMS if claim.check is not None]
    assert len(set(checks)) == len(checks)
