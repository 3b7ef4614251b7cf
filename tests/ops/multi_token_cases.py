"""Inputs for the faster forms of multi-token attention: every combination of parts, every kind of mask."""

import itertools

import torch

from heedful.ops import AttentionMask, multi_token_attention

PART_NAMES = ("kq_pre", "kq_post", "head_pre", "head_post")
COMBINATIONS = [
    tuple(name for name, present in zip(PART_NAMES, flags, strict=True) if present)
    for flags in itertools.product((False, True), repeat=4)
]
HEADS, HEAD_DIM, VALUE_DIM = 4, 5, 3


def draw_parts(names, *, kernel=(3, 5), post_kernel=(2, 4), group=2, post_group=4, heads=HEADS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "kq_pre": (heads, *kernel),
        "kq_post": (heads, *post_kernel),
        "head_pre": (heads // group, group, group),
        "head_post": (heads // post_group, post_group, post_group),
    }
    return {
        name: torch.randn(shapes[name], generator=generator, dtype=torch.float64).requires_grad_() for name in names
    }


def draw_inputs(keys, queries=None, *, batch=2, kv_heads=2, heads=HEADS, width=HEAD_DIM, value_width=VALUE_DIM, seed=0):
    generator = torch.Generator().manual_seed(1000 + seed)
    shapes = ((heads, queries or keys, width), (kv_heads, keys, width), (kv_heads, keys, value_width))
    return [torch.randn(batch, *shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def masks(keys):
    """One mask of every kind and their sums, for batch 2."""
    position = torch.arange(keys)
    left = position[None] >= torch.tensor([[0], [keys // 3]])
    holes = (position[None] * 7 + torch.tensor([[0], [3]])) % 5 > 0
    documents = torch.stack([position // 5, position // 11])
    return {
        "plain": AttentionMask(),
        "window": AttentionMask(window=6),
        "left padding": AttentionMask(key_padding=left),
        "holes": AttentionMask(key_padding=holes),
        "all padding": AttentionMask(key_padding=torch.zeros(1, keys, dtype=torch.bool)),
        "documents": AttentionMask(document_ids=documents),
        "everything": AttentionMask(document_ids=documents, key_padding=holes, window=4),
    }


def value_and_gradients(inputs, parts, function=multi_token_attention, **options):
    """Output, then gradients of inputs and parts for a fixed weighting of the output."""
    output = function(*inputs, **parts, **options)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return [output, *torch.autograd.grad((output * weight).sum(), [*inputs, *parts.values()])]
