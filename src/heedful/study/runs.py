"""One run of a comparison: train an arm with one learning rate and one seed, then test it, each at most once.

What a run found is written into its folder when it is complete, `record.json` after the training and `test.json` after
the test, and from then on only read. An unfinished training goes on from its last checkpoint.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heedful.files import write_json_atomically
from heedful.models import DecoderLM
from heedful.models.probes import probe
from heedful.study.plan import PlannedArm
from heedful.study.round_maps import attention_findings
from heedful.study.workloads import Workload
from heedful.train import DivergenceError, LineReporter, load_best, read_metrics, train
from heedful.train.device import resolve_device
from heedful.train.environment import cpu_name, git_state
from heedful.train.run_folder import read_json

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """An arm, a learning rate and a seed; the seed draws the initial weights, the batches and the dropout.

    `at_once` is how many runs share the machine: it changes speeds, and nothing else.
    """

    arm: PlannedArm
    learning_rate: float
    seed: int
    at_once: int = 1

    @property
    def title(self) -> str:
        """How progress lines call the run."""
        return f"{self.arm.name}, learning rate {self.learning_rate:g}, seed {self.seed}"

    def folder(self, comparison: Path) -> Path:
        """Return the run's folder inside that of the comparison."""
        return comparison / "runs" / self.arm.name / f"lr-{self.learning_rate!r}" / f"seed-{self.seed}"


def train_run(run: Run, workload: Workload, comparison: Path, report: Report | None) -> dict[str, Any]:
    """Train `run` unless that is done, and return its record.

    Args:
        report: takes progress lines; None draws a bar on a terminal.

    Raises:
        KeyboardInterrupt: a signal ended the training early; its checkpoint is saved.
    """
    folder = run.folder(comparison)
    record_file = folder / "record.json"
    if record_file.exists():
        return read_json(record_file)
    config = run.arm.train_config(run.learning_rate, run.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = DecoderLM(run.arm.config)  # on the CPU, so that the initial weights do not depend on the device
    record: dict[str, Any] = {"arm": run.arm.name, "learning_rate": run.learning_rate, "seed": run.seed}
    try:
        result = train(
            model,
            workload.training_data(run.seed),
            config,
            folder,
            evaluate=workload.validate,
            resume=True,
            report=None if report is None else LineReporter(lambda line: report(f"  {line}")),
        )
    except DivergenceError as error:
        nothing = dict.fromkeys(("best", "final", "best_step", "seconds", "tokens_per_second", "peak_memory_bytes"))
        steps = max((line["step"] for line in read_metrics(folder)), default=0)
        record |= {"status": "diverged", "message": str(error), "steps": steps, **nothing}
    else:
        if result.interrupted:
            raise KeyboardInterrupt
        record |= {
            "status": "finished",
            "message": "",
            "steps": result.steps,
            "best": result.best,
            "final": result.final,
            "best_step": result.best_step,
            "seconds": result.seconds,
            "tokens_per_second": result.tokens_per_second,
            "peak_memory_bytes": result.peak_memory_bytes,
        }
    record["machine"] = machine(config.device)
    record |= {"runs_at_once": run.at_once, "threads": torch.get_num_threads(), "source": source_of_run()}
    record["curve"] = [line for line in read_metrics(folder) if workload.curve["key"] in line]
    write_json_atomically(record_file, record)
    return record


def score_run(run: Run, workload: Workload, comparison: Path, *, with_pictures: bool) -> dict[str, Any]:
    """Score the best-validation checkpoint of a trained `run` unless that is done, and return the findings.

    Args:
        with_pictures: also probe the model and draw a sample from it.
    """
    folder = run.folder(comparison)
    test_file = folder / "test.json"
    if test_file.exists():
        return read_json(test_file)
    model = load_best(folder, device=resolve_device(run.arm.train.device)).eval()
    findings: dict[str, Any] = {"test": workload.test(model, run.seed), "sample": None, "diagnostics": []}
    if with_pictures:
        device = next(model.parameters()).device
        findings["sample"] = workload.sample(model, run.seed)
        findings["diagnostics"] = probe(model, workload.probe_tokens().to(device))
        findings["attention_maps"] = attention_findings(model, workload.probe_tokens(), workload.tokenizer)
    write_json_atomically(test_file, findings)
    _drop_training_state(folder)
    return findings


@functools.cache
def source_of_run() -> dict[str, Any] | None:
    """Return commit and state of the checkout that this process runs from, None outside one."""
    return git_state(Path(__file__))


def machine(device_name: str) -> str:
    """Return what a run computes on, so that a comparison spread over several machines can say so."""
    device = resolve_device(device_name)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def _drop_training_state(folder: Path) -> None:
    """Remove what only a resumed training would need; the best weights stay."""
    checkpoints = folder / "checkpoints"
    best = read_json(checkpoints / "best.json")["folder"]
    (checkpoints / "last.json").unlink(missing_ok=True)
    for other in checkpoints.glob("step-*"):
        if other.name != best:
            shutil.rmtree(other)
