"""Triton kernels of the two convolutions of a tile, of their gradients, and of hiding what is invisible.

    y[i, j] = sum_ab theta[a, b] x[i + a - above, j + b - before]     x is zero outside of its rows and columns
    dtheta[a, b] = sum_ij dy[i, j] x[i + a, j + b]

A convolution over keys is a product with a band. The columns of the result are cut into strips of 16, each of which
reads a window of 32 columns (c_k <= 15 leaves 30 of them in use). All strips of all rows of a block stand below each
other, so that for each row tap a one product does the work of the whole block:

    Y [places, 16] += X_a [places, 32] @ T_a [32, 16],   T_a[x, y] = theta[a, x - y] for 0 <= x - y < c_k, else 0
    P_a [16, 32]   += dY^T [16, places] @ X_a [places, 32],   dtheta[a, b] = sum of P_a[y, x] over x - y = b

That is 32 c_q multiply-adds per number on tensor cores instead of c_q c_k on ordinary ones.

All tensors are (b, H, rows, columns) with contiguous planes of `rows` times a row stride; `*_stride` is that of a row.
Sums are in float32 and in a fixed order: no atomic additions, the same result in every run.

What the lines see: `first` and `last` hold an interval of keys for each line, `line_batch` numbers apart for each entry
of the batch; `real` holds 0 for padding (HOLES: whether there is any), `real_batch` apart. Row i of a region stands on
line `line_top` + i, its column j is key `key_left` + j.
"""

import triton
import triton.language as tl

STRIP = tl.constexpr(16)  # columns of a strip: the least that a tensor-core product takes
WINDOW = tl.constexpr(32)  # columns that a strip reads: a power of two, at least STRIP + c_k - 1

NO_MASK = tl.constexpr(0)
INPUT_MASK = tl.constexpr(1)  # a result reads only what its own line sees: the exact mask
RESULT_MASK = tl.constexpr(2)  # a number reaches only results that its line sees: the exact mask's adjoint

# Sizes change from tile to tile: a kernel specialised for their divisibility would be compiled again and again.
SIZES = ["heads", "rows", "columns", "x_rows", "x_columns", "y_rows", "y_columns"]
SIZES += ["line_batch", "real_batch", "line_top", "key_left"]


@triton.jit
def visible(first, last, key, real_ptr, HOLES: tl.constexpr):
    """Say which keys lie in the interval and are no padding; intervals lie inside [0, M), which guards the load."""
    seen = (key >= first) & (key <= last)
    if HOLES:
        seen = seen & (tl.load(real_ptr + key, mask=seen, other=0) != 0)
    return seen


