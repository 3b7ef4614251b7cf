"""The optimiser against its formulas, written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny_run import CopyData, tiny_model
from torch import Tensor, nn

from heedful.models import DecoderLM
from heedful.train.config import LossConfig
from heedful.train.loss import TrainingLoss
from heedful.train.optimisation import Optimization
from heedful.train.optimizer_config import OptimizerConfig, ParameterRule
from tolerance import assert_close, largest_difference, relative_rounding

RATES = (0.03, 0.1, 0.02)


class Layer(nn.Module):
    """A module list of one matrix, which Muon takes, and a bias and an embedding, which it leaves to AdamW."""

    def __init__(self, rows: int = 6, columns: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, columns)
        self.blocks = nn.ModuleList([nn.Linear(columns, rows)])


def stepped(
    model: nn.Module, config: OptimizerConfig
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], Optimization]:
    """Take steps along random gradients; return the weights before, the gradients of each step, and the optimiser."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimization, gradients = Optimization(model, config), []
    for rate in RATES:
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        optimization.step(rate)
    assert all(parameter.grad is None for parameter in model.parameters()), "used gradients are dropped"
    return before, gradients, optimization


def adamw(weight: Tensor, gradients: list[Tensor], config: OptimizerConfig, decay: float) -> Tensor:
    mean = square = torch.zeros_like(weight)
    beta, gamma = config.betas
    for t, (rate, gradient) in enumerate(zip(RATES, gradients, strict=True), start=1):
        mean, square = beta * mean + (1 - beta) * gradient, gamma * square + (1 - gamma) * gradient**2
        direction = (mean / (1 - beta**t)) / ((square / (1 - gamma**t)).sqrt() + config.eps)
        weight = weight - rate * decay * weight - rate * direction
    return weight


