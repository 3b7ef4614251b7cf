"""What the training loop adds to the bare step: `heedful.train.train` against the same steps without anything around.

    python -m benchmarks.loop_overhead

Three forms train the same model on the same batches, which are made beforehand: "by hand" is torch's cross-entropy,
clipping and AdamW in the five lines that everybody writes; "bare" is the same lines with this library's loss and
optimiser; "train" is the whole loop: metrics, buffers, log lines, reporter, signals, checks, but no evaluation and no
checkpoint. They alternate step by step in one process. Times are means over the steps between two log lines, ratios are
taken within such a block, figures are medians over the blocks. The result is written to
results/benchmarks/loop-overhead-cpu.json.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro

from benchmarks.measuring import describe, write_result
from heedful.data.batches import Batch
from heedful.models import DecoderConfig, DecoderLM, decoder_config
from heedful.train import OptimizerConfig, ScheduleConfig, TrainConfig, learning_rate, train
from heedful.train.loss import TrainingLoss
from heedful.train.optimisation import Optimization

TARGET = 1.05
"""At most so many times the bare step."""
PAIRS = (("train", "bare"), ("train", "by hand"), ("bare", "by hand"))
WARM_UP = 4
"""Steps at the beginning that do not count; training measures its memory in one of them."""


class Shape(NamedTuple):
    """Sizes of a model and of its batches."""

    hidden_size: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    batch: int


SHAPES = {
    "tiny": Shape(16, 1, 2, 32, 16, 2),
    "demo": Shape(64, 3, 4, 257, 64, 8),
    "small": Shape(128, 4, 4, 1024, 128, 8),
    "medium": Shape(256, 6, 8, 4096, 256, 4),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure what the training loop adds to the bare step, on the CPU."""

    shapes: tuple[str, ...] = ("demo", "small", "medium")
    """Models: tiny, demo, small, medium."""

    preset: str = "standard"
    """The mechanism; the fastest one shows most."""

    blocks: int = 12
    """Blocks of steps that count."""

    log_every: int = 10
    """Steps of a block, which is between two log lines."""


class Taken(NamedTuple):
    """Seconds on the clock, and seconds that this process's threads computed, which other processes do not disturb."""

    seconds: float
    processor_seconds: float

    @classmethod
    def begin(cls) -> Taken:
        """Read both clocks, the one that takes longer to read first."""
        processor = time.process_time()
        return cls(time.perf_counter(), processor)

    @classmethod
    def since(cls, begin: Taken) -> Taken:
        """Return what has gone by."""
        now = time.perf_counter()
        return cls(now - begin.seconds, time.process_time() - begin.processor_seconds)


class Interleaved:
    """Ready batches for `train`; whenever it asks for one, the other forms take their step on that batch first.

    So the forms alternate step by step, in one process, and a machine whose speed drifts favours none.
    """

    fingerprint = "ready"

    def __init__(self, batches: list[Batch], others: dict[str, Callable[[int, Batch], None]]) -> None:
        self.batches, self.others, self.tokens_per_batch = batches, others, batches[0].tokens.numel()
        self.taken: dict[str, list[Taken]] = {form: [] for form in (*others, "train")}
        self.handed_over: Taken | None = None
        self.looked_at = False

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Return the batch of a step."""
        if not self.looked_at:  # training looks at a batch before it begins
            self.looked_at = True
            return self.batches[step]
        if self.handed_over is not None:
            self.taken["train"].append(Taken.since(self.handed_over))
        batch = self.batches[step]
        for form, take in self.others.items():
            begin = Taken.begin()
            take(step, batch)
            self.taken[form].append(Taken.since(begin))
        self.handed_over = Taken.begin()
        return batch


def config_of(shape: Shape, steps: int, log_every: int) -> TrainConfig:
    """Return how all forms train."""
    return TrainConfig(
        steps=steps,
        batch_size=shape.batch,
        context_length=shape.context,
        device="cpu",
        optimizer=OptimizerConfig(weight_decay=0.0),
        schedule=ScheduleConfig(warmup_steps=0),
        log_every=log_every,
        evaluate_every=steps,
        checkpoint_every=steps,
    )


def decoder_of(shape: Shape, preset: str) -> DecoderConfig:
    """Return the model of all forms."""
    return decoder_config(
        preset,
        vocab_size=shape.vocabulary,
        num_layers=shape.layers,
        num_heads=shape.heads,
        hidden_size=shape.hidden_size,
        max_positions=shape.context,
    )


def batches_of(shape: Shape, steps: int) -> list[Batch]:
    """Return random batches."""
    generator = torch.Generator().manual_seed(0)
    size = (shape.batch, shape.context + 1)
    drawn = [torch.randint(shape.vocabulary, size, generator=generator) for _ in range(steps)]
    return [Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()) for tokens in drawn]


def by_hand(model: DecoderLM, config: TrainConfig) -> Callable[[int, Batch], None]:
    """Return a step with torch alone."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=config.optimizer.betas, weight_decay=0.0, fused=True)

    def take(step: int, batch: Batch) -> None:
        optimizer.param_groups[0]["lr"] = learning_rate(step, config.steps, config.optimizer, config.schedule)
        logits, _ = model(batch.tokens)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()

    return take


