"""Compiling every block by itself, as training does, compiles each kind of layer once and not each layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from heedful.models import DecoderLM, decoder_config
from heedful.models.blocks import Block
from heedful.ops import AttentionMask
from heedful.support import mechanisms

# torch.compile itself looks at the gradients of its inputs.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

LAYERS = 10  # more than torch compiles versions of one function before it gives up, which is 8


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def kinds(model: DecoderLM) -> int:
    """Count the blocks that differ in more than the values of their parameters."""
    return len({tuple((name, value.shape) for name, value in block.named_parameters()) for block in model.blocks})


def versions(block: Block) -> int:
    """Return how often a block of its kind may be compiled.

    A factor that depends on the depth is a number in the code the first time, and an argument from the second time on.
    """
    config = block.attention.config
    scaled = config.head_output is not None and getattr(config.head_output, "depth_scale", False)
    return 2 if scaled or config.rule.kind == "differential" else 1


@pytest.mark.parametrize("preset", mechanisms())
def test_a_deep_model_compiles_each_kind_of_layer_and_not_each_layer(preset: str) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_heads": 4, "num_layers": LAYERS, "max_positions": 6}
    model = DecoderLM(decoder_config(preset, vocab_size=11, norm="rms", **sizes))
    tokens = torch.randint(11, (2, 6))
    mask = AttentionMask(document_ids=(torch.arange(6) >= 2).long().expand(2, 6))
    expected = model(tokens, mask)[0]
    counter = CompileCounterWithBackend("aot_eager")  # the backward pass is traced too
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        model(tokens, mask)[0].sum().backward()
        found = model(tokens, mask)[0]
    torch.testing.assert_close(found, expected)
    assert counter.frame_count <= kinds(model) * versions(model.block_list[0])
