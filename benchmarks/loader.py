"""Tokens per second of the batches, as a multiple of what a training step of a small model uses.

    python -m benchmarks.loader

For each model a training step (forward, cross-entropy, backward, AdamW; no compilation) and the batches for it take
turns on the same cores, in this process; figures are medians of the rounds' ratios. The token shards lie in a temporary
folder and are memory-mapped; documents have 500 tokens on average. The result is written to
results/benchmarks/loader-cpu.json.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from benchmarks.measuring import describe, in_turns, write_result
from benchmarks.model_step import Shape, build_step
from heedful.data import LanguageModelBatches, MixedBatches, TokenSplit, TrainingData
from heedful.tasks import FindTheBlockConfig, FindTheBlockData

TARGET = 10.0
"""The loader is to be at least so many times as fast as training."""
TOKENS_OF_A_DOCUMENT = 500
PROCESSES = 8


class Setting(NamedTuple):
    """A model and its batches."""

    hidden_size: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    batch: int


SETTINGS = {
    "demo": Setting(64, 3, 4, 257, 64, 8),
    "small": Setting(256, 4, 8, 4096, 256, 16),
    "small, long": Setting(256, 4, 8, 4096, 1024, 4),
    "find-the-block": Setting(64, 3, 4, 32, 320, 16),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the loader against training steps."""

    settings: tuple[str, ...] = tuple(SETTINGS)
    """Which models."""

    tokens: int = 50_000_000
    """Tokens of the train split."""

    rounds: int = 9
    """How often each figure is measured."""


def token_split(folder: Path, num_tokens: int, vocabulary: int) -> TokenSplit:
    """Return random tokens that are read from a file as shards are."""
    random = np.random.default_rng(0)
    path = folder / f"{vocabulary}.tokens"
    random.integers(vocabulary, size=num_tokens, dtype=np.uint16).tofile(path)
    starts = np.unique(random.integers(num_tokens, size=num_tokens // TOKENS_OF_A_DOCUMENT))
    starts[0] = 0
    return TokenSplit(
        name="train",
        tokens=np.memmap(path, dtype=np.uint16, mode="r"),
        document_starts=starts,
        num_bytes=num_tokens,
        sha256=path.name,
    )


def loaders(setting: Setting, folder: Path, num_tokens: int) -> dict[str, Callable[[], object]]:
    """Return calls that make the next batch, by kind."""
    if setting.vocabulary == 32:
        task = FindTheBlockConfig(characters=setting.context - 1)
        return {"generated": _next_batch(FindTheBlockData(task, 0, setting.batch))}
    split = token_split(folder, num_tokens, setting.vocabulary)
    shape: dict[str, Any] = {"context_length": setting.context, "batch_size": setting.batch, "seed": 0}
    thirds = [number * num_tokens // 3 for number in range(4)]
    sources = {str(i): range(first, end) for i, (first, end) in enumerate(itertools.pairwise(thirds))}
    plain = LanguageModelBatches(split, **shape)
    share = range(setting.batch // PROCESSES)
    return {
        "plain": _next_batch(plain),
        "documents masked": _next_batch(LanguageModelBatches(split, **shape, mask_documents=True)),
        "three sources mixed": _next_batch(MixedBatches(split, sources, {"0": 7, "1": 2, "2": 1}, **shape)),
        **({f"rows of one of {PROCESSES} processes": _next_batch(plain, share)} if share else {}),
    }


def _next_batch(data: TrainingData, rows: range | None = None) -> Callable[[], object]:
    steps = itertools.count()
    return lambda: data.batch(next(steps), rows)


def measure(options: Options) -> list[dict[str, Any]]:
    """Return a row for each model and kind of batch."""
    rows = []
    for name in options.settings:
        setting = SETTINGS[name]
        tokens = setting.batch * setting.context
        model = Shape(
            setting.hidden_size, setting.layers, setting.heads, setting.vocabulary, (setting.context,), setting.batch
        )
        step, _, _ = build_step("standard", model, setting.context, "cpu")
        with tempfile.TemporaryDirectory() as folder:
            calls = loaders(setting, Path(folder), options.tokens)
            timings = in_turns({"step": step, **calls}, baseline="step", device="cpu", rounds=options.rounds)
            del calls
        for kind, timing in timings.items():
            share = 1 / PROCESSES if "processes" in kind else 1
            row = {
                "model": name,
                "batch": setting.batch,
                "context": setting.context,
                "kind": kind,
                "seconds": timing.seconds,
                "tokens_per_second": share * tokens / timing.seconds,
                "times_training": share / timing.ratio,
            }
            rows.append(row)
            print(f"{name}, {kind}: {row['tokens_per_second']:,.0f} tokens/s, x{row['times_training']:.0f}", flush=True)
    return rows


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.loader")
    result = {
        **describe("loader", "cpu"),
        "options": asdict(options),
        "settings": {name: SETTINGS[name]._asdict() for name in options.settings},
        "target": TARGET,
        "rows": measure(options),
    }
    write_result(result, "loader-cpu")


if __name__ == "__main__":
    main()
