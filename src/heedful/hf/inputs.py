"""From transformers' `attention_mask` and `position_ids` to our one mask object.

Our layers count positions themselves: real tokens of a document, from 0. `position_ids` are mostly just that. A 0
inside a row starts another document (without a cache); all other positions are taken as they are given.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from heedful.hf.cache import HeedfulCacheLayer, HeedfulStaticCacheLayer
from heedful.ops.masks import AttentionMask

DOCUMENT_BORDERS = ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k")
"""Other forms of what `position_ids` say about packed documents."""


def refuse_ignored(given: Mapping[str, Any], position_ids: Tensor | None, known: Iterable[str]) -> None:
    """Refuse keyword arguments which would change the result if anything read them.

    Raises:
        ValueError: borders of documents without `position_ids`, or a misspelt name.
    """
    for name in given:
        if name in DOCUMENT_BORDERS and given[name] is not None and position_ids is None:
            raise ValueError(
                f"{name} marks packed documents, but heedful models take them from position_ids, which start anew at 0 "
                f"with every document; pass these too (DataCollatorWithFlattening(return_position_ids=True))."
            )
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if close:
            raise ValueError(f"the model takes no argument {name!r}. Did you mean {close[0]!r}?")


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
        ValueError: other shapes.
    """
    padding = _padding(attention_mask, batch)
    if position_ids is not None and (position_ids.dim() != 2 or position_ids.shape[1] != tokens):
        raise ValueError(f"position_ids must have shape (batch, {tokens}), got {tuple(position_ids.shape)}.")
    if isinstance(layer, HeedfulStaticCacheLayer) and layer.is_initialized:
        return _static_mask(padding, position_ids, layer, tokens, device)
    past = 0 if layer is None else int(layer.get_seq_length())
    if padding is not None and padding.shape[1] != past + tokens:
        raise ValueError(
            f"attention_mask must cover {past} remembered and {tokens} new tokens, got {padding.shape[1]} positions."
        )
    # Looking at values is only possible outside a compiled graph, and each look waits for the device: mostly it is one.
    compiling = torch.compiler.is_compiling()
    if not compiling and _plain(padding, position_ids, past):
        return None
    if position_ids is None or (not compiling and padding is not None and _counted(position_ids, padding, past)):
        return AttentionMask(key_padding=padding)
    if past == 0:
        starts = position_ids == 0 if padding is None else (position_ids == 0) & padding
        documents = starts.long().cumsum(1)
        if compiling or bool((documents > 1).any()):  # a compiled graph cannot ask, and one document is none
            return AttentionMask(document_ids=documents, key_padding=padding, position_ids=position_ids)
    given = torch.nn.functional.pad(position_ids, (past, 0))  # those of remembered tokens are not used again
    return AttentionMask(key_padding=padding, position_ids=given)


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
    padding: Tensor | None,
    position_ids: Tensor | None,
    layer: HeedfulStaticCacheLayer,
    tokens: int,
    device: torch.device,
) -> AttentionMask:
    """Return the mask of a call with a filled static cache: unused places count as padding."""
    real = layer.real_positions(tokens, device)
    if padding is not None:
        if padding.shape[1] > layer.max_length:
            raise ValueError(
                f"attention_mask covers {padding.shape[1]} positions, but the static cache has room for "
                f"{layer.max_length}."
            )
        real = real & torch.nn.functional.pad(padding, (layer.max_length - padding.shape[1], 0), value=False)
    if position_ids is not None:
        position_ids = torch.nn.functional.pad(position_ids, (layer.max_length - tokens, 0))
    return AttentionMask(key_padding=real, position_ids=position_ids)


def _plain(padding: Tensor | None, position_ids: Tensor | None, past: int) -> bool:
    """Whether all tokens are real and their positions 0, 1, 2, ..."""
    found = [] if padding is None else [padding.all()]
    if position_ids is not None:
        expected = torch.arange(past, past + position_ids.shape[1], device=position_ids.device)
        found.append((position_ids == expected).all())
    return not found or bool(torch.stack([one.to(found[0].device) for one in found]).all())


def _counted(position_ids: Tensor, padding: Tensor, past: int) -> bool:
    """Whether the positions of the real tokens are what the layers count anyway."""
    counted = AttentionMask(key_padding=padding).positions()
    assert counted is not None
    return bool(((position_ids == counted[:, past:]) | ~padding[:, past:]).all())
