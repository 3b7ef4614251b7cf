"""Triton kernels that work along the rows of a tile: head mixing, softmax, dropout, and their gradients.

    A = softmax(mask_-inf(L)),  L_o = sum_g w[o, g] Y_g          the softmax of a line, with the mixing before it
    B = dropout(sum_g w[o, g] W_g)                               the mixing after it

One program has one row of all heads of a *bundle* and goes through the keys in blocks of [CH, BLOCK] numbers, so that
mixing is one small product on tensor cores. A bundle holds as many whole mixing groups as fit into 16 heads (a group of
up to 32 heads is its own bundle), its matrix (CH, CH) is zero between groups and beyond its heads. Without mixing
(MIXED false) a bundle is any few heads.

All tensors are (b, H, rows, columns) as in `triton_kernels`, where also the arguments about lines are explained.
Arithmetic is in float32. Gradients of mixing matrices are written per row and summed outside, in a fixed order.
"""

import triton
import triton.language as tl

from heedful.ops.multi_token.triton_kernels import SIZES, visible


@triton.jit
def bundle_planes(part, bundle, heads, CH: tl.constexpr):
    """Return the planes of the heads of bundle `part`, counted through batch and heads, and which of them exist."""
    bundles = tl.cdiv(heads, bundle)
    member = tl.arange(0, CH)
    head = part % bundles * bundle + member
    return (part // bundles).to(tl.int64) * heads + head, (member < bundle) & (head < heads)


@triton.jit
def square_offsets(CH: tl.constexpr):
    """Return the offsets of a contiguous CH x CH matrix."""
    member = tl.arange(0, CH)
    return member[:, None] * CH + member[None, :]


@triton.jit(do_not_specialize=[*SIZES, "bundle"])
def softmax_kernel(
    unmixed_ptr,
    mixing_ptr,
    attention_ptr,
    first_ptr,
    last_ptr,
    real_ptr,
    unmixed_stride,
    attention_stride,
    heads,
    bundle,
    rows,
    columns,
    line_batch,
    real_batch,
    line_top,
    key_left,
    CH: tl.constexpr,
    BLOCK: tl.constexpr,
    MIXED: tl.constexpr,
    HOLES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write A for Y, zero where nothing is visible. Two passes: statistics, then weights. Grid: (b bundles rows,)."""
    pid = tl.program_id(0)
    row = pid % rows
    part = pid // rows
    plane, exists = bundle_planes(part, bundle, heads, CH)  # pyright: ignore[reportGeneralTypeIssues]
    batch = part // tl.cdiv(heads, bundle)
    line = batch * line_batch + line_top + row
    first = tl.load(first_ptr + line)
    last = tl.load(last_ptr + line)
    reals = real_ptr + batch * real_batch
    unmixed_rows = unmixed_ptr + ((plane * rows + row) * unmixed_stride)[:, None]
    attention_rows = attention_ptr + ((plane * rows + row) * attention_stride)[:, None]
    if MIXED:
        mixing = tl.load(mixing_ptr + part % tl.cdiv(heads, bundle) * (CH * CH) + square_offsets(CH))

    largest = tl.full((CH,), float("-inf"), tl.float32)
    total = tl.zeros((CH,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        seen = visible(first, last, key_left + column, reals, HOLES) & (column < columns)
        here = exists[:, None] & seen[None, :]
        logits = tl.load(unmixed_rows + column[None, :], mask=here, other=0.0).to(tl.float32)
        if MIXED:
            logits = tl.dot(mixing, logits, input_precision=PRECISION)
        logits = tl.where(here, logits, float("-inf"))
        new = tl.maximum(largest, tl.max(logits, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # nothing seen yet: -inf - -inf would be NaN
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(logits - base[:, None]), 1)
        largest = new
    base = tl.where(largest == float("-inf"), 0.0, largest)
    share = tl.where(total > 0.0, 1.0 / tl.where(total > 0.0, total, 1.0), 0.0)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        seen = visible(first, last, key_left + column, reals, HOLES) & (column < columns)
        here = exists[:, None] & seen[None, :]
        logits = tl.load(unmixed_rows + column[None, :], mask=here, other=0.0).to(tl.float32)
        if MIXED:
            logits = tl.dot(mixing, logits, input_precision=PRECISION)
        logits = tl.where(here, logits, float("-inf"))
        attention = tl.exp(logits - base[:, None]) * share[:, None]
        written = exists[:, None] & (column < columns)[None, :]
        tl.store(attention_rows + column[None, :], attention.to(attention_ptr.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=[*SIZES, "bundle"])
def softmax_backward_kernel(
    gradient_ptr,
    attention_ptr,
    unmixed_ptr,
    mixing_ptr,
    result_ptr,
    partial_ptr,
    gradient_stride,
    attention_stride,
    unmixed_stride,
    result_stride,
    heads,
    bundle,
    rows,
    columns,
    CH: tl.constexpr,
    BLOCK: tl.constexpr,
    MIXED: tl.constexpr,
    WANTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write dY_g = sum_o w[o, g] dL_o with dL = A (dA - sum_j A dA), and with WANTED dw[o, g] = sum_j dL_o Y_g.

    partial (b bundles, rows, CH, CH) in float32. Grid: (b bundles rows,).
    """
    pid = tl.program_id(0)
    row = pid % rows
    part = pid // rows
    plane, exists = bundle_planes(part, bundle, heads, CH)  # pyright: ignore[reportGeneralTypeIssues]
    place = plane * rows + row
    gradient_rows = gradient_ptr + (place * gradient_stride)[:, None]
    attention_rows = attention_ptr + (place * attention_stride)[:, None]
    unmixed_rows = unmixed_ptr + (place * unmixed_stride)[:, None]
    result_rows = result_ptr + (place * result_stride)[:, None]
    if MIXED:
        offsets = square_offsets(CH)
        turned = tl.load(mixing_ptr + part % tl.cdiv(heads, bundle) * (CH * CH) + tl.trans(offsets))

    delta = tl.zeros((CH,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        here = exists[:, None] & (column < columns)[None, :]
        gradient = tl.load(gradient_rows + column[None, :], mask=here, other=0.0).to(tl.float32)
        attention = tl.load(attention_rows + column[None, :], mask=here, other=0.0).to(tl.float32)
        delta += tl.sum(gradient * attention, 1)
    if WANTED:
        mixing_gradient = tl.zeros((CH, CH), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        here = exists[:, None] & (column < columns)[None, :]
        gradient = tl.load(gradient_rows + column[None, :], mask=here, other=0.0).to(tl.float32)
        attention = tl.load(attention_rows + column[None, :], mask=here, other=0.0).to(tl.float32)
        result = attention * (gradient - delta[:, None])
        if WANTED:
            unmixed = tl.load(unmixed_rows + column[None, :], mask=here, other=0.0).to(tl.float32)
            mixing_gradient = tl.dot(result, tl.trans(unmixed), mixing_gradient, input_precision=PRECISION)
        if MIXED:
            result = tl.dot(turned, result, input_precision=PRECISION)
        tl.store(result_rows + column[None, :], result.to(result_ptr.dtype.element_ty), mask=here)
    if WANTED:
        tl.store(partial_ptr + pid.to(tl.int64) * (CH * CH) + square_offsets(CH), mixing_gradient)


@triton.jit(do_not_specialize=[*SIZES, "bundle", "seed"])
def finish_kernel(
    unmixed_ptr,
    mixing_ptr,
    weights_ptr,
    gradient_ptr,
    result_ptr,
    partial_ptr,
    unmixed_stride,
    weights_stride,
    gradient_stride,
    result_stride,
    heads,
    bundle,
    rows,
    columns,
    seed,
    dropout_p,
    CH: tl.constexpr,
    BLOCK: tl.constexpr,
    MIXED: tl.constexpr,
    DROPOUT: tl.constexpr,
    BACKWARD: tl.constexpr,
    WANTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write B = kept * sum_g w[o, g] W_g; with BACKWARD also dW_g = sum_o w[o, g] kept dB_o, and with WANTED dw.

    `kept` is 1/(1-p) or 0, drawn from the seed and the place of the number in the tile, so the backward pass draws the
    same. partial (b bundles, rows, CH, CH) in float32. Grid: (b bundles rows,).
    """
    pid = tl.program_id(0)
    row = pid % rows
    part = pid // rows
    plane, exists = bundle_planes(part, bundle, heads, CH)  # pyright: ignore[reportGeneralTypeIssues]
    place = plane * rows + row
    unmixed_rows = unmixed_ptr + (place * unmixed_stride)[:, None]
    weights_rows = weights_ptr + (place * weights_stride)[:, None]
    gradient_rows = gradient_ptr + (place * gradient_stride)[:, None]
    result_rows = result_ptr + (place * result_stride)[:, None]
    if MIXED:
        matrix = mixing_ptr + part % tl.cdiv(heads, bundle) * (CH * CH)
        mixing = tl.load(matrix + square_offsets(CH))
        if BACKWARD:
            turned = tl.load(matrix + tl.trans(square_offsets(CH)))
    if WANTED:
        mixing_gradient = tl.zeros((CH, CH), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        here = exists[:, None] & (column < columns)[None, :]
        unmixed = tl.load(unmixed_rows + column[None, :], mask=here, other=0.0).to(tl.float32)
        weights = unmixed
        if MIXED:
            weights = tl.dot(mixing, unmixed, input_precision=PRECISION)
        if DROPOUT:
            drawn = tl.rand(seed, (place * columns)[:, None] + column[None, :])
            kept = tl.where(drawn >= dropout_p, 1.0 / (1.0 - dropout_p), 0.0)
            weights = weights * kept
        tl.store(weights_rows + column[None, :], weights.to(weights_ptr.dtype.element_ty), mask=here)
        if BACKWARD:
            gradient = tl.load(gradient_rows + column[None, :], mask=here, other=0.0).to(tl.float32)
            if DROPOUT:
                gradient = gradient * kept
            if WANTED:
                mixing_gradient = tl.dot(gradient, tl.trans(unmixed), mixing_gradient, input_precision=PRECISION)
            if MIXED:
                gradient = tl.dot(turned, gradient, input_precision=PRECISION)
            tl.store(result_rows + column[None, :], gradient.to(result_ptr.dtype.element_ty), mask=here)
    if WANTED:
        tl.store(partial_ptr + pid.to(tl.int64) * (CH * CH) + square_offsets(CH), mixing_gradient)
