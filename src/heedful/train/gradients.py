"""The gradient of a batch's mean loss, in as many micro-batches as memory asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from heedful.data.batches import IGNORED, Batch
from heedful.train.device import autocast
from heedful.train.loss import to_device

if TYPE_CHECKING:
    from heedful.train.config import Precision


def forward_backward(
    loss: nn.Module, batch: Batch, *, accumulation: int, device: torch.device, precision: Precision
) -> Tensor:
    """Add the gradient of the batch's mean loss to the parameters and return that loss, 0-dimensional on `device`.

    The mean is over the scored tokens of the whole batch, whatever the micro-batches hold of them, so `accumulation`
    changes the memory that is needed and not the gradient. Nothing waits for the device.

    Args:
        loss: a `TrainingLoss`, or what wraps one.

    Raises:
        ValueError: no token of the batch has a target.
    """
    scored = int((batch.targets != IGNORED).sum())  # batches are made on the CPU, so this waits for nothing
    if scored == 0:
        raise ValueError("no token of the batch has a target; every target is IGNORED.")
    total = torch.zeros((), device=device)
    for micro_batch in _micro_batches(batch, accumulation, device):
        with autocast(precision, device):
            objective, cross_entropy = loss(*micro_batch)
        (objective / scored).backward()
        total = total + cross_entropy / scored
    return total


def _micro_batches(batch: Batch, accumulation: int, device: torch.device) -> Iterator[Batch]:
    documents = [None] * accumulation if batch.document_ids is None else batch.document_ids.chunk(accumulation)
    for tokens, targets, document_ids in zip(
        batch.tokens.chunk(accumulation), batch.targets.chunk(accumulation), documents, strict=True
    ):
        yield to_device(Batch(tokens, targets, document_ids), device)
