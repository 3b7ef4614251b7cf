"""Perplexity and bits per byte of a whole split, every token scored exactly once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from heedful.data.batches import Batch
from heedful.models.probes import evaluating
from heedful.train.device import autocast, computing_on, require_precision, resolve_device
from heedful.train.fitting import require_room
from heedful.train.loss import to_device, token_losses
from heedful.train.processes import Processes, current_processes

if TYPE_CHECKING:
    from heedful.data.shards import TokenSplit
    from heedful.train.config import Precision


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How well a model predicts a split.

    Attributes:
        nats: sum of -log p over all tokens of the split.
        tokens: how many, separators included; all of them are scored.
        bytes: UTF-8 bytes of the text they stand for.
        loss: nats / tokens.
        perplexity: exp(loss), comparable between models with the same tokenizer only.
        bits_per_byte: nats / (ln 2 bytes), comparable between tokenizers that lose nothing.
        context_rule: what each token was predicted from, as a sentence.
    """

    nats: float
    tokens: int
    bytes: int
    loss: float
    perplexity: float
    bits_per_byte: float
    context_rule: str


def evaluate_perplexity(
    model: nn.Module,
    split: TokenSplit,
    *,
    context_length: int,
    batch_size: int,
    end_of_text: int,
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    mask_documents: bool = False,
) -> Perplexity:
    """Score every token of `split` once, in windows of `context_length` that do not overlap.

    Window i predicts tokens i T to i T + T - 1 from the tokens one place before them, so it begins with the last token
    of the window before, the first one with `end_of_text`; the last window is as long as it needs to be. The model is
    in evaluation mode meanwhile and afterwards as it was. Losses are float32 per token and summed in float64.

    Within a run of several processes all of them must call it with the same arguments; each scores its share of the
    windows, and all get the sum.

    Args:
        model: called as `logits, _ = model(tokens, mask=...)`.
        split: the tokens.
        context_length: the window T.
        batch_size: windows computed at a time; it changes speed and memory only.
        end_of_text: the token that stands before the first.
        device: where the model is (the default), "auto" included; another is refused rather than moving the model.
        precision: "bfloat16" computes the logits under autocast.
        mask_documents: whether attention stops at document borders, as with `LanguageModelBatches`' argument.

    Raises:
        ValueError: an empty split, tokens or a context the model has no room for, a device the model is not on, a
            precision the device does not have.
    """
    place = next(model.parameters()).device
    if device is not None and resolve_device(str(device)) != place:
        raise ValueError(f"the model is on {place}, not on {device}; move it there or leave device out.")
    require_precision(precision, place)
    if context_length < 1 or batch_size < 1:
        raise ValueError(f"context_length and batch_size must be 1 or more, got {context_length} and {batch_size}.")
    if split.num_tokens == 0:
        raise ValueError(f"the {split.name} split has no tokens; there is nothing to evaluate.")
    largest_token = max(int(split.tokens.max()), end_of_text)
    require_room(model, context_length=min(context_length, split.num_tokens), largest_token=largest_token)
    nats = torch.zeros((), dtype=torch.float64, device=place)
    processes = current_processes()
    windows = _windows(split, context_length, batch_size, end_of_text, mask_documents=mask_documents)
    with evaluating(model), torch.no_grad(), computing_on(place):
        for batch, counts in _share(windows, processes):
            batch = to_device(batch, place)
            with autocast(precision, place):
                losses = token_losses(model, batch)
            if counts:
                nats += losses.double().sum()
    total = processes.sum(nats.cpu()).item()
    loss = total / split.num_tokens
    return Perplexity(
        nats=total,
        tokens=split.num_tokens,
        bytes=split.num_bytes,
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=total / (math.log(2) * split.num_bytes),
        context_rule=_context_rule(context_length, mask_documents=mask_documents),
    )


def _windows(
    split: TokenSplit, context_length: int, batch_size: int, end_of_text: int, *, mask_documents: bool
) -> Iterator[Batch]:
    """Yield batches of full windows, then the shorter last window by itself."""
    whole = split.num_tokens // context_length * context_length
    edges = [*range(0, whole, batch_size * context_length), whole]
    if whole < split.num_tokens:
        edges.append(split.num_tokens)
    for begin, end in pairwise(edges):
        length = context_length if end <= whole else end - begin
        targets = split.tokens[begin:end].astype(np.int64)
        before = split.tokens[begin - 1 : begin].astype(np.int64) if begin else np.array([end_of_text])
        tokens = np.concatenate([before, targets[:-1]])
        positions = np.arange(begin - 1, end - 1)  # -1 is the end of text before the split, a document of its own
        rows = [torch.from_numpy(part).view(-1, length) for part in (tokens, targets, split.document_ids(positions))]
        yield Batch(rows[0], rows[1], rows[2] if mask_documents else None)


def _share(batches: Iterator[Batch], processes: Processes) -> Iterator[tuple[Batch, bool]]:
    """Yield this process's share of some batches, each with whether it counts.

    Every process gets the same number of them, since a sharded model can only be run by all at once: those who would
    get one fewer compute somebody else's last one again, which does not count.
    """
    batch, number = None, -1
    for number, batch in enumerate(batches):
        if number % processes.world_size == processes.rank:
            yield batch, True
    missing = -(number + 1) % processes.world_size  # of the last round
    if batch is not None and processes.rank >= processes.world_size - missing:
        yield batch, False


def _context_rule(context_length: int, *, mask_documents: bool) -> str:
    rule = (
        f"Every token is scored once, in non-overlapping windows of {context_length}. It is predicted from the tokens "
        "of its window before it and the one token before the window (end of text before the first): "
        f"from 1 to {context_length} tokens, {(context_length + 1) / 2:g} on average."
    )
    return rule + (" Attention stops at document borders, so after one it is fewer." if mask_documents else "")
