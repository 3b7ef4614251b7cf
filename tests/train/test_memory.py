from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_run import CopyData, run, tiny_model

from heedful.train import OptimizerConfig, peak_tensor_bytes
from heedful.train.config import LossConfig
from heedful.train.gradients import forward_backward
from heedful.train.loss import TrainingLoss
from heedful.train.optimisation import Optimization

MEGABYTE = 2**20


def megabytes(count: int) -> torch.Tensor:
    return torch.empty(count * MEGABYTE, dtype=torch.uint8)


def test_the_peak_is_the_largest_sum_alive_at_one_time() -> None:
    def step() -> None:
        first = megabytes(3)
        second = megabytes(2)
        del first  # the peak of 5 was before this
        third = megabytes(1)
        del second, third

    assert peak_tensor_bytes(step) == 5 * MEGABYTE


def test_memory_that_was_freed_can_be_used_again() -> None:
    def step() -> None:
        for _ in range(10):
            megabytes(2)

    assert peak_tensor_bytes(step) == 2 * MEGABYTE


def test_what_stays_alive_after_the_call_counts() -> None:
    kept = []
    assert peak_tensor_bytes(lambda: kept.append(megabytes(4))) == 4 * MEGABYTE


def test_resident_tensors_are_added_each_storage_once() -> None:
    weight = megabytes(7)
    assert peak_tensor_bytes(lambda: megabytes(1), resident=[weight, weight[:5], weight.view(7, -1)]) == 8 * MEGABYTE


def test_memory_from_before_that_is_not_resident_does_not_count() -> None:
    leftover = megabytes(50)
    assert peak_tensor_bytes(lambda: megabytes(1)) == MEGABYTE
    del leftover


def test_a_larger_model_needs_more_and_the_figure_is_the_same_every_time() -> None:
    def peak(hidden_size: int) -> int:
        model = tiny_model("boosted", hidden_size=hidden_size)
        optimization = Optimization(model, OptimizerConfig())

        def step() -> None:
            batch, loss = CopyData().batch(0), TrainingLoss(model, LossConfig())
            forward_backward(loss, batch, accumulation=1, device=torch.device("cpu"), precision="float32")
            optimization.step(1e-3)

        return peak_tensor_bytes(step, resident=model.parameters())

    small, large = peak(16), peak(32)
    assert small < large
    assert [peak(16), peak(32), peak(16)] == [small, large, small]


def test_the_call_runs_once_and_its_error_comes_through() -> None:
    calls = []

    def step() -> None:
        calls.append(1)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        peak_tensor_bytes(step)
    assert len(calls) == 1


def test_the_environment_variables_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    peak_tensor_bytes(lambda: None)
    assert "KINETO_LOG_LEVEL" not in os.environ
    monkeypatch.setenv("KINETO_LOG_LEVEL", "98")
    peak_tensor_bytes(lambda: None)
    assert os.environ["KINETO_LOG_LEVEL"] == "98"


def test_it_refuses_to_end_somebody_elses_profile_and_a_run_waits_for_it(tmp_path: Path) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
        with pytest.raises(ValueError, match="while a torch profiler runs"):
            peak_tensor_bytes(lambda: None)
        result, _ = run(tmp_path, steps=4)
    assert result.peak_memory_bytes == 0  # not measured
    assert any("adamw" in event.name for event in profiler.events())


def test_a_run_reports_a_plausible_peak(tmp_path: Path) -> None:
    result, model = run(tmp_path, steps=5)
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert result.peak_memory_bytes > 4 * weights  # weights, gradients and two moments, then the activations
    assert result.peak_memory_bytes < 100 * weights
    assert run(tmp_path / "again", steps=5)[0].peak_memory_bytes == result.peak_memory_bytes
