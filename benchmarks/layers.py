"""Time and memory of one attention operation of every mechanism, as multiples of standard attention.

    python -m benchmarks.layers --device cpu

Mechanisms and standard attention take turns in every round, so that a machine whose speed drifts does not favour one;
figures are medians of the rounds' ratios. Memory is the peak of live tensors during forward and backward (CPU: counted
by the profiler; CUDA: by the allocator). The result is written to results/benchmarks/layers-DEVICE.json.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from heedful.files import write_json_atomically
from heedful.nn import PRESETS, Attention, AttentionConfig, attention_config
from heedful.support import SUMS
from heedful.train.environment import cpu_name, describe_environment
from heedful.train.memory import peak_tensor_bytes

ROOT = Path(__file__).parent.parent


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


def seconds(function: Callable[[], object], device: str) -> float:
    """Time one call; on CUDA until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


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
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "training": []} for name in mechanisms}
    for round_number in range(options.rounds + 1):  # the first round warms up
        for name, calls in steps.items():
            for kind, call in calls.items():
                taken = seconds(call, options.device)
                if round_number:
                    times[name][kind].append(taken)
    memory = {name: peak_tensor_bytes(calls["training"], resident=[x]) for name, calls in steps.items()}
    rows = []
    for name, (_, config) in layers.items():

        def ratio(kind: str, name: str = name) -> float:
            pairs = zip(times[name][kind], times["standard"][kind], strict=True)
            return statistics.median(own / other for own, other in pairs)

        rows.append(
            {
                "mechanism": name,
                "backend": config.choose_backend(training=True).backend,
                "length": length,
                "forward_seconds": statistics.median(times[name]["forward"]),
                "training_seconds": statistics.median(times[name]["training"]),
                "peak_bytes": memory[name],
                "forward_ratio": ratio("forward"),
                "training_ratio": ratio("training"),
                "memory_ratio": memory[name] / memory["standard"],
            }
        )
        print(f"N={length} {name}: forward x{ratio('forward'):.2f}, forward+backward x{ratio('training'):.2f}")
    return rows


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.layers")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; use --device cpu")
    cuda = options.device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    lengths = options.lengths or ((512, 2048) if cuda else (256, 1024))
    rows = [row for length in lengths for row in measure(length, options, dtype)]
    environment = describe_environment(options.device)
    source = environment["source"] or {"commit": "unknown", "dirty": None}
    result = {
        "command": f"python -m benchmarks.layers {shlex.join(sys.argv[1:])}".strip(),
        "commit": source["commit"],
        "dirty": source["dirty"],
        "machine": torch.cuda.get_device_name() if cuda else f"{cpu_name()}, {torch.get_num_threads()} threads",
        "environment": environment,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": 1,
        "heads": options.heads,
        "head_dim": options.head_dim,
        "rounds": options.rounds,
        "rows": rows,
    }
    target = ROOT / "results/benchmarks" / f"layers-{options.device}.json"
    write_json_atomically(target, result)
    print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
