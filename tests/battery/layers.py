"""Layers for the battery: small, float64, every parameter away from its special starting value."""

import torch

from heedful.nn import Attention, MultiTokenRule
from heedful.support import layer_config

HIDDEN, HEADS = 16, 4


def small_kernels(config):
    """The multi-token rules with 3 x 5 kernels, so that short texts have an inside and an outside."""
    from dataclasses import replace

    if isinstance(config.rule, MultiTokenRule):
        return replace(config, rule=replace(config.rule, query_kernel_size=3, key_kernel_size=5))
    return config


def config_of(mechanism, backend="reference", **fields):
    fields = {"hidden_size": HIDDEN, "num_heads": HEADS, "backend": backend, "bias": True, **fields}
    return small_kernels(layer_config(mechanism, **fields))


def build(mechanism, backend="reference", dtype=torch.float64, **fields):
    torch.manual_seed(1)
    layer = Attention(config_of(mechanism, backend, **fields))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer.to(dtype).eval()


def same_weights(layer, mechanism, backend="reference", **fields):
    """A layer of another configuration with the weights of `layer`."""
    other = build(mechanism, backend, **fields)
    other.load_state_dict(layer.state_dict())
    return other


def inputs(length, batch=2, dtype=torch.float64, hidden=HIDDEN):
    generator = torch.Generator().manual_seed(length)
    return torch.randn(batch, length, hidden, generator=generator, dtype=dtype)


def reach(config):
    """How many positions back a token can matter under the layer's window: derived from the equations.

    One map reaches window - 1 back; a convolution's tap on row r moves that window back by up to c_q - 1 rows, and a
    tap on a later key does not extend it. Twicing applies the map twice; each further boosting round adds its own
    reach.
    """
    one = config.window - 1
    if isinstance(config.rule, MultiTokenRule):
        one += config.rule.halo(config.layer_index) + config.rule.key_kernel_size
    if config.rule.kind == "twicing":
        one *= 2
    return one * config.rounds
