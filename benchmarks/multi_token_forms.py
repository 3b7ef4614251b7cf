"""The cases of the multi-token benchmark, and every implementation that can compute one of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.materialised import materialised_attention
from heedful.ops import multi_token_attention

QUERY_TAPS, KEY_TAPS = 6, 11
LIGER_QUERY_TAPS = 5  # its output keeps the map's size for odd kernels only
FUSED_WIDTH = 256
"""The widest heads that fused attention kernels on CUDA take."""
WIDE, LIGER = "wide form, lower bound", "liger, post convolution only"
CASES = ("pre convolution", "v1", "all four", "talking heads", "head mixing after", "post convolution")
OWN = ("blockwise", "triton", "sdpa backend")
"""The implementations of this library; targets are theirs."""


class Step(NamedTuple):
    """One implementation at work on one case."""

    forward: Callable[[], Any]
    """Called without gradients."""
    training: Callable[[], Any]
    """Forward and backward: gradients of query, key, value and parameters, from a given gradient of the output."""


class Inputs(NamedTuple):
    """Query, key and value (B, H, N, d), leaves, and the gradient that the output gets."""

    query: Tensor
    key: Tensor
    value: Tensor
    gradient: Tensor


def draw_inputs(batch: int, heads: int, length: int, head_dim: int, device: str, dtype: torch.dtype) -> Inputs:
    """Draw them from torch's global generator."""
    *leaves, gradient = (torch.randn(batch, heads, length, head_dim, device=device, dtype=dtype) for _ in range(4))
    query, key, value = (leaf.requires_grad_() for leaf in leaves)
    return Inputs(query, key, value, gradient)


