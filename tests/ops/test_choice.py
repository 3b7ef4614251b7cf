"""What each backend of multi-token attention refuses, and which one `auto` prefers."""

import pytest
import torch

from heedful.ops.backends import Situation
from heedful.ops.multi_token import CallSizes, PartSizes, choice, multi_token_backends

ON_CUDA = Situation("cuda", torch.bfloat16, 2048, 2048)


@pytest.fixture(autouse=True)
def _as_installed(monkeypatch):
    monkeypatch.setattr(choice, "_TRITON_INSTALLED", True)
    monkeypatch.setattr(choice, "_INTERPRETED", False)


def refusal(parts=PartSizes(kq_pre=(6, 11)), sizes=CallSizes(16, 16, 64), situation=ON_CUDA):  # noqa: B008
    return multi_token_backends(parts, sizes, situation)["triton"]


def test_triton_says_what_it_takes_and_what_came(monkeypatch):
    assert refusal() is None
    assert refusal(PartSizes((8, 15), (1, 1), 32, 1), CallSizes(32, 8, 256)) is None
    assert refusal(situation=Situation()) == "it needs a CUDA device; this call is on cpu"
    assert refusal(situation=Situation("cuda", torch.float64)) == "it computes in float32; this call is in float64"
    assert refusal(sizes=CallSizes(16, 16, 16)) == "it takes head_dim 32 to 256; this call has 16"
    assert refusal(PartSizes(kq_post=(9, 3))) == "it takes kernels up to 8 x 15; this call has 9 x 3"
    assert refusal(PartSizes(kq_pre=(3, 16))) == "it takes kernels up to 8 x 15; this call has 3 x 16"
    assert refusal(PartSizes(head_pre=64), CallSizes(64, 64, 64)) == "it mixes up to 32 heads; this call mixes 64"
    assert refusal(situation=Situation(None)) is None, "a layer is configured before it is moved to a device"
    monkeypatch.setattr(choice, "_INTERPRETED", True)
    assert refusal(situation=Situation()) is None
    monkeypatch.setattr(choice, "_TRITON_INSTALLED", False)
    assert refusal() == "it needs the package triton, which is not installed"


@pytest.mark.parametrize(
    ("parts", "sizes", "situation", "expected"),
    [
        (PartSizes(), CallSizes(8, 8, 64), ON_CUDA, "sdpa"),
        (PartSizes(kq_pre=(6, 11)), CallSizes(8, 8, 64), ON_CUDA, "triton"),
        (PartSizes(kq_pre=(6, 11)), CallSizes(8, 8, 64), Situation("cuda", torch.float64), "blockwise"),
        (PartSizes(kq_pre=(6, 11)), CallSizes(8, 8, 64), Situation(), "blockwise"),
        (PartSizes(kq_pre=(6, 11)), CallSizes(4, 4, 16), Situation(queries=16, keys=16), "reference"),
        (PartSizes(head_post=2), CallSizes(8, 8, 96), ON_CUDA, "sdpa"),
        (PartSizes(head_post=2), CallSizes(8, 8, 256), ON_CUDA, "triton"),
        (PartSizes(head_post=2), CallSizes(8, 8, 96, 0.1), ON_CUDA, "triton"),
        (PartSizes(head_post=2), CallSizes(8, 8, 96), Situation(), "blockwise"),
        (PartSizes(head_post=2), CallSizes(8, 4, 96), Situation(), "sdpa"),
        (PartSizes(head_post=4), CallSizes(8, 4, 96), Situation(), "blockwise"),
    ],
)
def test_the_first_possible_backend_is_the_expected_one(parts, sizes, situation, expected):
    candidates = multi_token_backends(parts, sizes, situation)
    assert next(name for name, refused in candidates.items() if refused is None) == expected
    assert candidates.reason
    assert {"blockwise", "reference"} <= set(candidates)
