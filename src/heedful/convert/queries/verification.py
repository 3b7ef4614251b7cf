"""Comparing logits, before anything is returned or written."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from heedful.convert.queries.conditioning import type_name
from heedful.convert.queries.report import Approximation, TypeErrors, Verification
from heedful.models import DecoderLM

LARGEST_FLOAT64_ERROR = 1e-10

# Far above what rounding to the type does to a network of moderate depth, far below what a mistake does.
LARGEST_STORED_ERROR = {torch.float64: 1e-10, torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 0.5}


def random_tokens(model: DecoderLM, seed: int = 0) -> Tensor:
    """Return two rows of random tokens, at most 64 long, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    length = min(model.config.max_positions, 64)
    return torch.randint(model.config.vocab_size, (2, length), generator=generator)


def check_tokens(model: DecoderLM, tokens: Tensor) -> Tensor:
    """Return the caller's tokens as (B, T) int64 on the CPU.

    Raises:
        ValueError: another shape or type, too long, or tokens that the vocabulary does not have.
    """
    config = model.config
    if tokens.dtype != torch.int64 or tokens.dim() not in (1, 2) or tokens.shape[-1] < 2:
        raise ValueError(
            f"tokens must be int64 of shape (batch, sequence) with at least two tokens per row, got {tokens.dtype} "
            f"{tuple(tokens.shape)}."
        )
    if tokens.shape[-1] > config.max_positions:
        raise ValueError(
            f"tokens are {tokens.shape[-1]} long, but the model has max_positions = {config.max_positions}; cut them "
            "into rows."
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= config.vocab_size:
        raise ValueError(f"tokens must lie between 0 and {config.vocab_size - 1}, the model's vocabulary.")
    return tokens.reshape(-1, tokens.shape[-1]).cpu()


def relative_error(logits: Tensor, expected: Tensor) -> float:
    """Return max |logits - expected| / max |expected|; infinity if anything is not finite."""
    difference = float((logits.double() - expected.double()).abs().max() / expected.double().abs().max())
    return difference if difference == difference else float("inf")


@torch.no_grad()
def logits_in(model: DecoderLM, dtype: torch.dtype, tokens: Tensor) -> Tensor:
    """Return the logits of a copy of the model in a type, on the CPU and without dropout."""
    return copy.deepcopy(model).to("cpu", dtype).eval()(tokens)[0]


def verify(original: DecoderLM, converted: DecoderLM, dtype: torch.dtype, tokens: Tensor | None) -> Verification:
    """Compare the two models.

    Args:
        original: as it came.
        converted: in float64.
        dtype: the type that the converted model will be stored in.
        tokens: (B, T) real tokens, or None.

    Raises:
        ValueError: the logits differ by more than rounding explains; nothing was converted then.
    """
    drawn = random_tokens(original)
    expected = logits_in(original, torch.float64, drawn)
    error = relative_error(logits_in(converted, torch.float64, drawn), expected)
    given = None
    if tokens is not None:
        real = logits_in(original, torch.float64, tokens)
        given = relative_error(logits_in(converted, torch.float64, tokens), real)
        drawn, expected = tokens, real
    worst = max(error, given or 0.0)
    if worst > LARGEST_FLOAT64_ERROR:
        raise ValueError(
            f"the converted model does not reproduce the logits: relative error {worst:.3g} in float64, expected below "
            f"{LARGEST_FLOAT64_ERROR:g}. Nothing was converted; a large condition number is the usual cause."
        )
    stored = TypeErrors(
        dtype=type_name(dtype),
        converted=relative_error(logits_in(converted, dtype, drawn), expected),
        original=relative_error(logits_in(original, dtype, drawn), expected),
    )
    if stored.converted > LARGEST_STORED_ERROR[dtype] + 2 * stored.original:
        raise ValueError(
            f"stored as {stored.dtype}, the converted model's logits are off by {stored.converted:.3g} (the original's "
            f"by {stored.original:.3g}); store float32 or float64."
        )
    return Verification(random_tokens=error, given_tokens=given, stored=stored)


@torch.no_grad()
def approximation_error(
    original: DecoderLM, changed: DecoderLM, tokens: Tensor, *, kind: str, layers: tuple[int, ...]
) -> Approximation:
    """Measure an inexact replacement on real tokens, in float64."""
    before = logits_in(original, torch.float64, tokens)
    after = logits_in(changed, torch.float64, tokens)

    def loss(logits: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))

    return Approximation(
        kind=kind,
        layers=layers,
        tokens=tokens.numel(),
        logit_error=relative_error(after, before),
        loss_before=loss(before),
        loss_after=loss(after),
    )