def test_adamw_takes_the_steps_of_its_formula():
    model, config = Layer().double(), OptimizerConfig(weight_decay=0.5, betas=(0.8, 0.9), eps=1e-3)
    before, gradients, _ = stepped(model, config)
    for name, parameter in model.named_parameters():
        decay = 0.0 if name.endswith("bias") else 0.5
        assert_close(parameter, adamw(before[name], [step[name] for step in gradients], config, decay), name)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Five quintic Newton-Schulz iterations, X <- a X + b (X X^T) X + c (X X^T)^2 X, from X = M / |M|."""
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


@pytest.mark.parametrize(("rows", "columns"), [(6, 4), (4, 6), (8, 8)])
def test_muon_takes_the_steps_of_its_formula(rows, columns):
    model = Layer(rows, columns).double()
    config = OptimizerConfig(kind="muon", weight_decay=0.5, momentum=0.9, betas=(0.8, 0.9), eps=1e-3)
    before, gradients, _ = stepped(model, config)
    weight, buffer, rounding = before["blocks.0.weight"], torch.zeros(rows, columns, dtype=torch.float64), 0.0
    for rate, step in zip(RATES, gradients, strict=True):
        gradient = step["blocks.0.weight"]
        buffer = 0.9 * buffer + 0.1 * gradient
        direction, size = 0.1 * gradient + 0.9 * buffer, 0.2 * math.sqrt(max(rows, columns)) * rate
        exact = orthogonalised(direction)
        weight = weight - rate * 0.5 * weight - size * exact
        # torch iterates in bfloat16; an iteration in bfloat16 of our own says what that may cost, twice for two.
        rounding += 2 * size * largest_difference(orthogonalised(direction.bfloat16()).double(), exact)
    moved = float((weight - before["blocks.0.weight"]).abs().max())
    assert 0 < rounding < moved / 4, "the tolerance must be able to fail"
    assert largest_difference(model.blocks[0].weight, weight) <= rounding
    for name in ("embedding.weight", "blocks.0.bias"):
        decay = 0.5 if name == "embedding.weight" else 0.0
        after = adamw(before[name], [step[name] for step in gradients], config, decay)
        assert_close(model.get_parameter(name), after, name)


def test_muons_step_has_the_size_of_adamws():
    model = Layer(48, 32).double()
    before, _, _ = stepped(model, OptimizerConfig(kind="muon", weight_decay=0.0))
    moved = (model.blocks[0].weight.detach() - before["blocks.0.weight"]).square().mean().sqrt()
    # Singular values of the orthogonalised matrix lie in about (0.7, 1.2): its root mean square is that over
    # sqrt(max(m, n)), so that each step has 0.2 times it; three steps add up to between nothing and their sum.
    assert 0.1 * max(RATES) < float(moved) < 0.25 * sum(RATES)


def test_kernels_are_pulled_to_their_identity_and_by_default_left_alone():
    for kernel_decay in ("none", "identity"):
        model = tiny_model("multi-token", num_layers=3).double()
        kernels = model.identity_values()
        assert {name.rpartition(".")[2] for name in kernels} == {"kq_pre", "kq_post", "head_pre", "head_post"}
        for name in kernels:
            assert torch.equal(model.get_parameter(name), kernels[name]), "the layer starts as the identity"
            nn.init.normal_(model.get_parameter(name))
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimization = Optimization(model, OptimizerConfig(weight_decay=0.5, kernel_decay=kernel_decay))
        for rate in RATES:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)  # AdamW does not move along them
            optimization.step(rate)
        left = math.prod(1 - 0.5 * rate for rate in RATES)
        for name, identity in kernels.items():
            distance = (before[name] - identity) * (left if kernel_decay == "identity" else 1.0)
            assert_close(model.get_parameter(name), identity + distance, name)
        matrix = "blocks.0.feed_forward.up_proj.weight"
        assert_close(model.get_parameter(matrix), before[matrix] * left, matrix)


def test_the_pull_comes_before_the_step_as_weight_decay_does():
    model, config = tiny_model("talking-heads").double(), OptimizerConfig(weight_decay=0.5, kernel_decay="identity")
    name = "blocks.1.attention.rounds.0.rule.head_pre"
    identity = model.identity_values()[name]
    before, gradients, _ = stepped(model, config)
    shifted = adamw(before[name] - identity, [step[name] for step in gradients], config, 0.5)
    assert_close(model.get_parameter(name), identity + shifted)


def test_rules_change_rate_and_decay():
    rules = (
        ParameterRule(parameters="blocks.*", learning_rate_factor=0.1),
        ParameterRule(parameters="embedding.weight", learning_rate_factor=0.0),
        ParameterRule(parameters="*.bias", learning_rate_factor=2.0, weight_decay=0.3),
    )
    ruled, plain = Layer().double(), Layer().double()
    plain.load_state_dict(ruled.state_dict())
    optimizations = [Optimization(ruled, OptimizerConfig(rules=rules)), Optimization(plain, OptimizerConfig())]
    before = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    for model, optimization in zip((ruled, plain), optimizations, strict=True):
        torch.manual_seed(5)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimization.step(0.1)
    moves = [{n: p.detach() - before[n] for n, p in model.named_parameters()} for model in (ruled, plain)]
    assert torch.count_nonzero(moves[0]["embedding.weight"]) == 0
    assert_close(moves[0]["blocks.0.weight"], 0.1 * moves[1]["blocks.0.weight"])
    bias = moves[1]["blocks.0.bias"] * 2 - 0.1 * 2 * 0.3 * before["blocks.0.bias"]
    assert_close(moves[0]["blocks.0.bias"], bias)


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 1.0), (0.0, 5.0), (7.0, 5.0)])
def test_gradients_are_clipped_by_their_global_norm(limit: float, expected: float) -> None:
    layer = nn.Linear(2, 1)
    layer.weight.grad, layer.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    norm = Optimization(layer, OptimizerConfig()).clip(limit)
    assert norm.item() == 5.0
    assert norm.dim() == 0
    after = math.hypot(*layer.weight.grad.flatten().tolist(), *layer.bias.grad.tolist())
    # clipping divides by the norm + 1e-6, and float32 rounds
    assert after == pytest.approx(expected, rel=1e-6 / 5 + relative_rounding(torch.float32))


def test_what_has_no_gradient_is_neither_counted_nor_moved() -> None:
    model = tiny_model("multi-token", num_layers=3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimization = Optimization(model, OptimizerConfig(kind="muon", kernel_decay="identity"))
    assert optimization.clip(1.0).item() == 0.0
    model.final_norm.weight.grad = torch.full_like(model.final_norm.weight, 0.5)
    assert optimization.clip(0.0).item() == 2.0
    optimization.step(0.1)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"final_norm.weight"}


CONFIGS = {
    "adamw": OptimizerConfig(),
    "muon": OptimizerConfig(kind="muon"),
    "ruled": OptimizerConfig(
        kind="muon", kernel_decay="identity", rules=(ParameterRule(parameters="*norm*", learning_rate_factor=0.5),)
    ),
}


def trainer_of(model: DecoderLM, optimization: Optimization) -> Callable[[int], None]:
    loss = TrainingLoss(model, LossConfig())

    def step(number: int) -> None:
        torch.manual_seed(number)
        objective, _ = loss(*CopyData().batch(number))
        objective.backward()
        optimization.clip(1.0)
        optimization.step(1e-2)

    return step


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_state_goes_on_bit_for_bit_in_the_tensors_of_another(config):
    models = [tiny_model("boosted+multi-token", num_layers=3, seed=seed) for seed in (0, 1)]
    optimizations = [Optimization(model, config) for model in models]
    first, second = (trainer_of(m, o) for m, o in zip(models, optimizations, strict=True))
    assert optimizations[0].tensors() == {}
    first(0)
    first(1)
    models[1].load_state_dict(models[0].state_dict())
    optimizations[1].prepare_state()
    saved, live = (optimization.tensors() for optimization in optimizations)
    assert saved.keys() == live.keys()
    assert {name.rpartition("/")[0] for name in live} == dict(models[0].named_parameters()).keys()
    for name, value in saved.items():
        assert live[name].shape == value.shape
        assert live[name].dtype == value.dtype
        live[name].copy_(value)
    first(2)
    second(2)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert all(torch.equal(a, optimizations[1].tensors()[name]) for name, a in optimizations[0].tensors().items())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_preparing_the_state_changes_nothing(config):
    models = [tiny_model("boosted+multi-token", num_layers=3, seed=seed) for seed in (0, 0)]
    optimizations = [Optimization(model, config) for model in models]
    gradient = torch.ones(12, 16)
    models[1].token_embedding.weight.grad = gradient
    optimizations[1].prepare_state()
    assert models[1].token_embedding.weight.grad is gradient
    assert models[1].final_norm.weight.grad is None
    models[1].token_embedding.weight.grad = None
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert all(torch.count_nonzero(value) == 0 for value in optimizations[1].tensors().values())
    first, second = (trainer_of(m, o) for m, o in zip(models, optimizations, strict=True))
    for number in range(2):
        first(number)
        second(number)
        before = {name: value.clone() for name, value in optimizations[1].tensors().items()}
        optimizations[1].prepare_state()
        assert all(torch.equal(value, before[name]) for name, value in optimizations[1].tensors().items())
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_the_tensors_are_the_live_ones():
    model = Layer()
    _, _, optimization = stepped(model, OptimizerConfig(kind="muon"))
    steps = optimization.tensors()["embedding.weight/step"]
    assert steps.item() == len(RATES)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimization.step(0.1)
    assert steps.item() == len(RATES) + 1
    assert set(optimization.tensors()) == {
        "blocks.0.weight/momentum_buffer",
        *(
            f"{name}/{key}"
            for name in ("embedding.weight", "blocks.0.bias")
            for key in ("step", "exp_avg", "exp_avg_sq")
        ),
    }
