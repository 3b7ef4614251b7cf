"""Random float64 networks for query elimination, and a second forward pass with skip matrices, written independently.

L 4, d 48, H 4, MLP 96, vocabulary 31; weights N(0, 1 / fan_in), W_down 1.5 times that, E ~ N(0, 1), P ~ N(0, 1/4), norm
gains 1 + N(0, 0.09), biases N(0, 0.09): every part matters, so that mistakes show in the logits.
"""

import torch

from heedful.models import DecoderLM, decoder_config
from heedful.papers.random_models import draw

VOCABULARY, LAYERS, SIZE = 31, 4, 48
NO_SKIPS = {"attention_skip": False, "feed_forward_skip": False}


def net(names="standard", seed=0, **fields):
    sizes = {
        "vocab_size": VOCABULARY,
        "num_layers": LAYERS,
        "max_positions": 16,
        "hidden_size": SIZE,
        "num_heads": 4,
        "intermediate_size": 96,
        "norm": "none",
        "tie_embeddings": False,
    }
    model = DecoderLM(decoder_config(names, **{**sizes, **fields}))
    return randomised(model, seed)


def randomised(model, seed=0):
    return draw(model, seed)


def tokens(length=12, batch=2, seed=5):
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model):
    return model(tokens())[0]


def error(found, expected):
    """max |difference| / max |expected|, of logits or of models' logits."""
    found, expected = (x if isinstance(x, torch.Tensor) else logits(x) for x in (found, expected))
    return float((found - expected).abs().max() / expected.abs().max())


def oracle(weights, *, attention_skips=None, feed_forward_skips=None, head=None, centre_embedding=False):
    """Logits of `DecoderWeights` with multi-head attention and GELU, skips as matrices: another way to compute them.

    Args:
        weights: without rotary positions, query-key norms and grouped heads.
        attention_skips, feed_forward_skips: one matrix per layer, or None for the identity.
        head: a matrix before the head.
        centre_embedding: subtract the mean from the sum of token and position embedding.
    """
    config, ids = weights.config, tokens()

    def norm(x, part):
        if part is None:
            return x
        if config.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * part.gain + part.shift

    def affine(x, part):
        return x @ part.weight + part.bias

    def skip(x, matrices, index):
        return x if matrices is None else x @ matrices[index]

    hidden = weights.tokens[ids] + weights.positions[: ids.shape[1]]
    if centre_embedding:
        hidden = hidden - hidden.mean(-1, keepdim=True)
    hidden_later = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
    for index, layer in enumerate(weights.layers):
        x = norm(hidden, layer.attention_norm)
        heads, scale = layer.config.num_heads, layer.config.scale or layer.head_dim**-0.5
        q = x if layer.query is None else affine(x, layer.query)
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in (q, affine(x, layer.key), affine(x, layer.value))
        )
        scores = (scale * q @ k.transpose(-1, -2)).masked_fill(hidden_later, -torch.inf)
        read = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        hidden = affine(read, layer.output) + skip(hidden, attention_skips, index)
        inner = torch.nn.functional.gelu(affine(norm(hidden, layer.feed_forward_norm), layer.inner[-1]))
        hidden = affine(inner, layer.down) + skip(hidden, feed_forward_skips, index)
    hidden = norm(hidden, weights.final_norm)
    hidden = hidden if head is None else hidden @ head
    return hidden @ (weights.tokens.T if weights.head is None else weights.head) + weights.head_bias
