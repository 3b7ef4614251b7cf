"""Softmax, loss and gradient of rows of logits, in torch's operations or in one Triton kernel.

For logits s (n, V) and targets y (n,), with lse_i = log sum_v exp s_iv, a row gives

    loss_i = lse_i - s_i,y_i        slopes_i = softmax(s_i) (1 + 2 z lse_i) - onehot(y_i)

and zeros where its target is IGNORED. The slopes are the gradient of loss_i + z lse_i^2 with respect to s_i.

What computes where (`choose_rows`): logits in bfloat16, float16 or float32 on a GPU go through the Triton kernel if the
package triton is installed; everything else, float64 and CPUs among it, through torch. Both compute in float32 (torch
in float64 for float64) and differ by rounding only.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from heedful.data.batches import IGNORED

KERNEL_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


class ScoredRows(NamedTuple):
    """What rows of logits give.

    Attributes:
        losses: (n,), float32 (float64 for float64), 0 where not scored.
        normalizers: lse, like `losses`.
        slopes: (n, V), None where not wanted; in the type of the losses, or rounded to that of the logits already.
    """

    losses: Tensor
    normalizers: Tensor
    slopes: Tensor | None


class RowScorer(Protocol):
    """Scores logits (n, V) of any float type against targets (n,); the logits' memory may be written over."""

    def __call__(self, logits: Tensor, targets: Tensor, *, z_loss: float, gradient: bool) -> ScoredRows:
        """Return this module's formulas; `gradient` says whether the slopes are wanted."""
        ...


def choose_rows(device: torch.device, dtype: torch.dtype) -> RowScorer:
    """Return what scores logits of a type on a device, by the rule above."""
    return triton_rows if device.type == "cuda" and dtype in KERNEL_TYPES and _TRITON_INSTALLED else torch_rows


def torch_rows(logits: Tensor, targets: Tensor, *, z_loss: float, gradient: bool) -> ScoredRows:
    """Score in torch's operations; about eight passes over float32 logits, 4 bytes each besides those given.

    Float32 and float64 are overwritten. A target outside of the vocabulary is an error, as torch's `gather` makes it.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    ignored = targets == IGNORED
    targets = targets.masked_fill(ignored, 0)[:, None]
    of_targets = logits.gather(1, targets).squeeze(1)
    largest = logits.amax(1)
    exponentials = logits.sub_(largest[:, None]).exp_()
    sums = exponentials.sum(1)
    normalizers = (largest + sums.log()).masked_fill(ignored, 0)
    losses = (normalizers - of_targets).masked_fill(ignored, 0)
    if not gradient:
        return ScoredRows(losses, normalizers, None)
    scored = (~ignored).to(logits.dtype)
    scales = scored * (1 + 2 * z_loss * normalizers) / sums
    slopes = exponentials.mul_(scales[:, None]).scatter_add_(1, targets, -scored[:, None])
    return ScoredRows(losses, normalizers, slopes)


def triton_rows(logits: Tensor, targets: Tensor, *, z_loss: float, gradient: bool) -> ScoredRows:
    """Score in one kernel, which reads the logits twice and writes the slopes over them, in their type; waits for none.

    A target outside of the vocabulary makes loss and slopes of its row NaN. Fake tensors have nothing to compute with,
    so the kernel is left out for them; what is allocated is the same.
    """
    logits, targets = logits.contiguous(), targets.contiguous()
    losses, normalizers = (
        torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device) for _ in ("losses", "normalizers")
    )
    if not isinstance(logits, FakeTensor):
        from heedful.train import cross_entropy_launches

        cross_entropy_launches.score_rows(logits, targets, losses, normalizers, z_loss=z_loss, gradient=gradient)
    return ScoredRows(losses, normalizers, logits if gradient else None)
