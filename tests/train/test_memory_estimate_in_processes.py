"""The estimated memory of a model that is spread over two processes, against what a real step allocates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_the_estimate_of_a_spread_model_is_what_a_step_needs() -> None:
    """Within a hidden state, and for sharded models what is gathered and sent, which the estimate counts as there in
    full at the worst moment: it may be less, and for a moment there may be two of each.
    """
    script = Path(__file__).with_name("measure_in_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.partition("figures ")[2] for line in done.stdout.splitlines() if "figures " in line]
    assert len(lines) == 8
    for line in lines:
        figures = json.loads(line)
        assert abs(figures["estimated"] - figures["measured"]) <= figures["bound"], figures
        assert figures["bound"] < figures["measured"] / 3, "a bound that says something"