@triton.jit
def rounded_to_tf32(x):
    """Round float32 to the nearest of tensor-float-32's 10 mantissa bits; the hardware would cut off."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=[*SIZES, "start", "stop"])
def hide_kernel(
    x_ptr,
    first_ptr,
    last_ptr,
    real_ptr,
    x_stride,
    heads,
    rows,
    start,
    stop,
    line_batch,
    real_batch,
    line_top,
    key_left,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HOLES: tl.constexpr,
):
    """Write zero to what is invisible in columns [start, stop). Grid: (b H row-blocks column-blocks,)."""
    column_blocks = tl.cdiv(stop - start, COLUMNS)
    row_blocks = tl.cdiv(rows, ROWS)
    pid = tl.program_id(0)
    row = pid // column_blocks % row_blocks * ROWS + tl.arange(0, ROWS)
    column = start + pid % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    plane = pid // column_blocks // row_blocks
    batch = plane // heads
    lines = batch * line_batch + line_top + row
    first = tl.load(first_ptr + lines, mask=row < rows, other=0)
    last = tl.load(last_ptr + lines, mask=row < rows, other=-1)
    key = key_left + column
    seen = visible(first[:, None], last[:, None], key[None, :], real_ptr + batch * real_batch, HOLES)
    hidden = (row < rows)[:, None] & (column < stop)[None, :] & (seen == 0)
    place = (plane.to(tl.int64) * rows + row)[:, None] * x_stride + column[None, :]
    tl.store(x_ptr + place, tl.zeros((ROWS, COLUMNS), x_ptr.dtype.element_ty), mask=hidden)


@triton.jit(do_not_specialize=[*SIZES, "above", "before"])
def convolve_kernel(
    x_ptr,
    kernel_ptr,
    y_ptr,
    first_ptr,
    last_ptr,
    real_ptr,
    x_stride,
    y_stride,
    heads,
    x_rows,
    x_columns,
    y_rows,
    y_columns,
    above,
    before,
    line_batch,
    real_batch,
    line_top,
    key_left,
    ROW_TAPS: tl.constexpr,
    KEY_TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    STRIPS: tl.constexpr,
    MASK: tl.constexpr,
    HOLES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Convolve ROWS rows and STRIPS strips of one head; kernels (H, c_q, c_k) in float32.

    `line_top` is for the rows of the map, which are the results with INPUT_MASK and x with RESULT_MASK; `key_left` is
    for the columns of the scores, which are x with INPUT_MASK and the results with RESULT_MASK.
    Grid: (b H row-blocks column-blocks,).
    """
    column_blocks = tl.cdiv(y_columns, STRIPS * STRIP)
    row_blocks = tl.cdiv(y_rows, ROWS)
    pid = tl.program_id(0)
    top = pid // column_blocks % row_blocks * ROWS
    plane = pid // column_blocks // row_blocks
    head = plane % heads
    batch = plane // heads

    place = tl.arange(0, ROWS * STRIPS)
    row = place // STRIPS
    strip = pid % column_blocks * (STRIPS * STRIP) + place % STRIPS * STRIP
    x = tl.arange(0, WINDOW)
    y = tl.arange(0, STRIP)
    read = strip[:, None] + x[None, :] - before
    inside = (read >= 0) & (read < x_columns) & (x < STRIP + KEY_TAPS - 1)[None, :]
    written = strip[:, None] + y[None, :]
    tap = x[:, None] - y[None, :]
    on_band = (tap >= 0) & (tap < KEY_TAPS)
    lines = batch * line_batch + line_top
    reals = real_ptr + batch * real_batch
    if MASK == INPUT_MASK:
        exists = top + row < y_rows
        first = tl.load(first_ptr + lines + top + row, mask=exists, other=0)
        last = tl.load(last_ptr + lines + top + row, mask=exists, other=-1)
        inside = inside & visible(first[:, None], last[:, None], key_left + read, reals, HOLES)

    # Offsets inside the block fit 32 bits; the block's own place needs 64.
    x_block = x_ptr + (plane.to(tl.int64) * x_rows + top - above) * x_stride
    total = tl.zeros((ROWS * STRIPS, STRIP), tl.float32)
    for a in range(ROW_TAPS):
        source = top + row + a - above
        exists = (source >= 0) & (source < x_rows)
        numbers = tl.load(x_block + ((row + a) * x_stride)[:, None] + read, mask=inside & exists[:, None], other=0.0)
        band = tl.load(kernel_ptr + (head * ROW_TAPS + a) * KEY_TAPS + tap, mask=on_band, other=0.0)
        if PRECISION == "tf32":
            band = rounded_to_tf32(band)
        if MASK == RESULT_MASK:
            first = tl.load(first_ptr + lines + source, mask=exists, other=0)
            last = tl.load(last_ptr + lines + source, mask=exists, other=-1)
            seen = visible(first[:, None], last[:, None], key_left + written, reals, HOLES)
            part = tl.dot(numbers.to(tl.float32), band, input_precision=PRECISION)
            total += tl.where(seen, part, 0.0)
        else:
            total = tl.dot(numbers.to(tl.float32), band, total, input_precision=PRECISION)
    y_block = y_ptr + (plane.to(tl.int64) * y_rows + top) * y_stride
    exists = (top + row < y_rows)[:, None] & (written < y_columns)
    tl.store(y_block + (row * y_stride)[:, None] + written, total.to(y_ptr.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=SIZES)
def kernel_gradient_kernel(
    gradient_ptr,
    x_ptr,
    partial_ptr,
    first_ptr,
    last_ptr,
    real_ptr,
    gradient_stride,
    x_stride,
    heads,
    x_rows,
    x_columns,
    y_rows,
    y_columns,
    line_batch,
    real_batch,
    line_top,
    key_left,
    ROW_TAPS: tl.constexpr,
    KEY_TAPS: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    STRIPS: tl.constexpr,
    MASK: tl.constexpr,
    HOLES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write what ROWS rows of one head give to dtheta: partial (b H, row-blocks, c_q, c_k) in float32.

    All row taps stand beside each other in one product of 16 x (32 TAPS), TAPS being c_q up to a power of two, so that
    dy is read once. Grid: (b H row-blocks,).
    """
    row_blocks = tl.cdiv(y_rows, ROWS)
    pid = tl.program_id(0)
    top = pid % row_blocks * ROWS
    plane = pid // row_blocks
    batch = plane // heads

    place = tl.arange(0, ROWS * STRIPS)
    row = place // STRIPS
    exists = top + row < y_rows
    y = tl.arange(0, STRIP)
    side = tl.arange(0, TAPS * WINDOW)
    a = side // WINDOW
    x = side % WINDOW
    used = (a < ROW_TAPS) & (x < STRIP + KEY_TAPS - 1)
    inside = exists[:, None] & used[None, :]
    if MASK == INPUT_MASK:
        lines = batch * line_batch + line_top + top + row
        first = tl.load(first_ptr + lines, mask=exists, other=0)
        last = tl.load(last_ptr + lines, mask=exists, other=-1)
    gradient_block = gradient_ptr + (plane.to(tl.int64) * y_rows + top) * gradient_stride
    x_block = x_ptr + (plane.to(tl.int64) * x_rows + top) * x_stride
    x_rows_offset = (row[:, None] + a[None, :]) * x_stride
    total = tl.zeros((STRIP, TAPS * WINDOW), tl.float32)
    for start in range(0, y_columns, STRIPS * STRIP):
        strip = start + place % STRIPS * STRIP
        written = strip[:, None] + y[None, :]
        there = exists[:, None] & (written < y_columns)
        gradient = tl.load(gradient_block + (row * gradient_stride)[:, None] + written, mask=there, other=0.0)
        read = strip[:, None] + x[None, :]
        here = inside & (read < x_columns)
        if MASK == INPUT_MASK:
            seen = visible(first[:, None], last[:, None], key_left + read, real_ptr + batch * real_batch, HOLES)
            here = here & seen
        numbers = tl.load(x_block + x_rows_offset + read, mask=here, other=0.0)
        turned = tl.trans(gradient.to(tl.float32))
        total = tl.dot(turned, numbers.to(tl.float32), total, input_precision=PRECISION)
    row_tap = tl.arange(0, TAPS)
    partial_block = partial_ptr + pid.to(tl.int64) * (ROW_TAPS * KEY_TAPS) + row_tap * KEY_TAPS
    for b in range(KEY_TAPS):
        diagonal = tl.sum(tl.where(x[None, :] - y[:, None] == b, total, 0.0), 0)
        tl.store(partial_block + b, tl.sum(tl.reshape(diagonal, (TAPS, WINDOW)), 1), mask=row_tap < ROW_TAPS)
