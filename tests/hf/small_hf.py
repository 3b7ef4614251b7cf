"""Tiny models, real text and a tokenizer for the tests of `heedful.hf` with other packages."""

from pathlib import Path

import torch

from heedful.hf import HeedfulConfig, HeedfulForCausalLM

LICENSE = Path(__file__).parents[2] / "LICENSE"
KERNELS = {
    "preset": "multi-token",
    "rule": {
        "kind": "multi-token",
        "query_kernel_size": 3,
        "key_kernel_size": 4,
        "convolution_every": 2,
        "convolution_offset": 1,
    },
}
"""Multi-token attention with its convolutions in the second of two layers."""

MECHANISMS = {"multi-token": KERNELS, "boosted+nonlinear-query": "boosted+nonlinear-query"}


def config_of(attention="standard", **fields):
    sizes = {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    return HeedfulConfig(attention=attention, **{**sizes, **fields})


def model_of(attention="standard", seed=1, scale=0.05, **fields):
    """A float32 model in evaluation mode, every weight moved so that no mechanism is at a special start."""
    torch.manual_seed(seed)
    model = HeedfulForCausalLM(config_of(attention, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def text_bytes():
    """The licence of this repository, as bytes: English text of some length that is always there."""
    return torch.tensor(list(LICENSE.read_bytes()))


def examples_of(count, length=32):
    """Consecutive pieces of the text, with labels, as a list that Trainer takes for a data set."""
    pieces = text_bytes()[: count * length].reshape(count, length)
    return [{"input_ids": piece, "labels": piece.clone()} for piece in pieces]


def largest_difference(first, second):
    return float((first.detach().double() - second.detach().double()).abs().max())


def next_token_losses(logits, tokens):
    """The cross-entropy in nats of every token but the first of each row."""
    logs = logits[:, :-1].float().log_softmax(-1)
    return -logs.gather(-1, tokens[:, 1:, None]).squeeze(-1)


def byte_tokenizer():
    """A transformers tokenizer of single bytes: 256 letters, then padding and end of text, 258 in all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*letters, "<pad>", "<end>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", padding_side="left", model_max_length=64
    )
