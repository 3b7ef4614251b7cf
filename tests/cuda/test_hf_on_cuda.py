"""`generate` on a CUDA device: a static cache makes transformers compile the step with CUDA graphs."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "hf"))

from tiny_hf import MECHANISMS, greedy, model_of, tokens_of

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; `make gpu` runs it"),
    pytest.mark.filterwarnings("default"),  # compilers warn about the machine
]


@pytest.mark.parametrize("name", MECHANISMS)
def test_growing_and_static_caches_equal_whole_passes(name):
    """In float64, so that another order of summation cannot change which token is the largest."""
    model, tokens = model_of(name).double().cuda(), tokens_of().cuda()
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    expected = greedy(model, tokens, attention_mask=mask, use_cache=False)
    assert torch.equal(greedy(model, tokens, attention_mask=mask), expected)
    torch.compiler.reset()
    assert torch.equal(greedy(model, tokens, attention_mask=mask, cache_implementation="static"), expected)
    again = greedy(model, tokens, attention_mask=mask, cache_implementation="static")  # the graphs that were made
    assert torch.equal(again, expected)
