"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heedful.train.optimisation import learning_rate
from heedful.train.optimizer_config import OptimizerConfig, ScheduleConfig


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, OptimizerConfig, ScheduleConfig]:
    steps = draw(st.integers(2, 300))
    schedule = ScheduleConfig(
        kind=draw(st.sampled_from(["cosine", "linear", "constant", "wsd"])),
        warmup_steps=draw(st.integers(0, steps - 1)),
        final_ratio=draw(st.floats(0, 1)),
        decay_fraction=draw(st.floats(1e-3, 1)),
    )
    return steps, OptimizerConfig(learning_rate=draw(st.floats(1e-6, 10))), schedule


@given(schedules())
def test_the_rate_rises_to_the_peak_and_falls_to_its_end(
    drawn: tuple[int, OptimizerConfig, ScheduleConfig],
) -> None:
    steps, optimizer, schedule = drawn
    rates = [learning_rate(step, steps, optimizer, schedule) for step in range(steps + 1)]
    peak, warmup = optimizer.learning_rate, schedule.warmup_steps
    assert max(rates) == rates[warmup] == peak
    assert all(rate > 0 for rate in rates[:steps])
    assert all(a < b for a, b in pairwise(rates[: warmup + 1]))
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    end = peak if schedule.kind == "constant" else peak * schedule.final_ratio
    assert rates[steps] == pytest.approx(end, rel=1e-9, abs=1e-12)


@given(schedules())
def test_the_warm_up_is_a_straight_line(drawn: tuple[int, OptimizerConfig, ScheduleConfig]) -> None:
    steps, optimizer, schedule = drawn
    for step in range(schedule.warmup_steps):
        expected = (step + 1) * learning_rate(0, steps, optimizer, schedule)
        assert learning_rate(step, steps, optimizer, schedule) == pytest.approx(expected)


def test_the_decays_have_their_published_form() -> None:
    optimizer = OptimizerConfig(learning_rate=2.0)
    for kind, middle, three_quarters in (("cosine", 1.1, 0.2 + 0.9 * (1 - math.sqrt(0.5))), ("linear", 1.1, 0.65)):
        schedule = ScheduleConfig(kind=kind, warmup_steps=0, final_ratio=0.1)
        assert learning_rate(50, 100, optimizer, schedule) == pytest.approx(middle)
        assert learning_rate(75, 100, optimizer, schedule) == pytest.approx(three_quarters)


def test_linear_to_zero_takes_its_last_step_above_zero() -> None:
    optimizer, schedule = (
        OptimizerConfig(learning_rate=3.0),
        ScheduleConfig(kind="linear", final_ratio=0, warmup_steps=4),
    )
    assert learning_rate(9, 10, optimizer, schedule) == pytest.approx(3.0 / (10 - 4))
    assert learning_rate(10, 10, optimizer, schedule) == 0.0


@pytest.mark.parametrize(
    ("fraction", "warmup", "first_below_the_peak"),
    [
        (0.2, 5, 81),  # 20 steps of decay: step 80 is the last at the peak
        (0.2, 0, 81),
        (1.0, 0, 1),  # all of it, as "linear"
        (0.001, 5, 100),  # less than one step is one step
        (0.5, 70, 71),  # never into the warm-up
        (0.125, 5, 89),  # 12.5 steps round to 12
    ],
)
def test_wsd_stays_at_the_peak_and_then_falls_linearly(fraction: float, warmup: int, first_below_the_peak: int) -> None:
    optimizer = OptimizerConfig(learning_rate=2.0)
    schedule = ScheduleConfig(kind="wsd", warmup_steps=warmup, final_ratio=0.25, decay_fraction=fraction)
    rates = [learning_rate(step, 100, optimizer, schedule) for step in range(101)]
    start = first_below_the_peak - 1
    assert rates[warmup : start + 1] == [2.0] * (start + 1 - warmup)
    for step in range(start, 101):
        assert rates[step] == pytest.approx(2.0 - 1.5 * (step - start) / (100 - start))
