"""Models for the tests of scored tasks: of known probabilities, with random weights, fitted to a few sentences."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from heedful.data.batches import Batch
from heedful.data.tokenizers import Tokenizer
from heedful.models import DecoderLM, decoder_config
from heedful.nn import MultiTokenRule
from heedful.train.loss import token_losses

KERNELS = MultiTokenRule(query_kernel_size=3, key_kernel_size=4, convolution_every=2, convolution_offset=1)
SUBJECTS, VERBS = ("the cat", "a dog", "my aunt"), ("sees", "hears", "finds")
OBJECTS = ("the bone", "the moon", "a hat", "her hat", "her bone")


def random_model(names: str = "standard", *, vocab_size: int = 257, max_positions: int = 48, **fields) -> DecoderLM:
    """Two layers in float64, every parameter away from its special start."""
    torch.manual_seed(1)
    rule = {"rule": KERNELS} if "multi-token" in names else {}
    sizes = {"vocab_size": vocab_size, "max_positions": max_positions, "num_layers": 2, "hidden_size": 16}
    model = DecoderLM(decoder_config(names, num_heads=4, **{**sizes, **rule, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().eval()


def unigram_model(probabilities: Tensor, max_positions: int = 64) -> DecoderLM:
    """A model that predicts each token with the same probability wherever it stands."""
    sizes = {"num_layers": 1, "hidden_size": 8, "num_heads": 1, "vocab_size": len(probabilities)}
    config = decoder_config(max_positions=max_positions, tie_embeddings=False, head_bias=True, **sizes)
    model = DecoderLM(config).double().eval()
    with torch.no_grad():
        assert model.head is not None
        assert model.head_bias is not None
        model.head.weight.zero_()
        model.head_bias.copy_(probabilities.log())
    return model


def fitted_model(names: str, tokenizer: Tokenizer, texts: list[str], steps: int = 40) -> DecoderLM:
    """A float32 model that has learned something of some texts, but not all."""
    torch.manual_seed(1)
    config = decoder_config(
        names,
        vocab_size=tokenizer.vocab_size,
        max_positions=64,
        num_layers=2,
        hidden_size=32,
        num_heads=4,
        **({"rule": KERNELS} if "multi-token" in names else {}),
    )
    model = DecoderLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    stream = [i for ids in tokenizer.encode_many(texts) for i in (tokenizer.end_of_text, *ids)]
    tokens = torch.tensor(stream[: len(stream) // 32 * 32]).view(-1, 32)
    for step in range(steps):
        rows = tokens[torch.randint(len(tokens), (8,), generator=torch.Generator().manual_seed(step))]
        logits, _ = model(rows[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(token_losses(model, Batch(rows[:, :-1], rows[:, 1:])).mean()) < 3
    return model.eval()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of a tiny grammar."""
    draws = random.Random(seed)
    return [" ".join(draws.choice(part) for part in (SUBJECTS, VERBS, OBJECTS)) + "." for _ in range(count)]
