"""Tiny float64 decoders, away from their special starting values so that mistakes show in the logits."""

import torch

from heedful.models import DecoderLM, decoder_config
from heedful.nn import MultiTokenRule

VOCABULARY = 19

SMALL_KERNELS = MultiTokenRule(query_kernel_size=3, key_kernel_size=4, convolution_every=2, convolution_offset=1)


def config_of(names="standard", **fields):
    """Two layers; a multi-token mechanism carries small kernels in its second."""
    if isinstance(names, str) and "multi-token" in names.split("+"):
        fields = {"rule": SMALL_KERNELS, **fields}
    sizes = {"vocab_size": VOCABULARY, "num_layers": 2, "max_positions": 48, "hidden_size": 16, "num_heads": 4}
    return decoder_config(names, **{**sizes, **fields})


def model_of(names="standard", seed=1, **fields):
    torch.manual_seed(seed)
    return jolted(DecoderLM(config_of(names, **fields)), seed)


def jolted(model, seed=1):
    """Every parameter moved at random; embeddings large enough for clear decisions."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().eval()


def tokens_of(length=12, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, length), generator=generator)


@torch.no_grad()
def logits_of(model, tokens, mask=None):
    return model(tokens, mask)[0]
