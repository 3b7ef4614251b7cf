"""The step of a static cache is one graph for `torch.compile`, the same at every length."""

import pytest
import torch
from tiny_hf import MECHANISMS, greedy, model_of, tokens_of
from transformers import CompileConfig

from heedful.hf import make_cache
from tolerance import assert_close


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("name", MECHANISMS)
@torch.no_grad()
def test_a_compiled_step_equals_whole_passes_and_is_compiled_once(name):
    model, tokens = model_of(name).double(), tokens_of()
    whole, cache = model(tokens).logits, make_cache(model.config, 16)
    model(tokens[:, :4], past_key_values=cache)
    step = torch.compile(model.forward, fullgraph=True, backend="eager")  # tracing is what can fail here
    before = graphs()
    for t in range(4, tokens.shape[1]):
        logits = step(tokens[:, t : t + 1], past_key_values=cache).logits
        assert_close(logits[:, 0], whole[:, t])
    assert graphs() == before + 1


@torch.no_grad()
def test_generate_compiles_its_steps_itself():
    """As `generate` does on CUDA by default; padded rows included, whose mask keeps one shape."""
    model, tokens = model_of("boosted+multi-token"), tokens_of()
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    expected = greedy(model, tokens, attention_mask=mask)
    compiled = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    compiled._compile_all_devices = True
    before = graphs()
    found = greedy(model, tokens, attention_mask=mask, cache_implementation="static", compile_config=compiled)
    assert torch.equal(found, expected)
    assert graphs() == before + 1


@torch.no_grad()
def test_inductor_compiles_the_step():
    everywhere = {"kind": "multi-token", "convolution_every": 1, "convolution_offset": 0}
    model = model_of({"preset": "boosted+multi-token", "rule": everywhere}, num_hidden_layers=1)
    tokens = tokens_of()
    whole, cache = model(tokens).logits, make_cache(model.config, 16)
    model(tokens[:, :4], past_key_values=cache)
    step = torch.compile(model.forward, fullgraph=True)
    for t in range(4, 7):
        logits = step(tokens[:, t : t + 1], past_key_values=cache).logits
        torch.testing.assert_close(logits[:, 0], whole[:, t], rtol=1e-4, atol=1e-4)
