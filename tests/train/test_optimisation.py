from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import CopyData, tiny_model
from torch import nn

from heedful.train import OptimizerConfig, ScheduleConfig, learning_rate
from heedful.train.config import LossConfig
from heedful.train.gradients import forward_backward
from heedful.train.loss import TrainingLoss
from heedful.train.optimisation import (
    clip_gradients,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    parameter_groups,
)

CPU = torch.device("cpu")


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, OptimizerConfig, ScheduleConfig]:
    steps = draw(st.integers(2, 300))
    schedule = ScheduleConfig(
        kind=draw(st.sampled_from(["cosine", "linear", "constant"])),
        warmup_steps=draw(st.integers(0, steps - 1)),
        final_ratio=draw(st.floats(0, 1)),
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


def test_matrices_decay_and_vectors_and_the_models_exceptions_do_not() -> None:
    model = tiny_model("boosted+multi-token")
    decayed, kept = parameter_groups(model, "matrices")
    excepted = model.parameters_without_decay()
    assert excepted, "the multi-token model names its kernels"
    assert excepted <= kept.keys()
    assert all(parameter.dim() >= 2 for parameter in decayed.values())
    assert all(parameter.dim() < 2 or name in excepted for name, parameter in kept.items())
    assert {**decayed, **kept}.keys() == dict(model.named_parameters()).keys()


def test_all_decays_everything() -> None:
    model = tiny_model("multi-token")
    decayed, kept = parameter_groups(model, "all")
    assert decayed.keys() == dict(model.named_parameters()).keys()
    assert not kept


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def parameters_without_decay(self) -> set[str]:
        return {"head.weight"}


def test_a_tied_parameter_occurs_once_and_is_excepted_under_either_name() -> None:
    model = Tied()
    assert [list(group) for group in parameter_groups(model, "all")] == [["embedding.weight", "head.bias"], []]
    assert [list(group) for group in parameter_groups(model, "matrices")] == [[], ["embedding.weight", "head.bias"]]
    held = [
        parameter for group in make_optimizer(model, OptimizerConfig()).param_groups for parameter in group["params"]
    ]
    assert len(held) == 2


def test_an_exception_that_names_no_parameter_is_refused() -> None:
    model = Tied()
    model.parameters_without_decay = lambda: {"head.kernel"}  # type: ignore[method-assign]
    with pytest.raises(
        ValueError, match=r"Tied.parameters_without_decay\(\) names 'head.kernel', which is no parameter"
    ):
        parameter_groups(model, "matrices")


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="ReLU has no trainable parameter"):
        make_optimizer(nn.ReLU(), OptimizerConfig())


def test_a_step_is_that_of_decoupled_weight_decay() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, eps=1e-8)
    make_optimizer(layer, config).step()
    for name, parameter in layer.named_parameters():
        decay = 0.5 if name == "weight" else 0.0
        expected = before[name] * (1 - 0.1 * decay) - 0.1 * parameter.grad.sign()  # the first step of Adam is a sign
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 1.0), (0.0, 5.0), (7.0, 5.0)])
def test_gradients_are_clipped_by_their_global_norm(limit: float, expected: float) -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, limit).item() == 5.0
    after = math.hypot(*parameters[0].grad.tolist(), *parameters[1].grad.tolist())
    assert after == pytest.approx(expected, rel=1e-5)


def test_optimizer_state_goes_through_its_tensors_exactly() -> None:
    models = [tiny_model(), tiny_model()]
    optimizers = [make_optimizer(model, OptimizerConfig()) for model in models]

    def step(index: int, number: int) -> None:
        torch.manual_seed(number)
        batch, loss = CopyData().batch(number), TrainingLoss(models[index], LossConfig())
        forward_backward(loss, batch, accumulation=1, device=CPU, precision="float32")
        optimizers[index].step()
        optimizers[index].zero_grad()

    step(0, 0)
    step(0, 1)
    models[1].load_state_dict(models[0].state_dict())
    load_optimizer_tensors(models[1], optimizers[1], optimizer_tensors(models[0], optimizers[0]))
    step(0, 2)
    step(1, 2)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_optimizer_state_of_another_model_is_refused() -> None:
    model = Tied()
    optimizer = make_optimizer(model, OptimizerConfig())
    with pytest.raises(ValueError, match="'other', which is not trained here"):
        load_optimizer_tensors(model, optimizer, {"other/exp_avg": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"'head.bias' has shape \(2,\), the parameter \(5,\)"):
        load_optimizer_tensors(model, optimizer, {"head.bias/exp_avg": torch.zeros(2)})
    assert not optimizer.state
