from __future__ import annotations

import pytest
import torch
from tiny_run import CONTEXT, VOCABULARY, CopyData, tiny_model

from heedful.data.batches import IGNORED, Batch
from heedful.train.config import LossConfig
from heedful.train.gradients import forward_backward
from heedful.train.loss import TrainingLoss, cross_entropy

CPU = torch.device("cpu")


def uneven_batch(rows: int = 6, *, documents: bool = False) -> Batch:
    """Rows with very different numbers of scored tokens, one of them without any."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, VOCABULARY, (rows, CONTEXT), generator=generator)
    targets = torch.randint(0, VOCABULARY, (rows, CONTEXT), generator=generator)
    for row in range(rows):
        targets[row, : 2 * row] = IGNORED
    document_ids = (torch.arange(CONTEXT) >= torch.arange(rows)[:, None] + 1).long() if documents else None
    return Batch(tokens, targets, document_ids)


def loss_and_gradients(batch: Batch, accumulation: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model = tiny_model("boosted+multi-token", dropout=0.0).double()
    loss = forward_backward(
        TrainingLoss(model, LossConfig()), batch, accumulation=accumulation, device=CPU, precision="float32"
    )
    return loss, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("accumulation", [2, 3, 6])
def test_accumulation_equals_one_big_batch(accumulation: int, documents: bool) -> None:
    batch = uneven_batch(documents=documents)
    loss, gradients = loss_and_gradients(batch, 1)
    accumulated_loss, accumulated = loss_and_gradients(batch, accumulation)
    torch.testing.assert_close(accumulated_loss, loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(accumulated, gradients, rtol=1e-9, atol=1e-12)


def test_the_loss_is_the_mean_over_scored_tokens() -> None:
    batch = uneven_batch()
    loss, _ = loss_and_gradients(batch, 3)
    logits, _ = tiny_model("boosted+multi-token", dropout=0.0).double()(batch.tokens)
    scored = batch.targets != IGNORED
    picked = logits.log_softmax(-1)[scored].gather(1, batch.targets[scored][:, None])
    assert loss.item() == pytest.approx(-picked.mean().item(), rel=1e-12)


def test_documents_of_a_batch_do_not_see_one_another() -> None:
    masked, plain = uneven_batch(documents=True), uneven_batch()
    assert loss_and_gradients(masked, 1)[0] != loss_and_gradients(plain, 1)[0]


def test_a_batch_without_targets_is_refused() -> None:
    batch = CopyData().batch(0)
    with pytest.raises(ValueError, match="every target is IGNORED"):
        loss_and_gradients(batch._replace(targets=torch.full_like(batch.targets, IGNORED)), 1)


def test_low_precision_logits_are_scored_in_float32() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.tensor([[0, 1, 2], [3, 4, IGNORED]])
    losses = cross_entropy(logits, targets, reduction="none")
    assert losses.dtype == torch.float32
    assert losses[-1] == 0
    torch.testing.assert_close(losses.sum(), cross_entropy(logits.float(), targets), rtol=1e-6, atol=1e-6)
