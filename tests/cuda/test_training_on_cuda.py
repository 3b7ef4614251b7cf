"""Runs on a CUDA device: sharded over a group of one, with checkpoints in the background, stopped and gone on with."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))

from tiny_run import CopyData, metric_lines, signal_at, tiny_config, tiny_model, validate

from heedful.train import OptimizerConfig, ParallelConfig, load_best, train

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; `make gpu` runs it"),
]

WAYS = {
    "sharded": {"parallel": ParallelConfig(strategy="fsdp2")},
    "recomputed": {"parallel": ParallelConfig(recompute_blocks=True)},
    "in parts": {"accumulation": 4},
    "compiled": {"compile": True},
    "probed, saved in the background": {"probe_every": 4, "asynchronous_checkpoints": True},
}


def run(folder, data=None, *, device="cuda", optimizer=None, **fields):
    optimizer = OptimizerConfig(learning_rate=1e-2, ema_decay=0.9) if optimizer is None else optimizer
    config = tiny_config(**{"accumulation": 1, **fields, "device": device, "optimizer": optimizer})
    model = tiny_model("boosted+multi-token", dropout=0.0)
    return train(model, data or CopyData(), config, folder, evaluate=validate, resume=True, report=lambda line: None)


def losses(folder):
    return [line[name] for line in metric_lines(folder) for name in ("train/loss", "val/loss") if name in line]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    run(folder)
    return losses(folder)


def test_it_computes_what_the_cpu_does(plain, tmp_path):
    run(tmp_path, device="cpu")
    assert plain == pytest.approx(losses(tmp_path), rel=1e-3)


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # float32 is meant
@pytest.mark.parametrize("way", WAYS)
def test_every_way_computes_the_same(way, plain, tmp_path):
    run(tmp_path, **WAYS[way])
    assert losses(tmp_path) == pytest.approx(plain, rel=1e-3)
    assert next(load_best(tmp_path, device="cuda").parameters()).is_cuda


@pytest.mark.parametrize("first", ["cuda", "cpu"])
@pytest.mark.parametrize("strategy", ["single", "fsdp2"])
def test_a_stopped_run_goes_on_here(first, strategy, plain, tmp_path):
    assert run(tmp_path, CopyData(signal_at(9)), device=first).interrupted
    run(tmp_path, parallel=ParallelConfig(strategy=strategy), asynchronous_checkpoints=True)
    assert losses(tmp_path) == pytest.approx(plain, rel=1e-3)


def test_muon_in_bfloat16_learns(tmp_path):
    result = run(tmp_path, precision="bfloat16", optimizer=OptimizerConfig(kind="muon", learning_rate=1e-2))
    first = next(line["train/loss"] for line in metric_lines(tmp_path) if "train/loss" in line)
    assert result.final["train/loss"] < first
