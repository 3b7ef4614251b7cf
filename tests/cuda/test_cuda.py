"""On a CUDA device every mechanism computes what it computes on the CPU, in float32 and in bfloat16."""

import sys
from pathlib import Path

import pytest
import torch

from tolerance import bound, largest_difference

sys.path.insert(0, str(Path(__file__).parent.parent / "battery"))

from layers import build, inputs, same_weights

from heedful.nn import Rotary
from heedful.ops import AttentionMask
from heedful.support import backends_of, mechanisms

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; `make gpu` runs it"),
]

CELLS = [(mechanism, backend) for mechanism in mechanisms() for backend in backends_of(mechanism)]


def masks(length):
    real = torch.arange(length)[None] >= torch.tensor([[0], [length // 3]])
    return {"plain": None, "padded": AttentionMask(key_padding=real)}


def on_cuda(mask):
    return None if mask is None else AttentionMask(key_padding=mask.key_padding.cuda())


@pytest.mark.parametrize(("mechanism", "backend"), CELLS)
@pytest.mark.parametrize("length", [1, 63, 111])
def test_float32_on_cuda_equals_float64_on_the_cpu(mechanism, backend, length):
    exact = build(mechanism, "reference", rotary=Rotary(), num_kv_heads=2)
    layer = same_weights(exact, mechanism, backend, rotary=Rotary(), num_kv_heads=2).float().cuda()
    x = inputs(length)
    for mask in masks(length).values():
        expected = exact(x, mask)[0]
        found = layer(x.float().cuda(), on_cuda(mask))[0].cpu().double()
        rough = same_weights(exact, mechanism, "reference", rotary=Rotary(), num_kv_heads=2)

        def function(value, mask=mask, rough=rough):
            return rough.to(value.dtype)(value, mask)[0]

        scale = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
        assert largest_difference(found, expected) <= bound(function, x) * scale


@pytest.mark.parametrize(("mechanism", "backend"), CELLS)
def test_bfloat16_gradients_on_cuda_are_finite_and_near(mechanism, backend):
    exact = build(mechanism, "reference")
    layer = same_weights(exact, mechanism, backend).bfloat16().cuda()
    on_cpu = same_weights(exact, mechanism, "reference").bfloat16()
    x = inputs(63)
    expected, cpu, cuda = (
        _gradient(model, x.to(dtype=p.dtype, device=p.device)).cpu().double()
        for model in (exact, on_cpu, layer)
        for p in [next(model.parameters())]
    )
    assert bool(cuda.isfinite().all())
    error, allowed = (cuda - expected).square().mean().sqrt(), 2 * (cpu - expected).square().mean().sqrt()
    assert error <= allowed


def _gradient(model, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(model(x)[0].float().square().sum(), x)[0]
