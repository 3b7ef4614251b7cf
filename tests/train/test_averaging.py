"""The moving average of the weights against its formula."""

from __future__ import annotations

import pytest
import torch
from tiny_run import tiny_model
from torch import nn

from heedful.train.averaging import WeightAverage
from tolerance import assert_close


def moving(model: nn.Module, steps: int, average: WeightAverage) -> list[dict[str, torch.Tensor]]:
    """Set random weights and update, `steps` times; return the weights from the first ones on."""
    seen = [{name: parameter.detach().clone() for name, parameter in model.named_parameters()}]
    for _ in range(steps):
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        average.update()
        seen.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    return seen


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_average_is_that_of_its_formula(decay):
    model = tiny_model().double()
    average = WeightAverage(model, decay)
    seen = moving(model, 12, average)
    found = average.tensors()
    assert found.keys() == {*seen[0], "updates"}
    assert found["updates"].item() == 12
    for name, expected in seen[0].items():
        for t, weights in enumerate(seen[1:]):
            share = min(decay, (1 + t) / (10 + t))
            expected = share * expected + (1 - share) * weights[name]
        assert_close(found[name], expected, name)


def test_it_starts_as_the_initial_weights():
    model = tiny_model()
    found = WeightAverage(model, 0.9).tensors()
    assert all(torch.equal(found[name], parameter) for name, parameter in model.named_parameters())


def test_the_model_holds_the_average_inside_and_its_own_weights_afterwards():
    model = tiny_model()
    average = WeightAverage(model, 0.5)
    weights = moving(model, 3, average)[-1]
    averages = {name: tensor.clone() for name, tensor in average.tensors().items()}
    places = [parameter.data_ptr() for parameter in model.parameters()]
    with average.applied():
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, averages[name])
            assert not torch.equal(parameter, weights[name])
        for refused in (average.update, average.tensors, average.applied().__enter__):
            with pytest.raises(RuntimeError, match="in the model now"):
                refused()
    with pytest.raises(KeyError, match="inside"), average.applied():
        raise KeyError("inside")
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert all(torch.equal(tensor, averages[name]) for name, tensor in average.tensors().items())
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_goes_on_bit_for_bit_in_the_tensors_of_another():
    models = [tiny_model(seed=seed) for seed in (0, 1)]
    averages = [WeightAverage(model, 0.9) for model in models]
    moving(models[0], 4, averages[0])
    models[1].load_state_dict(models[0].state_dict())
    for name, tensor in averages[1].tensors().items():
        tensor.copy_(averages[0].tensors()[name])
    for model, average in zip(models, averages, strict=True):
        torch.manual_seed(7)
        moving(model, 2, average)
    assert all(torch.equal(tensor, averages[1].tensors()[name]) for name, tensor in averages[0].tensors().items())


def test_frozen_parameters_have_no_average():
    model = tiny_model()
    model.token_embedding.requires_grad_(requires_grad=False)
    assert "token_embedding.weight" not in WeightAverage(model, 0.9).tensors()
