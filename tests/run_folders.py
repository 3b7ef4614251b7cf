"""Run folders made by hand, as a training leaves them: for what reads runs, without training one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from heedful.models import decoder_config
from heedful.schema import to_mapping
from heedful.train import OptimizerConfig, ScheduleConfig, TrainConfig

TOKENS_PER_BATCH = 512


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def training_line(step: int, **fields: Any) -> dict[str, Any]:
    usual = {
        "step": step,
        "train/loss": 2 + 4 * math.exp(-step / 40),
        "lr": 1e-3 * min(1, step / 20),
        "grad_norm": 1.0,
        "tokens_per_second": 1000.0,
        "seconds": step * 0.5,
    }
    return {**usual, **fields}


def make_run(
    folder: Path,
    *,
    steps: int = 100,
    done: int = 100,
    log_every: int = 10,
    result: str | None = None,
    resumed: tuple[int, ...] = (),
    probes: bool = False,
    preset: str = "boosted",
    source: dict[str, Any] | None = None,
) -> Path:
    """Write the folder of a run that got to step `done` of `steps`.

    Args:
        result: "finished" or "interrupted" writes the result.json of such an end, None writes none.
        resumed: steps from which further processes went on.
        probes: write what a look into the model shows too.
    """
    model = decoder_config(preset, vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, max_positions=32)
    train = TrainConfig(
        steps=steps,
        batch_size=16,
        context_length=32,
        log_every=log_every,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        schedule=ScheduleConfig(warmup_steps=min(20, steps - 1)),
    )
    data = {"fingerprint": "f" * 64, "tokens_per_batch": TOKENS_PER_BATCH}
    write_json(folder / "config.json", {"train": to_mapping(train), "model": to_mapping(model), "data": data})
    process = {
        "time": "2030-01-02T03:04:05+00:00",
        "command": "heedful train recipes/demo.toml --arm boosted --resume",
        "python": "3.11.9",
        "platform": "Linux",
        "packages": {"heedful": "0.1.0", "torch": "2.11.0", "triton": None},
        "device": "cpu",
        "gpu": None,
        "cpu": "a processor",
        "cpu_count": 4,
        "threads": 2,
        "source": source,
        "processes": 1,
        "strategy": "single",
    }
    later = [{"from_step": step, **process, "processes": 2, "strategy": "ddp"} for step in resumed]
    write_json(folder / "environment.json", {**process, **({"resumed": later} if later else {})})
    lines: list[dict[str, Any]] = []
    for step in range(log_every, done + 1, log_every):
        lines.append(training_line(step))
        if probes and step % 20 == 0:
            layers = {f"probe/{layer}/score_max": 3 + layer + step / 50 for layer in range(2)}
            lines.append({"step": step, **layers, "probe/0/gate_mean": 0.5 - step / 1000})
        if step % 20 == 0:
            loss = lines[-1 if not probes else -2]["train/loss"] + 0.1
            lines.append({"step": step, "val/loss": loss, "val/perplexity": math.exp(loss)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    saved = done // 20 * 20
    if saved:
        (folder / "checkpoints" / f"step-{saved:08d}").mkdir(parents=True)
        (folder / "checkpoints" / f"step-{saved:08d}" / "model.safetensors").write_bytes(b"x" * 2048)
        pointer = {"folder": f"step-{saved:08d}", "step": saved, "sha256": "0" * 64}
        write_json(folder / "checkpoints" / "last.json", pointer)
        write_json(folder / "checkpoints" / "best.json", pointer)
    if result is not None:
        evaluated = [line for line in lines if "val/loss" in line]
        best = min(evaluated, key=lambda line: line["val/loss"], default={"step": done})
        values = {
            "steps": done,
            "final": {"train/loss": 2.0},
            "best": {name: value for name, value in best.items() if name != "step"},
            "best_step": best["step"],
            "tokens_per_second": 1100.0,
            "peak_memory_bytes": 1 << 20,
            "seconds": done * 0.5,
            "interrupted": result == "interrupted",
        }
        write_json(folder / "result.json", values)
    return folder


def add_line(folder: Path, line: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
