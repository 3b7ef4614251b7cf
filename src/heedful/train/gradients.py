"""The gradient of a batch's mean loss, in as many micro-batches as memory asks for, over all processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from heedful.data.batches import IGNORED, Batch
from heedful.train.device import autocast
from heedful.train.loss import to_device
from heedful.train.parallel import synchronising
from heedful.train.processes import ALONE, Processes

if TYPE_CHECKING:
    from heedful.train.config import Precision


def forward_backward(
    loss: nn.Module,
    batch: Batch,
    *,
    accumulation: int,
    device: torch.device,
    precision: Precision,
    processes: Processes = ALONE,
    stop: bool = False,
) -> tuple[Tensor, bool]:
    """Add the gradient of the whole batch's mean loss to the parameters.

    The mean is over the scored tokens of all processes together, whatever each of them and each micro-batch holds of
    them, so neither `accumulation` nor the number of processes changes the gradient beyond rounding. The count of
    tokens is exchanged while the first micro-batch is computed; nothing waits for the device, and gradients are sent
    with the last micro-batch only.

    Args:
        loss: a `TrainingLoss`, or what `gradient_module` made of one.
        batch: the rows of this process; there must be `accumulation` at least.
        stop: whether this process wants the run to end after this step.

    Returns:
        This process's share of the mean loss, 0-dimensional on `device` (the sum over all processes is the loss), and
        whether any process wants to stop.

    Raises:
        ValueError: no token of the whole batch has a target.
    """
    scored = int((batch.targets != IGNORED).sum())  # batches are made on the CPU, so this waits for nothing
    exchange = processes.sum_later([scored, int(stop)])
    total = torch.zeros((), device=device)
    everywhere: list[int] | None = None
    for index, micro_batch in enumerate(micro_batches(batch, accumulation, device)):
        with synchronising(loss, synchronise=index == accumulation - 1):
            with autocast(precision, device):
                objective, cross_entropy = loss(*micro_batch)
            everywhere = exchange() if everywhere is None else everywhere
            if everywhere[0] == 0:
                raise ValueError("no token of the batch has a target; every target is IGNORED.")
            # Gradients are averaged over the processes when they are sent, hence the factor.
            (objective * processes.world_size / everywhere[0]).backward()
        total = total + cross_entropy / everywhere[0]
    assert everywhere is not None
    return total, everywhere[1] > 0


def micro_batches(batch: Batch, accumulation: int, device: torch.device) -> Iterator[Batch]:
    """Yield the rows of a batch in `accumulation` parts on `device`; their sizes differ by one at most."""
    split: Callable[[Tensor], tuple[Tensor, ...]] = lambda part: part.tensor_split(accumulation)  # noqa: E731
    documents = [None] * accumulation if batch.document_ids is None else split(batch.document_ids)
    for tokens, targets, document_ids in zip(split(batch.tokens), split(batch.targets), documents, strict=True):
        yield to_device(Batch(tokens, targets, document_ids), device)
