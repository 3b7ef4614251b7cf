"""Matching: the nearest model, checked against its neighbours; the controls of the papers; refusals."""

from dataclasses import replace

import pytest
from tiny_models import config_of

from heedful.models import decoder_config
from heedful.models.counting import count_parameters, multiply_adds_per_token
from heedful.models.matching import match_compute, match_parameters
from heedful.nn import Rotary


def paper(names="standard", **fields):
    return decoder_config(
        names, vocab_size=16384, num_layers=4, max_positions=256, hidden_size=256, num_heads=4, bias=True, **fields
    )


def test_the_wider_control_of_the_boosted_paper_is_found():
    target = count_parameters(paper("boosted")).total
    wider = match_parameters(paper(), target)
    assert wider.hidden_size == 288
    assert count_parameters(wider).total == 8_789_184


def test_six_layers_are_the_control_of_equal_compute():
    target = multiply_adds_per_token(paper("boosted"), 256)
    assert match_compute(paper(), target, 256) == replace(paper(), num_layers=6)


@pytest.mark.parametrize("vary", ["width", "feed-forward", "depth"])
@pytest.mark.parametrize(
    ("names", "factor"), [("standard", 0.4), ("multi-token", 1.0), ("standard", 1.07), ("boosted", 3.0)]
)
def test_no_neighbour_is_nearer(vary, names, factor):
    config = config_of(names, rotary=Rotary(), intermediate_size=40, num_layers=4, vocab_size=11)
    for count, match in (
        (lambda c: count_parameters(c).total, match_parameters),
        (lambda c: multiply_adds_per_token(c, 32), lambda c, t, vary: match_compute(c, t, 32, vary)),
    ):
        target = round(factor * count(config))
        found = match(config, target, vary)
        for step in (-1, 1):
            neighbour = moved(found, config, vary, step)
            if neighbour is not None:
                assert abs(count(found) - target) <= abs(count(neighbour) - target)
        if factor == 1.0:
            assert found == config


def moved(found, original, vary, step):
    """One step smaller or larger; None below the smallest."""
    if vary == "depth":
        return replace(found, num_layers=found.num_layers + step) if found.num_layers + step else None
    if vary == "feed-forward":
        inner = found.intermediate_size + step
        return replace(found, intermediate_size=inner) if inner else None
    width = found.hidden_size + 8 * step  # lcm(4, 2 heads)
    if width == 0:
        return None
    inner = round(width * original.intermediate_size / original.hidden_size)
    return replace(found, attention=replace(found.attention, hidden_size=width), intermediate_size=inner)


def test_a_changed_width_keeps_heads_rotary_pairs_and_the_feed_forward_ratio():
    config = config_of("boosted", num_heads=3, hidden_size=24, rotary=Rotary(), intermediate_size=60)
    found = match_parameters(config, 30_000)
    assert found.hidden_size % 12 == 0
    assert found.layers[0].num_heads == 3
    assert found.intermediate_size == round(2.5 * found.hidden_size)
    free = match_parameters(config_of(), 30_000)
    assert free.intermediate_size is None
    assert free.feed_forward_size == 4 * free.hidden_size


def test_a_model_with_a_choice_by_layer_can_be_widened_but_not_deepened():
    config = config_of({1: "boosted"})
    wider = match_parameters(config, 2 * count_parameters(config).total)
    assert {layer.hidden_size for layer in wider.layers} == {wider.hidden_size}
    assert wider.layers[1].boosting is not None
    with pytest.raises(ValueError, match="one attention configuration per layer cannot vary; vary its width"):
        match_parameters(config, 10_000, "depth")


@pytest.mark.parametrize("vary", ["width", "feed-forward", "depth"])
def test_a_target_far_below_the_smallest_model_is_refused(vary):
    config = config_of(vocab_size=5000)
    with pytest.raises(ValueError, match=rf"no {vary} of this model comes near 700: the smallest counts [\d,]+\. Vary"):
        match_parameters(config, 700, vary)


def test_wrong_dimensions_are_refused():
    with pytest.raises(ValueError, match="vary must be 'width', 'feed-forward' or 'depth', got 'heads'"):
        match_parameters(config_of(), 10_000, "heads")
    with pytest.raises(ValueError, match="fixed head_dim cannot vary; leave head_dim out"):
        match_parameters(config_of(head_dim=8), 10_000, "width")
