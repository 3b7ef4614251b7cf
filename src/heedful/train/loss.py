"""The loss of some tokens: cross-entropy, and the module that trains on it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from heedful.data.batches import IGNORED, Batch
from heedful.ops import AttentionMask
from heedful.train.config import LossConfig


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


class TrainingLoss(nn.Module):
    """A model and its loss as one module, which is what the loop runs, spreads over processes and differentiates."""

    def __init__(self, model: nn.Module, config: LossConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, tokens: Tensor, targets: Tensor, document_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return two sums over the scored tokens, float32 and 0-dimensional: what is trained on, and the cross-entropy
        that is reported.
        """
        mask = None if document_ids is None else AttentionMask(document_ids=document_ids)
        logits, _ = self.model(tokens, mask=mask)
        loss = cross_entropy(logits, targets)
        return loss, loss.detach()


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
