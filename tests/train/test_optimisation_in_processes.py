"""Optimiser and average of a model that is spread over two processes, against the same in one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

SECONDS = 240


def test_two_processes_that_hold_parts_of_a_model_move_it_as_one_does() -> None:
    script = Path(__file__).with_name("optimise_in_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    paths = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
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
    assert all(f"process {rank} compared everything" in output for rank in (0, 1)), output
