"""The tables of docs/scale.md: what the papers' recipes cost on paper, computed from the recipes.

Nothing here is measured on a GPU. The ratios of the multi-token kernels' speed in results/benchmarks are from a CPU.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from heedful.study.estimate import (
    ASSUMED_UTILISATION,
    GPUS_PER_MACHINE,
    ArmEstimate,
    RecipeEstimate,
    Strategy,
    estimate_recipe,
    peak_flops,
)
from heedful.study.recipe_file import load_recipe
from heedful.study.wording import count, memory
from heedful.train.hardware import GPUS
from scripts.benchmark_tables import RESULTS, ROOT, table

PAPERS = ROOT / "recipes/papers"
SLOW, FAST = 0.25, 0.45
"""Assumed shares of the peak, between which the hours are given."""
NETWORKS = {"400 GB/s": 400e9, "50 GB/s": 50e9}
"""Assumed bandwidths between machines, of a whole machine: eight adapters of 400 Gbit/s, and one."""
LATENCY = 5e-6
"""Assumed seconds from one GPU to the next in a ring, whatever is sent."""
BUCKET = 25 * 2**20  # bytes that DDP sends together
STORAGE = 2e9
"""Assumed bytes per second of all processes together to the checkpoint's file system."""
KERNELS = ("talking-heads", "multi-token-v1", "multi-token")
FOLLOWED = ("multi-token-300m", "multi-token-550m", "multi-token-880m", "multi-token-1b", "nonlinear-query-small")
COUNTS = (8, 16, 32, 64, 128)


@functools.cache
def estimate_of(
    name: str, gpus: int | None = None, strategy: str | None = None, arm: str | None = None
) -> RecipeEstimate:
    """Return the estimate of recipes/papers/NAME.toml on H200s."""
    changes = {} if strategy is None else {"train.parallel.strategy": strategy}
    recipe = load_recipe(PAPERS / f"{name}.toml", changes)
    arms = None if arm is None else (arm,)
    return estimate_recipe(recipe, gpu="H200", gpus=gpus, arms=arms, search=False)


def cost_tables() -> str:
    """Return what each arm of each recipe costs."""
    rows = []
    for path in sorted(PAPERS.glob("*.toml")):
        found = estimate_of(path.stem)
        base = next(arm for arm in found.arms if arm.name == found.recipe.baseline)
        for arm in found.arms:
            low, high = _hours(arm, base, found)
            rows.append(
                [
                    path.stem,
                    arm.name,
                    f"{arm.parameters:,}",
                    count(arm.tokens),
                    f"{arm.flops:.2e}",
                    f"{found.gpus} {found.strategy}",
                    memory(arm.memory.total),
                    memory(arm.memory_with_recomputation.total),
                    _range(arm.tokens * found.gpus / high / 3600, arm.tokens * found.gpus / low / 3600),
                    _range(low / found.gpus, high / found.gpus),
                    _range(low, high),
                    str(arm.runs),
                ]
            )
    heads = ["recipe", "arm", "parameters", "tokens", "FLOPs", "H200s", "memory per GPU", "recomputing blocks"]
    heads += ["tokens/s", "hours", "GPU-hours", "runs"]
    return table(heads, rows, 2)


def memory_tables() -> str:
    """Return the parts of the memory of the 880M model on several numbers of GPUs."""
    rows = []
    for gpus in (8, 16, 32, 64):
        for strategy in ("ddp", "fsdp2", "hsdp"):
            for name in ("standard", "multi-token"):
                if name == "standard" or (gpus, strategy) == (32, "fsdp2"):
                    found = estimate_of("multi-token-880m", gpus, strategy, name)
                    rows.append(_memory_row(found, found.arms[0]))
    heads = ["GPUs", "strategy", "arm", "sequences", "weights", "optimiser", "gradients", "gathered", "sent"]
    heads += ["activations", "working", "all, with margin", "fits"]
    return table(heads, rows, 3)


def _memory_row(found: RecipeEstimate, arm: ArmEstimate) -> list[str]:
    need = arm.memory
    parts = (need.weights, need.optimizer, need.gradients, need.gathered, need.communication)
    fits = [gpu.name for gpu in GPUS if need.total <= gpu.memory_bytes]
    shown = [memory(part) for part in (*parts, need.activations, need.working, need.total)]
    return [str(found.gpus), found.strategy, arm.name, str(arm.micro_batch), *shown, ", ".join(fits) or "none"]


