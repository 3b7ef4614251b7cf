"""Small float64 layers whose parameters are all away from their special starting values."""

import torch

from heedful.nn import Attention, attention_config

HIDDEN, HEADS = 16, 4


def layer_of(names, seed=1, **fields):
    torch.manual_seed(seed)
    layer = Attention(attention_config(names, **{"hidden_size": HIDDEN, "num_heads": HEADS, **fields}))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer.double().eval()


def text(length=9, batch=2, hidden=HIDDEN):
    return torch.randn(batch, length, hidden, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def run(layer, x, mask=None):
    return layer(x, mask)[0].detach()


@torch.no_grad()
def decode(layer, x, pieces, state=None):
    """Outputs of pieces of x one after the other, and the state at the end."""
    state, outputs, start = layer.empty_state() if state is None else state, [], 0
    for piece in pieces:
        y, state = layer(x[:, start : start + piece], None, state)
        outputs.append(y)
        start += piece
    return torch.cat(outputs, dim=1), state
