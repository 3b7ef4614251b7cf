"""Tiny models in transformers, with weights large enough for clear decisions."""

import torch

from heedful.hf import HeedfulConfig, HeedfulForCausalLM
from heedful.nn.presets import PRESETS
from heedful.support import SUMS

VOCABULARY = 50
MECHANISMS = (*PRESETS, *SUMS)


def config_of(attention="standard", **fields):
    """Three layers, so that the published multi-token presets convolve in the last."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    return HeedfulConfig(attention=attention, **{**sizes, **fields})


def model_of(attention="standard", seed=0, **fields):
    """A model in evaluation; kernels, mixing, gates and norms are moved from their special starts."""
    torch.manual_seed(seed)
    model = HeedfulForCausalLM(config_of(attention, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tokens_of(length=11, batch=2, seed=0):
    """Token ids from 1 on; 0 is free for padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


def greedy(model, tokens, new=10, **options):
    """Greedy continuation; padding must be given by `attention_mask`, nothing is inferred."""
    mask = options.pop("attention_mask", torch.ones_like(tokens))
    return model.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0, **options)