@dataclass(frozen=True)
class Traffic:
    """What each GPU sends in a step: bytes in a ring of all that share the weights, and between copies of them; and the
    steps from GPU to GPU of all rings, one after the other.
    """

    ring: float
    copies: float
    steps: int

    def seconds(self, found: RecipeEstimate, network: float) -> float:
        """Return how long both take one after the other, at full bandwidth and without latency."""
        machines = -(-found.gpus // GPUS_PER_MACHINE)
        near = found.gpu.node_bandwidth
        # A ring over machines enters each of them as often as it has adapters, so the whole machine's bandwidth serves
        # it. Between copies every GPU of a machine has a ring of its own and they share that bandwidth.
        inside = found.shard_size <= GPUS_PER_MACHINE if found.strategy == "hsdp" else machines == 1
        return self.ring / (near if inside else min(near, network)) + self.copies * GPUS_PER_MACHINE / network


def traffic(found: RecipeEstimate, arm: ArmEstimate) -> Traffic:
    """Return what a step sends, by formula: gradients in float32, weights in the type in which they are gathered."""
    width = 2 if found.recipe.train.parallel.gather_precision == "bfloat16" else 4
    total, blocks = arm.parameters, arm.parameters_without_embeddings
    root = total - blocks
    pieces = min(arm.train.accumulation, -(-arm.train.batch_size // found.gpus))

    def share(processes: int) -> float:
        return (processes - 1) / processes

    if found.strategy == "ddp":
        buckets = -(-4 * total // BUCKET)
        return Traffic(ring=2 * share(found.gpus) * 4 * total, copies=0, steps=2 * (found.gpus - 1) * buckets)
    gathered = width * (root + 2 * blocks) * pieces  # blocks for the forward and for the backward pass
    ring = share(found.shard_size) * (gathered + 4 * total)
    groups, units = found.gpus // found.shard_size, arm.config.num_layers + 1
    copies = 2 * share(groups) * 4 * total / found.shard_size
    rings = pieces * (2 * units - 1) + units
    steps = rings * (found.shard_size - 1) + 2 * units * (groups - 1)
    return Traffic(ring=ring, copies=copies, steps=steps)


def traffic_tables() -> str:
    """Return how long the standard arm computes and sends in a step, on several numbers of GPUs."""
    rows = []
    for name in FOLLOWED:
        strategies: tuple[Strategy, ...] = ("fsdp2", "hsdp") if name.startswith("multi") else ("ddp",)
        for strategy in strategies:
            for gpus in COUNTS:
                row = _traffic_row(name, strategy, gpus)
                if row is not None and (strategy != "hsdp" or gpus > GPUS_PER_MACHINE):
                    rows.append(row)
    heads = ["recipe, baseline arm", "strategy", "GPUs", "sequences", "sent per GPU", "computing, ms"]
    heads += [f"sending at {network}, ms" for network in NETWORKS]
    heads += [f"latency at {1e6 * LATENCY:g} µs, ms"]
    heads += [f"GPUs where both take as long, {network}" for network in NETWORKS]
    return table(heads, rows, 2)


def _traffic_row(name: str, strategy: Strategy, gpus: int) -> list[str] | None:
    planned = estimate_of(name)
    arm = next(one for one in planned.arms if one.name == planned.recipe.baseline)
    if arm.train.batch_size % gpus:
        return None
    shard_size = {"fsdp2": gpus, "hsdp": min(gpus, GPUS_PER_MACHINE)}.get(strategy, 1)
    found = replace(planned, gpus=gpus, strategy=strategy, shard_size=shard_size)
    sent = traffic(found, arm)
    work = arm.flops_per_token * arm.tokens_per_step / (peak_flops(arm.train, found.gpu) * ASSUMED_UTILISATION)
    times = [sent.seconds(found, network) for network in NETWORKS.values()]
    several = gpus > GPUS_PER_MACHINE
    return [
        name, strategy, str(gpus), str(-(-arm.train.batch_size // gpus)), f"{(sent.ring + sent.copies) / 1e9:.1f} GB",
        f"{1e3 * work / gpus:,.0f}",
        *(f"{1e3 * seconds:,.0f}" if several or index == 0 else "–" for index, seconds in enumerate(times)),
        f"{1e3 * sent.steps * LATENCY:,.0f}",
        *(f"{work / seconds:,.0f}" if several else "–" for seconds in times),
    ]  # fmt: skip


def checkpoint_tables() -> str:
    """Return the size of a checkpoint and of the tokens that a run reads."""
    rows = []
    for path in [*sorted(PAPERS.glob("multi-token-*.toml")), PAPERS / "nonlinear-query-small.toml"]:
        found = estimate_of(path.stem)
        arm = next(one for one in found.arms if one.name == found.recipe.baseline)
        size = 12 * arm.parameters
        every = arm.train.checkpoint_every * arm.tokens_per_step / arm.tokens_per_second / 60
        wide = 4 if arm.config.vocab_size > 2**16 else 2
        rows.append(
            [path.stem, f"{size / 1e9:.1f} GB", f"{size / STORAGE:.0f}", f"{every:.0f}",
             f"{4 * arm.parameters / 1e9:.1f} GB", f"{wide * arm.tokens / 1e9:,.0f} GB",
             f"{wide * arm.tokens_per_second / max(1, found.gpus // GPUS_PER_MACHINE) / 1e6:.1f} MB/s"]
        )  # fmt: skip
    heads = ["recipe, baseline arm", "checkpoint", "seconds at 2 GB/s", "minutes between two", "whole weights"]
    heads += ["tokens on disk, read once", "tokens read per machine"]
    return table(heads, rows, 1)


def _hours(arm: ArmEstimate, base: ArmEstimate, found: RecipeEstimate) -> tuple[float, float]:
    """Return the least and the most GPU-hours of one run."""
    peak = peak_flops(arm.train, found.gpu)
    if arm.name not in KERNELS:
        return arm.flops / (peak * FAST) / 3600, arm.flops / (peak * SLOW) / 3600
    ratios = list(_measured_ratios(arm.name))
    return base.flops / (peak * FAST * max(ratios)) / 3600, base.flops / (peak * SLOW * min(ratios)) / 3600


def _measured_ratios(name: str) -> Iterator[float]:
    """Yield the speed of a whole step as a part of the standard model's, as measured on a CPU."""
    result = json.loads((RESULTS / "model-step-cpu.json").read_text(encoding="utf-8"))
    for row in result["rows"]:
        if row["arm"] == name:
            yield row["speed_ratio"]


def _range(low: float, high: float) -> str:
    def short(value: float) -> str:
        return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else count(value)

    return f"{short(low)} to {short(high)}"
