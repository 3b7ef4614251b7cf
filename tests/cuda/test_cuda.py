"""On a CUDA device every mechanism computes what it computes on the CPU, in float32 and in bfloat16."""

import sys
from pathlib import Path

import pytest
import torch

from tolerance import bound, largest_difference

sys.path.insert(0, str(Path(__file__).parent.parent / "battery"))

from layers import build, inputs, same_weights

from heedful.explain import explain
from heedful.nn import Rotary
from heedful.ops import AttentionMask
from heedful.support import PART_COMBINATIONS, backends_of, layer_config, mechanisms

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; `make gpu` runs it"),
]

NAMES = (*mechanisms(), *PART_COMBINATIONS)
WIDE = {"hidden_size": 128, "num_heads": 4}  # heads wide enough for every backend


def runs_triton(name):
    try:
        return explain(layer_config(name, **WIDE), backend="triton", device="cuda").backend == "triton"
    except ValueError:
        return False


CELLS = [(name, backend, {}) for name in NAMES for backend in backends_of(name)]
CELLS += [(name, "triton", WIDE) for name in NAMES if runs_triton(name)]


def masks(length):
    real = torch.arange(length)[None] >= torch.tensor([[0], [length // 3]])
    return {"plain": None, "padded": AttentionMask(key_padding=real)}


def on_cuda(mask):
    return None if mask is None else AttentionMask(key_padding=mask.key_padding.cuda())


@pytest.mark.parametrize(("mechanism", "backend", "sizes"), CELLS)
@pytest.mark.parametrize("length", [1, 63, 111])
def test_float32_on_cuda_equals_float64_on_the_cpu(mechanism, backend, sizes, length):
    fields = {"rotary": Rotary(), "num_kv_heads": 2, **sizes}
    exact = build(mechanism, "reference", **fields)
    layer = same_weights(exact, mechanism, backend, **fields).float().cuda()
    x = inputs(length, hidden=exact.config.hidden_size)
    for mask in masks(length).values():
        expected = exact(x, mask)[0]
        found = layer(x.float().cuda(), on_cuda(mask))[0].cpu().double()
        rough = same_weights(exact, mechanism, "reference", **fields)

        def function(value, mask=mask, rough=rough):
            return rough.to(value.dtype)(value, mask)[0]

        scale = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
        assert largest_difference(found, expected) <= bound(function, x) * scale


@pytest.mark.parametrize(("mechanism", "backend", "sizes"), CELLS)
def test_bfloat16_gradients_on_cuda_are_finite_and_near(mechanism, backend, sizes):
    exact = build(mechanism, "reference", **sizes)
    layer = same_weights(exact, mechanism, backend, **sizes).bfloat16().cuda()
    on_cpu = same_weights(exact, mechanism, "reference", **sizes).bfloat16()
    x = inputs(63, hidden=exact.config.hidden_size)
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
