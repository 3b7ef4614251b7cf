"""Random float64 layers and decoders for checks: every part matters, and a seed makes them the same everywhere.

Weights N(0, 1 / inputs), those of a feed-forward layer's output 1.5 times as large; token embeddings N(0, 1), positions
N(0, 1/4), gains 1 + N(0, 0.09), biases N(0, 0.09). A part that started as zero or as the identity is drawn too.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from heedful.models import DecoderLM, decoder_config
from heedful.nn import Attention, attention_config

Module = TypeVar("Module", bound=nn.Module)

VOCABULARY, LENGTH = 31, 12
SIZES = {
    "vocab_size": VOCABULARY,
    "num_layers": 4,
    "max_positions": 16,
    "hidden_size": 48,
    "num_heads": 4,
    "intermediate_size": 96,
}


def random_layer(names: str = "standard", *, seed: int, **fields: Any) -> Attention:
    """Return an attention layer with drawn weights; `fields` as in `attention_config`."""
    with torch.random.fork_rng(devices=[]):
        layer = Attention(attention_config(names, **fields))
    return draw(layer, seed)


def random_decoder(names: str = "standard", *, seed: int, **fields: Any) -> DecoderLM:
    """Return a decoder of the `SIZES` above with drawn weights; `fields` as in `decoder_config`."""
    with torch.random.fork_rng(devices=[]):
        model = DecoderLM(decoder_config(names, **{**SIZES, **fields}))
    return draw(model, seed)


def random_tokens(seed: int, rows: int = 2) -> Tensor:
    """Return (rows, 12) tokens of the vocabulary."""
    return torch.randint(VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def draw(module: Module, seed: int) -> Module:
    """Draw all parameters of `module` in float64, put it in evaluation mode and return it."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if "norm" in name and name.endswith("weight"):
            drawn = 1 + 0.3 * drawn
        elif parameter.dim() < 2:
            drawn = 0.3 * drawn
        elif name.startswith("position_embedding"):
            drawn = 0.5 * drawn
        elif not name.startswith("token_embedding"):
            drawn = drawn * (1.5 if "down_proj" in name else 1.0) / parameter[0].numel() ** 0.5
        parameter.copy_(drawn)
    return module
