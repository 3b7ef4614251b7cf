"""The loss of some tokens: cross-entropy, and the module that trains on it."""

from __future__ import annotations

from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from heedful.data.batches import IGNORED, Batch
from heedful.ops import AttentionMask
from heedful.train.chunked_cross_entropy import chunked_cross_entropy, chunked_token_losses
from heedful.train.config import LossConfig


def cross_entropy(logits: Tensor, targets: Tensor, reduction: Literal["sum", "none"] = "sum") -> Tensor:
    """Return -log p(target) in nats over the targets that are not IGNORED, in float32 (float64 stays float64).

    Args:
        logits: (B, T, vocabulary), any float type.
        targets: int64 (B, T).
        reduction: "sum" gives a scalar, "none" (B * T,) with zeros where the target is IGNORED.
    """
    return torch.nn.functional.cross_entropy(
        _wide(logits).flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction
    )


class TrainingLoss(nn.Module):
    """A model and its loss as one module, which is what the loop runs, spreads over processes and differentiates.

    A model with `hidden_states` and `head_parameters`, as `DecoderLM` has, is scored some tokens at a time, and all its
    logits never exist together (`chunked_cross_entropy`); of another the whole logits are taken.
    """

    def __init__(self, model: nn.Module, config: LossConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, tokens: Tensor, targets: Tensor, document_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return two sums over the scored tokens, 0-dimensional and float32 (float64 for a model in float64): what is
        trained on, and the cross-entropy that is reported.
        """
        mask = attention_mask(document_ids)
        z_loss = self.config.z_loss
        if _gives_hidden_states(self.model):
            hidden = self.model.hidden_states(tokens, mask=mask)
            weight, bias = self.model.head_parameters()
            return chunked_cross_entropy(
                hidden, weight, bias, targets, z_loss=z_loss, chunk_tokens=self.config.chunk_tokens
            )
        logits, _ = self.model(tokens, mask=mask)
        loss = cross_entropy(logits, targets)
        if not z_loss:
            return loss, loss.detach()
        normalizers = torch.logsumexp(_wide(logits), -1).masked_fill(targets == IGNORED, 0)
        return loss + z_loss * normalizers.square().sum(), loss.detach()


@torch.no_grad()
def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return -log p(target) of every token of a batch in nats, (B * T,), 0 where it is IGNORED; without gradients.

    Float32 (float64 for a model in float64), and where the model allows it the logits exist some tokens at a time, as
    in `TrainingLoss`.
    """
    mask = attention_mask(batch.document_ids)
    if _gives_hidden_states(model):
        hidden = model.hidden_states(batch.tokens, mask=mask)
        weight, bias = model.head_parameters()
        return chunked_token_losses(hidden, weight, bias, batch.targets)
    logits, _ = model(batch.tokens, mask=mask)
    return cross_entropy(logits, batch.targets, reduction="none")


def attention_mask(document_ids: Tensor | None) -> AttentionMask | None:
    """Return the mask that keeps the documents of a batch apart, None where it does not name any."""
    return None if document_ids is None else AttentionMask(document_ids=document_ids)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to `device`, on CUDA from pinned memory so that the copy overlaps with the computation."""
    if device.type == "cpu":
        return batch

    def copy(part: Tensor) -> Tensor:
        return part.pin_memory().to(device, non_blocking=True)

    return Batch(
        copy(batch.tokens), copy(batch.targets), None if batch.document_ids is None else copy(batch.document_ids)
    )


def _gives_hidden_states(model: nn.Module) -> TypeGuard[Any]:
    return hasattr(model, "hidden_states") and hasattr(model, "head_parameters")


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
