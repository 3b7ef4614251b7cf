"""Memory and time of the loss of large vocabularies: all logits at once, some at a time, or some at a time twice.

    python -m benchmarks.loss_memory --device cpu

Each form goes from hidden states to the loss and back to the gradients of hidden states and head weight. "whole" is one
product and torch's cross-entropy; "chunked" is what training uses, which takes the gradients on the way forward;
"recomputed" is the textbook way to save the memory, each chunk under `torch.utils.checkpoint`, so its logits are
computed once more on the way back. On CUDA weights are float32 and products bfloat16, as in training. Forms take
turns in every round; times are medians of the rounds' ratios. Memory is the peak of tensors alive, hidden states and
weight not counted, gradients counted. The result is written to results/benchmarks/loss-memory-DEVICE.json.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from benchmarks.measuring import Call, describe, in_turns, require_device, write_result
from heedful.train import chunked_cross_entropy as chunks
from heedful.train.chunked_cross_entropy import chunked_cross_entropy
from heedful.train.device import autocast
from heedful.train.loss import cross_entropy
from heedful.train.memory import peak_tensor_bytes

WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the loss of large vocabularies."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run; products are float32 on the CPU, bfloat16 on CUDA."""

    vocabularies: tuple[int, ...] = (16_384, 50_304, 128_256)
    """Sizes of the vocabulary."""

    tokens: tuple[int, ...] = ()
    """Tokens of a micro-batch; 512 and 2048 on the CPU, 8192 and 32768 on CUDA by default."""

    hidden_size: int | None = None
    """Width of the hidden states; 256 on the CPU, 1536 on CUDA by default."""

    chunk_tokens: int | None = None
    """Tokens of a chunk; the default of training."""

    rounds: int = 3
    """How often each time is measured."""


def width_of(options: Options) -> int:
    """Return the width of the hidden states."""
    return options.hidden_size or (1536 if options.device == "cuda" else 256)


def whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the summed loss from all logits."""
    return cross_entropy(linear(hidden, weight)[None], targets[None])


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
    """Return the same as training does."""
    return chunked_cross_entropy(hidden, weight, None, targets, chunk_tokens=chunk_tokens)[0]


def recomputed(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
    """Return the same from chunks whose logits are forgotten and computed again."""
    parts = zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    sums: list[Any] = [checkpoint(whole, part, weight, own, use_reentrant=False) for part, own in parts]
    return torch.stack(sums).sum()


def steps_of(tokens: int, vocabulary: int, options: Options) -> dict[str, Call]:
    """Return each form's way forward and back, by name."""
    width, device = width_of(options), torch.device(options.device)
    torch.manual_seed(0)
    with device:
        hidden = torch.randn(tokens, width, requires_grad=True)
        weight = (torch.randn(vocabulary, width) / width**0.5).requires_grad_()
        targets = torch.randint(vocabulary, (tokens,))
    size = options.chunk_tokens or max(1, chunks.LOGITS_OF_A_CHUNK // vocabulary)

    def step(loss: Any) -> None:
        with autocast("bfloat16" if options.device == "cuda" else "float32", device):
            total = loss(hidden, weight, targets=targets)
        (total / tokens).backward()
        hidden.grad = weight.grad = None

    forms = {
        WHOLE: whole,
        "chunked": partial(chunked, chunk_tokens=size),
        "recomputed": partial(recomputed, chunk_tokens=size),
    }
    return {name: partial(step, form) for name, form in forms.items()}


def measure_size(tokens: int, vocabulary: int, options: Options) -> list[dict[str, Any]]:
    """Return a row for each form."""
    steps, device = steps_of(tokens, vocabulary, options), torch.device(options.device)
    timings = in_turns(steps, baseline=WHOLE, device=options.device, rounds=options.rounds)
    marker = [torch.zeros((), device=device)]  # says which device is meant; four bytes
    peaks = {name: peak_tensor_bytes(step, resident=marker) for name, step in steps.items()}
    rows = []
    for name, timing in timings.items():
        row = {"vocabulary": vocabulary, "tokens": tokens, "form": name, "peak_bytes": peaks[name]}
        row |= {"memory_ratio": peaks[name] / peaks[WHOLE], "seconds": timing.seconds, "time_ratio": timing.ratio}
        rows.append(row)
        figures = f"{peaks[name] / 2**20:.0f} MiB, x{row['memory_ratio']:.3f}; time x{timing.ratio:.2f}"
        print(f"vocabulary {vocabulary}, {tokens} tokens, {name}: {figures}", flush=True)
    return rows


def measure(options: Options) -> dict[str, Any]:
    """Return the whole result."""
    sizes = options.tokens or ((8192, 32768) if options.device == "cuda" else (512, 2048))
    rows = [
        row
        for vocabulary in options.vocabularies
        for tokens in sizes
        for row in measure_size(tokens, vocabulary, options)
    ]
    head = {**describe("loss_memory", options.device), "options": asdict(options), "hidden_size": width_of(options)}
    return {**head, "rows": rows}


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.loss_memory")
    require_device(options.device)
    write_result(measure(options), f"loss-memory-{options.device}")


if __name__ == "__main__":
    main()
