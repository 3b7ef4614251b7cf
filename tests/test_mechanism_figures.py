"""The figures of docs/pictures.md: the numbers behind the computed ones, and files that stand alone."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts import fixed_points, mechanism_figures
from scripts.fixed_points import NOISE, draw, estimates, patterns_on_the_circle, unique_below, update

from heedful.models import DecoderLM, decoder_config
from heedful.models.probes import probe
from heedful.nn import BoostedRetrieval
from heedful.study.svg import INK, figure, to_svg
from tolerance import assert_close, largest_difference


@pytest.fixture(scope="module")
def patterns():
    return patterns_on_the_circle()


def test_the_update_is_attention_over_the_patterns(patterns):
    points = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.scaled_dot_product_attention(points, patterns, patterns, scale=3.0)
    assert_close(update(points, patterns, 3.0), expected)


@pytest.mark.parametrize("beta", fixed_points.BETAS)
def test_fixed_points_are_fixed_and_attract(patterns, beta):
    found = fixed_points.fixed_points(patterns, beta)
    assert largest_difference(update(found, patterns, beta), found) < 1e-12
    for point in found:  # all eigenvalues of the Jacobian beta Cov are below one
        weights = (beta * patterns @ point).softmax(-1)
        centred = patterns - weights @ patterns
        covariance = centred.T @ (weights[:, None] * centred)
        assert float(torch.linalg.eigvalsh(covariance)[-1]) * beta < 1


def test_one_fixed_point_below_the_bound_and_one_per_pattern_far_above(patterns):
    bound = unique_below(patterns)
    assert fixed_points.BETAS[0] < bound < fixed_points.BETAS[1]
    assert len(fixed_points.fixed_points(patterns, fixed_points.BETAS[0])) == 1
    many = fixed_points.fixed_points(patterns, fixed_points.BETAS[-1])
    assert len(many) == len(patterns)
    assert float(torch.cdist(patterns, many).min(1).values.max()) < 0.05
    generator = torch.Generator().manual_seed(1)
    one, other = (4 * torch.randn(1000, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    moved = update(one, patterns, bound) - update(other, patterns, bound)
    assert float((moved.norm(dim=-1) / (one - other).norm(dim=-1)).max()) < 1, "a contraction"


def test_slow_points_are_no_fixed_points(patterns):
    with pytest.raises(ValueError, match="take more steps"):
        fixed_points.fixed_points(patterns, 3.0, steps=3)


@pytest.mark.parametrize("beta", fixed_points.BETAS)
def test_paths_follow_the_update_and_end_at_rest(patterns, beta):
    found = fixed_points.fixed_points(patterns, beta)
    for path in fixed_points.trajectories(patterns, beta, steps=400):
        points = torch.tensor(path, dtype=torch.float64)
        # Points have 4 digits, and a step stretches a difference by at most beta / bound.
        rounding = 1e-4 * (1 + beta / unique_below(patterns))
        assert largest_difference(update(points[:-1], patterns, beta), points[1:]) < rounding
        assert float(torch.cdist(points[-1:], found).min()) < 2e-3


def test_estimates_are_those_of_the_first_rounds_alone(patterns):
    torch.manual_seed(0)
    model = BoostedRetrieval(2, rounds=3, gate="scalar").double()
    queries, _ = draw(patterns, 9, torch.Generator().manual_seed(1))
    found = estimates(model, queries, patterns)
    for rounds in (1, 2, 3):
        shorter = BoostedRetrieval(2, rounds=rounds, gate="scalar").double()
        shorter.load_state_dict({k: v for k, v in model.state_dict().items() if k in shorter.state_dict()})
        with torch.no_grad():
            assert_close(found[rounds - 1], shorter(queries, patterns).output)
    assert all(not one._forward_pre_hooks for one in model.rounds)


def test_the_best_estimate_is_the_mean_of_the_pattern_given_the_query(patterns):
    queries, _ = draw(patterns, 50, torch.Generator().manual_seed(1))
    chances = (-torch.cdist(queries, patterns).square() / (2 * NOISE**2)).exp()
    assert_close(fixed_points.best_estimate(queries, patterns), chances @ patterns / chances.sum(-1, keepdim=True))


def test_a_figure_stands_alone_in_light_and_dark():
    with figure(200, 100) as (drawing, [axes]):
        axes.text(0.5, 0.5, "a < b", color=INK)
        text = mechanism_figures.stand_alone(to_svg(drawing, "one > two"))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["viewBox"] == "-12 -12 224 124"
    assert root.attrib["aria-label"] == "one > two"
    style = next(element for element in root.iter() if element.tag.endswith("style")).text
    assert style.count("--ink:") == 2
    assert "prefers-color-scheme: dark" in style
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_pictures_of_a_result_are_listed_and_drawn_once(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = DecoderLM(
        decoder_config("boosted", vocab_size=9, num_layers=1, max_positions=8, hidden_size=8, num_heads=2)
    )
    layers = probe(model, torch.zeros(1, 8, dtype=torch.long))
    result = {
        "arms": [
            {"name": name, "parameters": 68_800, "steps": 3, "diagnostics": layers} for name in ("boosted", "unseen")
        ],
        "baseline": "boosted",
        "tokens_per_step": 1000,
        "recipe": {"seeds": [3]},
        "probe_tokens": 8,
    }
    monkeypatch.setattr(mechanism_figures, "largest", lambda names: (names[0], result))
    monkeypatch.setattr(mechanism_figures, "provenance", lambda name, result: "From there.")
    monkeypatch.setattr(mechanism_figures, "FIGURES", tmp_path)
    monkeypatch.setattr(mechanism_figures, "COMPUTED", {})
    stale = mechanism_figures.stale_mechanism_figures()
    names = ["boosted-gate-of-each-boosting-round.svg", "boosted-gate-of-each-dimension.svg"]
    assert [path.name for path in stale] == names
    part = mechanism_figures.learned_part()
    assert all(f"(figures/{name})" in part for name in names)
    assert "unseen" not in part
    for path, text in stale.items():
        ElementTree.fromstring(text)
        path.write_text(text, encoding="utf-8")
    assert mechanism_figures.stale_mechanism_figures() == {}
    layers[0]["gate_by_dimension"][0][0] += 0.1
    assert len(mechanism_figures.stale_mechanism_figures()) == 2


def test_a_missing_result_is_said(monkeypatch):
    monkeypatch.setattr(mechanism_figures, "largest", lambda names: None)
    assert mechanism_figures.learned_part().startswith("Not run yet")
