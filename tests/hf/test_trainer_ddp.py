"""Two processes under torchrun train as one process with twice the batch does."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import train_in_processes
from safetensors.torch import load_file
from small_hf import MECHANISMS, largest_difference

SECONDS = 240


def train_in_two_processes(folder, rows):
    """Run the script under torchrun, and leave no process behind whatever happens."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    command = [sys.executable, *launcher, train_in_processes.__file__, str(folder), str(rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except BaseException:
            process.terminate()  # torchrun then ends its processes, which are in sessions of their own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=20)
            process.kill()
            raise
    assert process.returncode == 0, output


def results_in(folder: Path, mechanism):
    facts = json.loads((folder / f"{mechanism}.json").read_text(encoding="utf-8"))
    return facts["processes"], facts["losses"], load_file(folder / f"{mechanism}.safetensors")


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    for folder in (alone, both):
        folder.mkdir()
    train_in_two_processes(both, rows=2)
    for mechanism in MECHANISMS:
        train_in_processes.train(alone, mechanism, rows=4)
        processes, losses, weights = results_in(alone, mechanism)
        assert processes == 1
        processes, same_losses, same_weights = results_in(both, mechanism)
        assert processes == 2
        assert same_losses == pytest.approx(losses, rel=1e-5)
        assert weights.keys() == same_weights.keys()
        for name, tensor in weights.items():
            assert largest_difference(tensor, same_weights[name]) < 1e-5, (mechanism, name)
