"""Do all strategies train the same model? Real processes, the real command, one recipe.

    python -m benchmarks.strategies

Each row is a run of `heedful train` on the CPU, one process or several started by torchrun, with the same seed. Its
training losses, gradient norms, validation losses and exported weights are compared with those of one process. What
rounding alone does is seen from one process that adds up its micro-batches in another order. The last rows go on from
a run's checkpoint in the middle with another strategy, or with the same one. Float32 throughout, no dropout. The
result is written to results/benchmarks/strategies-cpu.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from safetensors.torch import load_file

from benchmarks.measuring import describe, write_result

BASELINE = "single"
RECIPE = """
name = "strategies"
seeds = [1]
baseline = "standard"
learning_rates = [3e-3]

[data]
corpus = "python-stdlib"
tokenizer = "bytes"
max_train_tokens = 400_000
max_eval_tokens = 4_096

[model]
hidden_size = 64
num_layers = 3
num_heads = 4

[train]
batch_size = 10
context_length = 64
log_every = 1
device = "cpu"

[train.optimizer]
ema_decay = 0.9

[train.schedule]
warmup_steps = 3

[[arms]]
name = "standard"

[[arms]]
name = "all-three"
attention = "boosted+nonlinear-query+multi-token"
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the curves of all strategies."""

    arms: tuple[str, ...] = ("standard", "all-three")
    """Arms of the recipe."""

    steps: int = 40
    """Optimiser steps of each run; the resumed ones go on from half of them."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to spread a run over processes."""

    name: str
    processes: int = 1
    options: tuple[str, ...] = ()


def setting(name: str, processes: int, strategy: str, **options: Any) -> Setting:
    """Return a setting whose options are those of the command line."""
    given = {"parallel.strategy": strategy, **{key.replace("__", "."): value for key, value in options.items()}}
    return Setting(
        name=name,
        processes=processes,
        options=tuple(part for key, value in given.items() for part in (f"--train.{key}", str(value).lower())),
    )


SINGLE = setting(BASELINE, 1, "single")
FSDP2 = setting("fsdp2 x 2", 2, "fsdp2")
HSDP = setting("hsdp 2 x 2", 4, "hsdp", parallel__shard_size=2)
SETTINGS = (
    setting("single, 2 micro-batches", 1, "single", accumulation=2),
    setting("single, 5 micro-batches", 1, "single", accumulation=5),
    setting("single, blocks recomputed", 1, "single", parallel__recompute_blocks=True),
    setting("ddp x 2", 2, "ddp"),
    setting("ddp x 2, 2 micro-batches", 2, "ddp", accumulation=2),
    FSDP2,
    setting("fsdp2 x 2, 5 micro-batches, recomputed", 2, "fsdp2", accumulation=5, parallel__recompute_blocks=True),
    setting("ddp x 3 (3, 3 and 4 rows)", 3, "ddp"),
    HSDP,
)
RESUMED = (
    ("single, then single", SINGLE, SINGLE, BASELINE),
    ("fsdp2 x 2, then fsdp2 x 2", FSDP2, FSDP2, FSDP2.name),
    ("fsdp2 x 2, then single", FSDP2, SINGLE, BASELINE),
    ("single, then hsdp 2 x 2", SINGLE, HSDP, BASELINE),
    ("hsdp 2 x 2, then fsdp2 x 2", HSDP, FSDP2, BASELINE),
)


def train(
    place: Path, arm: str, how: Setting, folder: Path, options: Options, *, checkpoint: str | None = None
) -> None:
    """Run the command, from its beginning or from a checkpoint."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={how.processes}"]
    command = [sys.executable, *(launcher if how.processes > 1 else []), "-m", "heedful", "train"]
    command += [str(place / "recipe.toml"), "--arm", arm, "--folder", str(folder), "--resume", *how.options]
    half = options.steps // 2
    given = {"steps": options.steps, "evaluate_every": half, "checkpoint_every": half, "keep": "all"}
    command += [part for key, value in given.items() for part in (f"--train.{key}", str(value))]
    command += ["--checkpoint", checkpoint] if checkpoint else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HEEDFUL_CACHE": str(place / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stdout}\n{done.stderr}")


def curve(folder: Path) -> dict[str, list[float]]:
    """Return the series of a run by name."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("train/loss", "grad_norm", "val/loss")
    return {name: [line[name] for line in lines if name in line] for name in names}


def final_weights(folder: Path) -> dict[str, Any]:
    """Return the exported weights of the last checkpoint."""
    last = json.loads((folder / "checkpoints/last.json").read_text())["folder"]
    return load_file(folder / "checkpoints" / last / "model.safetensors")


def differences(folder: Path, reference: Path) -> dict[str, float]:
    """Return the largest relative difference of each series, and that of the weights to the largest weight."""
    ours, theirs = curve(folder), curve(reference)
    found = {name: max(abs(a - b) / abs(b) for a, b in zip(ours[name], theirs[name], strict=True)) for name in theirs}
    weights, expected = final_weights(folder), final_weights(reference)
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    apart = max(float((weights[name] - expected[name]).abs().max()) for name in expected)
    return {**found, "weights": apart / largest}


def measure(options: Options, place: Path) -> dict[str, Any]:
    """Run everything and return the result."""
    (place / "recipe.toml").write_text(RECIPE)
    rows = []

    def row(arm: str, name: str, folder: Path, reference: Path, against: str) -> None:
        rows.append({"arm": arm, "setting": name, "against": against, **differences(folder, reference)})
        print(
            {key: f"{value:.2e}" if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True
        )

    for arm in options.arms:
        done: dict[str, Path] = {}
        for how in (SINGLE, *SETTINGS):
            done[how.name] = place / arm / how.name
            train(place, arm, how, done[how.name], options)
            if how is not SINGLE:
                row(arm, how.name, done[how.name], done[BASELINE], BASELINE)
        for name, before, after, against in RESUMED:
            folder = place / arm / f"resumed, {name}"
            shutil.copytree(done[before.name], folder)
            train(place, arm, after, folder, options, checkpoint=f"step-{options.steps // 2:08d}")
            row(arm, f"resumed: {name}", folder, done[against], against)
    return {**describe("strategies", "cpu"), "options": asdict(options), "rows": rows}


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.strategies")
    with tempfile.TemporaryDirectory() as place:
        write_result(measure(options, Path(place)), "strategies-cpu")


if __name__ == "__main__":
    main()
