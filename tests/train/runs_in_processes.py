"""The script of the tests with several processes: small runs one after the other, in as many processes as there are.

Argument: a JSON file that holds a list of jobs, {"folder", "config", "model", "evaluate", "checkpoint", "signal_after",
"signal_rank"}; what came out is in each run's folder. It ends as the command line does, without taking the group down.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tiny_run import CopyData, tiny_config, tiny_model, validate

from heedful.schema import from_mapping, to_mapping
from heedful.train import TrainConfig, train
from heedful.train.processes import environment_rank


class UnevenData(CopyData):
    """As `CopyData`, but the rows have unequal numbers of scored tokens, from none to all of the second half."""

    def batch(self, step: int, rows: range | None = None) -> Any:
        batch = super().batch(step)
        for row in range(self.rows):
            batch.targets[row, : 5 + (row * 7 + step) % 6] = -100
        taken = slice(None) if rows is None else slice(rows.start, rows.stop)
        return type(batch)(batch.tokens[taken], batch.targets[taken], None)


def signal_itself(after: int | None, rank: int) -> Any:
    """Return a hook that sends a signal to one process while the batch after so many steps is made."""

    def hook(step: int) -> None:
        if step == after and environment_rank() == rank:
            os.kill(os.getpid(), signal.SIGTERM)

    return hook


def run_job(job: dict[str, Any]) -> None:
    config = to_mapping(tiny_config())
    for name, value in job["config"].items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    meta = environment_rank() > 0 and job["config"].get("parallel", {}).get("strategy") != "single"
    with torch.device("meta") if meta else nullcontext():
        model = tiny_model("boosted+multi-token", **{"dropout": 0.0, **job.get("model", {})})
    hook = signal_itself(job.get("signal_after"), job.get("signal_rank", 1))
    train(
        model,
        UnevenData(hook, rows=config["batch_size"]),
        from_mapping(TrainConfig, config),
        Path(job["folder"]),
        evaluate=validate if job.get("evaluate", True) else None,
        resume=True,
        checkpoint=job.get("checkpoint"),
        report=lambda line: None,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run_job(job)
    sys.stdout.flush()
    os._exit(0)
