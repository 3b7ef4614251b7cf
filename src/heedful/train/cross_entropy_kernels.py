"""The Triton kernel of the loss: a row of logits is read once for its softmax and once for its gradient.

For the logits s (n, V) of a chunk and its targets y (n,), with m_i = max_v s_iv and t_i = sum_v exp(s_iv - m_i),

    lse_i = m_i + log t_i        loss_i = lse_i - s_i,y_i
    ds_iv = exp(s_iv - m_i) (1 + 2 z lse_i) / t_i - [v = y_i]

One program has one row and goes through it in blocks of BLOCK columns. Maximum and sum are kept online: where a block
has a larger number than those before, the sum so far is scaled by exp(old - new). The gradient is written over the
logits, in their type (bfloat16, float16 or float32); arithmetic is in float32. Per logit of 2 bytes that moves 4 bytes
through memory besides the second reading, which finds what the caches still hold of the row.

Sums are in a fixed order: no atomic additions, the same result in every run.
"""

import triton
import triton.language as tl


@triton.jit
def score_rows_kernel(
    logits_ptr,
    targets_ptr,
    losses_ptr,
    normalizers_ptr,
    columns,
    z_loss,
    IGNORED: tl.constexpr,
    BLOCK: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """Write loss_i and lse_i in float32 and, with GRADIENT, ds over s; all are zero where the target is IGNORED.

    Logits are contiguous. A target that is neither IGNORED nor in [0, columns) makes its whole row NaN. Grid: (n,).
    """
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * columns  # n V can pass 2^31
    target = tl.load(targets_ptr + row)
    scored = target != IGNORED
    exists = (target >= 0) & (target < columns)
    of_target = tl.load(logits_ptr + target, mask=exists, other=0.0).to(tl.float32)

    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, tl.where(scored, columns, 0), BLOCK):
        column = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + column, mask=column < columns, other=float("-inf")).to(tl.float32)
        new = tl.maximum(largest, tl.max(logits, 0))
        base = tl.where(new == float("-inf"), 0.0, new)  # -inf only, so far: -inf - -inf would be NaN
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(logits - base), 0)
        largest = new
    largest = tl.where(scored, largest, 0.0)  # so that what is thrown away below is finite
    total = tl.where(scored, total, 1.0)
    normalizer = largest + tl.log(total)
    of_target = tl.where(exists, of_target, float("nan"))
    tl.store(losses_ptr + row, tl.where(scored, normalizer - of_target, 0.0))
    tl.store(normalizers_ptr + row, tl.where(scored, normalizer, 0.0))

    if GRADIENT:
        scale = tl.where(exists, (1.0 + 2.0 * z_loss * normalizer) / total, float("nan"))
        tl.debug_barrier()  # all of the program must have read the target's logit before one of it writes there
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            here = column < columns
            logits = tl.load(logits_ptr + column, mask=here & scored, other=0.0).to(tl.float32)
            slopes = tl.exp(logits - largest) * scale - tl.where(column == target, 1.0, 0.0)
            slopes = tl.where(scored, slopes, 0.0)
            tl.store(logits_ptr + column, slopes.to(logits_ptr.dtype.element_ty), mask=here)