def draw_parts(case: str, heads: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the parameters of a case: the identity and a little noise, leaves."""
    convolutions = {"pre convolution": ("kq_pre",), "v1": ("kq_pre",), "post convolution": ("kq_post",)}
    mixings = {"v1": {"head_post": 2}, "head mixing after": {"head_post": 2}}
    everything = {"head_pre": heads, "head_post": heads}
    parts = {}
    for name in convolutions.get(case, ("kq_pre", "kq_post") if case == "all four" else ()):
        parts[name] = 0.1 * torch.randn(heads, QUERY_TAPS, KEY_TAPS)
        parts[name][:, -1, (KEY_TAPS - 1) // 2] += 1.0
    for name, size in mixings.get(case, everything if case in ("all four", "talking heads") else {}).items():
        parts[name] = torch.eye(size).repeat(heads // size, 1, 1) + 0.1 * torch.randn(heads // size, size, size)
    return {name: part.to(device=device, dtype=dtype).requires_grad_() for name, part in parts.items()}


def implementations(case: str, device: str) -> tuple[str, ...]:
    """Return what can be measured for a case on a device, SDPA first."""
    names = ["sdpa", "blockwise", *(["triton"] if device == "cuda" else []), "materialised"]
    if case == "head mixing after":
        names.append("sdpa backend")
    if case == "pre convolution":
        names.append(WIDE)
    if case == "post convolution" and device == "cuda":
        names.append(LIGER)
    return tuple(names)


def build(implementation: str, inputs: Inputs, parts: dict[str, Tensor]) -> Step:
    """Return the calls of one implementation; ImportError where its package is missing."""
    query, key, value, gradient = inputs
    if implementation == "sdpa":
        return differentiable(
            partial(scaled_dot_product_attention, query, key, value, is_causal=True), [query, key, value], gradient
        )
    if implementation == WIDE:
        return wide_form(inputs)
    if implementation == LIGER:
        return liger_form(inputs)
    wanted = [query, key, value, *parts.values()]
    given = cast("dict[str, Any]", parts)
    if implementation == "materialised":
        return differentiable(partial(materialised_attention, query, key, value, **given), wanted, gradient)
    backend = implementation.removesuffix(" backend")
    call = partial(multi_token_attention, query, key, value, **given, backend=backend)
    return differentiable(call, wanted, gradient)


def differentiable(call: Callable[[], Tensor], wanted: list[Tensor], gradient: Tensor) -> Step:
    """Return the calls of an operation that autograd differentiates."""

    def forward() -> Tensor:
        with torch.no_grad():
            return call()

    def training() -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(), wanted, gradient)

    return Step(forward, training)


def wide_form(inputs: Inputs) -> Step:
    """Return what the convolution as a wide dot product costs at least: queries and keys of width c_q d.

    Neither the making of the wide keys nor the correction near the diagonal is in it. Where no fused kernel takes that
    width it is the products alone, without any softmax, in blocks of rows up to the diagonal.
    """
    query, _, value, gradient = inputs
    width = QUERY_TAPS * query.shape[-1]
    shape = (*query.shape[:3], width)
    wide_query, wide_key = (torch.randn(shape, device=query.device, dtype=query.dtype) for _ in range(2))
    if query.device.type == "cuda" and width > FUSED_WIDTH:
        return Step(
            partial(products, wide_query, wide_key, value.detach(), None),
            partial(products, wide_query, wide_key, value.detach(), gradient),
        )
    if query.device.type == "cpu":  # its fused kernel wants one width for all three
        value, gradient = (torch.randn(shape, dtype=query.dtype) for _ in range(2))
    wanted = [tensor.detach().requires_grad_() for tensor in (wide_query, wide_key, value)]
    return differentiable(partial(scaled_dot_product_attention, *wanted, is_causal=True), wanted, gradient)


@torch.no_grad()
def products(query: Tensor, key: Tensor, value: Tensor, gradient: Tensor | None, rows: int = 1024) -> None:
    """Compute the matrix products of causal attention, and with a gradient those of its backward pass."""
    for start in range(0, query.shape[2], rows):
        own, seen = slice(start, start + rows), slice(0, start + rows)
        maps = query[:, :, own] @ key[:, :, seen].transpose(-1, -2)
        torch.matmul(maps, value[:, :, seen])
        if gradient is not None:
            map_gradient = gradient[:, :, own] @ value[:, :, seen].transpose(-1, -2)
            torch.matmul(maps.transpose(-1, -2), gradient[:, :, own])
            torch.matmul(map_gradient, key[:, :, seen])
            torch.matmul(map_gradient.transpose(-1, -2), query[:, :, own])


def liger_form(inputs: Inputs) -> Step:
    """Return Liger-Kernel's layer between the two products; another operator than ours, see docs/benchmarks.md."""
    from liger_kernel.transformers.multi_token_attention import (  # pyright: ignore[reportMissingImports]
        LigerMultiTokenAttention,
    )

    query, key, value, gradient = inputs
    heads = query.shape[1]
    kernel = (LIGER_QUERY_TAPS, KEY_TAPS)
    layer = LigerMultiTokenAttention(
        heads, heads, kernel, padding=(kernel[0] // 2, kernel[1] // 2), groups=heads, bias=False
    )
    layer = layer.to(device=query.device, dtype=query.dtype)

    def call() -> Tensor:
        return layer(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5) @ value

    return differentiable(call, [query, key, value, *layer.parameters()], gradient)


def target(
    device: str,
    kind: Literal["forward", "training", "memory", "decode"],
    case: str,
    implementation: str,
    length: int,
    usual: bool = True,
) -> float | None:
    """Return the largest multiple of SDPA's that this library aims for, None where no aim is set.

    Args:
        usual: whether heads and widths are those which the aims are for.
    """
    if implementation not in OWN or not usual:
        return None
    return TARGETS.get((device, kind, case, length))


TARGETS = {
    ("cpu", "training", "pre convolution", 512): 3.0,
    ("cpu", "training", "v1", 512): 4.0,
    ("cpu", "training", "all four", 512): 5.0,
    ("cpu", "training", "pre convolution", 2048): 3.3,
    ("cpu", "training", "v1", 2048): 4.5,
    ("cpu", "training", "all four", 2048): 6.0,
    ("cuda", "forward", "all four", 2048): 5.0,
    ("cuda", "training", "all four", 2048): 6.0,
}
GROWTH_TARGET, GROWTH_LENGTHS = 2.2, (4096, 8192)
"""Memory at the second length is at most so many times that at the first."""
SAVING_TARGET, SAVING_LENGTH = 1 / 8, 2048
"""Memory at this length is at most this part of the materialised form's."""
DECODE_TARGET, DECODE_CONTEXT = 1.5, 4096
"""A decoding step at this context takes at most so many times a standard one, on the CPU."""
