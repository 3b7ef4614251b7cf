"""Where a training step of a whole model spends its time: shares of its phases, and the costliest kernels.

    python -m benchmarks.profile_step --device cuda

The steps are those of `heedful train`, on random tokens: float32 weights and AdamW; on CUDA the forward pass runs under
bfloat16 autocast. First the step is timed as `heedful bench step` does it, then torch's profiler watches a few more.
The result is written to results/benchmarks/profile-step-DEVICE.json, the traces (for Perfetto) into
runs/profile-step/, which is not committed.
"""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks.measuring import ROOT, describe, require_device, write_result
from benchmarks.model_step import SHAPES
from heedful.data.batches import Batch
from heedful.models import DecoderLM, decoder_config
from heedful.models.counting import training_flops_per_token
from heedful.nn import Rotary
from heedful.train import TrainConfig
from heedful.train.hardware import find_gpu
from heedful.train.step_profile import profile_steps
from heedful.train.step_timing import time_steps, training_step

LISTED_OPERATORS = 25


@dataclass(frozen=True, kw_only=True)
class Options:
    """Profile one training step of whole models."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""

    shape: str | None = None
    """Model: tiny, small, 300M or 880M (the published shapes); small on the CPU, 300M on CUDA by default."""

    arms: tuple[str, ...] = ("standard", "multi-token")
    """Mechanisms."""

    steps: int = 10
    """Steps whose speed counts; the profiler watches three."""

    compile: bool = False
    """Compile each block with torch.compile."""

    traces: Path = ROOT / "runs/profile-step"
    """Folder for the traces."""


class RandomData:
    """Rows of random tokens."""

    fingerprint = "random"

    def __init__(self, rows: int, context: int, vocabulary: int) -> None:
        self.rows, self.context, self.vocabulary = rows, context, vocabulary
        self.tokens_per_batch = rows * context

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Return the batch of a step."""
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(self.vocabulary, (self.rows, self.context + 1), generator=generator)
        return Batch(tokens[:, :-1], tokens[:, 1:])


def profile_arm(arm: str, options: Options) -> dict[str, Any]:
    """Return figures and operators of one mechanism."""
    on_gpu = options.device == "cuda"
    name = options.shape or ("300M" if on_gpu else "small")
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; there are {', '.join(SHAPES)}.")
    shape = SHAPES[name]
    context = shape.contexts[0]
    config = decoder_config(
        arm,
        vocab_size=shape.vocabulary,
        num_layers=shape.layers,
        max_positions=context,
        hidden_size=shape.hidden_size,
        num_heads=shape.heads,
        norm="rms",
        activation="swiglu",
        rotary=Rotary(),
    )
    training = TrainConfig(
        steps=1000,
        batch_size=shape.batch,
        context_length=context,
        device=options.device,
        precision="bfloat16" if on_gpu else "float32",
        compile=options.compile,
    )
    torch.manual_seed(0)
    data = RandomData(shape.batch, context, shape.vocabulary)
    with training_step(DecoderLM(config), data, training) as step:
        timing = time_steps(step, steps=options.steps)
        operators = profile_steps(step, trace=options.traces / f"{name}-{arm}-{options.device}.json.gz")
    flops_per_token = training_flops_per_token(config, context)
    gpu = find_gpu(timing.device)
    row = {
        "model": name,
        "arm": arm,
        "context": context,
        "batch": shape.batch,
        "precision": training.precision,
        "compiled": options.compile,
        "tokens_per_second": timing.tokens_per_second,
        "flops_per_token": flops_per_token,
        "utilisation": None if gpu is None else flops_per_token * timing.tokens_per_second / gpu.bfloat16_flops,
        "peak_bytes": timing.peak_memory_bytes,
        "shares": timing.shares,
        "profiled_milliseconds": sum(operator.milliseconds for operator in operators),
        "operators": [vars(operator) for operator in operators[:LISTED_OPERATORS]],
    }
    used = "" if row["utilisation"] is None else f", {100 * row['utilisation']:.1f} % of the peak"
    print(f"{name}, {arm}: {timing.tokens_per_second:.0f} tokens/s{used}", flush=True)
    for operator in operators[:10]:
        part = 100 * operator.milliseconds / row["profiled_milliseconds"]
        print(f"  {part:5.1f} %  {operator.milliseconds:8.3f} ms  {operator.calls:5.0f} x  {operator.name[:80]}")
    return row


def measure(options: Options) -> dict[str, Any]:
    """Return the whole result."""
    rows = []
    for arm in options.arms:
        rows.append(profile_arm(arm, options))
        gc.collect()  # a model and its optimiser refer to each other
        if options.device == "cuda":
            torch.cuda.empty_cache()
    shown = {**asdict(options), "traces": str(options.traces.name)}
    return {**describe("profile_step", options.device), "options": shown, "rows": rows}


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.profile_step")
    require_device(options.device)
    write_result(measure(options), f"profile-step-{options.device}")


if __name__ == "__main__":
    main()
