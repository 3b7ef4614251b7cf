"""Tokens per second and peak memory of one training step of a whole model, per mechanism.

    python -m benchmarks.model_step --device cpu

A step is forward, cross-entropy, backward and AdamW, without compilation. The arms take turns; in its turn an arm's
model is built, warmed up by one step, measured and freed, so that no two models share the memory. Ratios are taken
within a turn; figures are medians. On CUDA weights, gradients and optimiser state are bfloat16. The result is written
to results/benchmarks/model-step-DEVICE.json.
"""

from __future__ import annotations

import gc
import statistics
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
import tyro

from benchmarks.materialised import materialised_layers
from benchmarks.measuring import Call, describe, require_device, seconds, storage_type, write_result
from heedful.models import DecoderLM, decoder_config
from heedful.nn import Rotary
from heedful.train.loss import cross_entropy
from heedful.train.memory import peak_tensor_bytes

BASELINE, MATERIALISED = "standard", "multi-token, materialised"
ARMS = (BASELINE, "talking-heads", "multi-token-v1", "multi-token", MATERIALISED)
SPEED_TARGETS = {("cuda", "880M", "multi-token"): 0.5}
"""At least so many times the standard model's tokens per second."""
MEMORY_TARGETS = {("cuda", "880M", "multi-token"): 1.3}
"""At most so many times the standard model's memory."""


class Shape(NamedTuple):
    """Sizes of a model and of its batches."""

    hidden_size: int
    layers: int
    heads: int
    vocabulary: int
    contexts: tuple[int, ...]
    batch: int


SHAPES = {
    "tiny": Shape(32, 3, 4, 64, (32,), 1),
    "small": Shape(256, 4, 8, 1024, (512, 1024), 2),
    "300M": Shape(1024, 20, 16, 128_256, (2048,), 4),
    "880M": Shape(1536, 24, 16, 128_256, (2048,), 4),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure one training step of whole models."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run; float32 on the CPU, bfloat16 weights on CUDA."""

    shapes: tuple[str, ...] = ()
    """Models: tiny, small, 300M, 880M (the published shapes); small on the CPU, 300M and 880M on CUDA by default."""

    arms: tuple[str, ...] = ARMS
    """Mechanisms; the first is the baseline."""

    turns: int = 3
    """How often each arm has its turn."""

    steps: int = 3
    """Measured steps in a turn, after one that warms up."""


class Turn(NamedTuple):
    """What one turn of an arm gave."""

    seconds: float
    peak_bytes: int | None
    parameters: int


def build_step(arm: str, shape: Shape, context: int, device: str) -> tuple[Call, DecoderLM, torch.optim.Optimizer]:
    """Return a training step, and what it keeps in memory."""
    torch.manual_seed(0)
    config = decoder_config(
        "multi-token" if arm == MATERIALISED else arm,
        vocab_size=shape.vocabulary,
        num_layers=shape.layers,
        max_positions=context,
        hidden_size=shape.hidden_size,
        num_heads=shape.heads,
        norm="rms",
        activation="swiglu",
        rotary=Rotary(),
    )
    with torch.device(device):
        model = DecoderLM(config).to(storage_type(device))
        tokens = torch.randint(shape.vocabulary, (shape.batch, context + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)

    def step() -> None:
        with materialised_layers() if arm == MATERIALISED else nullcontext():
            logits, _ = model(tokens[:, :-1])
            (cross_entropy(logits, tokens[:, 1:]) / tokens[:, 1:].numel()).backward()
        del logits
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, model, optimizer


def take_turn(arm: str, shape: Shape, context: int, device: str, steps: int, *, memory: bool) -> Turn | str:
    """Build, warm up, measure and free one arm; the reason where it cannot run."""
    try:
        step, model, optimizer = build_step(arm, shape, context, device)
        step()
        taken = statistics.median(seconds(step, device) for _ in range(steps))
        peak = None
        if memory:
            moments = [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
            resident = [*model.parameters(), *(x for x in moments if x.device.type == device)]
            peak = peak_tensor_bytes(step, resident=resident)
        return Turn(taken, peak, sum(parameter.numel() for parameter in model.parameters()))
    except torch.OutOfMemoryError:
        return "out of memory"


def measure_shape(name: str, context: int, options: Options) -> list[dict[str, Any]]:
    """Return a row for each arm."""
    shape, device = SHAPES[name], options.device
    turns: dict[str, list[Turn]] = {arm: [] for arm in options.arms}
    refusals: dict[str, str] = {}
    for number in range(options.turns):
        for arm in options.arms:
            if arm in refusals:
                continue
            turn = take_turn(arm, shape, context, device, options.steps, memory=number == 0)
            gc.collect()  # a model and its optimiser refer to each other
            if device == "cuda":
                torch.cuda.empty_cache()
            if isinstance(turn, str):
                refusals[arm] = turn
            else:
                turns[arm].append(turn)
    standard = turns[options.arms[0]]
    rows = []
    for arm in options.arms:
        row: dict[str, Any] = {"model": name, "context": context, "batch": shape.batch, "arm": arm}
        if arm in refusals or not standard:
            row["not_run"] = refusals.get(arm, f"{options.arms[0]} did not run")
        else:
            own = turns[arm]
            pairs = zip(standard, own, strict=True)
            taken = statistics.median(turn.seconds for turn in own)
            assert own[0].peak_bytes is not None
            assert standard[0].peak_bytes is not None
            row |= {
                "parameters": own[0].parameters,
                "seconds": taken,
                "tokens_per_second": shape.batch * context / taken,
                "speed_ratio": statistics.median(other.seconds / one.seconds for other, one in pairs),
                "speed_target": SPEED_TARGETS.get((device, name, arm)),
                "peak_bytes": own[0].peak_bytes,
                "memory_ratio": own[0].peak_bytes / standard[0].peak_bytes,
                "memory_target": MEMORY_TARGETS.get((device, name, arm)),
            }
        rows.append(row)
        figure = row.get("not_run") or f"{row['tokens_per_second']:.0f} tokens/s, x{row['speed_ratio']:.3f}"
        print(f"{name} at {context}, {arm}: {figure}", flush=True)
    return rows


def measure(options: Options) -> dict[str, Any]:
    """Return the whole result."""
    names = options.shapes or (("300M", "880M") if options.device == "cuda" else ("small",))
    unknown = sorted(set(names) - SHAPES.keys())
    if unknown:
        raise ValueError(f"unknown shapes {unknown}; there are {', '.join(SHAPES)}.")
    rows = [row for name in names for context in SHAPES[name].contexts for row in measure_shape(name, context, options)]
    shapes = {name: SHAPES[name]._asdict() for name in names}
    return {**describe("model_step", options.device), "options": asdict(options), "shapes": shapes, "rows": rows}


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.model_step")
    require_device(options.device)
    write_result(measure(options), f"model-step-{options.device}")


if __name__ == "__main__":
    main()
