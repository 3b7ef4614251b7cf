"""Starting the script `runs_in_processes.py` with one process or, by torchrun, with several."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import runs_in_processes

SECONDS = 300


def run_jobs(folder: Path, processes: int, jobs: list[dict[str, Any]]) -> None:
    """Run jobs one after the other in as many processes, and leave none behind whatever happens."""
    file = folder / f"jobs-{processes}-{len(list(folder.glob('jobs-*')))}.json"
    file.write_text(json.dumps(jobs))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), runs_in_processes.__file__, str(file)]
    paths = [str(Path(runs_in_processes.__file__).parent), *sys.path]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except BaseException:
            process.terminate()  # torchrun then ends its processes, which are in sessions of their own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=40)
            process.kill()
            raise
    assert process.returncode == 0, output
