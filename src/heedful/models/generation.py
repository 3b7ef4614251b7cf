"""Continuing a text with any model that has a decoding state: greedy, temperature, top-k, top-p, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from heedful.ops.masks import AttentionMask
from heedful.ops.shapes import compute_dtype

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@torch.no_grad()
def generate(
    model: Any,
    tokens: Int[Tensor, "b t"],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end_token: int | None = None,
    key_padding: Bool[Tensor, "b t"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b longer"]:
    """Continue each row of `tokens`; the model is in evaluation mode meanwhile.

    Args:
        model: a `DecoderLM`.
        tokens: (B, T) prompts; prompts of different lengths are padded on the left.
        max_new_tokens: how many tokens to add at most.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
        top_k: draw among the k likeliest tokens only.
        top_p: draw among the likeliest tokens which together reach this probability (at least one).
        end_token: a row is finished after this token and filled up with it; stops when all rows are finished.
        key_padding: (B, T) bool, True for real tokens; needed for padded prompts.
        generator: source of randomness; None for torch's global one.

    Returns:
        (B, T + number of new tokens), prompts included.

    Raises:
        ValueError: settings out of range, an empty prompt, padding that is not on the left, or more positions than
        the model has.
    """
    _check(tokens, max_new_tokens, temperature, top_k, top_p, key_padding)
    needed, room = tokens.shape[1] + max_new_tokens - 1, model.config.max_positions  # the last token is not read again
    if needed > room:
        raise ValueError(
            f"{tokens.shape[1]} tokens and {max_new_tokens} new ones need {needed} positions, but the model has "
            f"max_positions = {room}; shorten the prompt or ask for fewer."
        )
    was_training = model.training
    model.eval()
    try:
        state, new = model.empty_state(), tokens
        finished = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
        for _ in range(max_new_tokens):
            mask = None if key_padding is None else AttentionMask(key_padding=key_padding)
            logits, state = model(new, mask, state)
            new = _choose(logits[:, -1].to(compute_dtype(logits.dtype)), temperature, top_k, top_p, generator)[:, None]
            if end_token is not None:
                new = new.masked_fill(finished[:, None], end_token)
                finished = finished | (new[:, 0] == end_token)
            tokens = torch.cat([tokens, new], dim=1)
            if key_padding is not None:
                key_padding = torch.cat([key_padding, torch.ones_like(key_padding[:, :1])], dim=1)
            if end_token is not None and bool(finished.all()):
                break
        return tokens
    finally:
        model.train(was_training)


def _check(
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    key_padding: Tensor | None,
) -> None:
    if tokens.dim() != 2 or tokens.shape[1] == 0:
        raise ValueError(f"tokens must have shape (batch, at least 1), got {tuple(tokens.shape)}.")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}.")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 (0 is greedy) and finite, got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}.")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}.")
    if key_padding is not None:
        if key_padding.shape != tokens.shape:
            raise ValueError(
                f"key_padding must have the shape of tokens, {tuple(tokens.shape)}, got {tuple(key_padding.shape)}."
            )
        if not bool(key_padding[:, -1].all()) or bool((key_padding.long().diff(dim=1) < 0).any()):
            raise ValueError("prompts must be padded on the left: key_padding must be False ... False True ... True.")


def _choose(
    logits: Float[Tensor, "b vocab"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Int[Tensor, " b"]:
    if temperature == 0.0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.topk(top_k, dim=-1)  # exactly k, also where logits are equal
        logits = torch.full_like(logits, float("-inf")).scatter(-1, kept.indices, kept.values)
    if top_p is not None and top_p < 1.0:
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # what the likelier tokens already reach
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(dropped, float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
