"""Every preset learns to look back: a bound that no model without working attention can reach.

The text is random and then repeats itself. The first half cannot be predicted, so its loss stays at log(vocabulary);
the second half can, by finding the current token's earlier place and reading what followed. A model that is untrained
or sees only the current token stays at log(vocabulary) there as well.
"""

import math

import pytest
import torch

from heedful.models import DecoderLM, decoder_config
from heedful.nn import Rotary

VOCABULARY, HALF = 12, 10


def repeated(generator):
    half = torch.randint(VOCABULARY, (64, HALF), generator=generator)
    return torch.cat([half, half], dim=1)


def losses(model, tokens):
    logits, _ = model(tokens[:, :-1])
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(0)


def trained(preset, steps=250, **fields):
    torch.manual_seed(0)
    config = decoder_config(
        preset,
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        max_positions=2 * HALF,
        position_embedding="none",
        rotary=Rotary(theta=100.0),
        **fields,
    )
    model = DecoderLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        loss = losses(model, repeated(generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        by_position = losses(model.eval(), repeated(torch.Generator().manual_seed(2)))
    return float(by_position[: HALF - 1].mean()), float(by_position[HALF:].mean())


@pytest.mark.parametrize("preset", ["standard", "boosted+nonlinear-query", "multi-token"])
def test_attention_learns_to_copy(preset):
    unpredictable, predictable = trained(preset)
    assert unpredictable > 0.95 * math.log(VOCABULARY), "the first half cannot be predicted: the future leaked"
    assert predictable < 0.5 * math.log(VOCABULARY)


def test_a_model_that_sees_only_the_current_token_does_not():
    unpredictable, predictable = trained("standard", steps=100, window=1)
    assert min(unpredictable, predictable) > 0.9 * math.log(VOCABULARY)
