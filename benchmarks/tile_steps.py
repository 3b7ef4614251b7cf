"""Ways to compute the steps of one tile of multi-token attention on a CPU, and what fresh memory costs.

    python -m benchmarks.tile_steps

One tile of 8 heads x 64 rows x `keys` columns, kernel 6 x 11, float32. The forms of a step take turns in every round,
as multiples of the tile's Q K^T product; then the steps of decoding one token, as multiples of SDPA's time for it. The
last part runs forward and backward of the whole operation in two new processes: in one the C allocator gives large
freed blocks back to the system at once, in the other the package sets it.
The result is written to results/benchmarks/tile-steps-cpu.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor
from torch.nn.functional import conv2d, pad, scaled_dot_product_attention

from benchmarks.measuring import Call, describe, in_turns, write_result
from heedful.ops import multi_token_attention, multi_token_decode
from heedful.ops.multi_token import tile_convolution
from heedful.ops.multi_token.allocation import keep_freed_memory

HEADS, ROWS, HEAD_DIM = 8, 64, 64
CACHES = 8  # used in turn, so that keys and values come from memory
QUERY_TAPS, KEY_TAPS = 6, 11
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


@dataclass(frozen=True)
class Options:
    """Measure the forms of each step."""

    keys: tuple[int, ...] = (512, 1024, 2048)
    """Widths of the tile."""

    rounds: int = 9
    """How often each figure is measured."""

    length: int = 2048
    """Sequence length of the second part."""

    context: int = 4096
    """Number of keys of the decoding steps."""

    operation_only: bool = False
    """Only print the ratio of the whole operation to SDPA in this process (used for the second part)."""


def weight_gradient_by_windows(gradient: Tensor, tile: Tensor, window: int = 8) -> Tensor:
    """Cut the keys into windows, multiply windows of dy and x for each row tap, and sum the diagonals."""
    heads, rows = gradient.shape[1:3]
    windows = gradient[0].reshape(heads, -1, window).transpose(1, 2)
    wide = tile[0].unfold(-1, window + KEY_TAPS - 1, window).contiguous()
    products = [torch.bmm(windows, wide[:, a : a + rows].flatten(1, 2)) for a in range(QUERY_TAPS)]
    stacked = torch.stack(products, 1)  # heads, row taps, window, window + key taps - 1
    return torch.stack([stacked.diagonal(b, 2, 3).sum(-1) for b in range(KEY_TAPS)], -1)


def forms(keys: int) -> dict[str, Call]:
    """Return the timed calls for a width."""
    torch.manual_seed(0)
    query, key = torch.randn(HEADS, ROWS, HEAD_DIM), torch.randn(HEADS, keys, HEAD_DIM)
    scores = torch.randn(1, HEADS, ROWS, keys)
    left, right = (KEY_TAPS - 1) // 2, KEY_TAPS // 2
    padded = pad(scores, (left, right, QUERY_TAPS - 1, 0))
    symmetric = pad(scores, (0, 0, QUERY_TAPS - 1, 0))
    kernel = torch.randn(HEADS, QUERY_TAPS, KEY_TAPS)
    gradient = torch.randn(1, HEADS, ROWS, keys)

    def own_gradient(inputs: bool) -> object:
        mask = [inputs, not inputs, False]
        backward = torch.ops.aten.convolution_backward
        return backward(gradient, padded, kernel[:, None], None, [1, 1], [0, 0], [1, 1], False, [0, 0], HEADS, mask)

    return {
        "Q K^T": lambda: torch.bmm(query, key.transpose(1, 2)),
        "convolution: conv2d with its padding argument": lambda: conv2d(
            symmetric, kernel[:, None], padding=(0, left), groups=HEADS
        ),
        "convolution: conv2d on a padded tile": lambda: conv2d(padded, kernel[:, None], groups=HEADS),
        "convolution: rows as channels (used)": lambda: tile_convolution.convolve(padded, kernel),
        "input gradient: conv2d's own": lambda: own_gradient(True),
        "input gradient: turned kernel (used)": lambda: tile_convolution.convolve_input_gradient(gradient, kernel),
        "weight gradient: conv2d's own": lambda: own_gradient(False),
        "weight gradient: windows and matrix products": lambda: weight_gradient_by_windows(gradient, padded),
        "weight gradient: pieces as kernels (used)": lambda: tile_convolution.convolve_weight_gradient(
            gradient, padded
        ),
        "wide form of the convolution: Q K^T of width c_q d": lambda: torch.bmm(
            query.repeat(1, 1, QUERY_TAPS), key.repeat(1, 1, QUERY_TAPS).transpose(1, 2)
        ),
        "softmax": lambda: scores.softmax(-1),
    }


def decoding_forms(context: int) -> dict[str, Call]:
    """Return the steps of decoding one token with all four parts; each call does its step on every cache once."""
    torch.manual_seed(0)
    caches = [tuple(torch.randn(1, HEADS, context, HEAD_DIM) for _ in range(2)) for _ in range(CACHES)]
    rows = 1 + 2 * (QUERY_TAPS - 1)  # the new row and the halo of two convolutions
    after_first = 1 + (QUERY_TAPS - 1)
    query = torch.randn(1, HEADS, rows, HEAD_DIM)
    scores, maps = (torch.randn(1, HEADS, n, context + KEY_TAPS - 1) for n in (rows, after_first))
    weights, kernel = torch.randn(1, HEADS, 1, context), torch.randn(HEADS, QUERY_TAPS, KEY_TAPS)
    mixing, flat = torch.randn(HEADS, HEADS), maps.view(HEADS, -1)
    parts = {
        "kq_pre": kernel,
        "kq_post": kernel,
        "head_pre": mixing[None],
        "head_post": mixing[None],
    }

    def with_keys(step: Callable[[Tensor, Tensor], object]) -> Call:
        return lambda: [step(key, value) for key, value in caches]

    def alone(step: Call) -> Call:
        return lambda: [step() for _ in caches]

    return {
        "SDPA": with_keys(lambda key, value: scaled_dot_product_attention(query[:, :, :1], key, value)),
        "Q K^T of 1 row": with_keys(lambda key, _: query[:, :, :1] @ key.transpose(-1, -2)),
        f"Q K^T of {rows} rows": with_keys(lambda key, _: query @ key.transpose(-1, -2)),
        f"convolution of {rows} rows": alone(lambda: tile_convolution.convolve(scores, kernel)),
        f"convolution of {after_first} rows": alone(lambda: tile_convolution.convolve(maps, kernel)),
        f"mixing of {after_first} rows": alone(lambda: mixing @ flat),
        f"softmax of {after_first} rows": alone(lambda: maps.softmax(-1)),
        "B V of 1 row": with_keys(lambda _, value: weights @ value),
        "whole operation": with_keys(
            lambda key, value: multi_token_decode(
                query[:, :, -1:], query[:, :, :-1], key, value, **parts, backend="blockwise"
            )
        ),
    }


def operation_ratio(length: int, rounds: int) -> float:
    """Return forward and backward of the pre-softmax convolution as a multiple of SDPA's, in this process."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, HEADS, length, HEAD_DIM, requires_grad=True) for _ in range(3)]
    kernel = (torch.randn(HEADS, QUERY_TAPS, KEY_TAPS) * 0.1).requires_grad_()
    calls: dict[str, Call] = {
        "sdpa": lambda: torch.autograd.grad(scaled_dot_product_attention(*inputs, is_causal=True).sum(), inputs),
        "multi-token": lambda: torch.autograd.grad(
            multi_token_attention(*inputs, kq_pre=kernel, backend="blockwise").sum(), [*inputs, kernel]
        ),
    }
    return in_turns(calls, baseline="sdpa", device="cpu", rounds=rounds)["multi-token"].ratio


