"""Initial weights of a decoder or of a part of one.

| parameters                                   | initial values                                        |
|----------------------------------------------|-------------------------------------------------------|
| linear and embedding weights                 | N(0, initializer_range^2), or cut normal (see config)  |
| a block's two output projections             | the same / sqrt(2 num_layers) if scale_residual_init   |
| biases                                       | 0                                                     |
| norm gains                                   | 1                                                     |
| kernels, head mixing, lambdas, gate starts   | as their modules say: `set_initial_values`            |
"""

from __future__ import annotations

import math

import torch
from torch import nn

from heedful.models.blocks import Block
from heedful.models.config import DecoderConfig


@torch.no_grad()
def draw_initial_values(root: nn.Module, config: DecoderConfig) -> None:
    """Draw the weights of `root` and of all modules in it from torch's global generator."""
    blocks = [module for module in root.modules() if isinstance(module, Block)]
    outputs = {id(layer) for block in blocks for layer in (block.attention.o_proj, block.feed_forward.down_proj)}
    for module in root.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        if isinstance(module, nn.Linear | nn.Embedding):
            scaled = config.scale_residual_init and id(module) in outputs
            _draw(module, config, math.sqrt(2 * config.num_layers) if scaled else 1.0)
    for module in root.modules():
        set_initial_values = getattr(module, "set_initial_values", None)
        if set_initial_values is not None:
            set_initial_values()


def _draw(module: nn.Linear | nn.Embedding, config: DecoderConfig, divisor: float) -> None:
    if config.initializer_range is not None:
        nn.init.normal_(module.weight, std=config.initializer_range / divisor)
    else:
        std = config.hidden_size**-0.5 / divisor
        nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
