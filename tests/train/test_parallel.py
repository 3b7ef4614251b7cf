"""One process and several compute the same, whatever each of them holds, and go on where another number stopped.

The rows of these runs have unequal numbers of scored tokens, and five rows do not divide by two, so that a mean of the
processes' means would be wrong.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from several_processes import run_jobs
from tiny_run import CopyData, run, tiny_config, tiny_model

from heedful.train import LossConfig, ParallelConfig
from heedful.train.loss import TrainingLoss
from heedful.train.parallel import build_mesh, gradient_module, parallelize, resolve_strategy, synchronising
from heedful.train.processes import Processes, joined_processes, share_of
from heedful.train.run_folder import require_same_everywhere
from heedful.train.training_step import require_fitting

STEPS, STOP = 12, 6
RUN = {
    "steps": STEPS,
    "batch_size": 5,
    "accumulation": 1,
    "evaluate_every": 4,
    "checkpoint_every": 3,
    "log_every": 1,
    "optimizer": {"ema_decay": 0.9},
}
HSDP = {"strategy": "hsdp", "shard_size": 2}
DROPOUT = {"dropout": 0.1}
MUON = {"optimizer": {"kind": "muon"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of this file, made with one start of each number of processes."""
    folder = tmp_path_factory.mktemp("runs")

    def job(name: str, strategy: str | dict[str, Any], **fields: Any) -> dict[str, Any]:
        parallel = strategy if isinstance(strategy, dict) else {"strategy": strategy}
        config = {**RUN, **fields.pop("config", {}), "parallel": parallel}
        return {"folder": str(folder / name), "config": config, **fields}

    def stopped(name: str, strategy: str, **fields: Any) -> dict[str, Any]:
        return job(name, strategy, signal_after=STOP, **fields)

    run_jobs(
        folder,
        2,
        [
            job("ddp", "ddp"),
            job("ddp in parts", "ddp", config={"accumulation": 2}),
            job("fsdp2", "fsdp2", config={"accumulation": 2}),
            job("fsdp2 recomputed", {"strategy": "fsdp2", "recompute_blocks": True}),
            job("fsdp2 with muon", "fsdp2", config=MUON),
            job("fsdp2 with dropout", "fsdp2", model=DROPOUT),
            stopped("fsdp2 with dropout, stopped", "fsdp2", model=DROPOUT),
            job("fsdp2 with dropout, stopped", "fsdp2", model=DROPOUT, config={"asynchronous_checkpoints": True}),
            stopped("fsdp2, then single", "fsdp2"),
            stopped("ddp, then hsdp", "ddp"),
            job("not evaluated", "fsdp2", config={"keep": "all"}, evaluate=False),
            job("not evaluated", "fsdp2", config={"keep": "all"}, evaluate=False, checkpoint="step-00000006"),
        ],
    )
    run_jobs(folder, 4, [job("hsdp", HSDP), job("ddp, then hsdp", HSDP)])
    run_jobs(
        folder,
        1,
        [
            *(job(f"single, {parts} parts", "single", config={"accumulation": parts}) for parts in (1, 2, 5)),
            job("fsdp2 alone", "fsdp2"),
            job("ddp alone", "ddp"),
            job("not evaluated, single", "single", evaluate=False),
            stopped("single, stopped", "single", signal_rank=0),
            job("single, stopped", "single"),
            job("fsdp2, then single", "single"),
            *(
                job(f"single with muon, {parts} parts", "single", config={**MUON, "accumulation": parts})
                for parts in (1, 5)
            ),
        ],
    )
    return folder


def curve(run: Path) -> list[float]:
    """Return everything that metrics.jsonl says of the computation, line by line."""
    names = ("train/loss", "grad_norm", "lr", "val/loss")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in names if name in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    last = json.loads((run / "checkpoints" / "last.json").read_text())["folder"]
    return load_file(run / "checkpoints" / last / "model.safetensors")


def difference(one: Path, other: Path) -> float:
    """Return the largest relative difference of the two curves, and of the weights against the largest weight."""
    pairs = list(zip(curve(one), curve(other), strict=True))
    assert len(pairs) >= 3 * STEPS
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    largest = max(float(tensor.abs().max()) for tensor in ours.values())
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours) / largest
    return max(apart, *(abs(a - b) / abs(b) for a, b in pairs))


