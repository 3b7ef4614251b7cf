"""Rotary positions: the rotation itself, relative positions, and each scaling form against its own definition."""

import math

import pytest
import torch
from layers_for_nn import layer_of, run, text

from heedful.nn import LinearScaling, Llama3Scaling, NtkScaling, Rotary, YarnScaling
from heedful.nn.rotary import RotaryEmbedding
from tolerance import assert_close, largest_difference

SIZE, THETA = 64, 10000.0


def frequencies(scaling, size=SIZE, theta=THETA):
    return scaling.frequencies(theta, size).tolist()


def wavelengths(size=SIZE, theta=THETA):
    return [2 * math.pi * theta ** (2 * k / size) for k in range(size // 2)]


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_each_pair_is_a_complex_number_turned_by_its_position(layout):
    rotary = RotaryEmbedding(Rotary(theta=100.0, layout=layout), 8)
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    positions = torch.tensor([[0, 3, 1, 1000, 7]])
    turned = rotary(x, x[:, :1], positions)[0]

    def as_complex(features):
        real, imaginary = (
            (features[..., :4], features[..., 4:]) if layout == "half" else (features[..., 0::2], features[..., 1::2])
        )
        return torch.complex(real.contiguous(), imaginary.contiguous())

    for k in range(4):
        angle = positions[0].double() * 100.0 ** (-k / 4)
        expected = as_complex(x)[..., k] * torch.polar(torch.ones_like(angle), angle)
        assert float((as_complex(turned)[..., k] - expected).abs().max()) < 1e-12


def test_the_layouts_differ_by_a_permutation_of_features_only():
    x = torch.randn(1, 1, 5, 8, dtype=torch.float64)
    positions = torch.arange(5)[None]
    half = RotaryEmbedding(Rotary(), 8)(x, x, positions)[0]
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    interleaved = RotaryEmbedding(Rotary(layout="interleaved"), 8)(x[..., order], x[..., order], positions)[0]
    assert largest_difference(interleaved, half[..., order]) == 0.0


SCALINGS = [
    None,
    LinearScaling(factor=4.0),
    NtkScaling(factor=4.0),
    YarnScaling(factor=4.0, original_max_positions=64),
    Llama3Scaling(factor=4.0, original_max_positions=64),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: "none" if s is None else s.kind)
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_scores_depend_on_distances_alone_under_every_scaling(scaling, layout):
    rotary = RotaryEmbedding(Rotary(scaling=scaling, layout=layout), 16)
    query, key = torch.randn(1, 2, 6, 16).double(), torch.randn(1, 2, 6, 16).double()
    scores = []
    for shift in (0, 12345):
        q, k = rotary(query, key, torch.arange(shift, shift + 6)[None])
        scores.append(q @ k.transpose(-1, -2))
    assert largest_difference(*scores) < 1e-9  # angles of 1e4 radians carry 1e-12


def test_linear_scaling_is_positions_divided():
    x = torch.randn(1, 1, 5, 8, dtype=torch.float64)
    scaled = RotaryEmbedding(Rotary(scaling=LinearScaling(factor=4.0)), 8)(x, x, torch.arange(0, 20, 4)[None])[0]
    plain = RotaryEmbedding(Rotary(), 8)(x, x, torch.arange(5)[None])[0]
    assert_close(scaled, plain)


def test_ntk_keeps_the_fastest_pair_and_divides_the_slowest_by_the_factor():
    base, scaled = frequencies(LinearScaling(factor=1.0)), frequencies(NtkScaling(factor=8.0))
    assert scaled[0] == base[0] == 1.0
    assert scaled[-1] == pytest.approx(base[-1] / 8, rel=1e-12)
    ratios = [b / s for b, s in zip(base, scaled, strict=True)]
    assert ratios == sorted(ratios)
    # One new base for all pairs: log frequency stays a straight line.
    steps = [math.log(scaled[k]) - math.log(scaled[k + 1]) for k in range(len(scaled) - 1)]
    assert max(steps) - min(steps) < 1e-12
    assert frequencies(NtkScaling(factor=8.0), size=2) == [1.0]


def test_llama3_divides_long_wavelengths_keeps_short_ones_and_passes_smoothly_between():
    scaling = Llama3Scaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=512)
    longest_kept, shortest_divided = 512 / 4.0, 512 / 1.0
    kinds = set()
    for wavelength, found in zip(wavelengths(), frequencies(scaling), strict=True):
        plain = 2 * math.pi / wavelength
        if wavelength < longest_kept:
            expected, kind = plain, "kept"
        elif wavelength > shortest_divided:
            expected, kind = plain / 8, "divided"
        else:
            share = (512 / wavelength - 1.0) / (4.0 - 1.0)
            expected, kind = (1 - share) * plain / 8 + share * plain, "between"
        assert found == pytest.approx(expected, rel=1e-12)
        kinds.add(kind)
    assert kinds == {"kept", "divided", "between"}


def test_yarn_interpolates_slow_pairs_keeps_fast_ones_and_ramps_over_whole_pairs():
    original = 512
    scaling = YarnScaling(factor=8.0, original_max_positions=original)

    def turns(pair):
        """How often a (fractional) pair turns over the original context."""
        return original / (2 * math.pi * THETA ** (2 * pair / SIZE))

    # The pair that turns 32 times, rounded down, and the one that turns once, rounded up, are the ends of the ramp.
    first = next(pair for pair in range(SIZE) if turns(pair + 1) < 32)
    last = next(pair for pair in range(SIZE) if turns(pair) <= 1)
    kinds = set()
    for pair, found in enumerate(frequencies(scaling)):
        plain = THETA ** (-2 * pair / SIZE)
        share = min(max((pair - first) / (last - first), 0.0), 1.0)
        assert found == pytest.approx(plain * (1 - share) + plain / 8 * share, rel=1e-12)
        kinds.add("kept" if share == 0 else "divided" if share == 1 else "between")
    assert kinds == {"kept", "divided", "between"}
    assert scaling.amplitude == pytest.approx(0.1 * math.log(8) + 1)
    assert YarnScaling(factor=1.0, original_max_positions=original).amplitude == 1.0


def test_yarns_amplitude_multiplies_queries_and_keys():
    x = torch.randn(1, 1, 3, SIZE, dtype=torch.float64)
    scaling = YarnScaling(factor=8.0, original_max_positions=512)
    turned = RotaryEmbedding(Rotary(scaling=scaling), SIZE)(x, x, torch.arange(3)[None])
    for result in turned:
        assert_close(result.norm(dim=-1), scaling.amplitude * x.norm(dim=-1))


def test_a_factor_of_one_changes_nothing():
    plain = frequencies(LinearScaling(factor=1.0))
    for scaling in (
        NtkScaling(factor=1.0),
        YarnScaling(factor=1.0, original_max_positions=512),
        Llama3Scaling(factor=1.0, original_max_positions=512),
    ):
        assert frequencies(scaling) == pytest.approx(plain, rel=1e-14)


def test_bfloat16_heads_are_turned_in_float32():
    x = torch.randn(1, 64, 4, 8).bfloat16()
    positions = torch.tensor([[100, 1001, 5003, 90001]])  # bfloat16 cannot even hold these positions
    rotary = RotaryEmbedding(Rotary(), 8)
    turned, exact = rotary(x, x, positions)[0], rotary(x.double(), x.double(), positions)[0]
    assert turned.dtype == torch.bfloat16
    # float32 steps round like exact ones but for values that lie within 2^-24 of the middle between two bfloat16.
    assert float((turned != exact.bfloat16()).double().mean()) < 0.001


def test_qk_norm_comes_before_the_rotation():
    """Gains that differ within a pair do not commute with turning it: written out, norm then turn."""
    layer, x = layer_of("standard", rotary=Rotary(), qk_norm=True), text()
    attention_round = layer.rounds[0]
    query, key = (
        projection(x).unflatten(-1, (4, 4)).transpose(1, 2)
        for projection in (attention_round.query, attention_round.k_proj)
    )
    positions = torch.arange(9)[None]
    query, key = attention_round.rotary(attention_round.q_norm(query), attention_round.k_norm(key), positions)
    value = attention_round.v_proj(x).unflatten(-1, (4, 4)).transpose(1, 2)
    hidden = torch.ones(9, 9).triu(1).bool()
    weights = (query @ key.transpose(-1, -2) / 2).masked_fill(hidden, -math.inf).softmax(-1)
    assert_close(run(layer, x), layer.o_proj((weights @ value).transpose(1, 2).flatten(2)).detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotaryEmbedding(Rotary(), 5), "head_dim must be even, got 5"),
        (lambda: layer_of("standard", head_dim=5, rotary=Rotary()), "head_dim must be even, got 5"),
        (lambda: Rotary(layout="neox"), "layout: expected one of 'half', 'interleaved', got 'neox'"),
        (lambda: Rotary(theta=0.0), "theta must be above 0, got 0.0"),
        (lambda: LinearScaling(factor=0.0), "factor must be above 0, got 0.0"),
        (lambda: NtkScaling(factor=-1.0), "factor must be above 0, got -1.0"),
        (lambda: YarnScaling(factor=2.0, original_max_positions=0), "original_max_positions must be above 0, got 0"),
        (lambda: YarnScaling(factor=2.0, original_max_positions=9, beta_fast=0.5), "beta_fast must be at least beta_"),
        (lambda: Llama3Scaling(low_frequency_factor=4.0), "must be above low_frequency_factor > 0, got 4.0 and 4.0"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
