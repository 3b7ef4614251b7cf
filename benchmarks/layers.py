"""Time and memory of one attention operation of every mechanism, as multiples of standard attention.

    python -m benchmarks.layers --device cpu

Mechanisms and standard attention take turns in every round, so that a machine whose speed drifts does not favour one;
figures are medians of the rounds' ratios. Memory is the peak of live tensors during forward and backward (CPU: counted
by the profiler; CUDA: by the allocator). The result is written to results/benchmarks/layers-DEVICE.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from torch import Tensor

from benchmarks.measuring import describe, in_turns, require_device, storage_type, write_result
from heedful.nn import PRESETS, Attention, AttentionConfig, attention_config
from heedful.ops.backends import Situation
from heedful.support import SUMS
from heedful.train.memory import peak_tensor_bytes


@dataclass(frozen=True)
class Options:
    """Measure every mechanism's layer against standard attention's."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run; float32 on the CPU, bfloat16 on CUDA."""

    lengths: tuple[int, ...] = ()
    """Sequence lengths; 256 and 1024 on the CPU, 512 and 2048 on CUDA by default."""

    rounds: int = 7
    """How often each figure is measured."""

    heads: int = 8
    """Number of heads."""

    head_dim: int = 64
    """Width of a head."""


def layer_of(mechanism: str, options: Options, dtype: torch.dtype) -> tuple[Attention, AttentionConfig]:
    """Return a whole attention layer, projections included."""
    config = attention_config(mechanism, hidden_size=options.heads * options.head_dim, num_heads=options.heads)
    return Attention(config).to(device=options.device, dtype=dtype), config


def steps_of(layer: Attention, x: Tensor) -> dict[str, Callable[[], object]]:
    """Return the calls that are timed."""
    x = x.clone().requires_grad_()
    wanted = [x, *layer.parameters()]

    def forward() -> object:
        with torch.no_grad():
            return layer(x)[0]

    def training() -> object:
        return torch.autograd.grad(layer(x)[0].float().square().sum(), wanted, allow_unused=True)

    return {"forward": forward, "training": training}


def measure(length: int, options: Options, dtype: torch.dtype) -> list[dict[str, object]]:
    """Return one row per mechanism for this length."""
    torch.manual_seed(0)
    x = torch.randn(1, length, options.heads * options.head_dim, device=options.device, dtype=dtype)
    mechanisms = (*PRESETS, *SUMS)
    layers = {name: layer_of(name, options, dtype) for name in mechanisms}
    steps = {name: steps_of(layer, x) for name, (layer, _) in layers.items()}
    timings = {
        kind: in_turns(
            {name: calls[kind] for name, calls in steps.items()},
            baseline="standard",
            device=options.device,
            rounds=options.rounds,
        )
        for kind in ("forward", "training")
    }
    memory = {name: peak_tensor_bytes(calls["training"], resident=[x]) for name, calls in steps.items()}
    situation = Situation(options.device, dtype, length, length)
    rows = []
    for name, (_, config) in layers.items():
        forward, training = timings["forward"][name], timings["training"][name]
        rows.append(
            {
                "mechanism": name,
                "backend": config.choose_backend(situation, training=True).backend,
                "length": length,
                "forward_seconds": forward.seconds,
                "training_seconds": training.seconds,
                "peak_bytes": memory[name],
                "forward_ratio": forward.ratio,
                "training_ratio": training.ratio,
                "memory_ratio": memory[name] / memory["standard"],
            }
        )
        print(f"N={length} {name}: forward x{forward.ratio:.2f}, forward+backward x{training.ratio:.2f}")
    return rows


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.layers")
    require_device(options.device)
    dtype = storage_type(options.device)
    lengths = options.lengths or ((512, 2048) if options.device == "cuda" else (256, 1024))
    result = {
        **describe("layers", options.device),
        "batch": 1,
        "heads": options.heads,
        "head_dim": options.head_dim,
        "rounds": options.rounds,
        "rows": [row for length in lengths for row in measure(length, options, dtype)],
    }
    write_result(result, f"layers-{options.device}")


if __name__ == "__main__":
    main()