def in_new_process(options: Options, **variables: str) -> float:
    """Return `operation_ratio` of a new process with these environment variables."""
    command = [sys.executable, "-m", "benchmarks.tile_steps", "--operation-only"]
    command += ["--length", str(options.length), "--rounds", str(options.rounds)]
    found = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return float(found.stdout)


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.tile_steps")
    if options.operation_only:
        print(operation_ratio(options.length, options.rounds))
        return
    keep_freed_memory()
    rows = []
    for keys in options.keys:
        timings = in_turns(forms(keys), baseline="Q K^T", device="cpu", rounds=options.rounds)
        for name, timing in timings.items():
            rows.append({"keys": keys, "form": name, "seconds": timing.seconds, "ratio": timing.ratio})
            print(f"{keys} keys, {name}: {timing.seconds * 1e3:.2f} ms, x{timing.ratio:.2f} of Q K^T")
    decoding = []
    with torch.no_grad():
        timings = in_turns(decoding_forms(options.context), baseline="SDPA", device="cpu", rounds=options.rounds)
    for name, timing in timings.items():
        decoding.append(
            {"keys": options.context, "step": name, "seconds": timing.seconds / CACHES, "ratio": timing.ratio}
        )
        print(f"decoding, {options.context} keys, {name}: {timing.seconds / CACHES * 1e3:.2f} ms, x{timing.ratio:.2f}")
    memory = {"returned at once": in_new_process(options, **RETURNS_MEMORY), "kept": in_new_process(options)}
    for name, ratio in memory.items():
        print(f"pre-softmax convolution, N={options.length}, freed memory {name}: x{ratio:.2f} of SDPA")
    result = {
        **describe("tile_steps", "cpu"),
        "heads": HEADS,
        "rows_of_tile": ROWS,
        "kernel": [QUERY_TAPS, KEY_TAPS],
        "rounds": options.rounds,
        "rows": rows,
        "decoding": decoding,
        "length": options.length,
        "operation_to_sdpa_by_freed_memory": memory,
    }
    write_result(result, "tile-steps-cpu")


if __name__ == "__main__":
    main()