@pytest.fixture(scope="module")
def tolerance(runs: Path) -> float:
    """How far rounding alone takes one process from itself when it adds up in another order, sixteen times over."""
    whole = runs / "single, 1 parts"
    rounding = max(difference(runs / f"single, {parts} parts", whole) for parts in (2, 5))
    assert 0 < rounding < 1e-4
    return 16 * rounding


@pytest.mark.parametrize(
    "name", ["ddp", "ddp in parts", "fsdp2", "fsdp2 recomputed", "hsdp", "fsdp2 alone", "ddp alone"]
)
def test_every_strategy_computes_what_one_process_does(name: str, runs: Path, tolerance: float) -> None:
    assert difference(runs / name, runs / "single, 1 parts") <= tolerance


def test_sharded_muon_computes_what_one_process_does(runs: Path) -> None:
    """Its steps are computed in bfloat16, so rounding is far larger."""
    whole = runs / "single with muon, 1 parts"
    rounding = difference(runs / "single with muon, 5 parts", whole)
    assert difference(runs / "fsdp2 with muon", whole) <= 16 * rounding


@pytest.mark.parametrize("name", ["fsdp2, then single", "ddp, then hsdp"])
def test_a_run_goes_on_with_another_strategy_and_number_of_processes(name: str, runs: Path, tolerance: float) -> None:
    environment = json.loads((runs / name / "environment.json").read_text())
    assert [entry["from_step"] for entry in environment["resumed"]] == [STOP + 1]
    assert difference(runs / name, runs / "single, 1 parts") <= tolerance


