"""Tiny random models of the families that can be imported, and exact float64 versions of them."""

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from heedful.nn.rotary import RotaryEmbedding

VOCABULARY = 29
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # large enough for decided attention
}
GPT2_SIZES = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM, SIZES),
    "mistral": (MistralConfig, MistralForCausalLM, SIZES),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, SIZES),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {**SIZES, "head_dim": 8}),
    "gpt2": (GPT2Config, GPT2LMHeadModel, GPT2_SIZES),
}
FAMILIES = tuple(CLASSES)


def config_of(family, **fields):
    config_class, _, sizes = CLASSES[family]
    return config_class(**{**sizes, **fields})


def original(family, seed=0, **fields):
    """A model in evaluation mode whose norms and biases are away from their start too."""
    torch.manual_seed(seed)
    model = CLASSES[family][1](config_of(family, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens_of(length=14, batch=2, seed=3):
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model, tokens):
    """The logits of a native decoder or of a transformers model."""
    output = model(tokens)
    return output[0] if isinstance(output, tuple) and not hasattr(output, "logits") else output.logits


class ExactNorm(nn.Module):
    """RMSNorm in float64; transformers' own computes in float32 whatever comes in."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


class ExactAngles(nn.Module):
    """cos and sin in float64, for frequencies that have been compared with transformers' before."""

    def __init__(self, rotary, head_dim):
        super().__init__()
        self.embedding = RotaryEmbedding(rotary, head_dim)

    def forward(self, x, position_ids):
        tables = self.embedding.tables(position_ids, torch.float64)
        return tuple(torch.cat([table, table], dim=-1)[:, 0] for table in tables)


def exact(model, decoder):
    """The same transformers model, all of it in float64."""
    model = model.double()
    layer = decoder.config.layers[0]
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, ExactNorm(child))
            if type(child).__name__.endswith("RotaryEmbedding"):
                setattr(module, name, ExactAngles(layer.rotary, layer.sizes.head_dim))
    return model