def bare(model: DecoderLM, config: TrainConfig) -> Callable[[int, Batch], None]:
    """Return a step with this library's loss and optimiser, without its loop."""
    loss, optimization = TrainingLoss(model, config.loss), Optimization(model, config.optimizer)

    def take(step: int, batch: Batch) -> None:
        objective, _ = loss(*batch)
        (objective / batch.targets.numel()).backward()
        optimization.clip(config.optimizer.gradient_clip)
        optimization.step(learning_rate(step, config.steps, config.optimizer, config.schedule))

    return take


def measure_shape(name: str, options: Options) -> dict[str, Any]:
    """Return the figures of one model."""
    shape = SHAPES[name]
    config = config_of(shape, WARM_UP + options.blocks * options.log_every + 1, options.log_every)
    batches = batches_of(shape, config.steps)
    decoder = decoder_of(shape, options.preset)

    def model() -> DecoderLM:
        torch.manual_seed(0)
        return DecoderLM(decoder)

    others = {"by hand": by_hand(model(), config), "bare": bare(model(), config)}
    data = Interleaved(batches, others)
    with tempfile.TemporaryDirectory() as folder:
        train(model(), data, config, Path(folder) / "run", report=lambda line: None)
    row: dict[str, Any] = {"model": name, **shape._asdict(), "target": TARGET}
    for clock in Taken._fields:
        blocks = {form: _blocks([getattr(one, clock) for one in taken], options) for form, taken in data.taken.items()}
        row[clock] = {form: statistics.median(own) for form, own in blocks.items()}
        for form, baseline in PAIRS:
            pairs = zip(blocks[form], blocks[baseline], strict=True)
            row[clock][f"{form} / {baseline}"] = statistics.median(one / other for one, other in pairs)
        added = (one - other for one, other in zip(blocks["train"], blocks["bare"], strict=True))
        row[clock]["added"] = statistics.median(added)
        print(f"{name}, {clock}: " + ", ".join(f"{key} {value:.5f}" for key, value in row[clock].items()), flush=True)
    return row


def _blocks(seconds: list[float], options: Options) -> list[float]:
    """Return the mean seconds of each block of steps, as long as there are between two log lines."""
    length, counted = options.log_every, options.blocks * options.log_every
    last = seconds[-counted:]
    return [statistics.fmean(last[begin : begin + length]) for begin in range(0, counted, length)]


def measure(options: Options) -> dict[str, Any]:
    """Return the whole result."""
    rows = [measure_shape(name, options) for name in options.shapes]
    return {**describe("loop_overhead", "cpu"), "options": asdict(options), "rows": rows}


def main() -> None:
    """Measure and write."""
    write_result(measure(tyro.cli(Options, prog="python -m benchmarks.loop_overhead")), "loop-overhead-cpu")


if __name__ == "__main__":
    main()
