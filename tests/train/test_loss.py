from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_run import CONTEXT, VOCABULARY, CopyData, tiny_model
from torch import nn

from heedful.data.batches import IGNORED, Batch
from heedful.train.config import LossConfig
from heedful.train.gradients import forward_backward
from heedful.train.loss import TrainingLoss, cross_entropy, token_losses

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
    loss, _ = forward_backward(
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


class LogitsOnly(nn.Module):
    """A model that gives its logits and nothing besides."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


HEADS = [
    {"tie_embeddings": True},
    {"tie_embeddings": False},
    {"tie_embeddings": True, "head_bias": True},
    {"tie_embeddings": False, "head_bias": True},
]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("z_loss", [0.0, 0.2])
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_hidden_states_and_logits_give_the_same_loss_and_gradients(
    head: dict[str, Any], z_loss: float, documents: bool
) -> None:
    batch = uneven_batch(documents=documents)
    found = []
    for form, chunk_tokens in ((LogitsOnly, None), (nn.Identity, 7), (nn.Identity, None)):
        model = tiny_model(dropout=0.0, **head).double()
        if model.head_bias is not None:
            nn.init.normal_(model.head_bias)
        whole = model if form is nn.Identity else form(model)
        objective, reported = TrainingLoss(whole, LossConfig(z_loss=z_loss, chunk_tokens=chunk_tokens))(*batch)
        (objective / 17).backward()
        found.append([objective.detach(), reported, *(parameter.grad for parameter in model.parameters())])
        assert not reported.requires_grad
    assert all(value is not None for value in found[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=1e-12)
    assert found[0][0] >= found[0][1]
    assert (found[0][0] == found[0][1]) == (z_loss == 0)


def test_the_z_loss_is_trained_on_by_its_formula_and_not_reported() -> None:
    batch, model = uneven_batch(), tiny_model(dropout=0.0).double()
    normalizers = model(batch.tokens)[0].exp().sum(-1).log()[batch.targets != IGNORED]
    plain, reported = TrainingLoss(model, LossConfig())(*batch)
    for whole in (model, LogitsOnly(model)):
        objective, same = TrainingLoss(whole, LossConfig(z_loss=0.25))(*batch)
        expected = 0.25 * normalizers.square().sum().item()
        assert (objective - plain).item() == pytest.approx(expected, rel=1e-9)
        assert same.item() == pytest.approx(reported.item(), rel=1e-12)


@pytest.mark.parametrize("form", [lambda model: model, LogitsOnly], ids=["hidden states", "logits"])
def test_under_autocast_losses_are_float32(form: Any) -> None:
    batch, model = uneven_batch(), form(tiny_model(dropout=0.0))
    with torch.autocast("cpu", torch.bfloat16):
        objective, reported = TrainingLoss(model, LossConfig(z_loss=0.1))(*batch)
        losses = token_losses(model, batch)
        logits, _ = model(batch.tokens)
        hidden = tiny_model(dropout=0.0).hidden_states(batch.tokens)
    assert logits.dtype == torch.bfloat16  # so the products did run in low precision
    assert hidden.dtype == torch.float32  # and the residual stream did not
    assert objective.dtype == reported.dtype == losses.dtype == torch.float32
    objective.backward()
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


@pytest.mark.parametrize("documents", [False, True])
def test_token_losses_are_those_of_the_logits(documents: bool) -> None:
    batch, model = uneven_batch(documents=documents), tiny_model(dropout=0.0).double()
    found, expected = token_losses(model, batch), token_losses(LogitsOnly(model), batch)
    assert found.shape == (batch.tokens.numel(),)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    objective, _ = TrainingLoss(model, LossConfig())(*batch)
    assert found.sum().item() == pytest.approx(objective.item(), rel=1e-12)
