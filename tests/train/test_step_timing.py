"""The steps that are measured are those of training, and every moment of them belongs to a phase."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CopyData, run, same_weights, tiny_config, tiny_model

from heedful.train import OptimizerConfig
from heedful.train.step_profile import profile_steps
from heedful.train.step_timing import PHASES, take_in_phases, time_steps, training_step
from heedful.train.training_step import TrainingStep


@pytest.mark.parametrize(
    "fields",
    [{}, {"accumulation": 1}, {"optimizer": OptimizerConfig(ema_decay=0.9, learning_rate=1e-2)}],
    ids=["usual", "one micro-batch", "averaged"],
)
def test_steps_are_those_of_a_run_bit_for_bit(tmp_path: Path, fields: dict[str, Any]) -> None:
    steps = 6
    _, trained = run(tmp_path, steps=steps, evaluate_every=100, checkpoint_every=100, **fields)
    config = tiny_config(steps=steps, evaluate_every=100, checkpoint_every=100, **fields)
    with training_step(tiny_model(), CopyData(), config) as step:
        for number in range(steps):
            if number % 2:
                take_in_phases(step)
            else:
                step.take()
        assert same_weights(step.model, trained)
    assert step.number == steps


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_every_moment_belongs_to_one_phase(monkeypatch: pytest.MonkeyPatch, accumulation: int) -> None:
    """With a clock that only moves inside the parts of a step, each phase gets exactly its own time."""
    now = 0.0

    def passing(seconds: float, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*args, **kwargs)

        return wrapped

    config = tiny_config(accumulation=accumulation, optimizer=OptimizerConfig(ema_decay=0.5))
    with training_step(tiny_model(), CopyData(), config) as step:
        monkeypatch.setattr(time, "perf_counter", lambda: now)
        monkeypatch.setattr(step.data, "batch", passing(1.0, step.data.batch))
        monkeypatch.setattr(step.loss, "forward", passing(10.0, step.loss.forward))
        monkeypatch.setattr(torch.Tensor, "backward", passing(100.0, torch.Tensor.backward))
        monkeypatch.setattr(step.optimization, "clip", passing(1000.0, step.optimization.clip))
        monkeypatch.setattr(step.optimization, "step", passing(10000.0, step.optimization.step))
        assert step.average is not None
        monkeypatch.setattr(step.average, "update", passing(100000.0, step.average.update))
        expected = {
            "data": 1.0,
            "forward": 10.0 * accumulation,
            "backward": 100.0 * accumulation,
            "optimiser": 11000.0,
            "other": 100000.0,
        }
        assert take_in_phases(step) == expected
        assert take_in_phases(step) == expected
        assert not step.loss._forward_hooks
        assert not step.loss._forward_pre_hooks


def test_the_figures_are_those_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    with training_step(tiny_model(), CopyData(), tiny_config()) as step:
        taken = []
        take = step.take
        monkeypatch.setattr(TrainingStep, "take", lambda self, *args: (taken.append(bool(args)), take(*args))[1])
        monkeypatch.setattr("heedful.train.step_buffer.time.perf_counter", itertools.count(0.0).__next__)
        timing = time_steps(step, warmup=2, steps=4)
        kinds = [(phases, len(list(group))) for phases, group in itertools.groupby(taken)]
    assert kinds == [(False, 6), (True, 4), (False, 1)]  # warm-up and speed, phases, memory
    assert timing.seconds == 1  # two readings of the clock for each step
    assert timing.tokens == CopyData().tokens_per_batch
    assert timing.tokens_per_second == timing.tokens
    assert tuple(timing.phase_seconds) == PHASES
    weights = sum(parameter.numel() * 4 for parameter in step.model.parameters())
    assert 4 * weights < timing.peak_memory_bytes < 100 * weights
    assert timing.processes == 1
    assert "threads" in timing.device


def test_the_peak_memory_is_that_which_training_reports(tmp_path: Path) -> None:
    result, _ = run(tmp_path, steps=5)
    with training_step(tiny_model(), CopyData(), tiny_config(steps=5)) as step:
        assert time_steps(step, warmup=2, steps=1).peak_memory_bytes == result.peak_memory_bytes


def test_too_few_steps_are_refused() -> None:
    with training_step(tiny_model(), CopyData(), tiny_config()) as step:
        for warmup, steps in ((1, 3), (2, 0)):
            with pytest.raises(ValueError, match="warmup >= 2 and steps >= 1"):
                time_steps(step, warmup=warmup, steps=steps)


def test_a_profile_names_the_operators_the_costliest_first(tmp_path: Path) -> None:
    with training_step(tiny_model(), CopyData(), tiny_config(accumulation=1)) as step:
        step.take()
        operators = profile_steps(step, steps=2, trace=tmp_path / "trace.json")
    times = [operator.milliseconds for operator in operators]
    assert times == sorted(times, reverse=True)
    assert min(times) > 0
    calls = {operator.name: operator.calls for operator in operators}
    assert calls["aten::_fused_adamw_"] == 2  # with and without decay
    assert "traceEvents" in (tmp_path / "trace.json").read_text()
    assert step.number == 3
