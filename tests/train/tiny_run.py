"""A run of a second: model, data and configuration, importable by the tests and runnable as a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heedful.data.batches import IGNORED, Batch
from heedful.data.shards import TokenSplit
from heedful.models import DecoderLM, decoder_config
from heedful.train import OptimizerConfig, ScheduleConfig, TrainConfig, TrainResult, evaluate_perplexity, train

VOCABULARY, CONTEXT, ROWS = 12, 10, 4
END_OF_TEXT = 0


class CopyData:
    """Rows of random tokens, said twice: only the second half, which follows from the first, is scored."""

    def __init__(
        self, before: Callable[[int], None] = lambda step: None, *, rows: int = ROWS, fingerprint: str = "copy"
    ) -> None:
        self.tokens_per_batch = rows * CONTEXT
        self.fingerprint = fingerprint
        self.before, self.rows = before, rows

    def batch(self, step: int, rows: range | None = None) -> Batch:
        self.before(step)
        generator = torch.Generator().manual_seed(step)
        half = torch.randint(1, VOCABULARY, (self.rows, CONTEXT // 2), generator=generator)
        tokens = torch.cat([half, half], dim=1)
        targets = torch.full_like(tokens, IGNORED)
        targets[:, CONTEXT // 2 - 1 : -1] = tokens[:, CONTEXT // 2 :]
        taken = slice(None) if rows is None else slice(rows.start, rows.stop)
        return Batch(tokens[taken], targets[taken], None)


def signal_at(step: int, *numbers: int) -> Callable[[int], None]:
    """Return a hook for `CopyData` that sends this process signals while the batch after `step` steps is made."""
    calls = itertools.count(0 if step == 0 else 1)  # batch 0 is also looked at before the run starts

    def hook(current: int) -> None:
        if current == step and next(calls) == 1:
            for number in numbers or (signal.SIGINT,):
                os.kill(os.getpid(), number)

    return hook


def tiny_model(preset: str = "multi-token", seed: int = 0, **fields: Any) -> DecoderLM:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_positions": CONTEXT}
    torch.manual_seed(seed)
    return DecoderLM(decoder_config(preset, **{**sizes, "dropout": 0.1, **fields}))


def tiny_config(**fields: Any) -> TrainConfig:
    usual = {
        "steps": 24,
        "batch_size": ROWS,
        "context_length": CONTEXT,
        "accumulation": 2,
        "device": "cpu",
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "schedule": ScheduleConfig(warmup_steps=3),
        "evaluate_every": 8,
        "checkpoint_every": 5,
        "log_every": 4,
    }
    return TrainConfig(**{**usual, **fields})


def tiny_split(tokens: list[int] | None = None, starts: tuple[int, ...] = (0,)) -> TokenSplit:
    if tokens is None:
        tokens = torch.randint(1, VOCABULARY, (47,), generator=torch.Generator().manual_seed(9)).tolist()
    return TokenSplit(
        name="valid",
        tokens=np.array(tokens, dtype=np.uint16),
        document_starts=np.array(starts, dtype=np.int64),
        num_bytes=3 * len(tokens),
        sha256="",
    )


def validate(model: torch.nn.Module) -> dict[str, float]:
    """Score a small split; the draw from the random state shows whether a resume keeps it."""
    result = evaluate_perplexity(model, tiny_split(), context_length=CONTEXT, batch_size=2, end_of_text=END_OF_TEXT)
    return {"val/loss": result.loss, "val/draw": torch.rand(()).item()}


def run(
    folder: Path,
    *,
    data: CopyData | None = None,
    resume: bool = False,
    checkpoint: str | None = None,
    **fields: Any,
) -> tuple[TrainResult, DecoderLM]:
    model = tiny_model()
    result = train(
        model,
        data or CopyData(),
        tiny_config(**fields),
        folder,
        evaluate=validate,
        resume=resume,
        checkpoint=checkpoint,
        report=lambda line: None,
    )
    return result, model


def metric_lines(folder: Path) -> list[dict[str, float]]:
    """Return what metrics.jsonl says of the computation, without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = ("tokens_per_second", "seconds", "memory")
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    outcome, _ = run(Path(sys.argv[1]), data=CopyData(before=lambda step: time.sleep(0.05)))
    print("interrupted" if outcome.interrupted else "finished")