@pytest.mark.parametrize(
    ("name", "whole"),
    [("fsdp2 with dropout, stopped", "fsdp2 with dropout"), ("single, stopped", "single, 1 parts")],
)
def test_a_run_that_goes_on_with_as_many_processes_is_the_same_bit_for_bit(name: str, whole: str, runs: Path) -> None:
    """The signal reached one of the processes; all of them stopped after the same step."""
    environment = json.loads((runs / name / "environment.json").read_text())
    assert [entry["from_step"] for entry in environment["resumed"]] == [STOP + 1]
    assert curve(runs / name) == curve(runs / whole)
    ours, theirs = weights(runs / name), weights(runs / whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_can_go_back_to_a_checkpoint_and_need_not_be_evaluated(runs: Path, tolerance: float) -> None:
    assert difference(runs / "not evaluated", runs / "not evaluated, single") <= tolerance
    names = {path.name for path in (runs / "not evaluated" / "checkpoints").glob("step-*")}
    assert names >= {"step-00000009", "step-00000009.1", "step-00000012", "step-00000012.1"}


def test_dropout_differs_between_processes_and_from_none(runs: Path) -> None:
    assert difference(runs / "fsdp2 with dropout", runs / "fsdp2") > 1e-3


def test_every_process_writes_its_part(runs: Path) -> None:
    last = json.loads((runs / "hsdp" / "checkpoints" / "last.json").read_text())["folder"]
    folder = runs / "hsdp" / "checkpoints" / last
    training = json.loads((folder / "training.json").read_text())
    parts = sorted(path.name for path in (folder / "state").iterdir())
    assert len(parts) == training["world_size"] == 4
    assert set(training["sha256"]) == {"config.json", "model.safetensors", "training.safetensors"} | {
        f"state/{name}" for name in parts
    }


def test_what_is_exported_is_whole_and_averaged(runs: Path) -> None:
    model = tiny_model("boosted+multi-token", dropout=0.0)
    assert {name: tensor.shape for name, tensor in weights(runs / "fsdp2").items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    last = json.loads((runs / "single, stopped" / "checkpoints" / "last.json").read_text())["folder"]
    (file,) = (runs / "single, stopped" / "checkpoints" / last / "state").iterdir()
    state = load_file(file)
    exported = weights(runs / "single, stopped")
    assert all(torch.equal(exported[name], state[f"average/{name}"]) for name in exported)
    assert not all(torch.equal(exported[name], state[f"model/{name}"]) for name in exported)


def test_runs_can_be_copied_and_go_on_elsewhere(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "hsdp", tmp_path / "copy")
    job = {"folder": str(tmp_path / "copy"), "config": {**RUN, "parallel": {"strategy": "single"}}}
    run_jobs(tmp_path, 1, [job])  # finished: nothing is trained, but the checkpoint of four processes is read by one
    assert curve(tmp_path / "copy") == curve(runs / "hsdp")


@pytest.mark.parametrize(("rows", "parts"), [(8, 1), (8, 2), (7, 3), (5, 4), (3, 3), (1, 1)])
def test_shares_are_consecutive_and_differ_by_one_at_most(rows: int, parts: int) -> None:
    shares = [share_of(rows, parts, part) for part in range(parts)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_auto_is_one_process_or_copies() -> None:
    assert resolve_strategy(ParallelConfig(), 1) == "single"
    assert resolve_strategy(ParallelConfig(), 2) == "ddp"


@pytest.mark.parametrize(
    ("policy", "processes", "message"),
    [
        (ParallelConfig(strategy="single"), 2, "strategy 'single' is one process, but there are 2"),
        (ParallelConfig(strategy="hsdp", shard_size=3), 4, "shard_size must divide .* processes, got 3 and 4"),
    ],
)
def test_strategies_that_do_not_fit_are_refused(policy: ParallelConfig, processes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_strategy(policy, processes)


class Several(Processes):
    """One of several processes that are not there."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.world_size = world_size


@pytest.mark.parametrize(
    ("fields", "processes", "message"),
    [
        ({"batch_size": 4, "accumulation": 4}, 2, r"leaves 2 rows for some, .*: use accumulation 2 or fewer"),
        ({"batch_size": 4, "accumulation": 1}, 8, r"leaves 0 rows for some, .*: use fewer processes"),
    ],
)
def test_batches_too_small_for_the_processes_are_refused(fields: dict[str, int], processes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_fitting(tiny_model(), CopyData(), tiny_config(**fields), Several(processes))


def test_processes_that_were_given_something_else_are_refused() -> None:
    class Second(Several):
        """A process whose first one reads other data."""

        def from_first(self, produce: Any) -> Any:
            return {**produce(), "data": {"fingerprint": "another"}}

        def together(self, act: Any) -> list[Any]:
            return [act()]

    description = {"train": {"steps": 3}, "data": {"fingerprint": "this"}}
    with pytest.raises(ValueError, match=r"given the same: data.fingerprint is 'another' there and 'this' here, the"):
        require_same_everywhere(Second(2), description)


def test_models_that_cannot_be_sharded_are_refused() -> None:
    class Mesh:
        mesh_dim_names = ("shard",)

    def attempt(model: torch.nn.Module) -> None:
        mesh: Any = Mesh()
        parallelize(model, mesh, ParallelConfig(strategy="fsdp2"), device=torch.device("cpu"))

    with pytest.raises(ValueError, match=r"shares one block .* Use strategy 'ddp'"):
        attempt(tiny_model("standard", share_layers=True))
    model = tiny_model("standard")
    model.second = model.final_norm
    with pytest.raises(
        ValueError, match=r"of two names cannot be sharded, and final_norm.weight is also second.weight"
    ):
        attempt(model)
    model = tiny_model("standard")
    model.extra = torch.nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match=r"without a dimension cannot be sharded, and extra is one"):
        attempt(model)


def test_recomputing_needs_less_memory_and_changes_nothing(tmp_path: Path) -> None:
    plain, one = run(tmp_path / "plain", parallel=ParallelConfig(), accumulation=1)
    again, other = run(tmp_path / "again", parallel=ParallelConfig(recompute_blocks=True), accumulation=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert again.peak_memory_bytes < plain.peak_memory_bytes


def test_gradients_are_sent_with_the_last_micro_batch_only() -> None:
    """Before they are sent, a sharded parameter has none: they are added up in the gathered copies."""
    device, policy = torch.device("cpu"), ParallelConfig(strategy="fsdp2")
    batch, model = CopyData().batch(0), tiny_model(dropout=0.0)
    with joined_processes(needs_group=True, timeout_seconds=60, device=device):
        mesh = build_mesh(policy, 1, "cpu")
        parallelize(model, mesh, policy, device=device)
        loss = gradient_module(TrainingLoss(model, LossConfig()), mesh)
        for synchronise in (False, False, True):
            with synchronising(loss, synchronise=synchronise):
                loss(batch.tokens, batch.targets, None)[0].backward()
            assert all((parameter.grad is not None) == synchronise for parameter in model.parameters())
        gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    alone = tiny_model(dropout=0.0)
    TrainingLoss(alone, LossConfig())(batch.tokens, batch.targets, None)[0].backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(gradients[name], 3 * parameter.grad)
