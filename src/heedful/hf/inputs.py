"""From transformers' `attention_mask` and `position_ids` to our one mask object.

Our layers count positions themselves: real tokens of a document, from 0. What transformers passes is either that, which
is checked, or several documents in one row, which become `document_ids`, or something else, which is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heedful.hf.cache import HeedfulCacheLayer, HeedfulStaticCacheLayer
from heedful.ops.masks import AttentionMask


def attention_mask_of(
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    *,
    layer: HeedfulCacheLayer | None,
    batch: int,
    tokens: int,
    device: torch.device,
) -> AttentionMask | None:
    """Return the mask for a call on `tokens` new tokens, or None where nothing but causality hides anything.

    Args:
        attention_mask: (B, past + tokens), nonzero for real tokens, as tokenizers give it; None for all real. For a
            static cache (B, room) is taken too, aligned on the right.
        position_ids: (B or 1, tokens), or None. Positions that start anew at 0 inside a row mark packed documents.
        layer: the first layer of the cache; None without a cache.
        batch, tokens, device: of the new tokens.

    Raises:
        ValueError: other shapes, or positions that are neither consecutive nor packed documents.
    """
    padding = _padding(attention_mask, batch)
    if isinstance(layer, HeedfulStaticCacheLayer) and layer.is_initialized:
        return _static_mask(padding, layer, tokens, device)
    past = 0 if layer is None else int(layer.get_seq_length())
    if padding is not None and padding.shape[1] != past + tokens:
        raise ValueError(
            f"attention_mask must cover {past} remembered and {tokens} new tokens, got {padding.shape[1]} positions."
        )
    # Looking at values is only possible outside a compiled graph.
    compiling = torch.compiler.is_compiling()
    if padding is not None and not compiling and bool(padding.all()):
        padding = None
    if position_ids is not None and not compiling:
        documents = _documents(position_ids, padding, past, tokens)
        if documents is not None:
            return AttentionMask(document_ids=documents)
    return None if padding is None else AttentionMask(key_padding=padding)


def _padding(attention_mask: Tensor | None, batch: int) -> Tensor | None:
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2 or attention_mask.shape[0] != batch:
        shape = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise ValueError(
            f"attention_mask must have shape (batch = {batch}, positions), 1 for real tokens, got {shape}; windows and "
            f"causality belong to the layers."
        )
    return attention_mask.bool()


def _static_mask(
    padding: Tensor | None, layer: HeedfulStaticCacheLayer, tokens: int, device: torch.device
) -> AttentionMask:
    """Return the mask of a call with a filled static cache: unused places count as padding."""
    if not torch.compiler.is_compiling() and int(layer.length) + tokens > layer.max_length:
        raise ValueError(
            f"the static cache has room for {layer.max_length} positions; it holds {int(layer.length)} and got {tokens} "
            f"more. Make it larger."
        )
    real = layer.real_positions(tokens, device)
    if padding is not None:
        if padding.shape[1] > layer.max_length:
            raise ValueError(
                f"attention_mask covers {padding.shape[1]} positions, but the static cache has room for "
                f"{layer.max_length}."
            )
        real = real & torch.nn.functional.pad(padding, (layer.max_length - padding.shape[1], 0), value=False)
    return AttentionMask(key_padding=real)


def _documents(position_ids: Tensor, padding: Tensor | None, past: int, tokens: int) -> Tensor | None:
    """Return document ids where the positions start anew; None where they are what the layers count anyway."""
    if position_ids.dim() != 2 or position_ids.shape[1] != tokens:
        raise ValueError(f"position_ids must have shape (batch, {tokens}), got {tuple(position_ids.shape)}.")
    if padding is None:
        expected = torch.arange(past, past + tokens, device=position_ids.device)[None]
        real = torch.ones_like(position_ids, dtype=torch.bool)
    else:
        counted = AttentionMask(key_padding=padding).positions()
        assert counted is not None
        expected, real = counted[:, past:].to(position_ids.device), padding[:, past:].to(position_ids.device)
    if bool(((position_ids == expected) | ~real).all()):
        return None
    starts = position_ids == 0
    follows = torch.nn.functional.pad(position_ids[:, 1:] == position_ids[:, :-1] + 1, (1, 0), value=False)
    if padding is None and past == 0 and bool((starts | follows).all()) and bool(starts[:, 0].all()):
        return starts.long().cumsum(1)
    raise ValueError(
        "position_ids must count the real tokens of a row from 0, or start anew at 0 with every packed document (then "
        "without attention_mask and cache); other positions are not supported."
    )
