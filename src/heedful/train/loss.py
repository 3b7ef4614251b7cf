"""The loss of a batch and its gradients, in as many micro-batches as memory asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from heedful.data.batches import IGNORED, Batch
from heedful.ops import AttentionMask
from heedful.train.device import autocast

if TYPE_CHECKING:
    from heedful.train.config import Precision


def cross_entropy(logits: Tensor, targets: Tensor, reduction: Literal["sum", "none"] = "sum") -> Tensor:
    """Return -log p(target) in nats over the targets that are not IGNORED, in float32 (float64 stays float64).

    Args:
        logits: (B, T, vocabulary), any float type.
        targets: int64 (B, T).
        reduction: "sum" gives a scalar, "none" (B * T,) with zeros where the target is IGNORED.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction
    )


def forward_backward(
    model: Callable[..., Any], batch: Batch, *, accumulation: int, device: torch.device, precision: Precision
) -> Tensor:
    """Add the gradient of the batch's mean loss to the parameters and return that loss, 0-dimensional on `device`.

    The mean is over the scored tokens of the whole batch, whatever the micro-batches hold of them, so `accumulation`
    changes the memory that is needed and not the gradient. Nothing waits for the device.

    Raises:
        ValueError: no token of the batch has a target.
    """
    scored = int((batch.targets != IGNORED).sum())  # batches are made on the CPU, so this waits for nothing
    if scored == 0:
        raise ValueError("no token of the batch has a target; every target is IGNORED.")
    total = torch.zeros((), device=device)
    for micro_batch in _micro_batches(batch, accumulation, device):
        with autocast(precision, device):
            logits, _ = model(micro_batch.tokens, mask=attention_mask(micro_batch))
        loss = cross_entropy(logits, micro_batch.targets) / scored
        loss.backward()
        total = total + loss.detach()
    return total


def attention_mask(batch: Batch) -> AttentionMask | None:
    """Return the mask that keeps the documents of a batch apart, None where it does not name any."""
    return None if batch.document_ids is None else AttentionMask(document_ids=batch.document_ids)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to `device`, on CUDA from pinned memory so that the copy overlaps with the computation."""
    if device.type == "cpu":
        return batch

    def copy(part: Tensor) -> Tensor:
        return part.pin_memory().to(device, non_blocking=True)

    return Batch(
        copy(batch.tokens), copy(batch.targets), None if batch.document_ids is None else copy(batch.document_ids)
    )


def _micro_batches(batch: Batch, accumulation: int, device: torch.device) -> Iterator[Batch]:
    documents = [None] * accumulation if batch.document_ids is None else batch.document_ids.chunk(accumulation)
    for tokens, targets, document_ids in zip(
        batch.tokens.chunk(accumulation), batch.targets.chunk(accumulation), documents, strict=True
    ):
        yield to_device(Batch(tokens, targets, document_ids), device)
