"""Condition numbers: errors grow with them, storage types have limits, and heads can be conditioned first."""

import pytest
import torch
from query_nets import LAYERS, NO_SKIPS, SIZE, error, net

from heedful.convert.queries import audit, convert_queries
from heedful.convert.queries.conditioning import check_condition, condition_number, limits_of
from heedful.convert.queries.gauges import commutes_with_rotation
from heedful.nn import Rotary


def with_spectrum(condition, **fields):
    """Every W_Q with singular values from 1 to 1 / condition, geometrically."""
    model = net(**NO_SKIPS, **fields)
    generator = torch.Generator().manual_seed(4)
    values = torch.logspace(0, -torch.tensor(float(condition)).log10().item(), SIZE, dtype=torch.float64)
    with torch.no_grad():
        for block in model.blocks:
            left, right = (
                torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)).Q for _ in range(2)
            )
            block.attention.rounds[0].query.q_proj.weight.copy_(left @ values.diag() @ right)
    return model


def test_condition_number():
    assert condition_number(torch.eye(3, dtype=torch.float64)) == pytest.approx(1.0)
    assert condition_number(torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64).diag()) == pytest.approx(8.0)
    assert condition_number(torch.zeros(2, 2, dtype=torch.float64)) == float("inf")
    assert condition_number(torch.ones(2, 2, dtype=torch.float64)) == float("inf")


def test_errors_grow_with_the_condition_number():
    single, half = [], []
    for condition in (1e1, 1e2, 1e3, 1e4):
        model = with_spectrum(condition, rotary=Rotary())
        converted, report = convert_queries(model, dtype=torch.float32)
        assert next(converted.parameters()).dtype == torch.float32
        assert report.condition_numbers["0"] == pytest.approx(condition, rel=1e-6)
        assert report.verification.random_tokens < 1e-11
        single.append(report.verification.stored.converted)
        exact, _ = convert_queries(model)
        half.append(error(exact.to(torch.bfloat16).double(), model))
    assert single[0] < 1e-5
    assert single[-1] > 5 * single[0]
    assert single[-1] < 1e-2
    assert half[0] < 0.1 < half[-1]


def test_bfloat16_warns_above_ten_and_refuses_above_a_hundred():
    good = convert_queries(with_spectrum(8, rotary=Rotary()), dtype=torch.bfloat16)[1]
    assert not any("condition" in warning for warning in good.warnings)
    some = convert_queries(with_spectrum(50, rotary=Rotary()), dtype=torch.bfloat16)[1]
    assert sum("condition number 50" in warning for warning in some.warnings) == LAYERS
    assert some.verification.stored.converted > some.verification.stored.original
    with pytest.raises(ValueError, match=r"condition number 200, above the limit 100 for bfloat16: store more bits"):
        convert_queries(with_spectrum(200, rotary=Rotary()), dtype=torch.bfloat16)


def test_the_limit_can_be_set():
    model = with_spectrum(50, rotary=Rotary())
    with pytest.raises(ValueError, match="above the limit 20 for float64"):
        convert_queries(model, max_condition=20)
    wide, report = convert_queries(with_spectrum(200, rotary=Rotary()), dtype=torch.bfloat16, max_condition=500)
    assert next(wide.parameters()).dtype == torch.bfloat16
    assert report.warnings
    assert limits_of(torch.float32).refuse == 1e6
    assert check_condition(5.0, torch.bfloat16, None, "x") is None
    assert "amplified" in check_condition(5e4, torch.float32, None, "x")


def test_a_low_precision_source_is_stored_in_float32_unless_told():
    model = with_spectrum(5, rotary=Rotary()).to(torch.bfloat16)
    converted, report = convert_queries(model)
    assert next(converted.parameters()).dtype == torch.float32
    assert report.verification.random_tokens < 1e-11, "the bfloat16 weights themselves are converted exactly"


@pytest.mark.parametrize("groups", [4, 2])
def test_conditioning_of_heads_lowers_the_condition_number(groups):
    model = net(**NO_SKIPS, num_kv_heads=groups, bias=True)
    generator = torch.Generator().manual_seed(6)
    values = torch.logspace(0, -3, 12, dtype=torch.float64)
    with torch.no_grad():
        for block in model.blocks:
            weight = block.attention.rounds[0].query.q_proj.weight
            for group in range(groups):  # one bad direction for all heads of a group, which one gauge can mend
                turn = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
                for head in range(group * 4 // groups, (group + 1) * 4 // groups):
                    rows = slice(12 * head, 12 * head + 12)
                    basis = torch.linalg.qr(torch.randn(SIZE, 12, generator=generator, dtype=torch.float64)).Q
                    weight[rows] = (basis @ values.diag() @ turn).T
    plain, without = convert_queries(model, condition_heads=False)
    conditioned, report = convert_queries(model)
    assert error(plain, model) < 1e-9
    assert error(conditioned, model) < 1e-11
    assert all(report.condition_numbers[key] < without.condition_numbers[key] / 10 for key in report.condition_numbers)
    rough = [error(one.to(torch.bfloat16).double(), model) for one in (conditioned, plain)]
    assert rough[0] < rough[1]


def test_conditioning_is_left_out_where_it_would_not_be_exact():
    for fields in ({"rotary": Rotary()}, {"qk_norm": True}):
        model = with_spectrum(1e3, **fields)
        assert convert_queries(model)[1].condition_numbers["0"] == pytest.approx(1e3, rel=1e-6)


def test_the_best_conditioned_layer_is_chosen_under_skips():
    model = net(rotary=Rotary())
    numbers = [condition_number(b.attention.rounds[0].query.q_proj.weight.detach()) for b in model.blocks]
    assert audit(model).removable == (numbers.index(min(numbers)),)


def test_complex_numbers_commute_with_rotations():
    swap = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    assert commutes_with_rotation(torch.block_diag(swap, 2 * swap), "interleaved")
    assert not commutes_with_rotation(torch.block_diag(swap, 2 * swap), "half")
    assert commutes_with_rotation(3 * torch.eye(4, dtype=torch.float64), "half")
    assert not commutes_with_rotation(torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)), "half")
