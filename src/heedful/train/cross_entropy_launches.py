"""Launching the Triton kernel of the loss; importing this imports Triton.

Block sizes follow a stated rule, without tuning at run time: a block has up to 4096 columns, and a warp takes 512 of
them, 16 for each of its threads, which are two loads of 16 bytes where logits have 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from heedful.data.batches import IGNORED
from heedful.train import cross_entropy_kernels as kernels

MOST_COLUMNS, COLUMNS_OF_A_WARP = 4096, 512


def score_rows(
    logits: Tensor, targets: Tensor, losses: Tensor, normalizers: Tensor, *, z_loss: float, gradient: bool
) -> None:
    """Fill losses and normalizers and, with `gradient`, write the gradient over the logits.

    Args:
        logits: (n, V), contiguous, bfloat16, float16 or float32.
        targets: (n,), contiguous.
        losses: (n,), float32.
        normalizers: (n,), float32.
        z_loss: the coefficient z.
        gradient: whether the gradient is wanted.
    """
    rows, columns = logits.shape
    if rows == 0:
        return
    block = min(MOST_COLUMNS, 1 << max(columns - 1, 0).bit_length())
    kernel: Any = kernels.score_rows_kernel
    with torch.cuda.device_of(logits):
        kernel[(rows,)](
            logits,
            targets,
            losses,
            normalizers,
            columns,
            float(z_loss),
            IGNORED=IGNORED,
            BLOCK=block,
            GRADIENT=gradient,
            num_warps=max(1, block // COLUMNS_OF_A_WARP),
        )
