"""What each parameter gets of the optimiser."""

from __future__ import annotations

import pytest
import torch
from tiny_run import tiny_model
from torch import nn

from heedful.train.optimisation import Optimization
from heedful.train.optimizer_config import OptimizerConfig, ParameterRule
from heedful.train.treatment import Treatment, treatments


def by_name(model: nn.Module, **fields: object) -> dict[str, Treatment]:
    return {treatment.name: treatment for treatment in treatments(model, OptimizerConfig(**fields))}


def test_matrices_decay_and_vectors_and_the_models_exceptions_do_not() -> None:
    model = tiny_model("boosted+multi-token", num_layers=3)
    excepted = model.parameters_without_decay()
    assert excepted, "the multi-token model names its kernels"
    found = by_name(model, weight_decay=0.5)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, treatment in found.items():
        assert treatment.weight_decay == (0.5 if treatment.parameter.dim() >= 2 and name not in excepted else 0.0)
        assert treatment.target is None


def test_all_decays_everything_to_zero_unless_kernels_have_their_identity() -> None:
    model = tiny_model("multi-token", num_layers=3)
    assert {treatment.weight_decay for treatment in treatments(model, OptimizerConfig(decay="all"))} == {0.1}
    assert {treatment.target for treatment in treatments(model, OptimizerConfig(decay="all"))} == {None}
    pulled = by_name(model, decay="all", kernel_decay="identity")
    assert {treatment.weight_decay for treatment in pulled.values()} == {0.1}
    assert {name for name, treatment in pulled.items() if treatment.target is not None} == set(model.identity_values())


def test_muon_takes_the_matrices_inside_the_blocks_and_nothing_else() -> None:
    model = tiny_model("boosted+nonlinear-query+multi-token", num_layers=3, tie_embeddings=False)
    muon = {name for name, treatment in by_name(model, kind="muon").items() if treatment.method == "muon"}
    vectors = {"blocks.0.attention.head_output.gate.weight"}  # (1, head_dim): one gate for each head
    expected = {
        f"{name}.weight"
        for name, module in model.blocks.named_modules(prefix="blocks")
        if isinstance(module, nn.Linear) and min(module.weight.shape) > 1
    }
    assert muon == expected
    assert {"blocks.0.attention.o_proj.weight", "blocks.2.attention.rounds.1.query.up_proj.weight"} <= muon
    assert "blocks.0.attention.gates.0.proj.weight" in muon
    assert vectors <= dict(model.named_parameters()).keys() - muon
    assert {treatment.method for treatment in treatments(model, OptimizerConfig())} == {"adamw"}


def test_muon_is_refused_where_nobody_knows_the_blocks() -> None:
    with pytest.raises(ValueError, match="Linear has no module list `blocks`"):
        treatments(nn.Linear(2, 2), OptimizerConfig(kind="muon"))


def test_the_last_rule_that_matches_counts_alone() -> None:
    rules = (
        ParameterRule(parameters="*", learning_rate_factor=0.5, weight_decay=0.7),
        ParameterRule(parameters="*.head_p??", learning_rate_factor=3.0),
        ParameterRule(parameters="*.kq_p*", weight_decay=0.2),
    )
    found = by_name(tiny_model("multi-token", num_layers=3), rules=rules, weight_decay=0.1)
    values = {name.rpartition(".")[2]: (t.learning_rate_factor, t.weight_decay) for name, t in found.items()}
    assert values["head_pre"] == (3.0, 0.0)
    assert values["kq_pre"] == (1.0, 0.2)
    assert values["head_post"] == values["weight"] == (0.5, 0.7)


def test_a_rule_moves_kernels_towards_their_identity_where_that_is_where_they_decay_to() -> None:
    rules = (ParameterRule(parameters="*.kq_*", weight_decay=0.2),)
    model = tiny_model("multi-token", num_layers=3)
    name = next(name for name in model.identity_values() if name.endswith("kq_pre"))
    to_zero, to_identity = (by_name(model, rules=rules, kernel_decay=kind)[name] for kind in ("none", "identity"))
    assert (to_zero.weight_decay, to_zero.target) == (0.2, None)
    assert to_identity.weight_decay == 0.2
    assert to_identity.target is not None
    assert torch.equal(to_identity.target, model.identity_values()[name])


def test_a_rule_that_matches_nothing_is_refused_with_names_that_are_near() -> None:
    model = tiny_model("multi-token", num_layers=3)
    rules = (ParameterRule(parameters="*.head_prae"),)
    with pytest.raises(ValueError, match=r"'\*\.head_prae' matches no trainable parameter.*rule\.head_pre"):
        treatments(model, OptimizerConfig(rules=rules))
    model.token_embedding.requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match="token_embedding"):
        treatments(model, OptimizerConfig(rules=(ParameterRule(parameters="token_embedding.*"),)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def parameters_without_decay(self) -> set[str]:
        return {"head.weight"}


def test_a_tied_parameter_occurs_once_and_is_known_under_either_name() -> None:
    model = Tied()
    found = by_name(model, rules=(ParameterRule(parameters="head.weight", learning_rate_factor=2.0),))
    assert list(found) == ["embedding.weight", "head.bias"]
    assert found["embedding.weight"].weight_decay == 0.0
    assert found["embedding.weight"].learning_rate_factor == 2.0
    assert by_name(model, decay="all")["embedding.weight"].weight_decay == 0.1
    assert len(Optimization(model, OptimizerConfig()).parameters) == 2


def test_an_exception_that_names_no_parameter_is_refused() -> None:
    model = Tied()
    model.parameters_without_decay = lambda: {"head.kernel"}  # type: ignore[method-assign]
    with pytest.raises(
        ValueError, match=r"Tied.parameters_without_decay\(\) names 'head.kernel', which is no parameter"
    ):
        treatments(model, OptimizerConfig())


def test_a_kernel_whose_identity_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"identity of 'embedding.weight'.*identity_values"):
        treatments(Tied(), OptimizerConfig(kernel_decay="identity"))


def test_a_model_without_kernels_may_be_told_what_to_do_with_them() -> None:
    config = OptimizerConfig(kernel_decay="identity")
    assert all(treatment.target is None for treatment in treatments(tiny_model("standard"), config))


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="ReLU has no trainable parameter"):
        Optimization(nn.ReLU(), OptimizerConfig())
